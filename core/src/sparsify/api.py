"""The commands as Python functions: same code, same defaults, same errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.pipeline import Result


def one_shot(*, quiet: bool = False, resume: bool = False, **options: Any) -> Result:
    """Prune and quantize after training; options are those of `sparsify run one-shot`. Raises SparsifyError."""
    return _run("one-shot", quiet, resume, options)


def training_aware(*, quiet: bool = False, resume: bool = False, **options: Any) -> Result:
    """Prune and quantize while training; options are those of `sparsify run training-aware`. Raises SparsifyError."""
    return _run("training-aware", quiet, resume, options)


def sparse_transfer(*, quiet: bool = False, resume: bool = False, **options: Any) -> Result:
    """Fine-tune an already sparse model; raises RequestError until it exists."""
    return _run("sparse-transfer", quiet, resume, options)


def _run(kind: str, quiet: bool, resume: bool, options: dict[str, Any]) -> Result:
    from sparsify.experiment import make_experiment
    from sparsify.pipeline import run
    from sparsify.talk import Talk

    paths = {name: str(value) if hasattr(value, "__fspath__") else value for name, value in options.items()}
    return run(make_experiment({**paths, "kind": kind}, source="Python call"), talk=Talk(quiet=quiet), resume=resume)
