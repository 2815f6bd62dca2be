"""Read and write one NPZ archive: sizes bounded before anything is unpacked, objects never unpickled."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import RequestError, UnreadableSample

MAX_BYTES = 2**30  # of one sample, unpacked: a cut for zip bombs, far above any real sample
REWRITE = "write it again with numpy.savez, or remove it"
# what zipfile, its decompressors and NumPy's header parser raise on bytes that are no archive of arrays
CORRUPT = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,  # an encrypted member
    NotImplementedError,  # an unknown compression
)


def read_archive(source: Path | bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of one NPZ file, or of what one holds, by key.

    Raises UnreadableSample where the file is damaged, RequestError where it is whole but holds what it must not:
    objects, other files, or more than 1 GiB.
    """
    path = "the archive" if isinstance(source, bytes) else source
    try:
        if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
            raise UnreadableSample(f"{path} is empty (0 bytes)", fix=REWRITE)
        with zipfile.ZipFile(BytesIO(source) if isinstance(source, bytes) else source) as archive:
            _check_members(path, archive)
            return {_key(info): _read_member(path, archive, info) for info in archive.infolist()}
    except OSError as error:
        raise UnreadableSample(f"{path} cannot be read: {error.strerror or error}", fix=REWRITE) from None
    except CORRUPT as error:
        raise _damaged(source, error) from None


def write_archive(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays under any key, also one that `numpy.savez` takes for its own parameter (`file`); no time stamps."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _check_members(path: Path | str, archive: zipfile.ZipFile) -> None:
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            raise RequestError(
                f"{path}: '{info.filename}' is no NumPy array",
                fix="write the file with numpy.savez(path, **{input name: array}), nothing else in it",
            )
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > MAX_BYTES:
        raise RequestError(
            f"{path} unpacks to {unpacked / 2**30:.1f} GiB; a sample may hold {MAX_BYTES / 2**30:.0f} GiB",
            fix="store one sample a file, without a batch axis, or remove the file",
        )


def _key(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _read_member(path: Path | str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    raw = archive.read(info)  # zipfile stops at the size of the directory and checks the CRC
    stream = BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise RequestError(
            f"{path}: key '{_key(info)}' holds Python objects, which are never unpickled; expected numbers",
            fix=f"save {_key(info)} as a plain array: numpy.asarray({_key(info)}, dtype=numpy.float32)",
        )
    if math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
        raise ValueError(f"key '{_key(info)}' does not hold the {shape} {dtype} values that its header promises")
    flat = np.frombuffer(raw, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _damaged(source: Path | bytes, error: Exception) -> UnreadableSample:
    path = "the archive" if isinstance(source, bytes) else source
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        return UnreadableSample(
            f"{path} is a single array (.npy), not an archive of named arrays",
            fix="write it with numpy.savez(path, **{input name: array})",
        )
    if not start.startswith(b"PK"):
        return UnreadableSample(f"{path} is no NPZ file: it does not start as a zip archive", fix=REWRITE)
    return UnreadableSample(f"{path} is damaged or cut short: {error}", fix=REWRITE)
