"""Place a model into a folder of numbered versions, the layout that Triton and OpenVINO Model Server share."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsify import RequestError, SparsifyError, StageError


@dataclass(frozen=True)
class Placed:
    """Say which version a model is, and whether it was written now."""

    version: int
    written: bool


def write_version(model: Path, files: Sequence[Path], home: Path) -> Placed:
    """Copy a model's files into the next version, unless the highest one holds them already; raises RequestError."""
    placed = {file: _relative(file, model) for file in files}
    versions = sorted(int(folder.name) for folder in home.glob("*") if folder.is_dir() and folder.name.isdecimal())
    if versions and _holds(home / str(versions[-1]), placed):
        return Placed(versions[-1], written=False)
    version = (versions[-1] if versions else 0) + 1
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=home) as partial:
            whole = Path(partial) / "version"  # renamed when it is complete: servers look at the folder all the time
            for file, name in placed.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, whole / name)
            os.rename(whole, home / str(version))
    except OSError as error:
        raise cannot_write(home, error) from None
    return Placed(version, written=True)


def _relative(file: Path, model: Path) -> Path:
    """Return a file's place beside the model, which may be reached through a link."""
    if file == model:
        return Path("model.onnx")
    return file.relative_to(model.parent if model.parent in file.parents else model.resolve().parent)


def _holds(folder: Path, placed: Mapping[Path, Path]) -> bool:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    same = all((folder / name).is_file() and filecmp.cmp(file, folder / name, False) for file, name in placed.items())
    return same and found == set(placed.values())


def write_text(path: Path, text: str) -> None:
    """Write a file so that a killed program leaves the old one or the new one; raises RequestError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> SparsifyError:
    """Say that a place cannot be written, or that there is no space left."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StageError(f"{path} cannot be written: {reason}", fix="free space there, or give another folder")
    return RequestError(f"{path} cannot be written: {reason}", fix="give a folder that can be written")
