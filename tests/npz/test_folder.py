"""Loading folders of NPZ files: layout, order, splits, labels, and every way a sample does not fit the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify import Data, DataRequest, RequestError, TensorSpec, UnreadableSample
from sparsify_npz.folder import LOADER, load, natural, recognises

IMAGE = TensorSpec("input", "float32", ("batch", 3, 4, 5))
TEXT = (TensorSpec("input_ids", "int64", ("batch", "sequence")), TensorSpec("attention_mask", "int64", (None, None)))
SCORES = TensorSpec("output", "float32", ("batch", 10))


def save(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def image(**more: Any) -> dict[str, Any]:
    return {"input": np.ones((3, 4, 5), np.float32), **more}


def request(path: Path, *inputs: TensorSpec, **more: Any) -> DataRequest:
    return DataRequest(path, inputs or (IMAGE,), (SCORES,), **more)


def refusal(path: Path, *inputs: TensorSpec, kind: type[RequestError] = RequestError, **more: Any) -> tuple[str, str]:
    """Load, then read everything, and return the error's two lines with the folder's name cut out."""
    with pytest.raises(kind) as caught:
        read_all(load(request(path, *inputs, **more)))
    assert type(caught.value) is kind
    return tuple(text.replace(str(path), "DATA") for text in (caught.value.problem, caught.value.fix))  # type: ignore[return-value]


def read_all(data: Data) -> dict[str, list[Any]]:
    return {name: [split.read(key) for key in split.keys] for name, split in data.splits.items()}


def test_flat_folder_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        save(tmp_path / f"input{index}.npz", input=np.full((3, 4, 5), index, np.float32))
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / "._input1.npz").write_bytes(b"macOS")
    data = load(request(tmp_path))
    assert data.splits["all"].keys == ("input1.npz", "input2.npz", "input10.npz")
    assert [sample.inputs["input"][0, 0, 0] for sample in read_all(data)["all"]] == [1, 2, 10]
    assert (data.has_targets, data.chance, data.labels, data.notes) == (False, None, (), ())


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_natural_order_counts(numbers: list[int]) -> None:
    names = [f"input{number}.npz" for number in numbers]
    assert sorted(names, key=natural) == [f"input{number}.npz" for number in sorted(numbers)]


@given(st.lists(st.text(), unique=True))
def test_natural_order_is_total_and_deterministic(names: list[str]) -> None:
    backwards = list(reversed(names))
    assert sorted(names, key=natural) == sorted(backwards, key=natural)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders(tmp_path: Path, validation: str) -> None:
    save(tmp_path / "train/a.npz", **image())
    save(tmp_path / validation / "b.npz", **image())
    save(tmp_path / "test/c.npz", **image())
    data = load(request(tmp_path))
    assert {name: split.keys for name, split in data.splits.items()} == {
        "train": ("train/a.npz",),
        "validation": (f"{validation}/b.npz",),
        "test": ("test/c.npz",),
    }
    assert len(read_all(data)["validation"]) == 1


def test_recognises_by_names_only(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "absent")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.NPZ").touch()
    assert LOADER.recognises(tmp_path)
    assert not recognises(tmp_path / "train/a.NPZ")


def test_labels_become_targets_and_chance(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.npz", **image(label=np.array([index]) if index else index))
    data = load(request(tmp_path))
    assert data.has_targets
    assert data.chance == 10.0
    assert [sample.target for sample in read_all(data)["all"]] == [0, 1, 2]
    assert set(read_all(data)["all"][0].inputs) == {"input"}


def test_label_that_is_an_input_is_no_target(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **image(label=np.int64(3)))
    data = load(request(tmp_path, IMAGE, TensorSpec("label", "int64", ("batch",))))
    (sample,) = read_all(data)["all"]
    assert (data.has_targets, sample.target, sample.inputs["label"]) == (False, None, 3)


def test_dynamic_axes_take_any_size(tmp_path: Path) -> None:
    for length in (1, 7, 128):
        save(tmp_path / f"{length}.npz", input_ids=np.ones(length, np.int64), attention_mask=np.ones(length, np.int64))
    samples = read_all(load(request(tmp_path, *TEXT)))["all"]
    assert [sample.inputs["input_ids"].shape for sample in samples] == [(1,), (7,), (128,)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("int64", "int32"),
        ("int32", "int64"),
        ("int64", "uint8"),
        ("float64", "float32"),
        ("float16", "float32"),
        ("uint8", "float32"),
        ("bool", "int64"),
        (">f4", "float32"),
    ],
)
def test_safe_casts_keep_every_value_and_are_noted_once(tmp_path: Path, found: str, expected: str) -> None:
    values = np.array([0, 1, 1, 0]).astype(found)
    for split in ("train", "val"):
        save(tmp_path / split / "a.npz", x=values)
        save(tmp_path / split / "b.npz", x=values)
    data = load(request(tmp_path, TensorSpec("x", expected, ("batch", 4))))
    assert data.notes == (f"input 'x' is stored as {np.dtype(found)} and cast to the model's {expected}",)
    for sample in read_all(data)["train"]:
        assert sample.inputs["x"].dtype == expected
        np.testing.assert_array_equal(sample.inputs["x"], values.astype(float))


def test_infinite_and_nan_survive_a_float_cast(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.array([np.inf, -np.inf, np.nan, 1.5]))
    (sample,) = read_all(load(request(tmp_path, TensorSpec("x", "float32", ("batch", 4)))))["all"]
    np.testing.assert_array_equal(sample.inputs["x"], np.array([np.inf, -np.inf, np.nan, 1.5], np.float32))


def test_streamed_batches(tmp_path: Path) -> None:
    for index in range(5):
        save(tmp_path / f"{index}.npz", **image(label=index))
    batches = list(load(request(tmp_path)).splits["all"].batches(2))
    assert [batch.inputs["input"].shape for batch in batches] == [(2, 3, 4, 5), (2, 3, 4, 5), (1, 3, 4, 5)]
    assert [target for batch in batches for target in batch.targets] == [0, 1, 2, 3, 4]


# What is wrong with a sample


def test_key_that_is_no_input(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", inputs=np.ones((3, 4, 5), np.float32))
    assert refusal(tmp_path) == (
        "DATA/a.npz: key 'inputs' is no input of the model; expected 'input' (and 'label' for the target)",
        "rename it to 'input' and write the file again with numpy.savez",
    )


def test_key_too_many(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **image(extra=np.ones(3)))
    problem, fix = refusal(tmp_path)
    assert problem == "DATA/a.npz: key 'extra' is no input of the model; expected 'input' (and 'label' for the target)"
    assert fix == "remove it and write the file again with numpy.savez"


def test_nearest_of_several_inputs(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", input_ids=np.ones(4, np.int64), mask=np.ones(4, np.int64))
    assert refusal(tmp_path, *TEXT)[1] == "rename it to 'attention_mask' and write the file again with numpy.savez"


def test_missing_input(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", input_ids=np.ones(4, np.int64))
    assert refusal(tmp_path, *TEXT) == (
        "DATA/a.npz: the model's input 'attention_mask' is missing; "
        "expected 'input_ids', 'attention_mask', found 'input_ids'",
        "add it: numpy.savez(path, **{'attention_mask': array})",
    )


def test_archive_without_arrays(tmp_path: Path) -> None:
    save(tmp_path / "a.npz")
    assert refusal(tmp_path)[0] == (
        "DATA/a.npz: the model's input 'input' is missing; expected 'input', found no arrays at all"
    )


@pytest.mark.parametrize("later", [False, True])
def test_wrong_shape_at_load_and_when_read(tmp_path: Path, later: bool) -> None:
    if later:
        save(tmp_path / "0.npz", **image())
    save(tmp_path / "1.npz", input=np.ones((3, 4, 6), np.float32))
    assert refusal(tmp_path) == (
        "DATA/1.npz: key 'input' has shape (3, 4, 6), expected (3, 4, 5)",
        "save 'input' with shape (3, 4, 5), one sample and no batch axis",
    )


@pytest.mark.parametrize(
    ("batch", "how"), [(1, "save array[0]"), (8, "save each of the 8 samples as a file of its own")]
)
def test_batch_dimension(tmp_path: Path, batch: int, how: str) -> None:
    save(tmp_path / "a.npz", input=np.ones((batch, 3, 4, 5), np.float32))
    assert refusal(tmp_path) == (
        f"DATA/a.npz: key 'input' has shape ({batch}, 3, 4, 5), expected (3, 4, 5): it still has a batch dimension",
        f"remove the leading axis of 'input': {how}",
    )


def test_batch_dimension_on_dynamic_axes(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", input_ids=np.ones((1, 9), np.int64), attention_mask=np.ones((1, 9), np.int64))
    problem, fix = refusal(tmp_path, *TEXT)
    assert problem.endswith("has shape (1, 9), expected (sequence,): it still has a batch dimension")
    assert fix == "remove the leading axis of 'input_ids': save array[0]"


def test_channels_last(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", input=np.ones((4, 5, 3), np.float32))
    problem, fix = refusal(tmp_path)
    assert problem.endswith("has shape (4, 5, 3), expected (3, 4, 5): the channels are last")
    assert fix == "save 'input' as array.transpose(2, 0, 1)"


@pytest.mark.parametrize(
    ("found", "expected"),
    [("float32", "int64"), ("int64", "float32"), ("complex64", "float32"), ("U3", "float32"), ("float64", "bool")],
)
def test_unsafe_casts(tmp_path: Path, found: str, expected: str) -> None:
    values = np.zeros(4).astype(found)
    save(tmp_path / "a.npz", x=values)
    assert refusal(tmp_path, TensorSpec("x", expected, ("batch", 4))) == (
        f"DATA/a.npz: key 'x' is {values.dtype}, expected {expected}; the cast may change its values",
        f"save 'x' as array.astype(numpy.{expected}) if that is what you mean",
    )


@pytest.mark.parametrize(
    ("value", "found", "expected"),
    [(2**31, "int64", "int32"), (-1, "int32", "uint8"), (1e39, "float64", "float32"), (2**63, "uint64", "int64")],
)
def test_values_that_do_not_fit(tmp_path: Path, value: float, found: str, expected: str) -> None:
    save(tmp_path / "a.npz", x=np.array([0, value], dtype=found))
    problem, fix = refusal(tmp_path, TensorSpec("x", expected, ("batch", 2)))
    assert problem.startswith(f"DATA/a.npz: key 'x' is {found} and holds ")
    assert problem.endswith(f", which {expected} cannot hold")
    assert fix.startswith(f"save 'x' as {expected} with values from ")


def test_objects_are_refused_at_load_and_when_read(tmp_path: Path) -> None:
    save(tmp_path / "1.npz", input=np.array([{}], dtype=object))
    first = refusal(tmp_path)
    assert first[0] == "DATA/1.npz: key 'input' holds Python objects, which are never unpickled; expected numbers"
    save(tmp_path / "0.npz", **image())
    assert refusal(tmp_path) == first


@pytest.mark.parametrize("label", [np.zeros(10), np.array("cat"), np.zeros((1, 2))])
def test_label_that_is_no_number(tmp_path: Path, label: np.ndarray) -> None:
    save(tmp_path / "a.npz", **image(label=label))
    problem, fix = refusal(tmp_path)
    assert (
        problem == f"DATA/a.npz: key 'label' is {label.dtype} of shape {label.shape}, expected one number, the class id"
    )
    assert fix == "save 'label' as numpy.int64(class_id); of a one-hot row, numpy.argmax(row)"


@pytest.mark.parametrize(
    ("first", "second", "middle"),
    [
        ({"label": 1}, {}, "has no key 'label', but the first file has one"),
        ({}, {"label": 1}, "has a key 'label', but the first file has none"),
    ],
)
def test_labels_in_some_files_only(tmp_path: Path, first: dict[str, int], second: dict[str, int], middle: str) -> None:
    save(tmp_path / "0.npz", **image(**first))
    save(tmp_path / "1.npz", **image(**second))
    assert refusal(tmp_path) == (f"DATA/1.npz {middle}", "add 'label' to every file, or remove it from all")


def test_labels_in_one_split_only(tmp_path: Path) -> None:
    save(tmp_path / "train/0.npz", **image())
    save(tmp_path / "val/0.npz", **image(label=1))
    assert refusal(tmp_path) == (
        "DATA/train/0.npz has no key 'label', but files of another split have",
        "add 'label' to every file, or remove it from all",
    )


# What is wrong with a folder


def test_empty_missing_and_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path)[0] == "DATA holds no .npz files"
    assert refusal(tmp_path)[1] == "write one sample a file with numpy.savez, or see sparsify_npz.capture"
    fix = "give --data the folder that holds the .npz files, one sample a file"
    assert refusal(tmp_path / "absent") == ("DATA does not exist", fix)
    assert refusal(save(tmp_path / "a.npz", **image())) == ("DATA is a file, expected a folder of .npz files", fix)


def test_samples_one_folder_deeper(tmp_path: Path) -> None:
    save(tmp_path / "data/a.npz", **image())
    assert refusal(tmp_path) == ("DATA holds no .npz files, but DATA/data does", "use --data DATA/data")


def test_mixed_and_half_filled_layouts(tmp_path: Path) -> None:
    save(tmp_path / "train/a.npz", **image())
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path) == ("DATA/val holds no .npz files", "fill it, or remove the folder")
    save(tmp_path / "val/a.npz", **image())
    save(tmp_path / "validation/a.npz", **image())
    assert refusal(tmp_path) == ("DATA holds both 'val' and 'validation'", "keep one of the two folders")
    save(tmp_path / "b.npz", **image())
    assert refusal(tmp_path) == (
        "DATA holds NPZ files both in itself ('b.npz') and in 'train/'",
        "move them into the split folders, or give a folder without split folders",
    )


def test_only_file_cut_short(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", **image())
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(tmp_path, kind=UnreadableSample)[0].startswith("DATA/a.npz is damaged or cut short: ")


@pytest.mark.parametrize("broken", [0, 17])
def test_one_corrupt_file_in_forty_is_skipped_wherever_it_is(tmp_path: Path, broken: int) -> None:
    for index in range(40):
        save(tmp_path / f"{index}.npz", **image(label=index))
    (tmp_path / f"{broken}.npz").write_bytes(b"")
    split = load(request(tmp_path)).splits["all"]
    assert [sample.target for _, sample in split.samples()] == [index for index in range(40) if index != broken]
    assert split.unreadable == {f"{broken}.npz": f"{tmp_path / f'{broken}.npz'} is empty (0 bytes)"}


def test_more_corrupt_files_than_five_per_cent(tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / f"{index}.npz", **image())
    for index in (5, 6, 7):
        (tmp_path / f"{index}.npz").write_bytes(b"")
    with pytest.raises(RequestError, match=r"3 of 40 samples cannot be read, the last: .*7\.npz is empty"):
        list(load(request(tmp_path)).splits["all"].samples())


# Options that do not fit NPZ data


def test_preprocess_is_refused_but_a_resolved_one_is_ignored(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **image())
    assert refusal(tmp_path, preprocess="imagenet") == (
        "--preprocess imagenet has no effect on NPZ data, which holds the model's inputs as they are",
        "leave --preprocess out, or give --data a folder of images",
    )
    assert load(request(tmp_path, preprocess={"layout": "NCHW"})).preprocess is None


def test_class_list_names_the_classes(tmp_path: Path) -> None:
    save(tmp_path / "data/a.npz", **image())
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"class {index}\n" for index in range(10)))
    assert load(request(tmp_path / "data", class_list=names)).labels == tuple(f"class {index}" for index in range(10))
    names.write_text("cat\ndog\n")
    problem, fix = refusal(tmp_path / "data", class_list=names)
    assert problem == f"--class-list {names} names 2 classes, the model has 10 outputs"
    assert fix == "give a --class-list of 10 lines, line i = class i"
    problem, fix = refusal(tmp_path / "data", class_list=tmp_path / "absent")
    assert problem.startswith(f"--class-list {tmp_path / 'absent'} cannot be read: ")
    assert fix == "give a UTF-8 text file"


def test_model_inputs_that_npz_cannot_feed(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.ones(3))
    for dtype in ("bfloat16", "float8e4m3", "object", "complexes"):
        assert refusal(tmp_path, TensorSpec("x", dtype, ("batch", 3))) == (
            f"the model's input 'x' is {dtype}, which NPZ files cannot hold",
            "export the model with inputs of numbers that NumPy has, such as float32",
        )
    assert refusal(tmp_path, TensorSpec("x", "float32", ())) == (
        "the model's input 'x' is a scalar, so it has no batch axis to stack samples along",
        "export the model with this input as a constant, or with a leading batch axis",
    )


def test_importing_the_plugin_loads_no_heavy_library() -> None:
    code = (
        "import sys, sparsify_npz.plugin as p; list(p.use_cases()), list(p.dataset_loaders());"
        "print([m for m in ('numpy', 'torch', 'onnx', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
