"""Compare the joint solve with pruning first and rounding after, by the summed error of the layers' outputs.

    python benchmarks/joint.py DATA MODELS [--only resnet20]

DATA and MODELS are those of one_shot.py. All three recipes prune every layer to the same share, uniformly, on the same
calibration samples. A layer's error is Σ(y − ŷ)² ÷ Σy² over unseen samples, everything before it compressed too, from
`layers[].sqnr_db` of metrics.json. Prints a Markdown table, and progress on stderr.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from one_shot import INT8, Bench, minilm_case, ours, resnet20_case, squeezenet_case, write_recipe

SPARSITY = 0.5143  # level 0.5
RECIPES = {
    "prune, then round to nearest": (
        f"SparseGPTModifier {{sparsity: {SPARSITY}, refit: false}}",
        "QuantizationModifier {feedback: false, bias_correction: false}",
    ),
    "prune and refit, then GPTQ": (f"SparseGPTModifier {{sparsity: {SPARSITY}}}", INT8),
    "joint": ("EqualizationModifier {}", f"SparseGPTModifier {{sparsity: {SPARSITY}, round_weights: true}}", INT8),
}
CASES = {"resnet20": resnet20_case, "squeezenet": squeezenet_case, "minilm": minilm_case}


def main() -> None:
    """Apply the recipes to each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", choices=list(CASES), action="append")
    options = parser.parse_args()
    print(f"| model | {' | '.join(RECIPES)} | joint ÷ prune-then-round | joint ÷ the second |")
    print(f"|---|{'---|' * (len(RECIPES) + 2)}")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.data, options.models, Path(scratch))
        for name in options.only or CASES:
            case = CASES[name](bench)
            case = replace(case, calibration=min(case.calibration, 512))
            errors = [
                summed_error(ours(bench, case, "--recipe", str(write_recipe(bench, *steps))).metrics)
                for steps in RECIPES.values()
            ]
            cells = [f"{error:.4f}" for error in errors]
            cells += [f"{errors[-1] / other:.3f}" for other in errors[:-1]]
            print(f"| {case.title} | {' | '.join(cells)} |", flush=True)


def summed_error(metrics: Mapping[str, Any]) -> float:
    """Sum the layers' relative errors."""
    return sum(10 ** (-layer["sqnr_db"] / 10) for layer in metrics["layers"] if layer["sqnr_db"] is not None)


if __name__ == "__main__":
    main()
