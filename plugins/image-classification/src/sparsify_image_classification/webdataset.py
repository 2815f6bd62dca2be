"""Load WebDataset shards: tar files whose neighbouring members share a name, such as 0001.jpg and 0001.cls.

Nothing is unpacked: members are found once, by their headers, and read from their place in the shard.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparsify import Data, DataRequest, DatasetLoader, RequestError, UnreadableSample

from sparsify_image_classification.classes import SPLITS, Label, by_split
from sparsify_image_classification.gathering import Listing, load_listing
from sparsify_image_classification.reading import image_suffixes

SUFFIX, PACKED = ".tar", (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
NAMES = ("label", "cls", "class", "class_id", "target")  # of a label in .json
LABEL_BYTES, IMAGE_BYTES = 1 << 20, 1 << 28
SAMPLE = "a sample is 0001.jpg (or .png, …) and 0001.cls, a class's number, or 0001.json with a `label`"


@dataclass(frozen=True)
class Place:
    """Say where an image's bytes lie."""

    shard: Path
    offset: int
    size: int


def recognises(path: Path) -> bool:
    """Say whether a path is a shard, a folder of shards or a pattern of their names; looks at names only."""
    return bool(_shards(path))


def load(request: DataRequest) -> Data:
    """Find every member of every shard and number the classes; opens no image. Raises RequestError."""
    return load_listing(read(request.path), request)


def read(path: Path) -> Listing:
    """Read the shards' headers and labels; raises RequestError naming shard, sample, and what was expected."""
    shards = _shards(path)
    root = path if path.is_dir() else path.parent
    splits: dict[str, dict[str, Label]] = {}
    places: dict[str, Place] = {}
    for shard, split in by_split(shards, root).items():
        for name, label, place in _samples(shard):
            key = f"{shard.relative_to(root).as_posix()}/{name}"
            splits.setdefault(split, {})[key], places[key] = label, place
    return Listing(root, splits, fetch=partial(_fetch, places))


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        folders = [path, *(child for child in sorted(path.iterdir()) if child.name.lower() in SPLITS)]
        found = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    else:
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    return [file for file in found if file.name[0] != "." and file.name.lower().endswith((SUFFIX, *PACKED))]


def _samples(shard: Path) -> Iterator[tuple[str, Label, Place]]:
    """Yield each sample's image by name, its label, and where the image lies."""
    if not shard.name.lower().endswith(SUFFIX):
        raise RequestError(f"--data: {shard} is compressed", fix="unpack it to .tar, such as with gunzip")
    images: dict[str, tuple[str, Place]] = {}
    labels: dict[str, dict[str, Label]] = {}
    for name, suffix, place, text in _members(shard):
        if text is not None:
            labels.setdefault(name, {})[suffix] = _label(text, suffix, f"{shard}/{name}.{suffix}")
        elif name in images:
            problem = f"--data: sample '{name}' of {shard} has two images, .{images[name][0]} and .{suffix}"
            raise RequestError(problem, fix=f"leave one of them; {SAMPLE}")
        else:
            images[name] = suffix, place
    odd = next(iter(images.keys() ^ labels.keys()), None)
    if odd is not None or not images:
        what = "it holds no image" if odd is None else f"sample '{odd}' has no {'label' if odd in images else 'image'}"
        raise RequestError(f"--data: {shard}: {what}", fix=SAMPLE)
    for name, (suffix, place) in images.items():
        found = labels[name]
        yield f"{name}.{suffix}", found.get("cls", next(iter(found.values()))), place


def _members(shard: Path) -> Iterator[tuple[str, str, Place, bytes | None]]:
    """Yield the members that are images or labels: name, suffix, place, and a label's bytes."""
    suffixes, size = image_suffixes(), shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                is_label = suffix in ("cls", "json")
                if not stem or not member.isreg() or member.issparse() or not (is_label or _is(suffix, suffixes)):
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} ends beyond the file")
                file = archive.extractfile(member) if is_label else None
                text = None if file is None else file.read(LABEL_BYTES)
                name = f"{folder}/{stem}" if folder else stem
                yield name, suffix, Place(shard, member.offset_data, member.size), text
            _check_end(archive.offset, shard)
    except (tarfile.TarError, EOFError, OSError) as error:
        problem = f"--data: {shard} is no tar file, or it is cut short: {error}"
        raise RequestError(problem, fix="write or copy the shard again, and check that the sizes agree") from None


def _is(suffix: str, suffixes: frozenset[str]) -> bool:
    return f".{suffix.lower()}" in suffixes


def _check_end(offset: int, shard: Path) -> None:
    """Raise ReadError where members end before the file does: tarfile stops at a broken header without a word."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {offset} is broken")


def _label(text: bytes, suffix: str, shown: str) -> Label:
    try:
        found = text.decode().strip() if suffix == "cls" else _named(json.loads(text))
    except ValueError as error:
        raise RequestError(f"--data: {shown} holds no label: {error}", fix=SAMPLE) from None
    if isinstance(found, str) and re.fullmatch(r"-?\d+", found):
        return int(found)
    if found == "" or isinstance(found, bool) or not isinstance(found, str | int):
        raise RequestError(f"--data: {shown} holds no label: found {found!r}", fix=SAMPLE)
    return found


def _named(held: object) -> object:
    if not isinstance(held, Mapping):
        return held
    names = [name for name in NAMES if name in held]
    if not names:
        raise ValueError(f"expected one of the keys {', '.join(NAMES)}, found {', '.join(map(str, held)) or 'none'}")
    return held[names[0]]


def _fetch(places: Mapping[str, Place], key: str) -> bytes:
    """Read an image's bytes; raises UnreadableSample where the shard has gone or shrunk."""
    place = places[key]
    try:
        with place.shard.open("rb") as file:
            held = os.pread(file.fileno(), min(place.size, IMAGE_BYTES + 1), place.offset)
    except OSError as error:
        raise UnreadableSample(f"{place.shard} cannot be read: {error.strerror}", fix="give the shard back") from error
    if not len(held) == place.size <= IMAGE_BYTES:
        problem = f"{key} of {place.size:,} bytes cannot be read whole, at most {IMAGE_BYTES:,} are"
        raise UnreadableSample(problem, fix="repair or remove the sample")
    return held


LOADER = DatasetLoader(recognises=recognises, load=load)
