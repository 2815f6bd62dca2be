"""Offer NPZ datasets and the use case that takes any model with them."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def use_cases() -> Iterable[Entry]:
    return [
        Entry(
            "custom",
            target="sparsify_npz.use_case:CUSTOM",
            summary="any task, with samples stored as NPZ files; agreement with the baseline where there are no labels",
            accepts=("npz",),
            metric="accuracy",
        )
    ]


@hookimpl
def dataset_loaders() -> Iterable[Entry]:
    return [
        Entry(
            "npz",
            target="sparsify_npz.folder:LOADER",
            summary="one sample a file, keys are the model's input names, an optional key `label` is the target",
            accepts=(".npz",),
        )
    ]
