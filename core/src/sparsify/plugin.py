"""Core's own commands and metrics, offered like any plugin's."""

from __future__ import annotations

from sparsify.hooks import Entry, hookimpl


@hookimpl
def commands() -> list[Entry]:
    """Offer the commands."""
    return [Entry("run", "sparsify.cli.run:app", "Make a model smaller and faster, and verify it")]


@hookimpl
def evaluators() -> list[Entry]:
    """Offer the metric of any classifier."""
    return [Entry("accuracy", "sparsify.metrics:ACCURACY", "Top-1 accuracy", aliases=("top1",))]
