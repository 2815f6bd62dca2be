"""Load images listed in metadata.jsonl or metadata.csv, as Hugging Face's datasets write them beside image files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sparsify import Data, DataRequest, DatasetLoader, RequestError

from sparsify_image_classification.classes import SPLITS, Label
from sparsify_image_classification.gathering import Listing, load_listing

FILES = ("metadata.jsonl", "metadata.csv")
FILE_NAME, LABEL = "file_name", "label"
WRITE = 'give each image a row: {"file_name": "0001.jpg", "label": "cat"}, or columns file_name,label'


def recognises(path: Path) -> bool:
    """Say whether a folder, or a split's folder in it, holds metadata of images; looks at names only."""
    return any(_found(path).values())


def load(request: DataRequest) -> Data:
    """Read the rows and number the classes; opens no image. Raises RequestError naming file and line."""
    return load_listing(read(request.path), request)


def read(path: Path) -> Listing:
    """Read every metadata file; raises RequestError."""
    splits: dict[str, dict[str, Label]] = {}
    for place, table in _tables(path).items():
        rows = dict(_rows(table, path))
        if not rows:
            raise RequestError(f"--data: {table} holds no row", fix=WRITE)
        for key, label in _as_numbers(rows).items():
            split = SPLITS.get(key.split("/")[0].lower(), "all") if place == "all" else place
            splits.setdefault(split, {})[key] = label
    if "all" in splits and len(splits) > 1:
        key = next(iter(splits["all"]))
        problem = f"--data: {path / key} is in no split, other images of {path} are"
        raise RequestError(problem, fix="put it below train/ or val/, as the others")
    return Listing(path, splits)


def _found(path: Path) -> dict[Path, Path | None]:
    """Find the metadata of a folder, else of its splits' folders, by folder."""
    folders = [path] if path.is_dir() else []
    if path.is_dir() and not any((path / name).is_file() for name in FILES):
        folders = [child for child in sorted(path.iterdir()) if child.name.lower() in SPLITS and child.is_dir()]
    return {folder: next((folder / name for name in FILES if (folder / name).is_file()), None) for folder in folders}


def _tables(path: Path) -> dict[str, Path]:
    """Return the metadata by split, `all` for those of the folder itself; raises RequestError where one is missing."""
    tables: dict[str, Path] = {}
    found = _found(path)
    for folder, table in found.items():
        split = "all" if folder == path else SPLITS[folder.name.lower()]
        if table is None or split in tables:
            other = tables.get(split) or next(one for one in found.values() if one)
            problem = f"--data: {folder} holds no {FILES[0]}, {other.parent} does"
            if table is not None:
                problem = f"--data: {path} holds two folders for one split, {other.parent.name} and {folder.name}"
            raise RequestError(problem, fix="write one for it, or move the folder away")
        tables[split] = table
    return tables


def _rows(table: Path, root: Path) -> Iterator[tuple[str, Label]]:
    for line, row in _lines(table):
        for name in (FILE_NAME, LABEL):
            if not isinstance(row.get(name), str | int) or isinstance(row[name], bool) or row[name] == "":
                found = repr(row[name]) if name in row else f"the columns {', '.join(map(str, row)) or 'none'}"
                raise RequestError(f"--data: line {line} of {table} has no {name}: found {found}", fix=WRITE)
        file = PurePosixPath(str(row[FILE_NAME]))
        if file.is_absolute() or ".." in file.parts:
            problem = f"--data: line {line} of {table} names {file}, which does not lie below {table.parent}"
            raise RequestError(problem, fix="name files relative to the metadata")
        yield (table.parent / file).relative_to(root).as_posix(), row[LABEL]


def _lines(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    number = reader.line_num
                    yield number, row
                return
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, _object(text)
    except (ValueError, csv.Error, OSError) as error:
        problem = f"--data: {table} cannot be read near line {number}: {' '.join(str(error).split())}"
        raise RequestError(problem, fix=WRITE) from None


def _object(text: str) -> Mapping[str, Any]:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    return row


def _as_numbers(rows: Mapping[str, Label]) -> Mapping[str, Label]:
    """Take labels for numbers where all of them are: a CSV file has no types."""
    if all(re.fullmatch(r"\d+", str(label)) for label in rows.values()):
        return {key: int(label) for key, label in rows.items()}
    return rows


LOADER = DatasetLoader(recognises=recognises, load=load)
