"""Measure the main job on real models, beside ONNX Runtime's own quantization and magnitude pruning, in one run.

    python benchmarks/main_job.py DATA       # cifar10-jpg.tar, imagenette-small, imagenet-sample, models
    python benchmarks/main_job.py DATA --only squeezenet --squeezenet squeezenet1_1.onnx

squeezenet1_1.onnx is written once by benchmarks/export_squeezenet.py. Prints Markdown tables for docs/figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sparsify.contracts import Data, DataRequest
from sparsify.data import Dataset
from sparsify.evaluation import Pair, evaluate_pair
from sparsify.metrics import ACCURACY
from sparsify.plugins import load_plugins
from sparsify.splits import draw_splits
from sparsify.timing import Candidate, Ratio, time_interleaved, time_ratio

PLUGINS = load_plugins()
MAGNITUDE = """post_training_modifiers:
  - !MagnitudePruningModifier
    sparsity: 0.5143
  - !QuantizationModifier {}
"""


@dataclass(frozen=True)
class Case:
    """Name a model, its calibration data, and the data it is measured on."""

    model: Path
    train: Path
    val: Path
    class_list: Path | None
    calibration: int


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Give ONNX Runtime's calibration the same samples as ours."""

    def __init__(self, dataset: Dataset) -> None:
        self.batches: Iterator[Any] = iter([batch.inputs for batch in dataset.batches(1)])

    def get_next(self) -> Any:
        """Return the next sample, or None."""
        return next(self.batches, None)


def main() -> None:
    """Run the cases and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--squeezenet", type=Path, default=Path("squeezenet1_1.onnx"))
    parser.add_argument("--only", choices=["resnet20", "squeezenet"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "squeezenet":
            resnet20(options.data, Path(scratch))
        if options.only != "resnet20":
            squeezenet(options.data, options.squeezenet, Path(scratch))


def resnet20(data: Path, scratch: Path) -> None:
    """Print accuracy, divergence, time and memory on CIFAR-10 as JPEG."""
    with tarfile.open(data / "cifar10-jpg.tar") as archive:
        archive.extractall(scratch, filter="data")
    root = next(path.parent for path in scratch.rglob("train") if path.is_dir())
    case = Case(data / "models" / "resnet20_cifar10jpg.onnx", root / "train", root / "val", None, 500)
    rows = {
        "ours, level 0.2 (INT8)": ours(case, scratch / "a", "--optim-level", "0.2"),
        "ours, level 0.5 (51.4 % + INT8)": ours(case, scratch / "b", "--optim-level", "0.5"),
        "magnitude 51.4 % + our INT8": ours(case, scratch / "c", "--recipe", str(recipe(scratch))),
        "ONNX Runtime minmax, per tensor": theirs(case, scratch / "d.onnx", per_channel=False),
        "ONNX Runtime minmax, per channel": theirs(case, scratch / "e.onnx", per_channel=True),
    }
    table("ResNet-20, CIFAR-10 as JPEG: 500 calibration, 2,000 test samples", case, rows)


def squeezenet(data: Path, model: Path, scratch: Path) -> None:
    """Print agreement and latency on ImageNet photos."""
    sample = data / "imagenet-sample"
    case = Case(model, data / "imagenette-small" / "train", sample / "val", sample / "synset_order.txt", 256)
    rows = {
        "ours, level 0.2 (INT8)": ours(case, scratch / "f", "--optim-level", "0.2"),
        "ours, level 0.5 (51.4 % + INT8)": ours(case, scratch / "g", "--optim-level", "0.5"),
        "ONNX Runtime minmax, per tensor": theirs(case, scratch / "h.onnx", per_channel=False),
        "ONNX Runtime minmax, per channel": theirs(case, scratch / "i.onnx", per_channel=True),
    }
    table("SqueezeNet 1.1: 256 calibration photos of imagenette, 500 test photos of ImageNet", case, rows)


@dataclass(frozen=True)
class Row:
    """Hold a written model and what writing it took; seconds and memory are of the whole process."""

    model: Path
    seconds: float
    peak_mb: float | None


def ours(case: Case, output: Path, *options: str) -> Row:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "sparsify", "run", "one-shot", "--use-case", "image-classification"]
    command += ["--model", str(case.model), "--data", str(case.train), "--eval-data", str(case.val)]
    command += ["--calibration-samples", str(case.calibration), "--max-drop", "none", "--output", str(output), "--json"]
    command += ["--class-list", str(case.class_list)] if case.class_list else []
    started = time.monotonic()
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 6):
        raise SystemExit(f"run failed with exit code {done.returncode}")
    peak = max(stage["peak_rss_mb"] for stage in json.loads(done.stdout)["stages"])
    return Row(output / "deployment" / "model.onnx", seconds, peak)


def recipe(scratch: Path) -> Path:
    """Write the recipe of the magnitude baseline."""
    path = scratch / "magnitude.yaml"
    path.write_text(MAGNITUDE)
    return path


def theirs(case: Case, output: Path, *, per_channel: bool) -> Row:
    """Quantize with ONNX Runtime's tool as its documentation says: pre-process, then static minmax QDQ."""
    started = time.monotonic()
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(case.model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(output),
        Reader(splits(case)[0]),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,  # the default, QInt8, is slower than float on x86; its documentation says so
        calibrate_method=CalibrationMethod.MinMax,
    )
    return Row(output, time.monotonic() - started, None)


