"""Write checkpoints that a killed run goes on from, and refuse those of another run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from sparsify import RequestError, StageError
from torch import nn

LAST, BEST = "last.pt", "best.pt"
MEGABYTE = 1 << 20


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically; raises StageError where the disk is full or cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer hides what the file said
        cause = error if isinstance(error, OSError) else error.__context__ or error
        partial.unlink(missing_ok=True)
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        kept = "the one before is kept" if path.exists() else "there is none before"
        problem = f"training: the checkpoint {path} cannot be written: {reason}; {kept}"
        raise StageError(problem, fix="free disk space and run the same command with --resume") from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; raises RequestError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        raise _broken(path, error) from None
    if not isinstance(state, dict) or "identity" not in state:
        raise _broken(path, ValueError("it holds something else"))
    return state


def _broken(path: Path, error: Exception) -> RequestError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return RequestError(f"--resume: {path} is no checkpoint of a run: {reason}", fix=f"remove {path} to begin anew")


def identify(module: nn.Module, recipe: str, keys: Sequence[str], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint must agree with: the model, the recipe, the samples and the plan."""
    shapes = [f"{name} {tuple(value.shape)}" for name, value in module.state_dict().items()]
    return {"model": "\n".join(shapes), "recipe": recipe, "samples": _digest(keys), **plan}


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raise RequestError for a checkpoint of another model, recipe, data or plan."""
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        shown = "" if name == "samples" else f": {_difference(str(found.get(name)), str(value))}"
        problem = f"--resume: {path} was saved by a run with another {name}{shown}"
        raise RequestError(problem, fix=f"resume with the {name} that the run began with, or give an empty --output")


def _difference(there: str, here: str) -> str:
    """Show the first line in which two texts differ."""
    pairs = zip_longest(there.splitlines(), here.splitlines(), fillvalue="nothing")
    one, other = next(((one, other) for one, other in pairs if one != other), (there, here))
    return f"'{one.strip()}' there, '{other.strip()}' here"


def random_state() -> dict[str, Any]:
    """Return the state of torch's random numbers."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def check_finite(module: nn.Module, step: int, path: Path) -> None:
    """Raise StageError for weights that are not finite, before they replace a good checkpoint."""
    for name, value in module.named_parameters():
        if not torch.isfinite(value).all():
            kept = f"{path} holds the last good ones" if path.exists() else "there is no good checkpoint before"
            problem = f"training: weights of '{name}' are not finite after step {step}; {kept}"
            raise StageError(problem, fix="lower the learning rate: --train-kwargs '{\"lr\": …}', or clip_grad")
