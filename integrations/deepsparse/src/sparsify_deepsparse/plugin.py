"""Offer DeepSparse as a runtime, and the environment it needs."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def runtimes() -> Iterable[Entry]:
    return [
        Entry(
            "deepsparse",
            target="sparsify_deepsparse.runtime:open_session",
            summary="DeepSparse 1.8.0, which turns zeros into speed; ended in 2025, its licence is for evaluation only",
            accepts=("onnx-integer",),
        )
    ]


@hookimpl
def installers() -> Iterable[Entry]:
    return [
        Entry(
            "deepsparse",
            target="sparsify_deepsparse.environment:install",
            summary="make the environment of Python 3.11 that DeepSparse 1.8.0 runs in",
        )
    ]
