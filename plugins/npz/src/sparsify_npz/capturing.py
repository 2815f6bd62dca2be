"""Record what a PyTorch module is fed as NPZ files, one sample a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import MissingLibraryError, RequestError

from sparsify_npz.archive import write_archive
from sparsify_npz.conform import LABEL

LABEL_KEYS = (LABEL, "labels")


@dataclass(frozen=True)
class Feed:
    """Hold one batch: the inputs by name, whether they are passed by keyword, and the labels if there are any."""

    inputs: Mapping[str, Any]
    by_keyword: bool
    labels: Any = None


def capture(model: Any, loader: Iterable[Any], path: str | Path, input_names: Sequence[str]) -> int:
    """Write every sample that `loader` yields as an NPZ file below `path`, and return how many there are.

    A batch is a tensor, a tuple or list of tensors (named by `input_names` in order), or a dictionary (its keys are the
    module's keywords and must be among `input_names`, which are the ONNX inputs). Labels are stored under `label`:
    `(inputs, labels)`, one element more than there are input names, or a key `label` or `labels` that is no input.
    Axis 0 is the batch. The module runs once, on the first batch, in evaluation mode and on its own device, to prove
    that it takes these inputs; it is left in the mode it was in. bfloat16 is stored as float32. `path` is created and
    must be empty; nothing stays in it on failure. Raises RequestError, and MissingLibraryError without torch.
    """
    names = _check_names(input_names)
    folder = _check_folder(Path(path))
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise RequestError("the loader yielded no batch", fix="give a loader with at least one batch")
    _prove(model, part(first, names))
    return record(chain([first], batches), folder, names)


def record(batches: Iterable[Any], folder: Path, names: Sequence[str]) -> int:
    """Write batches sample by sample, and return how many samples there are; needs no torch."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        for batch in batches:
            for arrays in rows(part(batch, names)):
                write_archive(folder / f"input{count:06d}.npz", arrays)
                count += 1
    except BaseException:
        for file in folder.glob("input*.npz"):  # the folder was empty: all of them are ours
            file.unlink()
        raise
    return count


def part(batch: Any, names: Sequence[str]) -> Feed:
    """Tell a batch's inputs from its labels; raises RequestError."""
    if isinstance(batch, Mapping):
        return _part_mapping(batch, names)
    if not isinstance(batch, tuple | list):
        return _part_sequence([batch], names)
    if len(batch) == 2 and isinstance(batch[0], Mapping | tuple | list):
        feed = part(batch[0], names)
        if feed.labels is not None:
            raise RequestError("the batch holds labels twice", fix="yield them once: (inputs, labels)")
        return Feed(feed.inputs, feed.by_keyword, batch[1])
    return _part_sequence(batch, names)


def _part_sequence(batch: Sequence[Any], names: Sequence[str]) -> Feed:
    extra = len(batch) - len(names)
    if extra not in (0, 1):
        raise RequestError(
            f"a batch holds {len(batch)} tensors, but input_names has {len(names)} ({', '.join(names)})",
            fix="yield as many inputs as there are input_names, and at most one tensor of labels after them",
        )
    return Feed(dict(zip(names, batch, strict=False)), by_keyword=False, labels=batch[-1] if extra else None)


def _part_mapping(batch: Mapping[str, Any], names: Sequence[str]) -> Feed:
    absent = [name for name in names if name not in batch]
    if absent:
        raise RequestError(
            f"a batch has no key '{absent[0]}', which input_names lists; found {', '.join(map(str, batch))}",
            fix="make input_names the names of the exported model's inputs, and yield each of them",
        )
    labels = [key for key in LABEL_KEYS if key in batch and key not in names]
    for key in batch:
        if key not in names and key not in labels:
            near = get_close_matches(str(key), names, n=1)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise RequestError(
                f"a batch has the key '{key}', which is not among input_names{hint}",
                fix=f"add '{key}' to input_names if the exported model has it as an input, else do not yield it",
            )
    return Feed({name: batch[name] for name in names}, by_keyword=True, labels=batch[labels[0]] if labels else None)


def rows(feed: Feed) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield one sample after the other, as arrays by key; raises RequestError where the batch sizes differ."""
    arrays = {name: to_numpy(value, name) for name, value in feed.inputs.items()}
    if feed.labels is not None:
        if LABEL in arrays:
            raise RequestError(
                f"an input is called '{LABEL}', the key of the target", fix="yield the inputs without labels"
            )
        arrays[LABEL] = _labels(feed.labels)
    sizes = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        found = ", ".join(f"'{name}' {arrays[name].shape}" for name in arrays)
        raise RequestError(
            f"the tensors of a batch must share the size of axis 0, the batch; found {found}",
            fix="yield every input with the batch as its leading axis",
        )
    for index in range(next(iter(sizes.values())) or 0):
        yield {name: array[index] for name, array in arrays.items()}


def to_numpy(value: Any, name: str) -> NDArray[Any]:
    """Copy a tensor to the host, or take an array as it is; raises RequestError for anything else."""
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "detach"):
        held = value.detach().cpu()
        array = (held.float() if str(held.dtype).endswith("bfloat16") else held).numpy()
    else:
        raise RequestError(
            f"input '{name}' is a {type(value).__name__}, expected a tensor",
            fix="yield a tensor, a tuple of tensors or a dictionary of tensors",
        )
    if array.dtype.hasobject:
        raise RequestError(f"input '{name}' holds Python objects, expected numbers", fix="yield a tensor of numbers")
    return array


def _labels(value: Any) -> NDArray[Any]:
    array = to_numpy(value, LABEL) if hasattr(value, "detach") else np.asarray(value)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise RequestError(
            f"the labels of a batch are {array.dtype} of shape {array.shape}, expected one number a sample",
            fix="yield the inputs alone: capture(model, (inputs for inputs, _ in loader), ...)",
        )
    return array


def _check_names(input_names: Sequence[str]) -> tuple[str, ...]:
    names = (input_names,) if isinstance(input_names, str) else tuple(input_names)
    if isinstance(input_names, str) or not names or len(set(names)) != len(names):
        raise RequestError(
            f"input_names is {input_names!r}, expected a list of different names",
            fix="give the names of the exported model's inputs, such as input_names=['input']",
        )
    return names


def _check_folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file, expected a folder", fix="give a folder that is new or empty")
    if folder.exists() and any(folder.iterdir()):
        raise RequestError(f"{folder} is not empty", fix="give a folder that is new or empty; nothing is overwritten")
    return folder


def _prove(model: Any, feed: Feed) -> None:
    """Run the module on one batch; what it raises is the user's to see as it is."""
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingLibraryError("capture needs torch, not installed here", fix="pip install torch") from None
    tensor = next(chain(model.parameters(), model.buffers()), None)
    device = "cpu" if tensor is None else tensor.device
    inputs = {name: torch.as_tensor(value).to(device) for name, value in feed.inputs.items()}
    with _evaluating(model), torch.no_grad():
        if feed.by_keyword:
            model(**inputs)
        else:
            model(*inputs.values())


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # train() would also wake what was frozen on purpose
            module.training = training
