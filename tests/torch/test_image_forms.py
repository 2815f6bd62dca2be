"""Training from shards and Parquet files, and what bad data say before a weight is trained."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sparsify import DataRequest, TensorSpec
from sparsify.cli.app import main
from sparsify_image_classification import webdataset
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.training.samples import choose

from tests.torch.image_training import experiment, tiny

KWARGS = {"epochs": 2, "image_size": 8, "batch_size": 32, "flip": False, "crop": False}
Convert = Callable[[Path, Path], Path]


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))[1]


@pytest.fixture
def data(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "data"))


def run(data: Path | str, output: Path, *words: str, kind: str = "training-aware") -> int:
    fixed = ["run", kind, "--use-case", "image-classification", "--data", str(data), "--output", str(output)]
    if kind == "training-aware":
        fixed += ["--model", "tests.torch.image_training:tiny", "--train-kwargs", json.dumps(KWARGS)]
    with pytest.raises(SystemExit) as ended:
        main([*fixed, "--threads", "1", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def pictures(digits: Path) -> Iterator[tuple[str, int, str, bytes]]:
    """Yield each digit's split, class, name and file."""
    for path in sorted(digits.glob("*/*/*.png")):
        yield path.parts[-3], int(path.parts[-2]), path.stem, path.read_bytes()


def as_shards(digits: Path, folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000.tar", "w") as archive:
            for found, label, name, content in pictures(digits):
                for suffix, held in (("png", content), ("cls", str(label).encode())) if found == split else ():
                    member = tarfile.TarInfo(f"{label}-{name}.{suffix}")
                    member.size = len(held)
                    archive.addfile(member, io.BytesIO(held))
    return folder


def as_parquet(digits: Path, folder: Path) -> Path:
    if not find_spec("pyarrow"):
        pytest.skip("pyarrow is not installed")
    import pyarrow
    from pyarrow.parquet import write_table

    (folder / "data").mkdir(parents=True)
    rows = list(pictures(digits))
    for split in ("train", "val"):
        held = [row for row in rows if row[0] == split]
        cells = [{"bytes": content, "path": None} for *_, content in held]
        table = pyarrow.table({"image": cells, "label": [label for _, label, *_ in held]})
        write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=100)
    return folder


def as_metadata(digits: Path, folder: Path) -> Path:
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.csv").open("w") as table:
            table.write("file_name,label\n")
            for found, label, name, content in pictures(digits):
                if found == split:
                    (folder / split / f"{label}-{name}.png").write_bytes(content)
                    table.write(f"{label}-{name}.png,{label}\n")
    return folder


@pytest.mark.parametrize("convert", [as_shards, as_parquet, as_metadata])
def test_the_same_digits_train_alike_in_every_form(
    convert: Convert, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(convert(digits, tmp_path / "data"), tmp_path / "run", "--optim-level", "0", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["samples"]["test"] == 602
    assert metrics["baseline"]["metrics"]["accuracy"] > 80
    labels = json.loads((tmp_path / "run" / "deployment" / "config.json").read_text())["labels"]
    assert labels == [str(digit) for digit in range(10)]


def test_one_shot_reads_a_pattern_of_shards(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_shards(digits, tmp_path / "shards")
    model, _ = write_demo(tmp_path / "demo")
    words = ["--model", str(model), "--optim-level", "0", "--json"]
    assert run(f"{tmp_path}/shards/*-000.tar", tmp_path / "run", *words, kind="one-shot") == 0
    assert json.loads(capsys.readouterr().out)["baseline"]["metrics"]["accuracy"] > 95
    assert run(f"{tmp_path}/shards/none-*.tar", tmp_path / "none", *words, kind="one-shot") == 2
    assert "none-*.tar does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["part-1.tar", "part-[1-9].tar"])
def test_shards_of_the_evaluation_data_are_not_trained_on(named: str, digits: Path, tmp_path: Path) -> None:
    shards = as_shards(digits, tmp_path / "shards")
    for index, split in enumerate(("train", "val")):
        (shards / f"{split}-000.tar").rename(shards / f"part-{index}.tar")
    shape = TensorSpec("input", "float32", ("batch", 1, 8, 8))
    data = webdataset.load(DataRequest(shards, (shape,), ()))
    chosen = choose(data, experiment(shards, eval_data=str(shards / named)))
    assert {key.split("/")[0] for part in (chosen.train, chosen.validation) for key in part.keys} == {"part-0.tar"}


def refused(data: Path, output: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the error of a request that is refused with exit 2, before anything stays on disk."""
    assert run(data, output, *words) == 2
    assert not output.exists()
    told = capsys.readouterr().err
    assert "\nfix: " in told
    return told.partition("error: ")[2].partition("\n")[0]


def test_an_empty_class_folder_in_val_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for image in (data / "val" / "3").iterdir():
        image.unlink()
    assert refused(data, tmp_path / "run", capsys) == f"--data: class folder {data / 'val' / '3'} holds no image"


def test_labels_that_differ_between_train_and_val_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "val" / "3").rename(data / "val" / "three")
    said = refused(data, tmp_path / "run", capsys)
    assert said == f"--data: class folder '3' is in {data / 'train'} but not in {data / 'val'} (2 such folders)"


def test_a_teacher_of_other_classes_is_named_before_the_dense_model_is_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny(7).state_dict(), tmp_path / "seven.pt")
    said = refused(data, tmp_path / "run", capsys, "--teacher", str(tmp_path / "seven.pt"))
    assert said == f"--teacher: {tmp_path / 'seven.pt'} has 7 classes, the model has 10"


def test_unreadable_training_images_are_left_out_and_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((data / "train").rglob("*.png"))
    for image in np.random.default_rng(0).permutation(images)[:10]:
        image.write_bytes(b"broken")
    assert run(data, tmp_path / "run", "--optim-level", "0", "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note for note in notes if note.endswith("unreadable images were left out of training")]
