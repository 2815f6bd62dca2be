"""Read metrics.json into the figures that the terminal, Markdown and HTML reports share; what is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

DASH = "–"
SIDES = ("baseline", "optimized")
# verdict: tone, title, explanation
VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "met": ("good", "Within budget", "Verified on held-out samples, timed, and ready to deploy."),
    "unbounded": (
        "good",
        "Verified, no budget",
        "Verified on held-out samples and timed; no budget was set to judge by.",
    ),
    "baseline": ("calm", "Baseline", "Nothing was changed; these are the original model's own figures."),
    "missed": ("bad", "Over budget", "The best artefact found loses more than the budget allows."),
    "slower": ("bad", "Slower", "The artefact is slower than the best float configuration on the deciding runtime."),
    "unverified": ("warn", "Not verified", "There was not enough evidence to judge this artefact; see the notes."),
}


class Table(NamedTuple):
    """Hold a table in words."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def dig(value: Any, *path: str) -> Any:
    """Follow keys through nested mappings; None where one is absent."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def both(metrics: Mapping[str, Any], *path: str) -> list[Any]:
    """Follow keys on both sides, the baseline's and the optimized model's."""
    return [dig(metrics, side, *path) for side in SIDES]


def number(value: Any, form: str = ".2f", unit: str = "") -> str:
    """Write a number with its unit, with a true minus sign; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:{form}}".replace("-", "−") + (f" {unit}" if unit else "")


def percent(share: Any) -> str:
    """Write a share in 0–1 as per cent."""
    return DASH if share is None else number(100 * share, ".1f", "%")


def size(count: Any) -> str:
    """Write bytes in decimal units."""
    if count is None:
        return DASH
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{count / scale:.3g} {unit}" for unit, scale in units if count >= scale), f"{count} bytes")


def milliseconds(value: Any) -> str:
    """Write milliseconds with three figures that count."""
    return number(value, f".{max(0, 2 - math.floor(math.log10(value)))}f", "ms") if value else DASH


def times(factor: float | None, word: str = "", opposite: str = "") -> str:
    """Write a factor as `2.1× faster`, below 1 as `1.3× slower`; unnamed it stays as it is."""
    if not factor:
        return DASH
    if opposite and round(factor, 2) < 1:
        factor, word = 1 / factor, opposite
    return f"{factor:.2f}× {word}".rstrip()


def span(bounds: Any, form: str = ".2f") -> str:
    """Write an interval, or nothing where there is none."""
    return f"{number(bounds[0], form)} to {number(bounds[1], form)}" if bounds and None not in bounds else ""


def threads(count: int | None) -> str:
    """Say a thread count; 0 means every core."""
    return "all cores" if count == 0 else f"{number(count, 'd')} thread{'' if count == 1 else 's'}"


def of(part: Any, whole: Any) -> str:
    """Write `18/21`."""
    return DASH if part is None else f"{part}/{number(whole, 'd')}"


def ratio(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return before ÷ after of a size."""
    before, after = both(metrics, key)
    return before / after if before and after else None


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str, str]:
    """Say the verdict: its tone (good, calm, warn or bad), title and explanation."""
    name = str(metrics.get("verdict") or "Unknown")
    return VERDICTS.get(name, ("warn", name, "This verdict is not known to this version."))


def deciding(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Name the metric and the runtime that decide: the first of each, or nothing."""
    metric = metrics.get("metric") or next(iter(dig(metrics, "baseline", "metrics") or {}), "")
    return str(metric), next(iter(dig(metrics, "optimized", "latency") or {}), "")


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


def budget(metrics: Mapping[str, Any]) -> str:
    """Say the budget in words."""
    points, given = dig(metrics, "budget", "points"), str(dig(metrics, "budget", "given") or "")
    if points is None:
        return "no budget"
    repeats = given.replace(".", "", 1).isdigit()  # a plain number only says the points again
    return f"budget {number(points)} points" + (f", {given}" if given and not repeats else "")


def summary(metrics: Mapping[str, Any]) -> str:
    """Say the outcome in one sentence."""
    name, runtime = deciding(metrics)
    speed = times(dig(metrics, "speedup", runtime), "faster", "slower")
    parts = [times(ratio(metrics, "bytes"), "smaller", "larger"), f"{speed} on {runtime}"]
    if name:
        moved = f"{number(change(metrics, name)[0], '+.2f')}; {budget(metrics)}"
        parts.append(f"{name} {_moved(map(number, both(metrics, 'metrics', name)))} ({moved})")
    return ", ".join(part for part in parts if not part.startswith(DASH))


def cards(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """List what matters most: a headline whose first word is the figure, and lines of detail."""
    name, runtime = deciding(metrics)
    sparse = f"{percent(dig(metrics, 'optimized', 'sparsity'))} sparse"
    yield times(ratio(metrics, "bytes"), "smaller", "larger"), _moved(map(size, both(metrics, "bytes"))), sparse
    latency = _moved(map(milliseconds, both(metrics, "latency", runtime, "p50_ms")))
    speed = span(metrics.get("speedup_interval"))
    faster = times(dig(metrics, "speedup", runtime), "faster", "slower")
    yield faster, latency, f"95 %: {speed}×" if speed else f"on {runtime or DASH}"
    moved, bounds = change(metrics, name)
    within = f"95 %: {span(bounds)}" if bounds else budget(metrics)
    yield f"{number(moved, '+.2f')} points of {name}", _moved(map(number, both(metrics, "metrics", name))), within
    if name != "agreement":
        top1, cosine = dig(metrics, "agreement", "top1"), dig(metrics, "agreement", "cosine")
        figure = f"{number(cosine, '.4f')} cosine" if top1 is None else f"{number(top1, '.1f')}% agreement"
        yield figure, "with the baseline's own outputs"


def bars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], list[str]]]:
    """List what is drawn as a pair of bars: label, both values, both in words."""
    for label, key in (("file size", "bytes"), ("compressed (gzip -9)", "compressed_bytes")):
        yield label, both(metrics, key), list(map(size, both(metrics, key)))
    for runtime in dig(metrics, "optimized", "latency") or {}:
        for label, key in (("median latency", "p50_ms"), ("95th percentile", "p95_ms")):
            sides = both(metrics, "latency", runtime, key)
            yield f"{label}, {runtime}", sides, list(map(milliseconds, sides))


