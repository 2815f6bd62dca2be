"""Offer a metric, a command and an observer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsify import Entry, hookimpl


@hookimpl
def evaluators() -> Iterable[Entry]:
    """Offer a metric."""
    return [Entry("toy-margin", target="toy_plugin.margin:MARGIN", summary="mean lead of the best class, in per cent")]


@hookimpl
def commands() -> Iterable[Entry]:
    """Offer a command, and one that needs what nobody has."""
    return [
        Entry("toy", target="toy_plugin.greeting:app", summary="greet", aliases=("toy-greeting",)),
        Entry("toy-absent", target="toy_plugin.absent:app", summary="never runs", requires=("no-such-library",)),
    ]


@hookimpl
def experiment_finished(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Leave a note beside the report."""
    (folder / "toy.txt").write_text(str(metrics["verdict"]), encoding="utf-8")
