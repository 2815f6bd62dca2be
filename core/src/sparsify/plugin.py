"""Core's own commands and metrics, offered like any plugin's."""

from __future__ import annotations

from sparsify.hooks import Entry, hookimpl


@hookimpl
def commands() -> list[Entry]:
    """Offer the commands."""
    return [
        Entry("run", "sparsify.cli.run:app", "Make a model smaller and faster, and verify it"),
        Entry("use-cases", "sparsify.cli.use_cases:app", "List use cases, their aliases and metrics"),
        Entry("plugins", "sparsify.cli.plugins:app", "List, explain, check or scaffold plugins"),
        Entry("recipe", "sparsify.cli.recipe:app", "Show, check or write a recipe"),
        Entry("eval", "sparsify.cli.evaluate:app", "Measure a deployment folder on a dataset"),
        Entry(
            "doctor",
            "sparsify.cli.doctor:app",
            "Check CPU, runtimes and packages, with the fix for each",
            aliases=("check-environment",),
        ),
    ]


@hookimpl
def evaluators() -> list[Entry]:
    """Offer the metrics of plain classifiers."""
    return [
        Entry("accuracy", "sparsify.metrics:ACCURACY", "Top-1 accuracy", aliases=("top1",)),
        Entry("top5", "sparsify.metrics:TOP5", "Top-5 accuracy"),
        Entry("f1", "sparsify.metrics:F1", "Macro F1 over classes"),
        Entry("recall", "sparsify.metrics:RECALL", "Macro recall over classes"),
    ]
