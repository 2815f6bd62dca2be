"""Read metrics.json into the words that the terminal, Markdown and HTML reports share; what is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

DASH = "–"
# verdict: tone, title, explanation
VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "met": ("good", "Within budget", "Verified on held-out samples, timed, and ready to deploy."),
    "unbounded": ("good", "Verified, no budget", "Verified on held-out samples and timed; no budget was set."),
    "baseline": ("calm", "Baseline", "Nothing was changed; these are the original model's own figures."),
    "missed": ("bad", "Over budget", "The best artefact found loses more than the budget allows."),
    "slower": ("bad", "Slower", "The artefact is slower than the best float configuration on the deciding runtime."),
    "unverified": ("warn", "Not verified", "There was not enough evidence to judge this artefact; see the notes."),
}


class Row(NamedTuple):
    """Hold one line of the comparison: what stands before and after, as `bars` too, and the change.

    A `card` line is shown large above the table.
    """

    label: str
    sides: Sequence[str]
    change: str = ""
    bars: Sequence[float | None] = ()
    card: bool = False


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
    return [dig(metrics, side, *path) for side in ("baseline", "optimized")]


def number(value: Any, form: str = ".2f", unit: str = "") -> str:
    """Write a number with its unit, with a true minus sign; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:{form}} {unit}".replace("-", "−").rstrip()


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


def times(factor: float | None, more: str = "faster", less: str = "slower") -> str:
    """Write a factor as `2.10× faster`, below 1 as `1.30× slower`."""
    if not factor:
        return DASH
    return f"{factor:.2f}× {more}" if round(factor, 2) >= 1 else f"{1 / factor:.2f}× {less}"


def span(bounds: Any, form: str = ".2f") -> str:
    """Write an interval, or nothing where there is none."""
    return f"{number(bounds[0], form)} to {number(bounds[1], form)}" if bounds and None not in bounds else ""


def speed_words(factor: float | None, bounds: Any = None) -> str:
    """Say a speed-up and its 95 % interval; where that contains 1 there is no difference to tell."""
    within = f"{span(bounds)}×" if span(bounds) else ""
    same = within and bounds[0] <= 1 <= bounds[1]
    return _with("no measurable difference" if same else times(factor), within)


def _with(text: str, bounds: str) -> str:
    return f"{text} ({bounds})" if bounds else text


def threads(count: int | None) -> str:
    """Say a thread count; 0 means every core."""
    return "all cores" if count == 0 else f"{number(count, 'd')} thread{'' if count == 1 else 's'}"


def of(counts: Any, key: str) -> str:
    """Write one of the counts as `18/21`."""
    return DASH if dig(counts, key) is None else f"{counts[key]}/{number(dig(counts, 'of'), 'd')}"


