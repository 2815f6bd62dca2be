"""Class ids, splits, and every layout that is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sparsify import Data, DataRequest, RequestError
from sparsify_image_classification.classes import read_class_list
from sparsify_image_classification.imagefolder import LOADER, load, recognises
from sparsify_image_classification.reading import image_suffixes

Pictures = Callable[..., Path]
Ask = Callable[..., DataRequest]


def refused(request: DataRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        load(request)
    assert caught.value.exit_code == 2
    return caught.value


def targets(data: Data, split: str) -> dict[str, int]:
    return {key: sample.target for key, sample in data.splits[split].samples()}


def test_ids_follow_sorted_folder_names(pictures: Pictures, request_for: Ask) -> None:
    data = load(request_for(pictures("b", "a", "C", "10", "9")))
    assert data.labels == ("10", "9", "C", "a", "b")
    assert data.has_targets
    assert data.chance == 20
    assert targets(data, "all") == {
        f"{name}/{index}.png": data.labels.index(name) for name in data.labels for index in range(2)
    }
    assert list(data.splits["all"].keys) == sorted(data.splits["all"].keys)


def test_samples_are_the_model_input(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("a", "b", size=8)
    batch = next(load(request_for(root, preprocess="raw255")).splits["all"].batches(3))
    assert batch.targets == [0, 0, 1]
    with Image.open(root / "b" / "0.png") as image:
        np.testing.assert_array_equal(batch.inputs["input"][2], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train", "train"), ("Training", "train"), ("val", "validation"), ("valid", "validation"), ("test", "test")],
)
def test_split_folders_are_found_by_name(pictures: Pictures, request_for: Ask, folder: str, split: str) -> None:
    data = load(request_for(pictures("a", "b", split=folder)))
    assert {name: len(part) for name, part in data.splits.items()} == {split: 4}
    assert data.splits[split].keys[0] == f"{folder}/a/0.png"


def test_splits_stay_apart(pictures: Pictures, request_for: Ask) -> None:
    pictures("a", "b", split="train", count=3)
    data = load(request_for(pictures("a", "b", split="val")))
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 6, "validation": 4}
    assert not set(data.splits["train"].keys) & set(data.splits["validation"].keys)


def test_a_class_may_be_called_train(pictures: Pictures, request_for: Ask) -> None:
    data = load(request_for(pictures("train", "bus")))
    assert (data.labels, list(data.splits)) == (("bus", "train"), ["all"])


def test_hidden_files_and_other_files_are_ignored(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("a", "b")
    (root / ".cache").mkdir()
    (root / "notes.txt").touch()
    (root / "a" / ".hidden.png").touch()
    (root / "a" / ".checkpoints").mkdir()
    (root / "a" / ".checkpoints" / "0.png").touch()
    (root / "a" / "list.csv").touch()
    data = load(request_for(root))
    assert (data.labels, len(data.splits["all"])) == (("a", "b"), 4)


def test_any_suffix_that_pil_opens_in_any_case(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("a", "b", count=1)
    for name in ("1.PNG", "2.JpEg", "3.webp", "4.tif", "5.bmp", "deep/6.gif"):
        path = root / "a" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 4)).save(path)
    data = load(request_for(root))
    assert len(data.splits["all"]) == len(list(data.splits["all"].samples())) == 8
    assert {".jpg", ".png", ".webp", ".tiff"} <= image_suffixes()
    assert not {".eps", ".pdf", ".mpg", ".txt"} & image_suffixes()


def test_images_are_not_opened_by_loading(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("a", "b")
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert len(load(request_for(root)).splits["all"]) == 4


def test_linked_class_folders_are_followed(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("a", "b")
    os.symlink(root / "a", root / "c")
    os.symlink(root, root / "a" / "loop")
    assert len(load(request_for(root)).splits["all"]) == 6


def test_a_class_list_gives_the_ids(pictures: Pictures, request_for: Ask, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\ufeffzebra\r\ncat\r\nunseen\r\ndog\r\n\r\n", encoding="utf-8")
    root = pictures("cat", "dog")
    data = load(request_for(root, class_list=names))
    assert data.labels == ("zebra", "cat", "unseen", "dog")
    assert set(targets(data, "all").values()) == {1, 3}
    assert data.chance == 50
    assert load(request_for(root, labels=("zebra", "cat", "unseen", "dog"))).labels == data.labels


def test_with_a_class_list_splits_may_differ_and_one_class_do(
    pictures: Pictures, request_for: Ask, tmp_path: Path
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("a\nb\n")
    pictures("a", "b", split="train")
    data = load(request_for(pictures("b", split="val"), class_list=names))
    assert set(targets(data, "validation").values()) == {1}
    assert load(request_for(pictures("b", root="one"), class_list=names)).chance == 100


def test_a_folder_that_is_not_listed_is_named(pictures: Pictures, request_for: Ask, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("a\n")
    root = pictures("a", "b", "c")
    error = refused(request_for(root, class_list=names))
    assert error.problem == (f"--class-list: folder {root / 'b'} is not among the 1 names in {names} (2 such folders)")
    assert error.fix == "give a class list with the line 'b' at its class id, or move the folder away"
    error = refused(request_for(root, labels=("a",)))
    assert "is not among the 1 names in the model's labels (2 such folders)" in error.problem


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        (b"", "{path} is empty", "write one folder name a line, line i = class i"),
        (b"\n \n", "{path} is empty", "write one folder name a line, line i = class i"),
        (b"a\n\nb\n", "line 2 of {path} is empty", "remove the line, or write the class's folder name"),
        (b"a\nb\na\n", "'a' is on line 1 and on line 3 of {path}", "name each folder once; line i is class i"),
        (
            b"\xff\xfe\x00",
            "{path} cannot be read: it is not UTF-8 text",
            "give a text file with one folder name a line",
        ),
        (None, "{path} cannot be read: No such file or directory", "give a text file with one folder name a line"),
    ],
)
def test_wrong_class_lists_are_refused(text: bytes | None, problem: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(RequestError) as caught:
        read_class_list(path)
    assert caught.value.problem == f"--class-list: {problem.format(path=path)}"
    assert caught.value.fix == fix


def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(request_for: Ask, tmp_path: Path) -> None:
    error = refused(request_for(tmp_path / "gone"))
    assert error.problem == f"--data: {tmp_path / 'gone'} does not exist"
    assert error.fix == "give the folder that holds the class folders"
    (tmp_path / "file").touch()
    assert refused(request_for(tmp_path / "file")).problem.startswith(
        f"--data: {tmp_path / 'file'} is a file, expected one folder a class with images in it"
    )
    (tmp_path / "empty").mkdir()
    assert f"--data: {tmp_path / 'empty'} is empty, expected" in refused(request_for(tmp_path / "empty")).problem


def test_folders_without_images_are_refused(pictures: Pictures, request_for: Ask, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (2, 2)).save(flat / "x.png")
    error = refused(request_for(flat))
    assert error.problem.startswith(f"--data: {flat} holds no folders, expected")
    assert error.fix == "move each class's images into a folder"
    for name in ("a", "b"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    error = refused(request_for(tmp_path / "bare"))
    assert error.problem.startswith(f"--data: no image in any of the 2 folders of {tmp_path / 'bare'}, expected")
    assert error.fix == "give image files that PIL reads, such as .jpg or .png"
    root = pictures("a", "b")
    (root / "c").mkdir()
    error = refused(request_for(root))
    assert error.problem == f"--data: class folder {root / 'c'} holds no image"
    assert error.fix == "add its images, remove the folder, or say the model's classes with --class-list FILE"


def test_one_class_only_is_refused(pictures: Pictures, request_for: Ask) -> None:
    root = pictures("cat")
    error = refused(request_for(root))
    assert error.problem == f"--data: {root} holds one class only, 'cat': any model would be right"
    assert error.fix == "give images of at least two classes, or say the model's classes with --class-list FILE"


def test_splits_of_other_classes_are_refused(pictures: Pictures, request_for: Ask) -> None:
    pictures("a", "b", "c", split="train")
    root = pictures("a", "b", split="val")
    error = refused(request_for(root))
    assert error.problem == (
        f"--data: class folder 'c' is in {root / 'train'} but not in {root / 'val'} (1 such folders)"
    )
    assert error.fix == "give both the same class folders, or say the model's classes with --class-list FILE"


def test_two_folders_for_one_split_are_refused(pictures: Pictures, request_for: Ask) -> None:
    pictures("a", "b", split="val")
    root = pictures("a", "b", split="validation")
    error = refused(request_for(root))
    assert error.problem == f"--data: {root} holds two folders for one split, val and validation"
    assert error.fix == "move one of them away, or merge them"


def test_folders_are_recognised_by_names(pictures: Pictures, tmp_path: Path) -> None:
    assert LOADER.recognises is recognises
    assert recognises(pictures("a"))
    assert recognises(pictures("a", root="split", split="train"))
    assert not recognises(tmp_path / "gone")
    (tmp_path / "npz" / "train").mkdir(parents=True)
    (tmp_path / "npz" / "train" / "0.npz").touch()
    assert not recognises(tmp_path / "npz")
    (tmp_path / "file.png").touch()
    assert not recognises(tmp_path / "file.png")


def test_the_preprocessing_is_noted_and_returned(pictures: Pictures, request_for: Ask) -> None:
    data = load(request_for(pictures("a", "b"), preprocess="minus1to1"))
    assert data.preprocess is not None
    assert data.preprocess["mean"] == [0.5] * 3
    assert data.notes == (
        "preprocessing (--preprocess minus1to1): RGB, resize to 8x8 (bilinear), divide by 255, mean 0.5 0.5 0.5, "
        "std 0.5 0.5 0.5, NCHW",
    )
