"""Take a PyTorch checkpoint where an ONNX file is asked for: build its architecture by name, and export it.

A checkpoint is read as data, never unpickled. So it has to say which architecture its weights belong to in a way that
runs no code of its own: `arch_key`, as SparseML wrote it, is looked up among torchvision's models. An exported program
is refused: torch 2.13 unpickles and evaluates what lies in it (torch/export/pt2_archive/_package.py loads tensors with
weights_only=False, _export/serde/serialize.py hands symbolic sizes to sympify).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sparsify import MissingLibraryError, Model, RequestError
from sparsify_onnx import FORMAT as ONNX
from torch import Tensor, nn

from sparsify_torch.export_onnx import export

NAMES = ("arch_key", "arch")
WEIGHTS = ("state_dict", "model_state_dict", "model")
PIXELS = 224  # of a side, where the checkpoint says nothing of `image_size`
CONVERT = (
    "in Python, with the model and one batch at hand: from sparsify_torch import export; "
    "export(model, images, Path('model.onnx')), and give model.onnx"
)


def load(path: Path) -> Model:
    """Read a checkpoint, build its model, export it, and return it as an `onnx` model with the facts of one.

    Raises RequestError for what is no such checkpoint, with the way to convert it; MissingLibraryError without
    torchvision.
    """
    checkpoint = read_checkpoint(path)
    name = next((checkpoint[key] for key in NAMES if isinstance(checkpoint.get(key), str)), "")
    weights = next((checkpoint[key] for key in WEIGHTS if isinstance(checkpoint.get(key), Mapping)), None)
    if not name or weights is None:
        known = _are_weights(checkpoint)
        held = "weights without the name of an architecture" if known else "no weights"
        raise RequestError(
            f"{path} holds {held}: expected `arch_key`, a torchvision name, beside `state_dict`",
            fix=f"name it: --model NAME --weights {path}, such as --model resnet50; or {CONVERT}" if known else CONVERT,
        )
    module = build(name, weights, path)
    pixels = int(checkpoint.get("image_size", PIXELS))
    model = export(module, torch.zeros(2, 3, pixels, pixels), input_names=["input"], output_names=["logits"])
    notes = (f"exported from {path.name}: {name}, opset {model.facts['opset']['used']}", *model.facts["notes"])
    return Model("onnx", model.value, {**model.facts, "path": str(path), "notes": notes})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values on the CPU; raises RequestError for anything that needs more."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise RequestError(f"checkpoint {path} {what}", fix="give the path of a .pt or .pth file")
    kind = _archive_kind(path)
    if kind:
        raise RequestError(f"{path} is {kind}, which runs code of its own when loaded", fix=_conversion(kind, path))
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"{path} holds Python objects besides tensors, and unpickling those would run their code: {_line(error)}",
            fix="where it was made: torch.save({'arch_key': 'resnet18', 'state_dict': model.state_dict()}, path); or "
            + CONVERT,
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise RequestError(
            f"{path} is no PyTorch checkpoint, or it is cut short ({path.stat().st_size:,} bytes): {_line(error)}",
            fix="save or copy it again, and check that the sizes agree",
        ) from error
    if not isinstance(held, dict):
        raise RequestError(f"{path} holds a {type(held).__name__}, expected a mapping of names to tensors", fix=CONVERT)
    return held


def build(name: str, weights: Mapping[str, Any], path: Path) -> nn.Module:
    """Build a torchvision model with as many classes as the weights have, and load them."""
    if find_spec("torchvision") is None:
        raise MissingLibraryError(f"{path} is a '{name}', which torchvision builds", fix="pip install torchvision")
    models: Any = import_module("torchvision.models")
    known = models.list_models()
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise RequestError(
            f"{path}: torchvision has no architecture '{name}'", fix=f"set arch_key to {', '.join(near)}; or {CONVERT}"
        )
    tensors = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
    classes = next((len(value) for value in reversed(tensors.values()) if value.dim()), 0)
    module: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise RequestError(
            f"the weights of {path} do not fit the architecture '{name}': {_line(error)}",
            fix=f"give the checkpoint of a {name}, or correct its arch_key; or {CONVERT}",
        ) from error
    return module.eval()


def _archive_kind(path: Path) -> str:
    """Say what a zip archive is that is no plain checkpoint."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return "an exported program"
    return "TorchScript" if any(name.startswith("code/") or name == "constants.pkl" for name in names) else ""


def _conversion(kind: str, path: Path) -> str:
    if kind == "TorchScript":
        return "load the original module, and " + CONVERT
    return (
        'if you trust its origin: python -c "import torch; torch.onnx.export(torch.export.load('
        f"'{path}'), dynamo=True).save('model.onnx')\", and give model.onnx"
    )


def _are_weights(checkpoint: Mapping[str, Any]) -> bool:
    held = next((checkpoint[key] for key in WEIGHTS if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    return any(isinstance(value, Tensor) for value in held.values())


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


FORMAT = replace(ONNX, load=load, read=load, files=lambda path: (path,))
