"""Load Hugging Face's image datasets from their Parquet files, or as save_to_disk leaves them in Arrow files.

Labels are read at once, images a row group at a time: the last few groups are kept.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from sparsify import Data, DataRequest, DatasetLoader, MissingLibraryError, RequestError, UnreadableSample

from sparsify_image_classification.classes import Label, by_split
from sparsify_image_classification.gathering import Listing, load_listing

PATTERNS = ("*.parquet", "*/*.parquet", "data-*.arrow", "*/data-*.arrow")  # beside which datasets keeps cache-*.arrow
IMAGES = ("image", "img")
KEPT_BYTES = 1 << 28  # of decoded row groups
COLUMNS = "name the columns `image` and `label`, as datasets.load_dataset('imagefolder', …) does"


def recognises(path: Path) -> bool:
    """Say whether a path is such a file, a folder of them or a pattern of their names; looks at names only."""
    return bool(_files(path))


def load(request: DataRequest) -> Data:
    """Read all labels and number the classes; opens no image. Raises RequestError, MissingLibraryError."""
    return load_listing(read(request.path), request)


def read(path: Path) -> Listing:
    """Read the labels; raises RequestError naming file, column and row, MissingLibraryError without pyarrow."""
    files = _files(path)
    root = path if path.is_dir() else path.parent
    rows = Rows(root, files)
    splits: dict[str, dict[str, Label]] = {}
    hidden: dict[str, int] = {}
    for file, split in by_split(files, root).items():
        for key, label in rows.labels(file):
            if label is None:
                hidden[split] = hidden.get(split, 0) + 1
            else:
                splits.setdefault(split, {})[key] = label
    for split, count in hidden.items():
        if split in splits or not splits:
            problem = f"--data: {count} rows of the split '{split}' of {path} have no label"
            raise RequestError(problem, fix="leave them out: dataset.filter(lambda row: row['label'] is not None)")
    notes = tuple(
        f"the split '{split}' has no labels and is left out ({count} rows)" for split, count in hidden.items()
    )
    return Listing(root, splits, rows.names, rows.fetch, notes)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [file for pattern in PATTERNS for file in sorted(path.glob(pattern))]
    else:
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    return [file for file in found if file.suffix in (".parquet", ".arrow") and file.name[0] != "."]


class Table:
    """Read one file by groups of rows. image, label: the columns; names: of the classes, where the file says them."""

    def __init__(self, path: Path, schema: Any, groups: Sequence[int], read: Any) -> None:
        self.path, self.read = path, read
        self.starts = [sum(groups[:index]) for index in range(len(groups) + 1)]
        features = _features(schema)
        self.image = _column(path, schema, features, "Image", IMAGES)
        self.label = _column(path, schema, features, "ClassLabel", ("label",))
        self.names = tuple(features.get(self.label, {}).get("names") or ())


def _features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's datasets wrote of the columns, nothing where it wrote none."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features") or {}
    except (ValueError, AttributeError):
        return {}
    return {name: about for name, about in features.items() if isinstance(about, dict)}


def _column(path: Path, schema: Any, features: dict[str, Any], kind: str, names: Sequence[str]) -> str:
    typed = [name for name, about in features.items() if about.get("_type") == kind and name in schema.names]
    named = [name for name in names if name in (typed or schema.names)]
    if named or len(typed) == 1:
        return (named or typed)[0]
    what = f"{len(typed) or 'no'} columns of {'images' if kind == 'Image' else 'labels'}"
    problem = f"--data: {path} has {what}, expected one called {names[0]}: found {', '.join(schema.names)}"
    raise RequestError(problem, fix=COLUMNS)


def _open(path: Path) -> Table:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise MissingLibraryError(f"--data: {path} is read with pyarrow", fix="pip install pyarrow") from None
    try:
        if path.suffix == ".arrow":
            with arrow.memory_map(str(path)) as source:  # pages are read as they are needed
                whole = arrow.ipc.open_stream(source).read_all()
            return Table(path, whole.schema, [len(whole)], lambda group, column: whole.column(column))
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        return Table(
            path,
            file.schema_arrow,
            groups,
            lambda group, column: parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(0),
        )
    except (arrow.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"--data: {path} is no {path.suffix[1:]} file, or it is cut short: {reason}"
        raise RequestError(problem, fix="write or download it again") from None


class Rows:
    """Read images of several files by key, as rows are asked for in any order."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root, self.files = root, files
        self.tables = {file.relative_to(root).as_posix(): _open(file) for file in files}
        self.names = next(iter(self.tables.values())).names
        self.held: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self.lock = Lock()
        for table in self.tables.values():
            if table.names != self.names:
                problem = f"--data: {table.path} names other classes than {files[0]}"
                raise RequestError(problem, fix="write all files from one dataset, with the same ClassLabel")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle: another process opens the files itself."""
        return Rows, (self.root, self.files)

    def labels(self, path: Path) -> Iterator[tuple[str, Label | None]]:
        """Yield each row's key and label, None where it is hidden (null, or -1)."""
        name = path.relative_to(self.root).as_posix()
        table = self.tables[name]
        for group in range(len(table.starts) - 1):
            for index, label in enumerate(table.read(group, table.label).to_pylist()):
                row = table.starts[group] + index
                if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
                    problem = f"--data: '{table.label}' of row {row} of {path} is {label!r}, no number or name"
                    raise RequestError(problem, fix=COLUMNS)
                yield f"{name}/{row}", None if label == -1 else label

    def fetch(self, key: str) -> bytes:
        """Return the bytes of a row's image; raises UnreadableSample where it has none."""
        name, _, number = key.rpartition("/")
        table, row = self.tables[name], int(number)
        group = next(index for index, start in enumerate(table.starts[1:]) if row < start)
        cell = self._group(name, group)[row - table.starts[group]].as_py()
        held = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(held, bytes):
            problem = f"row {row} of {table.path} holds no image in '{table.image}', but {type(held).__name__}"
            raise UnreadableSample(
                problem, fix="write the images' bytes into the file: dataset.save_to_disk embeds them"
            )
        return held

    def _group(self, name: str, group: int) -> Any:
        """Return the images of a row group, of which the last few are kept."""
        with self.lock:
            if (name, group) not in self.held:
                table = self.tables[name]
                self.held[name, group] = table.read(group, table.image)
            self.held.move_to_end((name, group))
            while len(self.held) > 1 and sum(images.nbytes for images in self.held.values()) > KEPT_BYTES:
                self.held.popitem(last=False)
            return self.held[name, group]


LOADER = DatasetLoader(recognises=recognises, load=load)
