#!/usr/bin/env python3
"""Train a model dense, pruned and quantized, and with channels and layers removed; print a Markdown table.

    python benchmarks/training_aware.py cifar_resnet20 ./cifar10-jpg --weights resnet20_cifar10jpg.pth --output runs

Every row is a `sparsify run training-aware` with the same epochs, rates and teacher; the first is the control, with
nothing removed. `structured, float` is the recipe of `structured` without its quantization. Accuracy is of the test
samples; points lost are against the control. Speed is timed at the end, all files in turns, against the dense float
model on the same runtime, with its 95 % interval. A run that stands in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsify import Recipe, dump_recipe, load_recipe

CONTROL = """training_modifiers:
- !EpochRangeModifier {{start_epoch: 0.0, end_epoch: {epochs}}}
distillation_modifiers:
- !DistillationModifier {{hardness: 1.0, temperature: 4.0}}
"""
ROWS = ("dense", "70 % + INT8", "90 % + INT8", "structured + INT8", "structured, float")
BATCHES = (1, 16)


def run(asked: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """Run one row with one seed, or read what it came to; returns its metrics.json."""
    folder = asked.output / f"{row.replace(' ', '').replace('%', '').replace(',', '-')}-{seed}"
    kwargs = {"epochs": asked.epochs, **json.loads(asked.train_kwargs)}
    words = ["--use-case", "image-classification", "--model", asked.model, "--data", str(asked.data)]
    words += ["--train-kwargs", json.dumps(kwargs), "--seed", str(seed), "--max-drop", "none", *options(asked, row)]
    words += ["--weights", str(asked.weights)] if asked.weights else []
    if not (folder / "metrics.json").exists():
        resume = ["--resume"] if (folder / "experiment.yaml").exists() else []
        command = [sys.executable, "-m", "sparsify", "run", "training-aware", *words, "--output", str(folder), *resume]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 6):  # 6: slower, or far from the dense accuracy; a row of the table all the same
            sys.exit(f"{row}, seed {seed}: ended with {code}, see {folder}/logs/run.log")
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return found | {"folder": folder}


def options(asked: argparse.Namespace, row: str) -> list[str]:
    """Return what makes a row what it is."""
    levels = {"70 % + INT8": "0.5", "90 % + INT8": "0.9"}
    if row in levels:
        return ["--optim-level", levels[row]]
    if row == "structured + INT8":
        return ["--sparsity", "structured"]
    asked.output.mkdir(parents=True, exist_ok=True)
    path = asked.output / f"{row.partition(',')[0]}.yaml"
    if row == "dense":
        path.write_text(CONTROL.format(epochs=float(asked.epochs)), "utf-8")
    else:
        path.write_text(unquantized(load_recipe(asked.output / "structured+INT8-0" / "recipe.yaml")), "utf-8")
    return ["--recipe", str(path)]


def unquantized(recipe: Recipe) -> str:
    """Write a recipe without its quantization."""
    kept = tuple(step for step in recipe.steps if "Quantization" not in step.name)
    return dump_recipe(replace(recipe, steps=kept))


def speeds(files: Sequence[Path], batch: int, runtime: str) -> list[Mapping[str, float] | None]:
    """Time files in turns; returns each one's time ÷ the first's, with its interval, None for the first."""
    words = [*map(str, files), "--batch-size", str(batch), "--runtime", runtime, "--json"]
    done = subprocess.run([sys.executable, "-m", "sparsify", "benchmark", *words], stdout=subprocess.PIPE, check=True)
    return [row["time_ratio"] for row in json.loads(done.stdout)["results"]]


def macs(file: Path) -> int:
    """Count the multiplications of one sample."""
    words = [sys.executable, "-m", "sparsify", "analyze", str(file), "--json"]
    return int(json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)["macs"])


def lines(asked: argparse.Namespace, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Write the table."""
    names = list(found)
    dense = Path(found[names[0]][0]["folder"]) / "training_artifacts" / "dense.onnx"
    files = [dense, *(Path(found[name][0]["folder"]) / "deployment" / "model.onnx" for name in names)]
    timed = {batch: speeds(files, batch, asked.runtime)[1:] for batch in BATCHES}
    counts = [macs(file) for file in files]
    yield f"| run | accuracy | below control | zeros | INT8 | MACs | gzip -9 | {heads(asked.runtime)} | minutes |"
    yield "|---|" + "---|" * (7 + len(BATCHES))
    control = accuracies(found[names[0]])
    for place, name in enumerate(names):
        metrics, own = found[name][0], accuracies(found[name])
        after = metrics["optimized"]
        lost = [mine - theirs for mine, theirs in zip(own, control, strict=True)]
        cells = [name, spread(own), spread(lost, "+") if place else "-", f"{100 * after['sparsity']:.1f} %"]
        cells += [
            f"{after['quantized']['int8']} of {after['quantized']['of']}",
            f"{counts[0] / counts[place + 1]:.2f} x fewer",
        ]
        cells += [f"{metrics['baseline']['compressed_bytes'] / after['compressed_bytes']:.2f} x smaller"]
        cells += [speed_words(timed[batch][place]) for batch in BATCHES]
        cells += [f"{fmean(sum(stage['seconds'] for stage in one['stages']) for one in found[name]) / 60:.1f}"]
        yield f"| {' | '.join(cells)} |"


def heads(runtime: str) -> str:
    """Name the columns of speed."""
    return " | ".join(f"speed on {runtime}, batch {batch}" for batch in BATCHES)


def accuracies(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the test accuracy of each seed."""
    return [run["optimized"]["metrics"]["accuracy"] for run in runs]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Write the mean, and least to most where there are several."""
    mean = f"{fmean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{sign}.2f} to {max(values):{sign}.2f})"


def speed_words(ratio: Mapping[str, float] | None) -> str:
    """Write a ratio of times as a speed."""
    return f"{1 / ratio['value']:.2f} ({1 / ratio['high']:.2f}-{1 / ratio['low']:.2f})" if ratio else "1"


def main() -> None:
    """Train what is missing, time everything, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs; those that stand there stay")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train-kwargs", default="{}", metavar="JSON")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--runtime", default="onnxruntime")
    asked = parser.parse_args()
    found = {row: [run(asked, row, seed) for seed in range(asked.seeds)] for row in asked.rows}
    print("\n".join(lines(asked, found)))


if __name__ == "__main__":
    main()
