"""Read metrics.json into the figures that the terminal, Markdown and HTML reports share; what is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"
LAYER_HEADINGS = ("layer", "op", "shape", "sparsity", "precision", "SQNR dB", "drop if alone", "kept as it was")
STAGE_HEADINGS = ("stage", "seconds", "peak memory MB")
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


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict in words; `tone` is good, calm, warn or bad."""

    tone: str
    title: str
    text: str


@dataclass(frozen=True)
class Row:
    """Hold one line of the comparison, in words; `change` may carry an interval."""

    label: str
    before: str
    after: str
    change: str = ""


def dig(value: Any, *path: str) -> Any:
    """Follow keys through nested mappings; None where one is absent."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any, form: str = ".2f", unit: str = "") -> str:
    """Write a number with its unit, with a true minus sign; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:{form}}".replace("-", "−") + (f" {unit}" if unit else "")


def percent(share: Any) -> str:
    """Write a share in 0–1 as per cent."""
    return number(100 * share, ".1f", "%") if isinstance(share, int | float) else DASH


def size(count: Any) -> str:
    """Write bytes in decimal units."""
    if not isinstance(count, int | float):
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


def times(factor: Any, word: str = "", opposite: str = "") -> str:
    """Write a factor as `2.1× faster`, below 1 as `1.3× slower`; unnamed it stays as it is."""
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        return DASH
    if opposite and round(factor, 2) < 1:
        factor, word = 1 / factor, opposite
    return f"{factor:.2f}× {word}".rstrip()


