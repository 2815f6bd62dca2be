"""Reading one NPZ file: what NumPy writes comes back, and every damage has its own message."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sparsify import RequestError, UnreadableSample
from sparsify_npz import archive
from sparsify_npz.archive import read_archive, write_archive

DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", ">f4", ">i2"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@ANY_FOLDER
@given(arrays=st.dictionaries(st.sampled_from(["x", "file", "input:0", "a/b", "x.npy", "größe"]), ARRAYS, min_size=1))
def test_reads_what_write_archive_and_numpy_write(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_archive(tmp_path / "ours.npz", arrays)
    np.savez_compressed(tmp_path / "theirs.npz", **{key: value for key, value in arrays.items() if key != "file"})
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as loaded:
        assert {key: loaded[f"{key}.npy"].tobytes() for key in arrays} == {k: v.tobytes() for k, v in arrays.items()}
    for name, kept in (("ours", set(arrays)), ("theirs", set(arrays) - {"file"})):
        found = read_archive(tmp_path / f"{name}.npz")
        assert set(found) == kept
        for key in kept:
            np.testing.assert_array_equal(found[key], arrays[key])
            assert found[key].dtype == arrays[key].dtype


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.savez(tmp_path / "a.npz", x=array)
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz")["x"], array)


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_archive(tmp_path / f"{name}.npz", {"x": np.arange(3)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@ANY_FOLDER
@given(data=st.data())
def test_any_damage_is_an_unreadable_sample_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Flip, cut or zero bytes anywhere: the answer is arrays or an error of ours, never another exception."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(20, dtype=np.float32), y=np.zeros((3, 4)))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    problem = str(path)
    try:
        read_archive(path)
    except RequestError as error:
        problem = error.problem
    assert str(path) in problem


def _message(path: Path, kind: type[RequestError]) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        read_archive(path)
    assert type(caught.value) is kind
    return caught.value.problem.replace(str(path), "FILE"), caught.value.fix


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.touch()
    assert _message(path, UnreadableSample) == (
        "FILE is empty (0 bytes)",
        "write it again with numpy.savez, or remove it",
    )


def test_bytes_are_read_as_the_file_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(4, dtype=np.float32))
    held = (tmp_path / "a.npz").read_bytes()
    np.testing.assert_array_equal(read_archive(held)["x"], read_archive(tmp_path / "a.npz")["x"])
    objects = io.BytesIO()
    np.savez(objects, x=np.array([{}], dtype=object))
    for content, reason in (
        (b"", r"the archive is empty \(0 bytes\)"),
        (b"text", "the archive is no NPZ file"),
        (held[:100], "the archive is damaged or cut short"),
        (objects.getvalue(), "the archive: key 'x' holds Python objects, which are never unpickled"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_archive(content)


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(100))
    path.write_bytes(path.read_bytes()[:400])
    assert _message(path, UnreadableSample) == (
        "FILE is damaged or cut short: File is not a zip file",
        "write it again with numpy.savez, or remove it",
    )


def test_flipped_byte_fails_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(100))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    assert _message(path, UnreadableSample)[0] == "FILE is damaged or cut short: Bad CRC-32 for file 'x.npy'"


def test_no_archive_and_single_array(tmp_path: Path) -> None:
    text = tmp_path / "a.npz"
    text.write_text("hello")
    assert _message(text, UnreadableSample)[0] == "FILE is no NPZ file: it does not start as a zip archive"
    single = tmp_path / "b.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    assert _message(single, UnreadableSample) == (
        "FILE is a single array (.npy), not an archive of named arrays",
        "write it with numpy.savez(path, **{input name: array})",
    )


def test_missing_file(tmp_path: Path) -> None:
    assert _message(tmp_path / "a.npz", UnreadableSample)[0] == "FILE cannot be read: No such file or directory"


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([_Bomb()], dtype=object))
    assert _message(path, RequestError) == (
        "FILE: key 'x' holds Python objects, which are never unpickled; expected numbers",
        "save x as a plain array: numpy.asarray(x, dtype=numpy.float32)",
    )


def test_other_files_in_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    assert _message(path, RequestError) == (
        "FILE: 'readme.txt' is no NumPy array",
        "write the file with numpy.savez(path, **{input name: array}), nothing else in it",
    )


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(2**20, dtype=np.uint8), y=np.zeros(2**29 // 16, dtype=np.uint8))
    problem, fix = _message(path, RequestError)
    assert problem == "FILE unpacks to 0.0 GiB; a sample may hold 0 GiB"
    assert fix == "store one sample a file, without a batch axis, or remove the file"


def test_header_that_promises_more_than_the_file_holds_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"shape": (2**50,), "fortran_order": False, "descr": "<f8"})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", member.getvalue())
    problem, _ = _message(path, UnreadableSample)
    assert problem.startswith("FILE is damaged or cut short: key 'x' does not hold the (1125899906842624,) float64")


def test_encrypted_or_oddly_compressed_members_are_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(3))
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"PK\x01\x02") + 10] = 99  # compression method in the directory
    path.write_bytes(raw)
    assert "FILE is damaged or cut short: " in _message(path, UnreadableSample)[0]