def splits(case: Case) -> tuple[Dataset, Dataset]:
    """Draw the samples that the command line draws."""
    model_format = PLUGINS.load("model_loaders", "onnx")
    described = model_format.describe(model_format.load(case.model))
    load = PLUGINS.load("dataset_loaders", "imagefolder").load
    request = partial(DataRequest, inputs=described.inputs, outputs=described.outputs, class_list=case.class_list)
    data: Data = load(request(case.train, model=case.model))
    held_out: Data = load(request(case.val, model=case.model))
    drawn = draw_splits(data, held_out, calibration=case.calibration, test=None, seed=0)
    return drawn.calibration, drawn.test


def table(title: str, case: Case, rows: dict[str, Row]) -> None:
    """Measure every file on the same samples, time all interleaved, and print a Markdown table."""
    open_session = PLUGINS.load("runtimes", "onnxruntime")
    test = splits(case)[1]
    pairs: dict[str, Pair] = {}
    for name, row in rows.items():
        before, after = open_session(case.model, 2), open_session(row.model, 2)
        pairs[name] = evaluate_pair(before, after, test, [ACCURACY])
        before.close()
        after.close()
    ratios = times(case.model, rows, next(iter(test.batches(1))).inputs)
    first = next(iter(pairs.values())).baseline
    print(f"\n### {title}\n\nFloat baseline: top-1 {first.values['accuracy']:.2f} %\n")
    print("| file | top-1 | loss | agreement | KL | time ÷ float, batch 1 (95 %) | seconds | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, pair in pairs.items():
        top1, ratio, row = pair.candidate.values["accuracy"], ratios[name], rows[name]
        print(
            f"| {name} | {top1:.2f} | {first.values['accuracy'] - top1:+.2f} | {pair.agreement['top1']:.2f} "
            f"| {pair.agreement['kl']:.5f} | {ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) "
            f"| {row.seconds:.1f} | {row.peak_mb or '–'} |"
        )


def times(baseline: Path, rows: dict[str, Row], inputs: Any) -> dict[str, Ratio]:
    """Time all files against the float one, interleaved, with two threads."""
    open_session = PLUGINS.load("runtimes", "onnxruntime")
    files: Sequence[tuple[str, Path]] = [("float", baseline), *((name, row.model) for name, row in rows.items())]
    candidates = [Candidate(name, partial(open_session, path, 2)) for name, path in files]
    timings = time_interleaved(candidates, inputs, batch=1, threads=2, blocks=9)
    return {name: time_ratio(timings[name], timings["float"]) for name in rows}


if __name__ == "__main__":
    main()
