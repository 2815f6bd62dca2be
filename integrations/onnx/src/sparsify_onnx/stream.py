"""Run the dense and the compressed model side by side over the calibration samples, a stretch of the graph at a time.

The tensors that later layers still need are kept on disk between stretches, so that a whole pruning run costs about two
forward passes a sample however deep the model is. Where they would be too large, the next pass starts further back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from sparsify import Context

from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.graph import model_inputs, reads
from sparsify_onnx.sessions import open_model

SPOOL_BYTES = 2 << 30  # both models' tensors together
Tensors = dict[str, NDArray[Any]]
Run = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Moment:
    """Hold what both models computed on one batch; `first` numbers its first sample, `rows` is its padded size."""

    first: int
    samples: int
    rows: int
    dense: Tensors
    compressed: Tensors


@dataclass(frozen=True)
class Lane:
    """Hold how far one model has been run: the nodes that are `done`, and the tensors on disk to go on from."""

    model: onnx.ModelProto
    done: frozenset[int] = frozenset()
    base: Mapping[str, onnx.ValueInfoProto] = field(default_factory=dict)


@dataclass
class Stream:
    """Walk forward through the graph that both models share; only their weights differ.

    wanted: the nodes that any later pass may need. carried: inputs of the model that stay at hand. Each model goes on
    from its own last pass: the dense one is ahead by the layers whose outputs were asked of it.
    """

    dense: onnx.ModelProto
    compressed: onnx.ModelProto
    context: Context
    folder: Path
    wanted: frozenset[int]
    carried: frozenset[str] = frozenset()
    generation: int = 0

    def __post_init__(self) -> None:
        self.lanes: tuple[Lane, ...] = (Lane(self.dense), Lane(self.compressed))

    def run(self, dense: Sequence[str], compressed: Sequence[str], advance: bool = False) -> Iterator[Moment]:
        """Yield the named tensors of both models, batch by batch; with `advance` later passes go on from there."""
        asked = tuple(zip(self.lanes, (dense, compressed), strict=True))
        behind = [lane.done | upstream(lane.model, names, lane.base) for lane, names in asked]
        frontiers = [
            sorted({*live(lane.model, done, self.wanted), *self.carried}) if advance else []
            for lane, done in zip(self.lanes, behind, strict=True)
        ]
        runs = [
            open_stretch(lane.model, lane.base, [*names, *frontier], self.context.threads)
            for (lane, names), frontier in zip(asked, frontiers, strict=True)
        ]
        keep, first, types = advance, 0, list[Mapping[str, onnx.ValueInfoProto]]()
        for index, (samples, rows, *feeds) in enumerate(self._feeds()):
            found = [run(feed) for run, feed in zip(runs, feeds, strict=True)]
            left = [{name: tensors[name] for name in names} for tensors, names in zip(found, frontiers, strict=True)]
            if keep and index == 0:
                keep = _fits([tensor for tensors in left for tensor in tensors.values()], rows, self.context)
                types = [{name: _type(name, tensor) for name, tensor in tensors.items()} for tensors in left]
            if keep:
                self._write(index, samples, rows, left)
            yield Moment(first, samples, rows, *found)
            first += samples
        if keep:
            self._forget()
            self.generation += 1
            self.lanes = tuple(
                Lane(lane.model, done, base) for lane, done, base in zip(self.lanes, behind, types, strict=True)
            )

    def _feeds(self) -> Iterator[tuple[int, int, Tensors, Tensors]]:
        if not self.generation:
            size = fixed_batch(self.dense)
            for batch in self.context.calibration.batches(size or self.context.batch_size, pad=size > 0):
                rows = len(next(iter(batch.inputs.values())))
                yield len(batch.keys), rows, batch.inputs, batch.inputs
        for path in sorted(self.folder.glob(f"{self.generation:05d}-*.npy")):
            with path.open("rb") as file:
                samples, rows = np.load(file, allow_pickle=False).tolist()
                left, right = ({name: np.load(file, allow_pickle=False) for name in lane.base} for lane in self.lanes)
            yield samples, rows, left, right

    def _write(self, index: int, samples: int, rows: int, left: Sequence[Tensors]) -> None:
        """Write one array after the other into a file: an .npz would take a checksum of each."""
        with (self.folder / f"{self.generation + 1:05d}-{index:06d}.npy").open("wb") as file:
            for array in (np.array([samples, rows]), *(array for tensors in left for array in tensors.values())):
                np.save(file, array, allow_pickle=False)

    def _forget(self) -> None:
        for path in self.folder.glob(f"{self.generation:05d}-*.npy"):
            path.unlink()


def _fits(tensors: list[NDArray[Any]], rows: int, context: Context) -> bool:
    storable = all(isinstance(tensor, np.ndarray) and tensor.dtype != object for tensor in tensors)
    return storable and sum(tensor.nbytes for tensor in tensors) / rows * len(context.calibration) <= SPOOL_BYTES


def _type(name: str, tensor: NDArray[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), [None] * tensor.ndim)


def upstream(model: onnx.ModelProto, targets: Sequence[str], base: Collection[str] = ()) -> frozenset[int]:
    """Find the nodes (by position) needed to compute `targets` when `base` is given."""
    wanted, found = set(targets) - set(base), set()
    for index in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[index]
        if not wanted.isdisjoint(node.output):
            found.add(index)
            wanted |= reads(node) - set(base)
    return frozenset(found)


def live(model: onnx.ModelProto, behind: frozenset[int], wanted: frozenset[int]) -> list[str]:
    """Name the tensors that `wanted` nodes not yet behind us read from graph inputs or nodes behind us."""
    ready = {value.name for value in model_inputs(model)}
    ready |= {name for index in behind for name in model.graph.node[index].output}
    needed: set[str] = set()
    for index in wanted - behind:
        needed |= reads(model.graph.node[index]) & ready
    return sorted(needed)


def open_stretch(
    model: onnx.ModelProto, base: Mapping[str, onnx.ValueInfoProto], targets: Sequence[str], threads: int
) -> Run:
    """Open the part of a model between `base` (or the graph inputs) and `targets` in ONNX Runtime."""
    part = stretch(model, base, targets)
    wanted = list(dict.fromkeys(targets))
    computed = [value.name for value in part.graph.output]
    session = open_model(part, threads=threads, optimise=True) if computed else None
    taken = [value.name for value in part.graph.input]

    def run(feed: Tensors) -> Tensors:
        results = session.run(computed, {name: feed[name] for name in taken}) if session else []
        found = dict(zip(computed, results, strict=True))
        return {name: found[name] if name in found else feed[name] for name in wanted}

    return run


def stretch(model: onnx.ModelProto, base: Mapping[str, onnx.ValueInfoProto], targets: Sequence[str]) -> onnx.ModelProto:
    """Cut out the nodes between `base` and `targets`, with the initializers they read."""
    nodes = [model.graph.node[index] for index in sorted(upstream(model, targets, base))]
    used = {name for node in nodes for name in reads(node)}
    made = {name for node in nodes for name in node.output}
    graph = onnx.GraphProto(name="stretch")
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    constants = {tensor.name for tensor in graph.initializer}
    known = {value.name: value for value in model_inputs(model)} | dict(base)
    graph.input.extend(known[name] for name in sorted(used - made - constants))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(targets) if name in made)
    part = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    return part
