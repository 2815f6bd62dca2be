"""Number the classes of labelled images, and read class lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from sparsify import RequestError

SPLITS: Mapping[str, str] = MappingProxyType(
    {
        "train": "train",
        "training": "train",
        "val": "validation",
        "valid": "validation",
        "validation": "validation",
        "test": "test",
    }
)
Label = str | int  # a class's name, or its number
LISTED = "add its images, or say the model's classes with --class-list FILE, one a line, line i = class i"


def number_classes(
    splits: Mapping[str, Mapping[str, Label]], names: Sequence[str], root: Path, *, complete: bool = True
) -> tuple[str, ...]:
    """Return the class names in id order: those given, else the numbers up to the largest, else the sorted names.

    splits: labels by key. names: of the classes by number, where the data or the user says so. complete: every split
    has to hold images of every class. Raises RequestError for labels that fit no numbering.
    """
    labels = {label: key for split in splits.values() for key, label in split.items()}
    numbers = {label: key for label, key in labels.items() if isinstance(label, int)}
    if numbers and len(numbers) < len(labels):
        word = next(label for label in labels if not isinstance(label, int))
        number, key = next(iter(numbers.items()))
        problem = f"--data: label {number} of {root / key} is a number, '{word}' of {root / labels[word]} is not"
        raise RequestError(problem, fix="give every image a class's name, or every image its number")
    found = tuple(names) or (
        tuple(str(index) for index in range(max(numbers) + 1)) if numbers else tuple(sorted(map(str, labels)))
    )
    _check_known(labels, found, root)
    if complete:
        _check_complete(splits, found, root)
    return found


def by_split(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return the split that each file's name says, as in train-0000.tar or set-val-00.parquet, or its folder's does.

    All of them are `all` where none says any; raises RequestError where only some do.
    """
    splits = {}
    for file in files:
        words = [*re.split(r"[^a-z]+", file.name.lower()), file.parent.name.lower() if file.parent != root else ""]
        splits[file] = next((SPLITS[word] for word in words if word in SPLITS), "all")
    if "all" in splits.values() and len(set(splits.values())) > 1:
        odd = next(file for file, split in splits.items() if split == "all")
        problem = f"--data: the name of {odd} says no split, others' do"
        raise RequestError(problem, fix="name all files after their split, such as train-0000 and val-0000")
    return splits


def ids_of(split: Mapping[str, Label], names: Sequence[str]) -> dict[str, int]:
    """Return class ids by key."""
    numbers = {name: index for index, name in enumerate(names)}
    return {key: label if isinstance(label, int) else numbers[label] for key, label in split.items()}


def _check_known(labels: Mapping[Label, str], names: Sequence[str], root: Path) -> None:
    listed = set(names)
    for label, key in labels.items():
        if isinstance(label, int) and not 0 <= label < len(names):
            problem = f"--data: the label of {root / key} is {label}, expected 0 to {len(names) - 1}: a class's number"
            raise RequestError(problem, fix=f"mend the label, or give a --class-list with at least {label + 1} lines")
        if isinstance(label, str) and label not in listed:
            problem = f"--data: the label of {root / key} is '{label}', none of the {len(names)} classes listed"
            raise RequestError(problem, fix=f"give a --class-list with the line '{label}' at its class id")


def _check_complete(splits: Mapping[str, Mapping[str, Label]], names: Sequence[str], root: Path) -> None:
    if len(names) == 1:
        problem = f"--data: {root} holds one class only, '{names[0]}': any model would be right"
        raise RequestError(
            problem, fix="give images of at least two classes, or say the classes with --class-list FILE"
        )
    for split, labels in splits.items():
        present = set(ids_of(labels, names).values())
        absent = [name for index, name in enumerate(names) if index not in present]
        if absent:
            where = "" if split == "all" else f" in the split '{split}'"
            problem = f"--data: class '{absent[0]}' has no image{where} of {root} ({len(absent)} such classes)"
            raise RequestError(problem, fix=LISTED)


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read one folder name a line, line i = class i; raises RequestError for an empty, broken or ambiguous file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(
            f"--class-list: {path} cannot be read: {reason}", fix="give a text file with one folder name a line"
        ) from None
    names = tuple(line.strip() for line in lines)
    if not names:
        raise RequestError(f"--class-list: {path} is empty", fix="write one folder name a line, line i = class i")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise RequestError(
                f"--class-list: line {number} of {path} is empty",
                fix="remove the line, or write the class's folder name",
            )
        if name in first:
            raise RequestError(
                f"--class-list: '{name}' is on line {first[name]} and on line {number} of {path}",
                fix="name each folder once; line i is class i",
            )
        first[name] = number
    return names