def _moved(words: Iterable[str]) -> str:
    return " → ".join(words)


def tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """List the report's tables; a column or a table that would say nothing is left out."""
    layers, stages = metrics.get("layers") or (), metrics.get("stages") or ()
    yield Table("All figures", ("", "before", "after", "change"), rows(metrics))
    headings = ("layer", "op", "shape", "sparsity", "precision", "SQNR dB", "drop if alone", "kept as it was")
    yield from _filled("Layers", headings, map(_layer, layers))
    yield from _filled("Stages", ("stage", "seconds", "peak memory MB"), map(_stage, stages))
    yield from _filled("Measured with", ("what", "value"), _particulars(metrics))


def _filled(title: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[Table]:
    found = list(lines)
    kept = [column for column in range(len(headings)) if any(line[column] not in ("", DASH) for line in found)]
    if kept:
        yield Table(title, [headings[one] for one in kept], [[line[one] for one in kept] for line in found])


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """List the comparison line by line: label, before, after, change."""
    return [*_size_rows(metrics), *_metric_rows(metrics), *_latency_rows(metrics)]


def _size_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for label, key in (("file size", "bytes"), ("compressed size (gzip -9)", "compressed_bytes")):
        before, after = map(size, both(metrics, key))
        yield label, before, after, times(ratio(metrics, key), "smaller", "larger")
    optimized = metrics.get("optimized")
    whole = f"{percent(dig(optimized, 'sparsity_file'))} of the whole file"
    yield "sparsity of eligible layers", DASH, percent(dig(optimized, "sparsity")), whole
    quantized = dig(optimized, "quantized")
    yield "INT8 layers in the file", DASH, of(dig(quantized, "int8"), dig(quantized, "of")), ""


def _metric_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name in dig(metrics, "baseline", "metrics") or {}:
        values, bounds = both(metrics, "metrics", name), both(metrics, "intervals", name)
        before, after = (_with(number(one), span(own, ".1f")) for one, own in zip(values, bounds, strict=True))
        moved, between = change(metrics, name)
        yield name, before, after, _with(number(moved, "+.2f", "points"), span(between))
    top1, cosine, kl = (dig(metrics, "agreement", key) for key in ("top1", "cosine", "kl"))
    if deciding(metrics)[0] != "agreement":
        yield "agreement with the baseline, top-1", DASH, number(top1, ".2f", "%"), ""
    yield "cosine of the outputs", DASH, number(cosine, ".5f"), ""
    yield "KL divergence of the outputs", DASH, number(kl, ".5f", "nats"), ""


def _latency_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for runtime, entry in (dig(metrics, "optimized", "latency") or {}).items():
        sides = both(metrics, "latency", runtime)
        p50, p95 = ([milliseconds(dig(side, key)) for side in sides] for key in ("p50_ms", "p95_ms"))
        decides = runtime == deciding(metrics)[1]
        bounds = span(metrics.get("speedup_interval")) if decides else ""
        speed = _with(times(dig(metrics, "speedup", runtime), "faster", "slower"), f"{bounds}×" if bounds else "")
        setting = f"batch {number(dig(entry, 'batch'), 'd')}, {threads(dig(entry, 'threads'))}"
        yield f"{runtime}: p50 at {setting}", p50[0], p50[1], speed
        yield f"{runtime}: p95", p95[0], p95[1], ""
        before, after = (of(dig(side, "int8_executed"), dig(side, "of")) for side in sides)
        yield f"{runtime}: INT8 nodes executed", before, after, ""


def _with(text: str, bounds: str) -> str:
    return f"{text} ({bounds})" if bounds else text


def _layer(layer: Mapping[str, Any]) -> list[str]:
    name, op, precision = (str(dig(layer, key) or DASH) for key in ("name", "op", "precision"))
    shape = "×".join(map(str, dig(layer, "shape") or ())) or DASH
    why = ", ".join(str(said) for key in ("kept_dense", "kept_float") if (said := dig(layer, key)))
    error, alone = number(dig(layer, "sqnr_db"), ".1f"), number(dig(layer, "drop_if_alone"))
    return [name, op, shape, percent(dig(layer, "sparsity")), precision, error, alone, why]


def _stage(stage: Mapping[str, Any]) -> list[str]:
    return [str(stage.get("name") or DASH), number(stage.get("seconds")), number(stage.get("peak_rss_mb"), ".0f")]


def _particulars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List samples, environment and files as names and values."""
    for name, count in (metrics.get("samples") or {}).items():
        yield f"{name} samples", str(count)
    if metrics.get("unreadable"):
        yield "unreadable samples, skipped", ", ".join(map(str, metrics["unreadable"]))
    environment = dict(metrics.get("environment") or {})
    for facts in (environment, environment.pop("packages", {}), metrics.get("files") or {}):
        yield from ((str(name), DASH if value is None else str(value)) for name, value in facts.items())
