"""Shards are read where they lie: classes, splits, and every shard that is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sparsify import Data, DataRequest, RequestError, UnreadableSample
from sparsify_image_classification import webdataset
from sparsify_image_classification.forms import count_classes
from sparsify_image_classification.imagefolder import recognises as is_folder
from sparsify_image_classification.webdataset import LOADER, load, recognises

Ask = Callable[..., DataRequest]
Files = dict[str, bytes]


def png(seed: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(shard: Path, files: Files) -> Path:
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return shard


def samples(*labels: object, start: int = 0) -> Files:
    """Give each label an image beside `.cls` for a number, `.json` for a name."""
    files: Files = {}
    for index, label in enumerate(labels, start):
        files[f"{index:04d}.png"] = png(index)
        if isinstance(label, int):
            files[f"{index:04d}.cls"] = f"{label}\n".encode()
        else:
            files[f"{index:04d}.json"] = json.dumps({"label": label, "width": 8}).encode()
    return files


def refused(request: DataRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        load(request)
    assert caught.value.exit_code == 2
    return caught.value


def targets(data: Data, split: str) -> dict[str, int]:
    return {key: sample.target for key, sample in data.splits[split].samples()}


def test_samples_are_what_the_shards_hold(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train-000.tar", samples(0, 1, 0))
    write(tmp_path / "train-001.tar", samples(1, start=3))
    write(tmp_path / "val-000.tar", samples(1, 0, start=4))
    data = LOADER.load(request_for(tmp_path, preprocess="raw255"))
    assert LOADER.recognises(tmp_path)
    assert (data.labels, data.has_targets, data.chance) == (("0", "1"), True, 50)
    train = {f"train-000.tar/000{index}.png": label for index, label in enumerate((0, 1, 0))}
    assert targets(data, "train") == {**train, "train-001.tar/0003.png": 1}
    assert targets(data, "validation") == {"val-000.tar/0004.png": 1, "val-000.tar/0005.png": 0}
    sample = data.splits["train"].read("train-001.tar/0003.png")
    with Image.open(io.BytesIO(png(3))) as image:
        np.testing.assert_array_equal(sample.inputs["input"], np.asarray(image).transpose(2, 0, 1))


def test_nothing_is_written_beside_the_shards(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "shards" / "0.tar", {**samples(0, 1), "../outside.png": png(9), "../outside.cls": b"0"})
    data = load(request_for(tmp_path / "shards"))
    assert len(list(data.splits["all"].samples())) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.tar", "shards"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-0000.tar", "train"),
        ("imagenet-val-00.tar", "validation"),
        ("validation_3.tar", "validation"),
        ("Test.tar", "test"),
        ("train/0000.tar", "train"),
        ("0000.tar", "all"),
        ("trainer-0.tar", "all"),
    ],
)
def test_splits_follow_the_names(name: str, split: str, request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / name, samples(0, 1))
    assert list(load(request_for(tmp_path)).splits) == [split]


def test_a_shard_or_a_pattern_may_be_named(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train-000.tar", samples(0, 1))
    write(tmp_path / "train-001.tar", samples(1, 0))
    write(tmp_path / "extra.tar", samples(5))
    assert len(load(request_for(tmp_path / "train-000.tar")).splits["train"]) == 2
    assert len(load(request_for(tmp_path / "train-*.tar")).splits["train"]) == 4
    assert not recognises(tmp_path / "val-*.tar")
    assert not recognises(tmp_path / "gone.tar")
    assert not is_folder(tmp_path)


def test_labels_may_be_names_and_suffixes_of_any_case(request_for: Ask, tmp_path: Path) -> None:
    files = samples("zebra", "ant")
    files |= {"deep/a.b/x.JPG": png(7), "deep/a.b/x.cls": b"ant", "deep/a.b/x.seg.png": png(8), "notes.txt": b"none"}
    write(tmp_path / "0.tar", files)
    data = load(request_for(tmp_path))
    assert data.labels == ("ant", "zebra")
    assert targets(data, "all") == {"0.tar/0000.png": 1, "0.tar/0001.png": 0, "0.tar/deep/a.b/x.JPG": 0}


def test_a_class_list_names_numbers_and_allows_gaps(request_for: Ask, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("a\nb\nc\nd\n")
    write(tmp_path / "shards" / "0.tar", samples(3, 1))
    data = load(request_for(tmp_path / "shards", class_list=names))
    assert (data.labels, data.chance) == (("a", "b", "c", "d"), 50)
    assert sorted(targets(data, "all").values()) == [1, 3]
    assert count_classes(tmp_path / "shards", names) == 4
    write(tmp_path / "shards" / "0.tar", samples(4, 1))
    error = refused(request_for(tmp_path / "shards", class_list=names))
    assert "the label of" in error.problem
    assert "0.tar/0000.png is 4, expected 0 to 3" in error.problem
    assert "--class-list" in error.fix


def test_classes_are_counted_before_there_is_a_model(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", samples(0, 1, 2))
    assert count_classes(tmp_path, None) == 3


def test_splits_of_other_classes_are_refused(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", samples(0, 1, 2))
    write(tmp_path / "val-0.tar", samples(0, 2))
    error = refused(request_for(tmp_path))
    assert error.problem == f"--data: class '1' has no image in the split 'validation' of {tmp_path} (1 such classes)"
    assert "--class-list" in error.fix


BAD: dict[str, tuple[Files, str]] = {
    "no label": ({"a.png": png(0), "a.cls": b"0", "b.png": png(1)}, "sample 'b' has no label"),
    "no image": ({"a.png": png(0), "a.cls": b"0", "b.cls": b"1"}, "sample 'b' has no image"),
    "nothing": ({"readme.txt": b"hello"}, "it holds no image"),
    "two images": ({"a.png": png(0), "a.jpg": png(1), "a.cls": b"0"}, "sample 'a' .* has two images, .png and .jpg"),
    "twice": ({**samples(0, 1), "./0000.png": png(4)}, "sample './0000' has no label"),
    "empty label": ({"a.png": png(0), "a.cls": b" "}, "a.cls holds no label: found ''"),
    "binary label": ({"a.png": png(0), "a.cls": b"\xff"}, "a.cls holds no label: 'utf-8'"),
    "no JSON": ({"a.png": png(0), "a.json": b"{"}, "a.json holds no label: Expecting"),
    "no key": ({"a.png": png(0), "a.json": b'{"width": 3}'}, "expected one of the keys label, .*, found width"),
    "a list": ({"a.png": png(0), "a.json": b'{"label": [1]}'}, r"a.json holds no label: found \[1\]"),
    "negative": ({**samples(0, 1), "x.png": png(0), "x.cls": b"-1"}, "x.png is -1, expected 0 to 1"),
    "one class": (samples(0, 0), "holds one class only, '0'"),
    "a gap": (samples(0, 2), "class '1' has no image of"),
    "mixed": (samples(0, "cat"), "label 0 of .*0000.png is a number, 'cat' of .*0001.png is not"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_named(name: str, request_for: Ask, tmp_path: Path) -> None:
    files, said = BAD[name]
    write(tmp_path / "0.tar", files)
    error = refused(request_for(tmp_path))
    assert str(tmp_path) in error.problem
    with pytest.raises(RequestError, match=said):
        raise error
    assert error.fix


def test_broken_shards_are_named(request_for: Ask, tmp_path: Path) -> None:
    shard = write(tmp_path / "0.tar", samples(0, 1, 0))
    whole = shard.read_bytes()
    second = 1024  # the header of 0000.cls, after one block of header and one of image
    assert whole[second : second + 8] == b"0000.cls"
    for damaged, said in (
        (b"no tar file" * 100, "is no tar file, or it is cut short"),
        (b"", "is no tar file, or it is cut short"),
        (whole[:second] + b"\x01" * 100 + whole[second + 100 :], "the header at byte 1024 is broken"),
        (whole[: second - 300], "is no tar file, or it is cut short"),
    ):
        shard.write_bytes(damaged)
        assert said in refused(request_for(tmp_path)).problem
    (tmp_path / "0.tar").rename(tmp_path / "0.tar.gz")
    error = refused(request_for(tmp_path))
    assert error.problem == f"--data: {tmp_path / '0.tar.gz'} is compressed"
    assert "gunzip" in error.fix


def test_links_and_devices_in_a_shard_are_no_samples(request_for: Ask, tmp_path: Path) -> None:
    shard = write(tmp_path / "0.tar", samples(0, 1))
    with tarfile.open(shard, "a") as archive:
        for name, kind in (("x.png", tarfile.SYMTYPE), ("y.png", tarfile.LNKTYPE), ("z.cls", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    assert len(load(request_for(tmp_path)).splits["all"]) == 2


def test_an_unreadable_image_is_named_and_skipped(request_for: Ask, tmp_path: Path) -> None:
    files = samples(*[index % 2 for index in range(30)])
    files["0007.png"] = b"no image"
    write(tmp_path / "0.tar", files)
    split = load(request_for(tmp_path)).splits["all"]
    assert len(list(split.samples())) == 29
    assert split.unreadable["0.tar/0007.png"].startswith(f"{tmp_path}/0.tar/0007.png cannot be read as an image")


def test_a_shard_that_goes_or_shrinks_later_is_told(
    request_for: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write(tmp_path / "0.tar", samples(0, 1))
    split = load(request_for(tmp_path)).splits["all"]
    monkeypatch.setattr(webdataset, "IMAGE_BYTES", 10)
    with pytest.raises(UnreadableSample, match=r"0\.tar/0001\.png of \d+ bytes cannot be read whole, at most 10"):
        split.read("0.tar/0001.png")
    shard.unlink()
    with pytest.raises(UnreadableSample, match="No such file"):
        split.read("0.tar/0001.png")


def test_shards_with_and_without_a_split_are_refused(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", samples(0, 1))
    write(tmp_path / "more.tar", samples(0, 1))
    error = refused(request_for(tmp_path))
    assert error.problem == f"--data: the name of {tmp_path / 'more.tar'} says no split, others' do"


def test_the_reader_travels_to_other_processes(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "0.tar", samples(0, 1))
    split = pickle.loads(pickle.dumps(load(request_for(tmp_path)))).splits["all"]
    assert [sample.target for _, sample in split.samples()] == [0, 1]
