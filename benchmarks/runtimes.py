#!/usr/bin/env python3
"""Time dense, INT8 and pruned + INT8 forms of models on every runtime, in turns, at batch 1 and 16; print Markdown.

    python benchmarks/runtimes.py resnet20=FILE.onnx squeezenet1_1=FILE.onnx resnet50=FILE.onnx minilm=FILE.onnx

The compressed models have the zeros and the INT8 layers of a real run, and weights nobody fitted: neither counts for
time. `benchmarks/export_resnet50.py` writes the ResNet-50. Every runtime gets the form that it takes; ratios are paired
by block, against the float model on the same runtime, and against the float model on ONNX Runtime.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsify import (
    Candidate,
    Context,
    Dataset,
    Ratio,
    Sample,
    Talk,
    Timing,
    fit,
    load_plugins,
    load_runtime,
    time_interleaved,
    time_ratio,
)
from sparsify_onnx.benchmark import pinned
from sparsify_onnx.describe import describe
from sparsify_onnx.foresight import ROUGH
from sparsify_onnx.loader import load
from sparsify_onnx.pruning import MagnitudePruningModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.random_inputs import Contender, random_inputs, read_inputs
from sparsify_onnx.storage import write_atomic

RUNTIMES = ("onnxruntime", "openvino", "deepsparse")
VARIANTS = ("float", "INT8", "80 %", "80 % + INT8")
LENGTH = 128  # of a text
CALIBRATION = 8


def forms(path: Path, folder: Path, sparsity: float) -> tuple[dict[str, Path], int]:
    """Write a model's four forms; also counts its layers."""
    model = load(path)
    inputs = draw(path, CALIBRATION)
    rows = [Sample({name: array[row] for name, array in inputs.items()}) for row in range(CALIBRATION)]
    context = Context(Dataset(tuple(map(str, range(CALIBRATION))), lambda key: rows[int(key)]), threads=2)
    pruned = MagnitudePruningModifier(sparsity=sparsity).apply(model, context)
    rounding = QuantizationModifier.model_validate(ROUGH)
    made = {"float": path}
    for name, changed in (
        ("INT8", rounding.apply(load(path), context)),
        ("80 %", pruned),
        ("80 % + INT8", rounding.apply(pruned, context)),
    ):
        made[name] = folder / f"{name.replace(' ', '').replace('%', '')}.onnx"
        write_atomic(changed.value, made[name])
    return made, describe(model).computing


def draw(path: Path, batch: int) -> Mapping[str, Any]:
    """Draw inputs; free axes of texts are 128 long."""
    _, specs = read_inputs(path)
    shapes = {
        spec.name: (batch, *(side if isinstance(side, int) else LENGTH for side in spec.shape[1:])) for spec in specs
    }
    return random_inputs(Contender(path, "", lambda threads: None, specs), shapes, batch)  # type: ignore[arg-type, return-value]


def measure(
    made: Mapping[str, Path], batch: int, blocks: int, seconds: float, threads: int, folder: Path
) -> dict[tuple[str, str], Timing]:
    """Time every form on every runtime, in turns."""
    plugins = load_plugins()
    candidates = []
    for runtime in RUNTIMES:
        opener = load_runtime(runtime, plugins)
        for name, path in made.items():
            fitted = fit(path, runtime, plugins, folder)
            candidates.append(Candidate(f"{runtime}|{name}", partial(opener, fitted, threads)))
    inputs = draw(made["float"], batch)
    timings = time_interleaved(
        candidates, inputs, batch=batch, threads=threads, blocks=blocks, min_seconds=seconds, progress=Talk().progress
    )
    return {(name.split("|")[0], name.split("|")[1]): timing for name, timing in timings.items()}


def shown(ratio: Ratio) -> str:
    """Write a speed-up with its interval."""
    return f"{1 / ratio.value:.2f} ({1 / ratio.high:.2f}–{1 / ratio.low:.2f})"


def rows(case: str, batch: int, timings: Mapping[tuple[str, str], Timing], computing: int) -> Iterator[str]:
    """Write a table row for each form and runtime."""
    for (runtime, name), timing in timings.items():
        executed, precision = timing.facts.get("int8_executed"), timing.facts.get("precision")
        share = f"{executed} of {computing}" if executed is not None else "not told"
        own, first = timings[runtime, "float"], timings["onnxruntime", "float"]
        yield (
            f"| {case} | {batch} | {runtime} | {name} | {precision or 'not told'} | {share} | {timing.p50_ms:.2f} "
            f"| {shown(time_ratio(timing, own))} | {shown(time_ratio(timing, first))} |"
        )


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sparsity", type=float, default=0.8)
    asked = parser.parse_args()
    heads = "model | batch | runtime | form | precision | INT8 nodes | p50 ms | × its own float | × ONNX Runtime float"
    print(f"| {heads} |\n|{' --- |' * 9}", flush=True)
    with pinned(0) as threads:
        for case, _, path in (text.partition("=") for text in asked.cases):
            with TemporaryDirectory(prefix="sparsify-") as folder:
                made, computing = forms(Path(path), Path(folder), asked.sparsity)
                for batch in asked.batch_size:
                    timings = measure(made, batch, asked.blocks, asked.seconds, threads, Path(folder) / "fitted")
                    print("\n".join(rows(case, batch, timings, computing)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
