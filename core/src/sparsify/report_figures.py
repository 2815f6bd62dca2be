"""Say the figures of metrics.json in words, the same in the terminal, Markdown and HTML; what is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DASH = "–"


def dig(value: Any, *path: str) -> Any:
    """Follow keys through nested mappings; None where one is absent."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def both(metrics: Mapping[str, Any], *path: str) -> list[Any]:
    """Follow keys on both sides, the baseline's and the optimized model's."""
    return [dig(metrics, side, *path) for side in ("baseline", "optimized")]


def known(value: Any) -> bool:
    """Say whether this is a number that can be shown."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, form: str = ".2f", unit: str = "") -> str:
    """Write a number with its unit, with a true minus sign; a dash for what is none."""
    return f"{value:{form}} {unit}".replace("-", "−").rstrip() if known(value) else DASH


def percent(share: Any) -> str:
    """Write a share in 0–1 as per cent."""
    return number(100 * share, ".1f", "%") if known(share) else DASH


def size(count: Any) -> str:
    """Write bytes in decimal units."""
    if not known(count):
        return DASH
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{count / scale:.3g} {unit}" for unit, scale in units if count >= scale), f"{count} bytes")


def milliseconds(value: Any, sign: str = "", of: Any = None) -> str:
    """Write milliseconds with three figures that count; a difference with as many places as what it is a part of."""
    whole = value if of is None else of
    places = 2 - math.floor(math.log10(abs(whole))) if known(whole) and whole else 2
    return number(value, f"{sign}.{max(0, places)}f", "ms")


def times(factor: float | None, more: str = "faster", less: str = "slower") -> str:
    """Write a factor as `2.10× faster`, below 1 as `1.30× slower`."""
    if not factor:
        return DASH
    return f"{factor:.2f}× {more}" if round(factor, 2) >= 1 else f"{1 / factor:.2f}× {less}"


def span(bounds: Any, form: str = ".2f") -> str:
    """Write an interval, or nothing where there is none."""
    return f"{number(bounds[0], form)} to {number(bounds[1], form)}" if bounds and None not in bounds else ""


def within(text: str, bounds: str) -> str:
    """Put an interval behind a figure."""
    return f"{text} ({bounds})" if bounds else text


def speed_words(factor: float | None, bounds: Any = None) -> str:
    """Say a speed-up and its 95 % interval; where that contains 1 there is no difference to tell."""
    if not span(bounds):
        return times(factor)
    if bounds[0] <= 1 <= bounds[1]:
        return within("no measurable difference", f"{span(bounds)}×")
    shown = [1 / bound for bound in reversed(bounds)] if factor and round(factor, 2) < 1 else bounds
    return within(times(factor), f"{span(shown)}×")


def deciding(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Name the metric and the runtime that decide: the first of each, or nothing."""
    metric = metrics.get("metric") or next(iter(dig(metrics, "baseline", "metrics") or {}), "")
    return str(metric), next(iter(dig(metrics, "optimized", "latency") or {}), "")


def speed(metrics: Mapping[str, Any], runtime: str) -> str:
    """Say how the speed on a runtime changed; nothing where nothing was changed."""
    if metrics.get("verdict") == "baseline":
        return ""
    bounds = metrics.get("speedup_interval") if runtime == deciding(metrics)[1] else None
    return speed_words(dig(metrics, "speedup", runtime), bounds)


def change(metrics: Mapping[str, Any], name: str) -> tuple[float | None, Any]:
    """Return after − before of a metric, and for the deciding one its 95 % interval, paired by sample."""
    before, after = both(metrics, "metrics", name)
    if before is None or after is None:
        return None, None
    drop, bounds = dig(metrics, "drop", "points"), dig(metrics, "drop", "interval")
    if name != deciding(metrics)[0] or drop is None or not bounds:
        return after - before, None
    falls = abs(after - before - drop) < abs(before - after - drop)  # a metric that should fall: a drop is a rise
    return after - before, bounds if falls else (-bounds[1], -bounds[0])


def ratio(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return before ÷ after of a size."""
    before, after = both(metrics, key)
    return before / after if before and after else None
