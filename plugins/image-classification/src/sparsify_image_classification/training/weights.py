"""Read checkpoints of weights, without running what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn

HOLDERS = ("state_dict", "model_state_dict", "model", "module", "net")
SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """Hold a checkpoint's tensors by name, and the name of the architecture where it says one."""

    path: Path
    tensors: Mapping[str, Tensor]
    arch: str = ""

    @property
    def classes(self) -> int | None:
        """Return how many rows the last weight has: the number of classes of an image classifier."""
        sides = [
            len(value) for name, value in self.tensors.items() if name.endswith("weight") and value.dim() in (2, 4)
        ]
        return sides[-1] if sides else None


def read_weights(path: Path, option: str) -> Weights:
    """Read a state dict, alone or in a checkpoint beside other things; raises RequestError naming the option.

    Only what torch.load reads with weights_only=True is read, and safetensors.
    """
    if not path.is_file():
        raise RequestError(f"{option}: {path} is no file", fix="give a state dict that torch.save wrote")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return Weights(path, load_file(path))
    held = _load(path, option)
    arch = str(held["arch_key"]) if isinstance(held, Mapping) and held.get("arch_key") else ""
    for name in HOLDERS:
        inner = held.get(name) if isinstance(held, Mapping) else None
        if isinstance(inner, Mapping):
            held = inner
            break
    if not isinstance(held, Mapping) or not any(isinstance(value, Tensor) for value in held.values()):
        fix = "give a file that holds a state dict, or one under 'state_dict'"
        raise RequestError(f"{option}: {path} holds no weights by name, but {type(held).__name__}", fix=fix)
    tensors = {str(name).removeprefix("module."): value for name, value in held.items() if isinstance(value, Tensor)}
    return Weights(path, tensors, arch)


def _load(path: Path, option: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = f"{option}: {path} is a pickle that holds more than tensors and plain values, or no checkpoint at all"
        fix = (
            "convert it where you trust it: python -c \"import torch; m = torch.load('"
            f"{path}', weights_only=False); torch.save(getattr(m, 'state_dict', lambda: m['model'].state_dict())(), "
            "'weights.pt')\""
        )
        raise RequestError(problem, fix=fix) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        problem = f"{option}: {path} cannot be read: {str(error).splitlines()[0]}"
        raise RequestError(problem, fix="give a whole file that torch.save wrote") from None


def fit_weights(module: nn.Module, weights: Weights, what: str) -> None:
    """Load weights into a module; raises RequestError for names or shapes that differ."""
    wanted = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    odd = [
        f"'{name}' has the shape {tuple(weights.tensors[name].shape)}, {what} has {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights.tensors and value.shape != weights.tensors[name].shape
    ]
    strange = [name for name in weights.tensors if name not in wanted and not _left_out(module, name)]
    for name in wanted:
        if name in weights.tensors or name.endswith("num_batches_tracked"):
            continue
        near = get_close_matches(name, strange, n=1)
        odd.append(f"'{name}' is missing" + (f" (the nearest is '{near[0]}')" if near else ""))
    odd += [f"'{name}' is not in {what}" for name in strange]
    if odd:
        more = f", and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        problem = f"{weights.path} does not fit {what}: {'; '.join(odd[:SHOWN])}{more}"
        raise RequestError(problem, fix="give the weights of this model, or name the model that they are of")
    module.load_state_dict(dict(weights.tensors), strict=False)


def _left_out(module: nn.Module, name: str) -> bool:
    """Say whether a weight is of a part that this network could have and does not: an extra classifier."""
    return getattr(module, name.partition(".")[0], module) is None
