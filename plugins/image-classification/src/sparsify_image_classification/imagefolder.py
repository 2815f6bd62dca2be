"""Load folders of images by class: root/class/image, or root/train/class/image and root/val/class/image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsify import Data, DataRequest, DatasetLoader, RequestError

from sparsify_image_classification import metadata
from sparsify_image_classification.classes import SPLITS, read_class_list
from sparsify_image_classification.gathering import gather
from sparsify_image_classification.reading import image_suffixes

LAYOUT = "expected one folder a class with images in it, with or without train/ and val/ above"


@dataclass(frozen=True)
class Split:
    """Hold one split's class folders: for each, its images as keys, relative to the root and sorted."""

    name: str
    folder: Path
    classes: Mapping[str, tuple[str, ...]]


def recognises(path: Path) -> bool:
    """Say whether a folder holds class folders with images, by names only."""
    if not path.is_dir() or metadata.recognises(path):
        return False
    suffixes = image_suffixes()
    return any(
        next(_images(child, path, suffixes), None) is not None
        for root in _split_folders(path).values() or [path]
        for child in _folders(root)
    )


def load(request: DataRequest) -> Data:
    """List the images, give every class folder its id and resolve the preprocessing; opens no image.

    Raises RequestError for a layout, a class list or a preprocessing that does not work.
    """
    splits = _read_splits(request.path)
    labels = _labels(splits, request)
    ids = {label: index for index, label in enumerate(labels)}
    return gather(
        request,
        labels,
        {split.name: {key: ids[name] for name, keys in split.classes.items() for key in keys} for split in splits},
    )


def class_names(path: Path) -> tuple[str, ...]:
    """Name the class folders in id order; raises RequestError."""
    return tuple(sorted(_read_splits(path)[0].classes))


def _read_splits(path: Path) -> tuple[Split, ...]:
    if not path.exists():
        raise RequestError(f"--data: {path} does not exist", fix="give the folder that holds the class folders")
    if not path.is_dir():
        raise RequestError(f"--data: {path} is a file, {LAYOUT}", fix="give the folder that holds the class folders")
    suffixes = image_suffixes()
    folders = _split_folders(path) or {"all": path}
    splits = tuple(_read_split(name, folder, path, suffixes) for name, folder in folders.items())
    if not any(keys for split in splits for keys in split.classes.values()):
        raise _no_images(path, splits)
    return splits


def _split_folders(path: Path) -> dict[str, Path]:
    """Find the split folders: those of a split's name that hold folders. A class may be called `train`, too."""
    found: dict[str, Path] = {}
    for folder in _folders(path):
        split = SPLITS.get(folder.name.lower())
        if split is None or not _folders(folder):
            continue
        if split in found:
            raise RequestError(
                f"--data: {path} holds two folders for one split, {found[split].name} and {folder.name}",
                fix="move one of them away, or merge them",
            )
        found[split] = folder
    return found


def _read_split(name: str, folder: Path, root: Path, suffixes: frozenset[str]) -> Split:
    return Split(
        name, folder, {child.name: tuple(sorted(_images(child, root, suffixes))) for child in _folders(folder)}
    )


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    return [path / name for name in names]


def _images(folder: Path, root: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Yield the images below a class folder as paths relative to the root, with forward slashes."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        prefix = Path(place).relative_to(root).as_posix()
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes:
                yield f"{prefix}/{name}"


def _no_images(path: Path, splits: Sequence[Split]) -> RequestError:
    if not any(path.iterdir()):
        return RequestError(f"--data: {path} is empty, {LAYOUT}", fix="give the folder that holds the class folders")
    if not any(split.classes for split in splits):
        return RequestError(f"--data: {path} holds no folders, {LAYOUT}", fix="move each class's images into a folder")
    return RequestError(
        f"--data: no image in any of the {sum(len(split.classes) for split in splits)} folders of {path}, {LAYOUT}",
        fix="give image files that PIL reads, such as .jpg or .png",
    )


def _labels(splits: Sequence[Split], request: DataRequest) -> tuple[str, ...]:
    """Name the classes in id order: the class list's lines, else the sorted folder names."""
    if request.class_list is not None:
        labels = read_class_list(request.class_list)
        _check_listed(splits, labels, str(request.class_list))
        return labels
    if request.labels:
        _check_listed(splits, request.labels, "the model's labels")
        return request.labels
    labels = tuple(sorted(splits[0].classes))
    for split in splits:
        _check_same(split, splits[0])
        for name, keys in split.classes.items():
            if not keys:
                raise RequestError(
                    f"--data: class folder {split.folder / name} holds no image",
                    fix="add its images, remove the folder, or say the model's classes with --class-list FILE",
                )
    if len(labels) == 1:
        raise RequestError(
            f"--data: {splits[0].folder} holds one class only, '{labels[0]}': any model would be right",
            fix="give images of at least two classes, or say the model's classes with --class-list FILE",
        )
    return labels


def _check_same(split: Split, first: Split) -> None:
    odd = sorted(set(split.classes) ^ set(first.classes))
    if odd:
        has, lacks = (split, first) if odd[0] in split.classes else (first, split)
        raise RequestError(
            f"--data: class folder '{odd[0]}' is in {has.folder} but not in {lacks.folder} ({len(odd)} such folders)",
            fix="give both the same class folders, or say the model's classes with --class-list FILE",
        )


def _check_listed(splits: Sequence[Split], labels: Sequence[str], source: str) -> None:
    listed = set(labels)
    for split in splits:
        unknown = sorted(set(split.classes) - listed)
        if unknown:
            raise RequestError(
                f"--class-list: folder {split.folder / unknown[0]} is not among the {len(labels)} names in {source}"
                f" ({len(unknown)} such folders)",
                fix=f"give a class list with the line '{unknown[0]}' at its class id, or move the folder away",
            )


LOADER = DatasetLoader(recognises=recognises, load=load)
