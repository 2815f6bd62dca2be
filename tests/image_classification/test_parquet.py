"""Hugging Face's image datasets in Parquet and Arrow files: labels, images by row, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sparsify import DataRequest, MissingLibraryError, RequestError, UnreadableSample
from sparsify_image_classification import parquet
from sparsify_image_classification.forms import count_classes
from sparsify_image_classification.parquet import LOADER, load

Ask = Callable[..., DataRequest]
arrow: Any = pytest.importorskip("pyarrow") if find_spec("pyarrow") else None
needs_pyarrow = pytest.mark.skipif(arrow is None, reason="pyarrow is not installed")
NAMES = ("cat", "dog", "eel")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(labels: list[Any], *, image: str = "image", label: str = "label", names: tuple[str, ...] = NAMES) -> Any:
    """Make what datasets.to_parquet writes: structs of bytes and path, class numbers, and features in the metadata."""
    cells = [{"bytes": png(index), "path": None} for index in range(len(labels))]
    made = arrow.table({image: cells, label: labels})
    if not names:
        return made
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, rows: Any, group: int = 2) -> Path:
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(rows, path, row_group_size=group)
    return path


def refused(request: DataRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        load(request)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value


@needs_pyarrow
def test_every_row_is_the_image_that_was_written(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002-abc.parquet", table([2, 0, 1, 1, 0]))
    write(tmp_path / "data" / "train-00001-of-00002-abc.parquet", table([1, 1]))
    write(tmp_path / "data" / "test-00000-of-00001-abc.parquet", table([0, 1, 2]))
    data = LOADER.load(request_for(tmp_path, preprocess="raw255"))
    assert LOADER.recognises(tmp_path)
    assert data.labels == NAMES
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 7, "test": 3}
    train = data.splits["train"]
    for row, label in reversed(list(enumerate([2, 0, 1, 1, 0]))):  # in any order
        sample = train.read(f"data/train-00000-of-00002-abc.parquet/{row}")
        with Image.open(io.BytesIO(png(row))) as image:
            np.testing.assert_array_equal(sample.inputs["input"], np.asarray(image).transpose(2, 0, 1))
        assert sample.target == label
    assert count_classes(tmp_path, None) == 3


@needs_pyarrow
def test_only_the_last_row_groups_are_kept(request_for: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "all.parquet", table([0, 1, 2] * 10), group=3)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1)
    split = load(request_for(tmp_path)).splits["all"]
    assert len(list(split.samples())) == 30
    assert len(split.read.fetch.__self__.held) == 1  # type: ignore[attr-defined]


@needs_pyarrow
def test_columns_are_found_by_type_or_name(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table([0, 1, 2], image="img", label="fine"))
    assert load(request_for(tmp_path)).labels == NAMES
    write(tmp_path / "a.parquet", table(["x", "y", "x"], names=()))
    assert load(request_for(tmp_path)).labels == ("x", "y")
    write(tmp_path / "a.parquet", arrow.table({"image": [png(0), png(1)], "label": [0, 1]}))  # bytes alone
    assert len(list(load(request_for(tmp_path)).splits["all"].samples())) == 2


@needs_pyarrow
def test_what_save_to_disk_writes_is_read(request_for: Ask, tmp_path: Path) -> None:
    for split, labels in (("train", [2, 1, 0, 1]), ("test", [0, 1, 2])):
        rows = table(labels)
        (tmp_path / split).mkdir()
        for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
            with (
                arrow.OSFile(str(tmp_path / split / name), "wb") as file,
                arrow.ipc.new_stream(file, rows.schema) as to,
            ):
                to.write_table(rows, max_chunksize=2)
    data = load(request_for(tmp_path))
    assert {name: len(part) for name, part in data.splits.items()} == {"test": 3, "train": 4}
    assert [sample.target for _, sample in data.splits["train"].samples()] == [2, 1, 0, 1]


@needs_pyarrow
@pytest.mark.parametrize("hidden", [-1, None])
def test_a_split_without_labels_is_left_out(hidden: Any, request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table([0, 1, 2, 2]))
    write(tmp_path / "test.parquet", table([hidden, hidden]))
    data = load(request_for(tmp_path))
    assert list(data.splits) == ["train"]
    assert data.notes[0] == "the split 'test' has no labels and is left out (2 rows)"
    write(tmp_path / "test.parquet", table([hidden, 0, 1, 2]))
    assert "1 rows of the split 'test'" in refused(request_for(tmp_path)).problem


@needs_pyarrow
def test_wrong_tables_are_named(request_for: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for rows, said in (
        (arrow.table({"image": [png(0)], "klass": [0]}), "has no columns of labels, expected one called label"),
        (arrow.table({"photo": [png(0)], "label": [0]}), "has no columns of images, expected one called image"),
        (table([0.5, 1.0, 2.0], names=()), "'label' of row 0 of {path} is 0.5, no number or name"),
        (table([0, 1, 3]), "a.parquet/2 is 3, expected 0 to 2"),
        (table([0, 1, 1]), "class 'eel' has no image"),
    ):
        write(path, rows)
        assert said.format(path=path) in refused(request_for(tmp_path)).problem
    write(tmp_path / "b.parquet", table([0, 1], names=("cat", "dog")))
    assert "b.parquet names other classes than" in refused(request_for(tmp_path)).problem


@needs_pyarrow
@pytest.mark.parametrize("name", ["a.parquet", "data-0.arrow"])
def test_broken_files_are_named(name: str, request_for: Ask, tmp_path: Path) -> None:
    for content in (b"", b"PAR1 this is not it" * 50):
        (tmp_path / name).write_bytes(content)
        problem = refused(request_for(tmp_path)).problem
        assert problem.startswith(f"--data: {tmp_path / name} is no {name.rpartition('.')[2]} file, or it is cut short")


@needs_pyarrow
def test_a_row_without_bytes_is_an_unreadable_sample(request_for: Ask, tmp_path: Path) -> None:
    cells = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "elsewhere.png"}]
    write(tmp_path / "a.parquet", arrow.table({"image": cells, "label": [0, 1]}))
    with pytest.raises(UnreadableSample, match=r"row 1 of .*a\.parquet holds no image in 'image', but NoneType"):
        load(request_for(tmp_path)).splits["all"].read("a.parquet/1")


def test_pyarrow_is_named_where_it_is_missing(
    request_for: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train-0.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingLibraryError, match="is read with pyarrow") as caught:
        load(request_for(tmp_path))
    assert (caught.value.exit_code, caught.value.fix) == (4, "pip install pyarrow")


def test_recognising_imports_no_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").touch()
    code = (
        "import sys; from pathlib import Path; from sparsify_image_classification.parquet import recognises;"
        f"print(recognises(Path({str(tmp_path)!r})), 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@needs_pyarrow
def test_the_reader_travels_to_other_processes(request_for: Ask, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table([2, 0, 1]))
    split = pickle.loads(pickle.dumps(load(request_for(tmp_path)))).splits["all"]
    assert [sample.target for _, sample in split.samples()] == [2, 0, 1]
