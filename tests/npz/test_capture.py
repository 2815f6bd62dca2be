"""Recording a module's inputs: each fault of the old guide's script (SPEC-FACTS A.13) must be impossible.

Torch is no dependency of the tests: tensors here are stand-ins with what capture uses of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sparsify_npz
from hypothesis import given
from hypothesis import strategies as st
from sparsify import DataRequest, MissingLibraryError, RequestError, TensorSpec
from sparsify_npz.archive import read_archive
from sparsify_npz.capturing import capture, part, record, rows
from sparsify_npz.folder import load


class Tensor:
    """Stand in for a torch tensor: on a GPU, `numpy()` fails as the real one does."""

    def __init__(self, value: Any, device: str = "cpu", dtype: str | None = None) -> None:
        self.value, self.device = np.asarray(value), device
        self.dtype = dtype or f"torch.{self.value.dtype}"

    def detach(self) -> Tensor:
        return self

    def to(self, device: str) -> Tensor:
        return Tensor(self.value, device, self.dtype)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def float(self) -> Tensor:
        return Tensor(self.value.astype(np.float32), self.device)

    def numpy(self) -> np.ndarray:
        if self.device != "cpu":
            raise TypeError("can't convert a GPU tensor to numpy")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.value


class Module:
    """Stand in for a torch module with a frozen submodule; `forward` sees what it is called with."""

    def __init__(self, forward: Callable[..., Any] = lambda *_, **__: None, device: str = "cpu") -> None:
        self.forward, self.device, self.training = forward, device, True
        self.frozen = SimpleNamespace(training=False)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any], bool]] = []

    def parameters(self) -> Iterator[Any]:
        return iter([SimpleNamespace(device=self.device)])

    def buffers(self) -> Iterator[Any]:
        return iter([])

    def modules(self) -> Iterator[Any]:
        return iter([self, self.frozen])

    def eval(self) -> None:
        self.training = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs, self.training))
        return self.forward(*args, **kwargs)


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(
        as_tensor=lambda value: value if isinstance(value, Tensor) else Tensor(value), no_grad=nullcontext
    )
    monkeypatch.setitem(sys.modules, "torch", stand_in)


def batch(start: int, size: int, *shape: int) -> Tensor:
    """Make a batch whose sample i is filled with start + i."""
    values = np.arange(start, start + size, dtype=np.float32)
    return Tensor(np.broadcast_to(values.reshape(-1, *[1] * len(shape)), (size, *shape)).copy())


def stored(folder: Path) -> list[dict[str, np.ndarray]]:
    return [read_archive(file) for file in sorted(folder.iterdir())]


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value.problem, caught.value.fix


# The eight faults


def test_1_positional_tensors_of_any_rank(tmp_path: Path) -> None:
    loader = [(batch(0, 3, 2, 4), batch(10, 3)), (batch(3, 2, 2, 4), batch(13, 2))]
    assert capture(Module(), loader, tmp_path / "data", ["image", "time"]) == 5
    samples = stored(tmp_path / "data")
    assert [sample["image"].shape for sample in samples] == [(2, 4)] * 5
    assert [sample["time"].item() for sample in samples] == [10, 11, 12, 13, 14]


def test_2_and_3_keyword_tensors_of_their_own_size(tmp_path: Path) -> None:
    loader = [{"input_ids": batch(0, 2, 7), "attention_mask": batch(5, 2, 3)}]
    model = Module()
    assert capture(model, loader, tmp_path, ["input_ids", "attention_mask"]) == 2
    first, second = stored(tmp_path)
    assert (first["input_ids"].shape, first["attention_mask"].shape) == ((7,), (3,))
    assert (second["input_ids"][0], second["attention_mask"][0]) == (1, 6)
    (args, kwargs, _) = model.calls[0]
    assert (args, set(kwargs)) == ((), {"input_ids", "attention_mask"})


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), inputs=st.integers(1, 3))
def test_4_every_sample_holds_its_own_row_of_every_input(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], inputs: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    names = [f"x{index}" for index in range(inputs)]
    starts = np.cumsum([0, *sizes])
    loader = [
        tuple(batch(start + 100 * i, size, 2) for i in range(inputs))
        for start, size in zip(starts, sizes, strict=False)
    ]
    assert capture(Module(), loader, folder, names) == sum(sizes)
    for index, sample in enumerate(stored(folder)):
        assert {name: sample[name].tolist() for name in names} == {
            name: [index + 100 * i] * 2 for i, name in enumerate(names)
        }


def test_5_positional_inputs_carry_the_names_of_the_onnx_inputs(tmp_path: Path) -> None:
    assert capture(Module(), [batch(0, 1, 3)], tmp_path, ["pixel_values:0"]) == 1
    assert set(stored(tmp_path)[0]) == {"pixel_values:0"}


def test_6_the_folder_is_created(tmp_path: Path) -> None:
    assert capture(Module(), [batch(0, 2, 3)], tmp_path / "a/b", ["x"]) == 2
    assert [file.name for file in sorted((tmp_path / "a/b").iterdir())] == ["input000000.npz", "input000001.npz"]


def test_7_gpu_tensors_are_moved_and_the_module_gets_its_own_device(tmp_path: Path) -> None:
    model = Module(device="cuda:0")
    capture(model, [batch(0, 1, 3).to("cuda:0"), batch(1, 1, 3)], tmp_path / "a", ["x"])
    capture(model, [batch(0, 1, 3)], tmp_path / "b", ["x"])
    assert [sample["x"][0] for sample in stored(tmp_path / "a")] == [0, 1]
    assert [args[0].device for args, _, _ in model.calls] == ["cuda:0", "cuda:0"]


def test_8_batch_sizes_that_differ_are_an_error_and_nothing_stays_behind(tmp_path: Path) -> None:
    loader = [(batch(0, 2, 3), batch(0, 2)), (batch(0, 2, 3), batch(0, 4))]
    assert refusal(lambda: capture(Module(), loader, tmp_path, ["x", "t"])) == (
        "the tensors of a batch must share the size of axis 0, the batch; found 'x' (2, 3), 't' (4,)",
        "yield every input with the batch as its leading axis",
    )
    assert list(tmp_path.iterdir()) == []


# What else a loader may yield


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: ((x,), y),
        lambda x, y: ({"x": x}, y),
        lambda x, y: {"x": x, "label": y},
        lambda x, y: {"x": x, "labels": y},
    ],
    ids=["tuple", "list", "nested", "nested mapping", "label", "labels"],
)
@pytest.mark.parametrize("labels", [Tensor([4, 5]), Tensor([[4], [5]]), [4, 5], np.array([4.0, 5.0])])
def test_labels(tmp_path: Path, make: Callable[[Any, Any], Any], labels: Any) -> None:
    capture(Module(), [make(batch(0, 2, 3), labels)], tmp_path, ["x"])
    assert [(set(sample), sample["label"].item()) for sample in stored(tmp_path)] == [
        ({"x", "label"}, label) for label in (4, 5)
    ]


def test_two_inputs_in_a_nested_batch_with_labels(tmp_path: Path) -> None:
    capture(Module(), [((batch(0, 2, 3), batch(0, 2)), Tensor([4, 5]))], tmp_path, ["x", "t"])
    assert set(stored(tmp_path)[0]) == {"x", "t", "label"}


def test_half_stays_half_and_bfloat16_becomes_float32(tmp_path: Path) -> None:
    half = Tensor(np.ones((1, 2), np.float16))
    brain = Tensor(np.ones((1, 2), np.float32), dtype="torch.bfloat16")
    capture(Module(), [(half, brain)], tmp_path, ["half", "brain"])
    assert {name: array.dtype for name, array in stored(tmp_path)[0].items()} == {"half": "float16", "brain": "float32"}


def test_numpy_batches_and_inputs_called_as_savez_parameters(tmp_path: Path) -> None:
    capture(Module(), [(np.ones((1, 2)), np.zeros((1, 2)))], tmp_path, ["file", "allow_pickle"])
    assert set(stored(tmp_path)[0]) == {"file", "allow_pickle"}


def test_the_module_runs_once_in_evaluation_mode_and_keeps_its_modes(tmp_path: Path) -> None:
    model = Module()
    capture(model, [batch(0, 1), batch(1, 1)], tmp_path, ["x"])
    assert [training for _, _, training in model.calls] == [False]
    assert (model.training, model.frozen.training) == (True, False)


def test_a_module_that_fails_keeps_its_modes_and_writes_nothing(tmp_path: Path) -> None:
    def forward(*_: Any) -> None:
        raise ValueError("expected 3 channels")

    model = Module(forward)
    with pytest.raises(ValueError, match="expected 3 channels"):
        capture(model, [batch(0, 1)], tmp_path / "data", ["x"])
    assert model.training
    assert not (tmp_path / "data").exists()


def test_batches_are_streamed(tmp_path: Path) -> None:
    def loader() -> Iterator[Tensor]:
        for index in range(4):
            # the batch before the last one asked for is on disk: nothing waits in memory
            assert len(list((tmp_path / "data").glob("*"))) == 2 * index
            yield batch(index, 2, 3)

    (tmp_path / "data").mkdir()
    assert record(loader(), tmp_path / "data", ["x"]) == 8


def test_interrupted_recording_leaves_nothing(tmp_path: Path) -> None:
    def loader() -> Iterator[Tensor]:
        yield batch(0, 2, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(Module(), loader(), tmp_path, ["x"])
    assert list(tmp_path.iterdir()) == []


def test_what_was_captured_is_what_the_loader_reads(tmp_path: Path) -> None:
    capture(Module(), [(batch(0, 12, 3), Tensor(np.arange(12)))], tmp_path, ["x"])
    request = DataRequest(tmp_path, (TensorSpec("x", "float32", ("batch", 3)),), ())
    data = load(request)
    assert [sample.target for _, sample in data.splits["all"].samples()] == list(range(12))


# Refusals


def test_no_batch_and_bad_folders(tmp_path: Path) -> None:
    assert refusal(lambda: capture(Module(), [], tmp_path, ["x"])) == (
        "the loader yielded no batch",
        "give a loader with at least one batch",
    )
    file = tmp_path / "kept.txt"
    file.write_text("mine")
    assert refusal(lambda: capture(Module(), [batch(0, 1)], tmp_path, ["x"])) == (
        f"{tmp_path} is not empty",
        "give a folder that is new or empty; nothing is overwritten",
    )
    assert refusal(lambda: capture(Module(), [batch(0, 1)], file, ["x"])) == (
        f"{file} is a file, expected a folder",
        "give a folder that is new or empty",
    )
    assert file.read_text() == "mine"


@pytest.mark.parametrize("names", ["input", [], ["a", "a"]])
def test_bad_input_names(tmp_path: Path, names: Any) -> None:
    problem, fix = refusal(lambda: capture(Module(), [batch(0, 1)], tmp_path, names))
    assert problem.startswith(f"input_names is {names!r}")
    assert problem.endswith("expected a list of different names")
    assert fix == "give the names of the exported model's inputs, such as input_names=['input']"


@pytest.mark.parametrize(
    ("value", "names", "problem", "fix"),
    [
        (
            (batch(0, 1), batch(0, 1), batch(0, 1)),
            ["x"],
            "a batch holds 3 tensors, but input_names has 1 (x)",
            "yield as many inputs as there are input_names, and at most one tensor of labels after them",
        ),
        (
            {"ids": batch(0, 1)},
            ["input_ids"],
            "a batch has no key 'input_ids', which input_names lists; found ids",
            "make input_names the names of the exported model's inputs, and yield each of them",
        ),
        (
            {"ids": batch(0, 1), "idz": batch(0, 1)},
            ["ids"],
            "a batch has the key 'idz', which is not among input_names, did you mean 'ids'?",
            "add 'idz' to input_names if the exported model has it as an input, else do not yield it",
        ),
        (
            ({"x": batch(0, 1), "label": [1]}, [1]),
            ["x"],
            "the batch holds labels twice",
            "yield them once: (inputs, labels)",
        ),
        (
            ("text",),
            ["x"],
            "input 'x' is a str, expected a tensor",
            "yield a tensor, a tuple of tensors or a dictionary of tensors",
        ),
        (
            np.array([{}], dtype=object),
            ["x"],
            "input 'x' holds Python objects, expected numbers",
            "yield a tensor of numbers",
        ),
        (
            (batch(0, 2), Tensor(np.zeros((2, 5)))),
            ["x"],
            "the labels of a batch are float64 of shape (2, 5), expected one number a sample",
            "yield the inputs alone: capture(model, (inputs for inputs, _ in loader), ...)",
        ),
        (
            (batch(0, 2), [1, 2]),
            ["label"],
            "an input is called 'label', the key of the target",
            "yield the inputs without labels",
        ),
        (
            Tensor(1.0),
            ["x"],
            "the tensors of a batch must share the size of axis 0, the batch; found 'x' ()",
            "yield every input with the batch as its leading axis",
        ),
    ],
)
def test_bad_batches(value: Any, names: list[str], problem: str, fix: str) -> None:
    assert refusal(lambda: list(rows(part(value, names)))) == (problem, fix)


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingLibraryError) as caught:
        capture(Module(), [batch(0, 1)], tmp_path, ["x"])
    assert caught.value.lines() == "error: capture needs torch, not installed here\nfix: pip install torch"


def test_public_names_of_the_package() -> None:
    assert sparsify_npz.capture is capture
    assert {name: hasattr(sparsify_npz, name) for name in dir(sparsify_npz)} == dict.fromkeys(
        sparsify_npz.__all__, True
    )
    with pytest.raises(AttributeError, match="module 'sparsify_npz' has no attribute 'captur'"):
        _ = sparsify_npz.captur
