"""Measure one-shot compression on real models, ours and the peers side by side in one run.

    python benchmarks/one_shot.py DATA MODELS                                # every case, hours on two cores
    python benchmarks/one_shot.py DATA MODELS --only squeezenet --only minilm
    python benchmarks/one_shot.py DATA MODELS --only resnet20-float --seeds 0 --calibration 1000
    python benchmarks/one_shot.py DATA MODELS --only mobilenet --rows tools   # ONNX Runtime and NNCF

DATA holds cifar10-jpg.tar, imagenette-small, imagenet-sample and models. MODELS holds what export_squeezenet.py,
train_mobilenet.py and train_minilm.py write. Needs nncf. Every file is calibrated on the samples that the command line
draws, and tested on all held-out samples. Prints Markdown tables for docs/figures, and progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from peers import Case, Cost, Score, in_process, measure, nncf_int8, nncf_name, onnxruntime_int8

# what is applied at a sparsity: our default, and the two baselines that everyone knows, uniform in all layers
OURS = {
    "ours, uniform": "SparseGPTModifier {{sparsity: {rate}}}",
    "ours": "SparseGPTModifier {{sparsity: {rate}, allocation: parameters}}",
}
UNIFORM = {
    "magnitude": "MagnitudePruningModifier {{sparsity: {rate}}}",
    "SparseGPT as published": "SparseGPTModifier {{sparsity: {rate}, refit: false}}",
}
INT8 = "QuantizationModifier {}"
ROWS = ("ours", "uniform", "tools")
RATES = (0.5143, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Row:
    """Hold a written file, or why there is none."""

    model: Path | None
    cost: Cost
    metrics: Mapping[str, Any]  # metrics.json of a run of ours, else empty
    note: str = ""


@dataclass(frozen=True)
class Level:
    """Name a level and its budget."""

    value: float
    max_drop: str = "none"
    allocation: str = "parameters"

    @property
    def rate(self) -> float:
        """Return the sparsity that the level stands for."""
        return 0.4 + (self.value - 0.3) / 0.7 * 0.4 if self.value >= 0.3 else 0.0

    @property
    def label(self) -> str:
        """Return the row's name."""
        what = f"{100 * self.rate:.1f} % + INT8" if self.rate else "INT8"
        what += ", not spread" if self.allocation == "uniform" else ""
        return f"ours, level {self.value} ({what}), --max-drop {self.max_drop}"


@dataclass(frozen=True)
class Bench:
    """Hold the command line's choices and the scratch folder."""

    data: Path
    models: Path
    scratch: Path
    calibration: Sequence[int] = ()
    seeds: Sequence[int] = ()
    rates: Sequence[float] = ()
    rows: Sequence[str] = ()

    def file(self, name: str) -> Path:
        """Return a new path in the scratch folder."""
        return self.scratch / f"{len(list(self.scratch.iterdir())):03d}-{name}"


