"""Metrics as runs write them, plain and with all that explains a run, and readers of the reports made of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from rich.console import Console
from sparsify.report_table import terminal_table

VOID = {"meta", "link", "br", "img", "input", "hr"}
VERDICTS = {
    "met": "Within budget", "unbounded": "Verified, no budget", "baseline": "Baseline", "missed": "Over budget",
    "slower": "Slower", "unverified": "Not verified",
}  # fmt: skip
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
HOSTILE = "</td><script>alert(1)</script>|`*[x](y)&\"'\n/conv"


def layer(index: int, **other: Any) -> dict[str, Any]:
    name = f"/layer{1 + index // 6}/layer{1 + index // 6}.{index % 3}/conv{1 + index % 2}/Conv"
    facts = {"name": name, "op": "Conv", "shape": [16, 16, 3, 3], "sparsity": 0.5, "precision": "int8"}
    return {**facts, "sqnr_db": 38.0 - index, "drop_if_alone": None, "kept_dense": "", "kept_float": "", **other}


def latency(p50: float, int8: int | None) -> dict[str, Any]:
    facts = {"batch": 1, "threads": 2, "p50_ms": p50, "p95_ms": 1.5 * p50, "throughput": 1000 / p50}
    return {**facts, "precision": "int8" if int8 else "float32", "int8_executed": int8, "of": 22}


def side(scale: float, accuracy: float) -> dict[str, Any]:
    return {
        "model": "resnet20.onnx",
        "bytes": int(1_086_234 * scale),
        "compressed_bytes": int(1_005_310 * scale),
        "metrics": {"accuracy": accuracy, "top5": 99.7},
        "intervals": {"accuracy": [accuracy - 1.2, accuracy + 1.1]},
        "latency": {"onnxruntime": latency(2.0 * scale, 22 if scale < 1 else 0)},
    }


METRICS: dict[str, Any] = {
    "schema": 1,
    "kind": "one-shot",
    "use_case": "image-classification",
    "optim_level": 0.5,
    "seed": 0,
    "verdict": "met",
    "metric": "accuracy",
    "budget": {"points": 2.0, "given": "default"},
    "baseline": side(1.0, 91.85),
    "optimized": {
        **side(0.25, 91.5), "sparsity": 0.5143, "sparsity_file": 0.5031, "quantized": {"int8": 21, "of": 22}
    },
    "agreement": {"top1": 97.85, "cosine": 0.99712, "kl": 0.00812},
    "drop": {"points": 0.35, "interval": [-0.41, 1.12]},
    "samples": {"calibration": 500, "selection": 256, "test": 2000},
    "layers": [layer(0, sparsity=0.0, kept_dense="first layer"), *(layer(index) for index in range(1, 20))],
    "stages": [{"name": "apply", "seconds": 38.2, "peak_rss_mb": 412.5}],
    "speedup": {"onnxruntime": 1.95},
    "speedup_interval": [1.88, 2.01],
    "compression": 4.0,
    "environment": {"cpu": "a CPU", "cores": 2, "packages": {"onnxruntime": "1.31.1"}},
    "notes": ["opset raised from 12 to 13"],
    "warnings": ["3 images skipped"],
    "fix": "raise --max-drop",
    "files": {"model": "run/deployment/model.onnx"},
}  # fmt: skip


def rung(name: str, points: float, ms: float | None, kept: bool, **other: Any) -> dict[str, Any]:
    facts = {"name": name, "what": "51.4 % zeros, INT8", "kept": kept, "why": f"why {name}", "points": points, "ms": ms}
    return {
        **facts,
        "kl": 0.01,
        "compressed_bytes": 185_000,
        "sparsity": 0.514,
        "seconds": 4.2,
        "meets": False,
        **other,
    }


def seen(key: str, label: str) -> dict[str, Any]:
    before, after = {"label": "cat", "score": 0.91}, {"label": label, "score": 0.63}
    return {"key": key, "target": "cat", "before": before, "after": after, "image": PIXEL}


# every field that a run with the rescue ladder adds
EXPLAINED: dict[str, Any] = {
    **METRICS,
    "layers": [
        {**one, "isolated_db": 27.0 if place == 5 else 39.0, "drop_if_alone": 0.6 if place == 5 else None, "bits": 8,
         "saturation": 0.001, "kl_if_alone": 0.01, "ms": {"before": 0.0312, "after": 0.0104}}
        for place, one in enumerate(METRICS["layers"])
    ],
    "rungs": [
        rung("as asked", 4.5, 0.350, True),
        rung("structural exclusions", 4.5, 0.368, False),
        rung("range methods", 3.1, 0.351, True),
        rung("layers in float", 1.2, 0.381, True, compressed_bytes=214_000, sparsity=0.468, meets=True),
        rung("lower level", 1.1, 0.402, False, compressed_bytes=231_000, meets=True),
    ],
    "excluded": [{"name": "/attention/Softmax", "op": "Softmax", "reason": "softmax input"}],
    "confidence": {
        "name": "top probability", "before": 0.91, "after": 0.89, "shift": -0.02, "shift_p95": 0.09, "flips": 0.02,
        "threshold": 0.5, "f1_at_threshold": 0.9,
    },
    "examples": [seen("cat/1.png", "dog"), {**seen("cat/2.png", "cat"), "image": None, "target": None}],
    "coverage": {"unseen_range": 0.003, "saturation": 0.001, "notes": ["8 calibration samples are too few"]},
    "allocation": {"cost": "time", "uniform": False},
}  # fmt: skip
OPTIONAL = [key for key in EXPLAINED if key not in METRICS]


class Checker(HTMLParser):
    """Follow open tags, and gather attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def terminal(metrics: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(metrics, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below a mapping or a list, inner ones too."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    """Return the mapping or list that holds what a path leads to, None where that is gone."""
    for key in path[:-1]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value if isinstance(value, dict | list) else None
