"""Images listed in metadata.jsonl or metadata.csv: labels, splits, and every row that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sparsify import DataRequest, RequestError
from sparsify_image_classification.forms import count_classes
from sparsify_image_classification.imagefolder import recognises as is_folder
from sparsify_image_classification.metadata import LOADER, load

Ask = Callable[..., DataRequest]
ROWS = [{"file_name": f"{index}.png", "label": label} for index, label in enumerate(("dog", "cat", "dog"))]


def write(folder: Path, rows: list[dict[str, object]] | str, name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(3):
        (folder / "sub").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index * 60, 0, 0)).save(folder / f"{index}.png")
        Image.new("RGB", (8, 8)).save(folder / "sub" / f"{index}.png")
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder


def refused(request: DataRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        load(request)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value


def test_labels_come_from_the_rows_not_from_folders(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train", [*ROWS, {"file_name": "sub/0.png", "label": "cat", "photographer": "A"}])
    write(tmp_path / "test", ROWS)
    data = load(request_for(tmp_path))
    assert LOADER.recognises(tmp_path)
    assert not is_folder(tmp_path)  # train/ with images right in it would be a class called train
    assert (data.labels, {name: len(split) for name, split in data.splits.items()}) == (
        ("cat", "dog"),
        {"train": 4, "test": 3},
    )
    found = {key: sample.target for key, sample in data.splits["train"].samples()}
    assert found == {"train/0.png": 1, "train/1.png": 0, "train/2.png": 1, "train/sub/0.png": 0}
    assert count_classes(tmp_path, None) == 2


def test_a_csv_file_may_hold_numbers_or_names(request_for: Ask, tmp_path: Path) -> None:
    rows = "file_name,label\n0.png,{}\n1.png,{}\n2.png,{}\n"
    write(tmp_path, "\ufeff" + rows.format(10, 2, 10), "metadata.csv")
    names = tmp_path / "classes.txt"
    names.write_text("\n".join("abcdefghijk"))
    assert [sample.target for _, sample in load(request_for(tmp_path, class_list=names)).splits["all"].samples()] == [
        10,
        2,
        10,
    ]
    write(tmp_path, rows.format("10b", 2, "10b"), "metadata.csv")
    assert load(request_for(tmp_path)).labels == ("10b", "2")


def test_one_file_may_list_all_splits(request_for: Ask, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split, [])
        (tmp_path / split / "metadata.jsonl").unlink()
    rows = [
        {"file_name": f"{split}/{row['file_name']}", "label": row["label"]}
        for split in ("train", "val")
        for row in ROWS
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {name: len(part) for name, part in load(request_for(tmp_path)).splits.items()} == {
        "train": 3,
        "validation": 3,
    }
    rows.append({"file_name": "0.png", "label": "cat"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "0.png is in no split" in refused(request_for(tmp_path)).problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "0.png"}\n', "line 1 of {table} has no label: found the columns file_name"),
        ('{"file_name": "0.png", "label": null}\n', "line 1 of {table} has no label: found None"),
        ('{"file_name": "0.png", "label": [1]}\n', "line 1 of {table} has no label: found [1]"),
        ('\n{"label": "cat"}\n', "line 2 of {table} has no file_name: found the columns label"),
        ('{"file_name": "../0.png", "label": "a"}\n', "line 1 of {table} names ../0.png, which does not lie below"),
        ('{"file_name": "/etc/x.png", "label": "a"}\n', "line 1 of {table} names /etc/x.png, which does not lie"),
        ('{"file_name": "0.png", "label": "a"}\n{oops\n', "{table} cannot be read near line 2: Expecting property"),
        ("[1]\n", "{table} cannot be read near line 1: expected an object, found list"),
        ("", "{table} holds no row"),
        ('{"file_name": "0.png", "label": "a"}\n', "holds one class only, 'a'"),
    ],
)
def test_bad_rows_are_named(text: str, said: str, request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path, text)
    assert said.format(table=tmp_path / "metadata.jsonl") in refused(request_for(tmp_path)).problem


def test_bytes_that_are_no_text_are_told(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read near line 0" in refused(request_for(tmp_path)).problem


def test_a_split_without_metadata_is_named(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train", ROWS)
    (tmp_path / "val").mkdir()
    assert refused(request_for(tmp_path)).problem == (
        f"--data: {tmp_path / 'val'} holds no metadata.jsonl, {tmp_path / 'train'} does"
    )
    write(tmp_path / "val", ROWS)
    write(tmp_path / "valid", ROWS)
    assert "holds two folders for one split, val and valid" in refused(request_for(tmp_path)).problem


def test_a_file_that_is_not_there_is_an_unreadable_sample(request_for: Ask, tmp_path: Path) -> None:
    rows = [{"file_name": f"sub/{index % 3}.png", "label": "ab"[index % 2]} for index in range(6)]
    write(tmp_path, [*ROWS, *rows, {"file_name": "gone.png", "label": "a"}])
    split = load(request_for(tmp_path)).splits["all"]
    with pytest.raises(RequestError, match=r"gone\.png cannot be read as an image: .*No such file"):
        split.read("gone.png")