def main() -> None:
    """Run the cases and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--calibration", type=int, nargs="+", default=[1000, 500], help="sample counts of ResNet-20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of float pruning")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of float pruning")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="uniform: pruned without allocation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lists = (options.calibration, options.seeds, options.rates, options.rows)
        bench = Bench(options.data, options.models, Path(scratch), *lists)
        for name in options.only or CASES:
            CASES[name](bench)


def resnet20(bench: Bench) -> None:
    """Print ResNet-20 on CIFAR-10 as JPEG, at three levels."""
    for count in bench.calibration:
        case = replace(resnet20_case(bench), calibration=count)
        compare(bench, case, Level(0.2), Level(0.5), Level(1.0), Level(1.0, "none", "uniform"))


def resnet20_float(bench: Bench) -> None:
    """Print ResNet-20 pruned, weights in float: top-1 as the mean over the seeds, with the lowest and the highest."""
    pruners = (OURS if "ours" in bench.rows else {}) | (UNIFORM if "uniform" in bench.rows else {})
    base = resnet20_case(bench)
    for count in bench.calibration:
        seeds = ", ".join(map(str, bench.seeds))
        print(f"\n### {base.title}: pruned, weights in float, {count:,} calibration samples, seeds {seeds}\n")
        print(f"| pruning | {' | '.join(f'{100 * rate:.1f} %' for rate in bench.rates)} | seconds |")
        print(f"|---|{'---|' * len(bench.rates)}---|")
        for name, modifier in pruners.items():
            drawn = bench.seeds[:1] if name == "magnitude" else bench.seeds  # magnitude sees no samples
            cells, seconds = [], []
            for rate in bench.rates:
                recipe = ("--recipe", str(write_recipe(bench, modifier.format(rate=rate))))
                rows = [ours(bench, replace(base, calibration=count), *recipe, "--seed", str(seed)) for seed in drawn]
                cells.append(spread([row.metrics["optimized"]["metrics"]["accuracy"] for row in rows if row.metrics]))
                seconds += [row.cost.seconds for row in rows]
            print(f"| {name} | {' | '.join(cells)} | {fmean(seconds):.1f} |", flush=True)


def squeezenet(bench: Bench) -> None:
    """Print SqueezeNet on ImageNet photos."""
    compare(bench, squeezenet_case(bench), Level(0.2), Level(0.5, "2.0"), Level(0.5, "none", "uniform"))


def mobilenet(bench: Bench) -> None:
    """Print the MobileNetV2, as trained and with rescaled channels."""
    cifar, names = cifar10(bench), {"": "as trained", "_x64": "10 % of the hidden channels × 64"}
    for suffix, name in names.items():
        model = bench.models / f"mobilenet_cifar{suffix}.onnx"
        case = Case(f"MobileNetV2, CIFAR-10 as JPEG, {name}", model, cifar / "train", cifar / "val", 500)
        compare(bench, case, Level(0.2))


def minilm(bench: Bench) -> None:
    """Print MiniLM on SST-2."""
    compare(bench, minilm_case(bench), Level(0.2), Level(0.5))


def resnet20_case(bench: Bench) -> Case:
    """Return the shared model and its data."""
    cifar, model = cifar10(bench), bench.data / "models" / "resnet20_cifar10jpg.onnx"
    return Case("ResNet-20, CIFAR-10 as JPEG", model, cifar / "train", cifar / "val", 1000)


def squeezenet_case(bench: Bench) -> Case:
    """Return the exported model, photos of ten classes to calibrate on, and photos of a thousand to test on."""
    photos, model = bench.data / "imagenet-sample", bench.models / "squeezenet1_1.onnx"
    train, classes = bench.data / "imagenette-small" / "train", photos / "synset_order.txt"
    return Case("SqueezeNet 1.1, ImageNet photos", model, train, photos / "val", 256, class_list=classes)


def minilm_case(bench: Bench) -> Case:
    """Return the trained encoder and its tokens."""
    model, samples = bench.models / "minilm_sst2.onnx", bench.models / "sst2-npz"
    train, val = samples / "train", samples / "val"
    return Case("MiniLM-L6, SST-2, 128 tokens", model, train, val, 256, "custom:sst2", "npz", None, True)


def cifar10(bench: Bench) -> Path:
    """Unpack the archive once."""
    folder = bench.scratch / "cifar"
    if not folder.exists():
        with tarfile.open(bench.data / "cifar10-jpg.tar") as archive:
            archive.extractall(folder, filter="data")
    return next(path.parent for path in folder.rglob("train") if path.is_dir())


def compare(bench: Bench, case: Case, *levels: Level) -> None:
    """Make every file of a case, measure them together, and print a table."""
    rows: dict[str, Row] = {}
    for level in levels if "ours" in bench.rows else ():
        options = ("--optim-level", str(level.value), "--max-drop", level.max_drop, "--allocation", level.allocation)
        rows[level.label] = ours(bench, case, *options)
    for rate in (level.rate for level in levels if level.rate and "uniform" in bench.rows):
        for name, modifier in UNIFORM.items():
            recipe = str(write_recipe(bench, modifier.format(rate=rate), INT8))
            rows[f"{name} {100 * rate:.1f} %, uniform, + our INT8"] = ours(bench, case, "--recipe", recipe)
    if "tools" in bench.rows:
        rows |= tools(bench, case)
    found = in_process(measure, case, {name: row.model for name, row in rows.items() if row.model}).result()
    print_table(case, rows, *found)
    print_apply(rows)


def tools(bench: Bench, case: Case) -> dict[str, Row]:
    """Quantize with the tools that can be installed."""
    rows = {}
    for method in ("MinMax", "Entropy"):
        for per_channel in (False, True):
            name = f"ONNX Runtime {method.lower()}, per {'channel' if per_channel else 'tensor'}"
            rows[name] = theirs(bench, case, name, onnxruntime_int8, method, per_channel)
    return rows | {nncf_name(case): theirs(bench, case, "NNCF", nncf_int8)}


def ours(bench: Bench, case: Case, *options: str) -> Row:
    """Run the command line in a process of its own."""
    output = bench.file("run")
    command = [sys.executable, "-m", "sparsify", "run", "one-shot", "--use-case", case.use_case, "--quiet", "--json"]
    command += ["--model", str(case.model), "--data", str(case.train), "--eval-data", str(case.val)]
    command += ["--calibration-samples", str(case.calibration), "--output", str(output)]
    command += ["--class-list", str(case.class_list)] if case.class_list else []
    command += [] if "--max-drop" in options else ["--max-drop", "none"]
    tell(f"{case.title}: ours {' '.join(options)}")
    started = time.monotonic()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 6):
        return failed(seconds, f"exit {done.returncode}: {' '.join(done.stderr.split()[-40:])}")
    metrics = json.loads(done.stdout)
    peak = max(stage["peak_rss_mb"] for stage in metrics["stages"])
    model = output / "deployment" / "model.onnx"
    return Row(model, Cost(seconds, peak), metrics, f"exit {done.returncode}, {metrics['verdict']}")


def theirs(bench: Bench, case: Case, name: str, make: Callable[..., Cost], *arguments: Any) -> Row:
    """Run a peer in a process of its own."""
    tell(f"{case.title}: {name}")
    output, started = bench.file("peer.onnx"), time.monotonic()
    future = in_process(make, case, output, *arguments)
    error = future.exception()
    if error is not None:
        return failed(time.monotonic() - started, f"{type(error).__name__}: {' '.join(str(error).split()[:40])}")
    return Row(output, future.result(), {})


def failed(seconds: float, problem: str) -> Row:
    """Return the row of a file that could not be written."""
    tell(f"failed: {problem}")
    return Row(None, Cost(seconds, 0.0), {}, f"failed: {problem}")


def write_recipe(bench: Bench, *steps: str) -> Path:
    """Write a recipe of these modifiers."""
    path = bench.file("recipe.yaml")
    path.write_text("post_training_modifiers:\n" + "".join(f"  - !{step}\n" for step in steps))
    return path


def print_table(case: Case, rows: Mapping[str, Row], baseline: float, scores: Mapping[str, Score]) -> None:
    """Print a case as Markdown."""
    print(f"\n### {case.title}: {case.calibration:,} calibration samples\n\nFloat: {baseline:.2f} %\n")
    print(
        "| file | top-1 | loss | agreement | KL | bytes | gzip | sparsity | time ÷ float (95 %) | seconds | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cost = f"{row.cost.seconds:.1f} | {row.cost.peak_mb:.0f}"
        if name not in scores:
            print(f"| {name} ({row.note}) | – | – | – | – | – | – | – | – | {cost} |")
            continue
        score, label = scores[name], f"{name} ({row.note})" if row.note else name
        sparsity = f"{100 * row.metrics['optimized']['sparsity']:.1f} %" if row.metrics else "–"
        print(
            f"| {label} | {score.metric:.2f} | {baseline - score.metric:+.2f} | {score.agreement:.2f} | {score.kl:.5f} "
            f"| {score.bytes:,} | {score.gzip_bytes:,} | {sparsity} "
            f"| {score.ratio.value:.2f} ({score.ratio.low:.2f}–{score.ratio.high:.2f}) | {cost} |",
            flush=True,
        )


def print_apply(rows: Mapping[str, Row]) -> None:
    """Print the seconds of our apply stage beside NNCF's, both for INT8 alone on the same samples."""
    nncf = next((row for name, row in rows.items() if name.startswith("NNCF") and row.model), None)
    for name, row in rows.items():
        if nncf and "(INT8)" in name and row.metrics:
            seconds = next(stage["seconds"] for stage in row.metrics["stages"] if stage["name"] == "apply")
            told = f"ours {seconds:.1f} s (the stage apply), NNCF {nncf.cost.seconds:.1f} s"
            print(f"\nINT8 alone: {told}: {seconds / nncf.cost.seconds:.2f} ×")


def spread(values: list[float]) -> str:
    """Return mean, lowest and highest."""
    return f"{fmean(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "failed"


def tell(line: str) -> None:
    """Say on stderr what is being done."""
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


CASES: dict[str, Callable[[Bench], None]] = {
    "resnet20": resnet20,
    "resnet20-float": resnet20_float,
    "squeezenet": squeezenet,
    "mobilenet": mobilenet,
    "minilm": minilm,
}


if __name__ == "__main__":
    main()