def span(bounds: Any, form: str = ".2f") -> str:
    """Write an interval, or nothing where there is none."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or DASH in (texts := [number(b, form) for b in bounds]):
        return ""
    return f"{texts[0]} to {texts[1]}"


def ratio(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return before ÷ after of a size."""
    before, after = dig(metrics, "baseline", key), dig(metrics, "optimized", key)
    return before / after if before and after else None


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Say the verdict."""
    name = str(metrics.get("verdict") or "")
    return Verdict(*VERDICTS.get(name, ("warn", name or "Unknown", "This verdict is not known to this version.")))


def deciding_runtime(metrics: Mapping[str, Any]) -> str | None:
    """Name the runtime that decides: the first."""
    return next(iter(dig(metrics, "optimized", "latency") or {}), None)


def deciding_metric(metrics: Mapping[str, Any]) -> str | None:
    """Name the metric that decides: the first."""
    named = metrics.get("metric") or next(iter(dig(metrics, "baseline", "metrics") or {}), None)
    return str(named) if named else None


def change(metrics: Mapping[str, Any], name: str) -> tuple[float | None, Any]:
    """Return after − before of a metric, and for the deciding one its 95 % interval, paired by sample."""
    before, after = (dig(metrics, side, "metrics", name) for side in ("baseline", "optimized"))
    if before is None or after is None:
        return None, None
    drop, bounds = dig(metrics, "drop", "points"), dig(metrics, "drop", "interval")
    if name != deciding_metric(metrics) or drop is None or not bounds:
        return after - before, None
    falls = abs(after - before - drop) < abs(before - after - drop)  # a metric that should fall: a drop is a rise
    return after - before, bounds if falls else (-bounds[1], -bounds[0])


def budget_text(metrics: Mapping[str, Any]) -> str:
    """Say the budget in words."""
    points, given = dig(metrics, "budget", "points"), dig(metrics, "budget", "given")
    if points is None:
        return "no budget"
    spoken = given and not str(given).replace(".", "", 1).isdigit()  # a plain number only repeats the points
    return f"budget {number(points)} points" + (f", {given}" if spoken else "")


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """List the comparison, line by line."""
    return [*_size_rows(metrics), *_metric_rows(metrics), *_agreement_rows(metrics), *_latency_rows(metrics)]


def _size_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for label, key in (("file size", "bytes"), ("compressed size (gzip -9)", "compressed_bytes")):
        before, after = (size(dig(metrics, side, key)) for side in ("baseline", "optimized"))
        yield Row(label, before, after, times(ratio(metrics, key), "smaller", "larger"))
    optimized = metrics.get("optimized")
    whole = percent(dig(optimized, "sparsity_file"))
    yield Row("sparsity of eligible layers", DASH, percent(dig(optimized, "sparsity")), f"{whole} of the whole file")
    quantized = dig(optimized, "quantized")
    yield Row("INT8 layers in the file", DASH, of(dig(quantized, "int8"), dig(quantized, "of")))


def of(part: Any, whole: Any) -> str:
    """Write `18/21`."""
    return DASH if part is None else f"{part}/{DASH if whole is None else whole}"


def _metric_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for name in dig(metrics, "baseline", "metrics") or {}:
        sides = []
        for side in ("baseline", "optimized"):
            bounds = span(dig(metrics, side, "intervals", name), ".1f")
            sides.append(number(dig(metrics, side, "metrics", name)) + (f" ({bounds})" if bounds else ""))
        moved, bounds = change(metrics, name)
        between = f" ({span(bounds)})" if bounds else ""
        yield Row(name, sides[0], sides[1], number(moved, "+.2f", "points") + between)


def _agreement_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    if deciding_metric(metrics) != "agreement":
        yield Row("agreement with the baseline, top-1", DASH, number(dig(metrics, "agreement", "top1"), ".2f", "%"))
    yield Row("cosine of the outputs", DASH, number(dig(metrics, "agreement", "cosine"), ".5f"))
    yield Row("KL divergence of the outputs", DASH, number(dig(metrics, "agreement", "kl"), ".5f", "nats"))


def _latency_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for runtime, after in (dig(metrics, "optimized", "latency") or {}).items():
        before = dig(metrics, "baseline", "latency", runtime)
        speed = times(dig(metrics, "speedup", runtime), "faster", "slower")
        if runtime == deciding_runtime(metrics) and (bounds := span(metrics.get("speedup_interval"))):
            speed += f" ({bounds}×)"
        sides = [dig(side, "p50_ms") for side in (before, after)]
        label = f"{runtime}: p50 at batch {number(dig(after, 'batch'), 'd')}, {threads(dig(after, 'threads'))}"
        yield Row(label, milliseconds(sides[0]), milliseconds(sides[1]), speed)
        tails = [milliseconds(dig(side, "p95_ms")) for side in (before, after)]
        yield Row(f"{runtime}: p95", tails[0], tails[1])
        executed = [of(dig(side, "int8_executed"), dig(side, "of")) for side in (before, after)]
        yield Row(f"{runtime}: INT8 nodes executed", executed[0], executed[1])


def milliseconds(value: Any) -> str:
    """Write milliseconds with three figures that count."""
    if not isinstance(value, int | float) or value <= 0 or not math.isfinite(value):
        return DASH
    return number(value, f".{max(0, 2 - math.floor(math.log10(value)))}f", "ms")


def threads(count: Any) -> str:
    """Say a thread count; 0 means every core."""
    if count is None:
        return f"{DASH} threads"
    return "all cores" if count == 0 else f"{count} thread{'s' if count != 1 else ''}"


def summary(metrics: Mapping[str, Any]) -> str:
    """Say the outcome in one sentence."""
    parts = [times(ratio(metrics, "bytes"), "smaller", "larger")]
    runtime = deciding_runtime(metrics)
    if runtime is not None:
        parts.append(f"{times(dig(metrics, 'speedup', runtime), 'faster', 'slower')} on {runtime}")
    name = deciding_metric(metrics)
    if name is not None:
        before, after = (number(dig(metrics, side, "metrics", name)) for side in ("baseline", "optimized"))
        parts.append(f"{name} {before} → {after} ({number(change(metrics, name)[0], '+.2f')}; {budget_text(metrics)})")
    return ", ".join(part for part in parts if not part.startswith(DASH))


def layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Write one layer as cells."""
    return (
        str(dig(layer, "name") or DASH),
        str(dig(layer, "op") or DASH),
        "×".join(map(str, dig(layer, "shape") or ())) or DASH,
        percent(dig(layer, "sparsity")),
        str(dig(layer, "precision") or DASH),
        number(dig(layer, "sqnr_db"), ".1f"),
        number(dig(layer, "drop_if_alone"), ".2f"),
        ", ".join(str(why) for key in ("kept_dense", "kept_float") if (why := dig(layer, key))),
    )


def stage_cells(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """Write one stage as cells."""
    return (
        str(dig(stage, "name") or DASH),
        number(dig(stage, "seconds"), ".2f"),
        number(dig(stage, "peak_rss_mb"), ".0f"),
    )


def particulars(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List samples, environment and files as names and values."""
    found = [(f"{name} samples", str(count)) for name, count in (dig(metrics, "samples") or {}).items()]
    for name, value in (dig(metrics, "environment") or {}).items():
        pairs = value.items() if isinstance(value, Mapping) else [(name, value)]
        found += [(str(key), DASH if one is None else str(one)) for key, one in pairs]
    unreadable = metrics.get("unreadable") or {}
    if unreadable:
        found.append(("unreadable samples, skipped", ", ".join(map(str, unreadable))))
    return found + [(str(name), str(path)) for name, path in (dig(metrics, "files") or {}).items()]
