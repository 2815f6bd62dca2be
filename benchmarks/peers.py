"""Quantize with the tools that can be installed today, and measure any file, each in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sparsify.contracts import DataRequest, Session
from sparsify.data import Dataset
from sparsify.evaluation import evaluate_pair
from sparsify.metrics import ACCURACY
from sparsify.plugins import load_plugins
from sparsify.splits import Splits, draw_splits
from sparsify.timing import Candidate, Ratio, gzip_size, time_interleaved, time_ratio

THREADS = 2
BLOCKS = 9
PIECE = 50  # samples whose activations ONNX Runtime's histograms hold at once: all of them need tens of GB


@dataclass(frozen=True)
class Case:
    """Name a model, its data, and how the command line is told about them."""

    title: str
    model: Path
    train: Path
    val: Path
    calibration: int
    use_case: str = "image-classification"
    loader: str = "imagefolder"
    class_list: Path | None = None
    transformer: bool = False


@dataclass(frozen=True)
class Cost:
    """Hold what writing a file took, imports left out, and the peak memory of the process that did it."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Score:
    """Hold what a file is worth; `ratio` is its time ÷ that of the float file at batch 1."""

    metric: float
    agreement: float
    kl: float
    bytes: int
    gzip_bytes: int
    ratio: Ratio


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Give ONNX Runtime's calibration the same samples as ours."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.set_range(0, len(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start over with a part of the samples."""
        self.batches = self.dataset.take(self.dataset.keys[start_index:end_index]).batches(1)

    def get_next(self) -> Any:
        """Return the next sample, or None."""
        batch = next(self.batches, None)
        return batch and batch.inputs


class Replay:
    """Stand for a session whose outputs are known: returns them again in the same order."""

    facts: Mapping[str, Any] = {}

    def __init__(self, outputs: list[dict[str, Any]]) -> None:
        self.outputs = iter(outputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next batch's outputs."""
        return next(self.outputs)

    def close(self) -> None:
        """Do nothing."""


def in_process(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run a function of this module in a fresh process and wait for it, so that its peak memory is its own.

    What the tools print on stdout goes to stderr: stdout is for the tables.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.dup2, initargs=(2, 1)) as pool:
        return pool.submit(function, *arguments)


def draw(case: Case) -> Splits:
    """Draw the samples that the command line draws."""
    plugins = load_plugins()
    model_format = plugins.load("model_loaders", "onnx")
    described = model_format.describe(model_format.load(case.model))
    load = plugins.load("dataset_loaders", case.loader).load
    request = partial(DataRequest, inputs=described.inputs, outputs=described.outputs, class_list=case.class_list)
    data, held_out = load(request(case.train, model=case.model)), load(request(case.val, model=case.model))
    return draw_splits(data, held_out, calibration=case.calibration, test=None, seed=0)


def onnxruntime_int8(case: Case, output: Path, method: str, per_channel: bool) -> Cost:
    """Quantize with ONNX Runtime as its documentation says: pre-process, then static QDQ; the rest at its defaults."""
    samples, started = draw(case).calibration, time.monotonic()
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(case.model), str(prepared), skip_symbolic_shape=True)
    piece = max(size for size in range(1, PIECE + 1) if len(samples) % size == 0)
    quantize_static(
        str(prepared),
        str(output),
        Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,  # the default, QInt8, is slower than float on x86; its documentation says so
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={"CalibStridedMinMax": piece} if method == "Entropy" else {},
    )
    return Cost(time.monotonic() - started, peak_mb())


def nncf_int8(case: Case, output: Path) -> Cost:
    """Quantize with NNCF at its defaults: fast bias correction, preset `performance` (transformers: `mixed`)."""
    import nncf  # type: ignore[import-untyped]
    import onnx

    samples, started = draw(case).calibration, time.monotonic()
    batches = [batch.inputs for batch in samples.batches(1)]
    kind = nncf.ModelType.TRANSFORMER if case.transformer else None
    dataset = nncf.Dataset(batches)
    quantized = nncf.quantize(onnx.load(case.model), dataset, subset_size=len(batches), model_type=kind)
    onnx.save(quantized, output)
    return Cost(time.monotonic() - started, peak_mb())


def nncf_name(case: Case) -> str:
    """Return NNCF's version and preset."""
    return f"NNCF {version('nncf')}, preset {'mixed' if case.transformer else 'performance'}"


def peak_mb() -> float:
    """Return this process's peak resident memory; `ru_maxrss` would count the parent's as well."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(case: Case, files: Mapping[str, Path]) -> tuple[float, dict[str, Score]]:
    """Return the float model's metric, and each file's score: on the same samples, all timed interleaved."""
    open_session = load_plugins().load("runtimes", "onnxruntime")
    test = draw(case).test
    known = outputs_of(open_session(case.model, THREADS), test)
    pairs = {}
    for name, path in files.items():
        session = open_session(path, THREADS)
        pairs[name] = evaluate_pair(Replay(known), session, test, [ACCURACY])
        session.close()
    ratios = times(case.model, files, next(iter(test.batches(1))).inputs)
    scores = {
        name: Score(
            pair.candidate.values["accuracy"],
            pair.agreement["top1"] or 0.0,
            pair.agreement["kl"] or 0.0,
            files[name].stat().st_size,
            gzip_size(files[name]),
            ratios[name],
        )
        for name, pair in pairs.items()
    }
    first = next(iter(pairs.values()), None)
    return first.baseline.values["accuracy"] if first else 0.0, scores


def outputs_of(session: Session, dataset: Dataset) -> list[dict[str, Any]]:
    """Run the float model once: every file is compared with the same outputs."""
    outputs = [session.run(batch.inputs) for batch in dataset.batches(8)]
    session.close()
    return outputs


def times(baseline: Path, files: Mapping[str, Path], inputs: Any) -> dict[str, Ratio]:
    """Time all files against the float one, interleaved."""
    open_session = load_plugins().load("runtimes", "onnxruntime")
    named = {"float": baseline, **files}
    candidates = [Candidate(name, partial(open_session, path, THREADS)) for name, path in named.items()]
    timings = time_interleaved(candidates, inputs, batch=1, threads=THREADS, blocks=BLOCKS)
    return {name: time_ratio(timings[name], timings["float"]) for name in files}
