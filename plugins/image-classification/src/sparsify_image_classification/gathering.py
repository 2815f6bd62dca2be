"""Make a run's data of images that lie anywhere: splits with class ids, preprocessing, and a reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sparsify import Data, DataRequest, Dataset

from sparsify_image_classification.classes import Label, ids_of, number_classes, read_class_list
from sparsify_image_classification.preprocessing import image_input, resolve_preprocess, summarize
from sparsify_image_classification.reading import ImageReader

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Listing:
    """Hold labels by split and key, the classes' names by number where the data tells them, and how to get the images.

    Without fetch the images are files below the root.
    """

    root: Path
    splits: Mapping[str, Mapping[str, Label]]
    names: tuple[str, ...] = ()
    fetch: Fetch | None = None
    notes: tuple[str, ...] = ()


def load_listing(listing: Listing, request: DataRequest) -> Data:
    """Make a run's data of a listing, by the classes that the user, else the data says; raises RequestError."""
    given = read_class_list(request.class_list) if request.class_list else request.labels
    labels = number_classes(listing.splits, given or listing.names, listing.root, complete=not given)
    targets = {name: ids_of(split, labels) for name, split in listing.splits.items()}
    return gather(request, labels, targets, root=listing.root, fetch=listing.fetch, notes=listing.notes)


def gather(
    request: DataRequest,
    labels: tuple[str, ...],
    targets: Mapping[str, Mapping[str, int]],
    *,
    root: Path | None = None,
    fetch: Fetch | None = None,
    notes: tuple[str, ...] = (),
) -> Data:
    """Make datasets of class ids by split and key, with the preprocessing that fits the model; raises RequestError."""
    image = image_input(request.inputs)
    description, source = resolve_preprocess(request.preprocess, image, request.model)
    datasets = {}
    for split, ids in targets.items():
        reader = ImageReader(root or request.path, image.name, description, MappingProxyType(ids), fetch)
        datasets[split] = Dataset(tuple(sorted(ids)), reader)
    present = {index for ids in targets.values() for index in ids.values()}
    return Data(
        splits=datasets,
        has_targets=True,
        labels=labels,
        preprocess=description,
        chance=100 / len(present),
        notes=(*notes, f"preprocessing ({source}): {summarize(description)}"),
    )
