"""Count the classes of image data in any form, before there is a model that it has to fit."""

from __future__ import annotations

from pathlib import Path

from sparsify_image_classification import imagefolder, metadata, parquet, webdataset
from sparsify_image_classification.classes import number_classes, read_class_list


def count_classes(path: Path, class_list: Path | None) -> int:
    """Count the lines of a class list, else the classes of the data; raises RequestError."""
    if class_list is not None:
        return len(read_class_list(class_list))
    for form in (metadata, webdataset, parquet):
        if form.recognises(path):
            listing = form.read(path)
            return len(number_classes(listing.splits, listing.names, listing.root))
    return len(imagefolder.class_names(path))
