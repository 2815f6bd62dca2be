"""Load a folder of NPZ files, flat or with split folders, reading one file at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sparsify import Data, DataRequest, Dataset, DatasetLoader, RequestError, Sample, TensorSpec, UnreadableSample

from sparsify_npz.archive import read_archive
from sparsify_npz.conform import LABEL, Arrays, casts, check_model, conform

SPLITS: Mapping[str, str] = MappingProxyType(
    {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
)
SPARE = 0.05  # as many files may be unreadable; the first readable one is checked at load


def recognises(path: Path) -> bool:
    """Say whether a folder holds NPZ files, in itself or in split folders; looks at names only."""
    return path.is_dir() and any(_names(folder) for folder in (path, *(path / name for name in SPLITS)))


def load(request: DataRequest) -> Data:
    """Find the files and check the first of each split against the model; raises RequestError."""
    if isinstance(request.preprocess, str):
        raise RequestError(
            f"--preprocess {request.preprocess} has no effect on NPZ data, which holds the model's inputs as they are",
            fix="leave --preprocess out, or give --data a folder of images",
        )
    check_model(request.inputs)
    files = find_files(request.path)
    firsts = {split: _first(request.path, keys) for split, keys in files.items()}
    labelled = _labelled(firsts, request)
    for key, arrays in firsts.values():
        make_sample(arrays, request.inputs, labelled, str(request.path / key))
    notes = dict.fromkeys(note for _, arrays in firsts.values() for note in casts(arrays, request.inputs))
    read = partial(_read, request.path, request.inputs, labelled)
    return Data(
        splits={split: Dataset(tuple(keys), read) for split, keys in files.items()},
        has_targets=labelled,
        labels=_class_names(request) if request.class_list else (),
        chance=_chance(request) if labelled else None,
        notes=tuple(notes),
    )


LOADER = DatasetLoader(recognises, load)


def find_files(path: Path) -> dict[str, list[str]]:
    """List the files of each split in natural order, as paths below `path`; raises RequestError."""
    if not path.is_dir():
        problem = f"{path} is a file, expected a folder of .npz files" if path.exists() else f"{path} does not exist"
        raise RequestError(problem, fix="give --data the folder that holds the .npz files, one sample a file")
    flat = _names(path)
    folders = [name for name in SPLITS if (path / name).is_dir()]
    if not any(_names(path / name) for name in folders):
        if not flat:
            raise _nothing_in(path)
        return {"all": flat}
    if flat:
        raise RequestError(
            f"{path} holds NPZ files both in itself ('{flat[0]}') and in '{folders[0]}/'",
            fix="move them into the split folders, or give a folder without split folders",
        )
    found: dict[str, list[str]] = {}
    for name in folders:
        if not _names(path / name):
            raise RequestError(f"{path / name} holds no .npz files", fix="fill it, or remove the folder")
        if SPLITS[name] in found:
            raise RequestError(f"{path} holds both 'val' and 'validation'", fix="keep one of the two folders")
        found[SPLITS[name]] = [f"{name}/{file}" for file in _names(path / name)]
    return found


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = [file.name for file in folder.iterdir() if file.suffix.lower() == ".npz" and not file.name.startswith(".")]
    return sorted(names, key=natural)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Order names with the numbers in them as numbers: input2 before input10."""
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(re.split("([0-9]+)", name))], name


def _nothing_in(path: Path) -> RequestError:
    inner = [folder for folder in sorted(path.iterdir()) if _names(folder)]
    if inner:
        return RequestError(f"{path} holds no .npz files, but {inner[0]} does", fix=f"use --data {inner[0]}")
    return RequestError(
        f"{path} holds no .npz files", fix="write one sample a file with numpy.savez, or see sparsify_npz.capture"
    )


def _first(folder: Path, keys: list[str]) -> tuple[str, Arrays]:
    """Read the first file that can be read, of as many as a dataset may lose; raises UnreadableSample."""
    failures: list[UnreadableSample] = []
    for key in keys[: 1 + int(SPARE * len(keys))]:
        try:
            return key, read_archive(folder / key)
        except UnreadableSample as error:
            failures.append(error)
    raise failures[0]


def _labelled(firsts: Mapping[str, tuple[str, Arrays]], request: DataRequest) -> bool:
    if any(spec.name == LABEL for spec in request.inputs):
        return False
    labelled = {key: LABEL in arrays for key, arrays in firsts.values()}
    if len(set(labelled.values())) > 1:
        without = next(key for key, has in labelled.items() if not has)
        raise RequestError(
            f"{request.path / without} has no key '{LABEL}', but files of another split have",
            fix=f"add '{LABEL}' to every file, or remove it from all",
        )
    return any(labelled.values())


def _read(folder: Path, inputs: tuple[TensorSpec, ...], labelled: bool, key: str) -> Sample:
    return make_sample(read_archive(folder / key), inputs, labelled, str(folder / key))


def make_sample(arrays: Arrays, inputs: tuple[TensorSpec, ...], labelled: bool, file: str) -> Sample:
    """Check one file's arrays and part them into inputs and target; raises RequestError."""
    sample = conform(arrays, inputs, file)
    if any(spec.name == LABEL for spec in inputs):
        return Sample(sample)
    if labelled != (LABEL in arrays):
        has, rest = ("has a", "the first file has none") if LABEL in arrays else ("has no", "the first file has one")
        raise RequestError(
            f"{file} {has} key '{LABEL}', but {rest}", fix=f"add '{LABEL}' to every file, or remove it from all"
        )
    return Sample(sample, _target(arrays, file) if labelled else None)


def _target(arrays: Arrays, file: str) -> Any:
    label = arrays[LABEL]
    if label.size != 1 or label.dtype.kind not in "biuf":
        raise RequestError(
            f"{file}: key '{LABEL}' is {label.dtype} of shape {label.shape}, expected one number, the class id",
            fix=f"save '{LABEL}' as numpy.int64(class_id); of a one-hot row, numpy.argmax(row)",
        )
    return label.item()


def _classes(request: DataRequest) -> int | None:
    """Count the classes where the first output is one row of scores a sample."""
    shape = request.outputs[0].shape if request.outputs else ()
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1 else None


def _chance(request: DataRequest) -> float | None:
    classes = _classes(request)
    return 100.0 / classes if classes else None


def _class_names(request: DataRequest) -> tuple[str, ...]:
    assert request.class_list is not None  # noqa: S101 - the caller asked
    try:
        names = tuple(line.strip() for line in request.class_list.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--class-list {request.class_list} cannot be read: {error}", fix="give a UTF-8 text file"
        ) from None
    while names and not names[-1]:
        names = names[:-1]
    classes = _classes(request)
    if classes and classes != len(names):
        raise RequestError(
            f"--class-list {request.class_list} names {len(names)} classes, the model has {classes} outputs",
            fix=f"give a --class-list of {classes} lines, line i = class i",
        )
    return names
