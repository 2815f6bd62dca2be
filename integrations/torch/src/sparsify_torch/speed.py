"""How long a module takes in ONNX Runtime, whole and operator by operator."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from sparsify import Candidate, Checkpoint, Ratio, time_interleaved, time_ratio
from sparsify_onnx import open_session
from torch import Tensor, nn

from sparsify_torch.channels import Cost, macs
from sparsify_torch.tracing import evaluating
from sparsify_torch.walk import Work

RUNS = 15
KEPT = "operator-times"


def measured_cost(threads: int = 1, *, runs: int = RUNS, kept: Checkpoint | None = None) -> Cost:
    """Return a cost in milliseconds: each operator timed alone in ONNX Runtime at the asked widths, and remembered.

    kept: where times are written to, and taken from: a choice by time is the same the next time.

    The look-up tables of Yang et al., "NetAdapt", ECCV 2018 (arXiv:1804.03230); the kernel's own time from ONNX
    Runtime's profile, without the layout changes around a model of one operator. What no micro-model is made for
    (attention's products) costs the same share of its time as of its MACs, at the rate of the operators measured.
    """
    held = (kept.load(KEPT) if kept else None) or {"operators": np.array([]), "ms": np.array([])}
    known: dict[str, float] = dict(zip(held["operators"].tolist(), held["ms"].tolist(), strict=True))
    rate: dict[str, float] = {}

    def cost(work: Work, left: tuple[int, ...]) -> float:
        model = _micro_model(work, left)
        if model is None or not macs(work, left):
            return macs(work, left) * rate.get("ms a mac", 2e-8)
        key = f"{work.op} {sorted(work.facts.items())} {left}"
        if key not in known:
            known[key] = _kernel_ms(model, threads, runs)
            if kept:
                kept.save(KEPT, {"operators": np.array(list(known)), "ms": np.array(list(known.values()))})
        rate["ms a mac"] = known[key] / macs(work, left)
        return known[key]

    return cost


def _micro_model(work: Work, kept: tuple[int, ...]) -> onnx.ModelProto | None:
    if work.op in ("conv1d", "conv2d", "conv3d"):
        return _convolution(work.facts, kept)
    if "positions" in work.facts:
        return _product(int(work.facts["positions"]), *kept)
    return None


def _convolution(facts: Mapping[str, Any], kept: tuple[int, ...]) -> onnx.ModelProto | None:
    shape, weight, groups = list(facts["shape"]), list(facts["weight"]), int(facts["groups"])
    spatial = len(shape) - 2
    padding = facts.get("padding", [0])
    if isinstance(padding, str):
        return None
    if groups > 1:
        groups = groups * kept[0] // weight[0]
        weight[0], shape[1] = kept[0], weight[1] * groups
    else:
        weight[0], weight[1], shape[1] = kept[0], kept[1], kept[1]
    pads = _each(padding, spatial)
    attributes = {
        "strides": _each(facts.get("stride", [1]), spatial),
        "dilations": _each(facts.get("dilation", [1]), spatial),
        "pads": pads + pads,
        "group": groups,
    }
    return _model("Conv", shape, weight, attributes)


def _product(positions: int, made: int, taken: int) -> onnx.ModelProto:
    return _model("Gemm", [positions, taken], [made, taken], {"transB": 1})


def _each(sizes: Any, count: int) -> list[int]:
    given = [int(sizes)] if isinstance(sizes, int) else [int(size) for size in sizes]
    return given * count if len(given) == 1 else given


def _model(op: str, shape: Sequence[int], weight: Sequence[int], attributes: Mapping[str, Any]) -> onnx.ModelProto:
    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _kernel_ms(model: onnx.ModelProto, threads: int, runs: int) -> float:
    """Return the median time of the one heavy kernel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        inputs = {"x": np.zeros(sizes, np.float32)}
        for _ in range(runs):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    took = [event["dur"] for event in events if event.get("args", {}).get("op_name") == model.graph.node[0].op_type]
    return float(median(took or [0])) / 1000


def write_onnx(module: nn.Module, example_inputs: tuple[Any, ...], path: Path) -> None:
    """Write a module in evaluation mode as it is timed: inputs of the example's sizes, weights in the file."""
    with evaluating(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program: Any = torch.onnx.export(module, example_inputs, dynamo=True, verbose=False, external_data=False)
    program.save(str(path), external_data=False)


def speedups(
    modules: Mapping[str, nn.Module], example_inputs: tuple[Any, ...], *, threads: int = 0, seconds: float = 0.2
) -> dict[str, Ratio]:
    """Time modules in ONNX Runtime in turns; return by name how many times as fast each is as the first."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{place}.onnx" for place, name in enumerate(modules)}
        for name, module in modules.items():
            write_onnx(module, example_inputs, paths[name])
        names = [spec.name for spec in onnx.load(str(next(iter(paths.values())))).graph.input]
        arrays = {name: _array(value) for name, value in zip(names, example_inputs, strict=True)}
        batch = next(iter(arrays.values())).shape[0]
        candidates = [Candidate(name, partial(open_session, path, threads)) for name, path in paths.items()]
        timings = time_interleaved(candidates, arrays, batch=batch, threads=threads, min_seconds=seconds)
    first = next(iter(modules))
    ratios = {name: time_ratio(timings[name], timings[first]) for name in modules}
    return {name: Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low) for name, ratio in ratios.items()}


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