def words(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Say what heads a report: verdict with its tone (good, calm, warn or bad), outcome, and what was asked for."""
    name = str(metrics.get("verdict") or "Unknown")
    tone, title, text = VERDICTS.get(name, ("warn", name, "This verdict is not known to this version."))
    said = {"tone": tone, "title": title, "text": text, "summary": summary(metrics)}
    said |= {"level": number(metrics.get("optim_level"), ".3g"), "seed": number(metrics.get("seed"), "d")}
    return said | {key: str(metrics.get(key) or DASH) for key in ("use_case", "kind")}


def remarks(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List warnings, the fix and notes as (kind, line)."""
    yield from (("warning", f"warning: {line}") for line in metrics.get("warnings") or ())
    if metrics.get("fix"):
        yield "fix", f"fix: {metrics['fix']}"
    yield from (("note", str(line)) for line in metrics.get("notes") or ())


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


def budget(metrics: Mapping[str, Any]) -> str:
    """Say the budget in words."""
    points, given = dig(metrics, "budget", "points"), str(dig(metrics, "budget", "given") or "")
    if points is None:
        return "no budget"
    repeats = not given or given.replace(".", "", 1).isdigit()  # a plain number only says the points again
    return f"budget {number(points)} points" + ("" if repeats else f", {given}")


def ratio(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return before ÷ after of a size."""
    before, after = both(metrics, key)
    return before / after if before and after else None


def summary(metrics: Mapping[str, Any]) -> str:
    """Say the outcome in one sentence."""
    name, runtime = deciding(metrics)
    parts = [times(ratio(metrics, "bytes"), "smaller", "larger")]
    if said := speed(metrics, runtime):
        parts.append(f"{said} on {runtime}")
    if name:
        before, after = map(number, both(metrics, "metrics", name))
        parts.append(f"{name} {before} → {after} ({number(change(metrics, name)[0], '+.2f')}; {budget(metrics)})")
    return ", ".join(part for part in parts if not part.startswith(DASH))


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """List the comparison line by line."""
    return [*_size_rows(metrics), *_metric_rows(metrics), *_latency_rows(metrics)]


def _size_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for label, key in (("file size", "bytes"), ("compressed size (gzip -9)", "compressed_bytes")):
        bars, gain = both(metrics, key), times(ratio(metrics, key), "smaller", "larger")
        yield Row(label, list(map(size, bars)), gain, bars, card=key == "bytes")
    optimized = metrics.get("optimized")
    yield Row("sparsity of eligible layers", [DASH, percent(dig(optimized, "sparsity"))], card=True)
    yield Row("sparsity of the whole file", [DASH, percent(dig(optimized, "sparsity_file"))])
    yield Row("INT8 layers in the file", [DASH, of(dig(optimized, "quantized"), "int8")])


def _metric_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for name in dig(metrics, "baseline", "metrics") or {}:
        values, bounds = both(metrics, "metrics", name), both(metrics, "intervals", name)
        sides = [_with(number(one), span(own, ".1f")) for one, own in zip(values, bounds, strict=True)]
        moved, between = change(metrics, name)
        said = _with(number(moved, "+.2f", "points"), span(between))
        yield Row(name, sides, said, card=name == deciding(metrics)[0])
    top1, cosine, kl = (dig(metrics, "agreement", key) for key in ("top1", "cosine", "kl"))
    if deciding(metrics)[0] != "agreement":
        yield Row("agreement with the baseline, top-1", [DASH, number(top1, ".2f", "%")], card=top1 is not None)
    yield Row("cosine of the outputs", [DASH, number(cosine, ".5f")], card=top1 is None)
    yield Row("KL divergence of the outputs", [DASH, number(kl, ".5f", "nats")])


def _latency_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for runtime, entry in (dig(metrics, "optimized", "latency") or {}).items():
        p50, p95 = (both(metrics, "latency", runtime, key) for key in ("p50_ms", "p95_ms"))
        label = f"{runtime}: p50 at batch {number(dig(entry, 'batch'), 'd')}, {threads(dig(entry, 'threads'))}"
        said, decides = speed(metrics, runtime), runtime == deciding(metrics)[1]
        yield Row(label, list(map(milliseconds, p50)), said, p50, card=decides)
        yield Row(f"{runtime}: p95", list(map(milliseconds, p95)), bars=p95)
        executed = [of(side, "int8_executed") for side in both(metrics, "latency", runtime)]
        yield Row(f"{runtime}: INT8 nodes executed", executed)


def tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """List the report's tables; a column or a table that would say nothing is left out."""
    lines = [[row.label, *row.sides, row.change] for row in rows(metrics)]
    yield Table("All figures", ("", "before", "after", "change"), lines)
    headings = ("layer", "op", "shape", "sparsity", "precision", "SQNR dB", "drop if alone", "kept as it was")
    yield from _filled("Layers", headings, map(_layer, metrics.get("layers") or ()))
    yield from _filled("Stages", ("stage", "seconds", "peak memory MB"), map(_stage, metrics.get("stages") or ()))
    yield from _filled("Measured with", ("what", "value"), _particulars(metrics))


def _filled(title: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[Table]:
    found = list(lines)
    kept = [column for column in range(len(headings)) if any(line[column] not in ("", DASH) for line in found)]
    if kept:
        yield Table(title, [headings[one] for one in kept], [[line[one] for one in kept] for line in found])


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
    found = {f"{name} samples": count for name, count in (metrics.get("samples") or {}).items()}
    if metrics.get("unreadable"):
        found["unreadable samples, skipped"] = ", ".join(metrics["unreadable"])
    found |= metrics.get("environment") or {}
    found |= found.pop("packages", {}) | (metrics.get("files") or {})
    return ((name, DASH if value is None else str(value)) for name, value in found.items())
