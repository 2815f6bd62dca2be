"""What `--optim-level`, `--max-drop` and their kin mean: the documented scales, parsed in one place."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PRUNED_FROM = 0.3  # below it INT8 only
DEFAULT_POINTS = 2.0
DEFAULT_AGREEMENT_POINTS = 5.0
_RANGES = {"one-shot": (0.40, 0.80), "training-aware": (0.60, 0.95)}


def parse_level(value: Any) -> float:
    """Read a level: 0–1, or a whole number from 2 to 100 as per cent; raises ValueError."""
    with suppress(TypeError, ValueError):
        level = float(value)
        if 0 <= level <= 1:
            return level
        if level.is_integer() and 2 <= level <= 100:
            return level / 100
    raise ValueError(f"{value} is no level; give 0 to 1, or a whole number from 2 to 100 as per cent")


def target_sparsity(level: float, kind: str) -> float:
    """Return the sparsity of the eligible layers that a level asks for: 0 below 0.3, then linear.

    One-shot 40 % → 80 % (0.5 → 51.4 %), training-aware 60 % → 95 % (0.5 → 70 %).
    """
    if level < PRUNED_FROM:
        return 0.0
    low, high = _RANGES[kind]
    return low + (level - PRUNED_FROM) / (1 - PRUNED_FROM) * (high - low)


@dataclass(frozen=True)
class Budget:
    """Hold how much of the deciding metric may be lost; `points` None means unbounded."""

    points: float | None
    given: str

    def resolved(self, baseline: float) -> float | None:
        """Turn a relative budget into points of this baseline."""
        return self.points / 100 * abs(baseline) if self.points and self.given.endswith("%") else self.points


def parse_budget(value: str | None, *, agreement: bool) -> Budget:
    """Read `--max-drop`: points (`1.0`), relative (`1%`), `none`, or the default of DESIGN §5; raises ValueError."""
    if value is None:
        return Budget(DEFAULT_AGREEMENT_POINTS if agreement else DEFAULT_POINTS, "default")
    text = str(value).strip().lower()
    if text == "none":
        return Budget(None, "none")
    if not re.fullmatch(r"\d+(\.\d+)?%?", text) or float(text.rstrip("%")) > 100:
        raise ValueError(f"'{value}' is no budget; give points such as 1.0, a share such as 1%, or none")
    return Budget(float(text.rstrip("%")), text)


def parse_duration(value: str) -> float:
    """Read `--time-budget` as seconds: `90s`, `10m`, `1.5h`; raises ValueError."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value).strip().lower())) or not float(found[1]):
        raise ValueError(f"'{value}' is no duration; give seconds, minutes or hours such as 90s, 10m, 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def parse_memory(value: str) -> int:
    """Read `--max-memory` as bytes: `400MB`, `4GB`, `2GiB`; raises ValueError."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([mg])(i?)b", str(value).strip().lower())) or not float(found[1]):
        raise ValueError(f"'{value}' is no amount of memory; give megabytes or gigabytes such as 800MB, 4GB, 2GiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (2 if found[2] == "m" else 3))


def parse_structure(value: str) -> str:
    """Read `--sparsity`: unstructured, structured, N:M, or RxC (`block4` is 1x4); raises ValueError."""
    text = str(value).strip().lower()
    text = "1x4" if text == "block4" else text
    pattern = re.fullmatch(r"(\d+):(\d+)|(\d+)x(\d+)", text)
    if text in ("unstructured", "structured") or (pattern and all(int(n) > 0 for n in pattern.groups() if n)):
        if pattern and pattern[1] and int(pattern[1]) >= int(pattern[2]):
            raise ValueError(f"'{value}' keeps every weight; give N:M with N below M, such as 2:4")
        return text
    raise ValueError(
        f"'{value}' is no sparsity pattern; give unstructured, structured, N:M such as 2:4, or RxC such as 1x4"
    )
