"""Explain a run from metrics.json: which layers cost accuracy, where error starts, what each rescue step bought."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsify.report_figures import known, number

INHERITED_DB = 6.0  # that far below its own error alone, three quarters of a layer's error come from before it
Rows = Sequence[Mapping[str, Any]]


def explanation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers, worst first, where the error starts, and the ladder with what each rung bought."""
    layers, rungs = metrics.get("layers") or (), list(_rungs(metrics.get("rungs") or ()))
    return {"layers": sorted(layers, key=_harm), "start": _start(layers), "rungs": rungs}


def _harm(layer: Mapping[str, Any]) -> list[float]:
    """Order by points lost if alone, then by the error of its own, then by all the error; unknown ones last."""
    signed = ((-1, "drop_if_alone"), (1, "isolated_db"), (1, "sqnr_db"))
    return [sign * layer[key] if known(layer.get(key)) else math.inf for sign, key in signed]


def _start(layers: Rows) -> dict[str, Any] | None:
    """Find the first layer whose error is mostly inherited, and the one before it whose own error is largest."""
    measured = [layer for layer in layers if known(layer.get("isolated_db")) and known(layer.get("sqnr_db"))]
    for place, layer in enumerate(measured):
        if layer["sqnr_db"] <= layer["isolated_db"] - INHERITED_DB:
            source = min(measured[:place], key=lambda one: float(one["isolated_db"]), default={}).get("name")
            found = {key: layer.get(key) for key in ("name", "isolated_db", "sqnr_db")} | {"source": source}
            return {**found, "sentence": _sentence(found)}
    return None


def _sentence(start: Mapping[str, Any]) -> str:
    alone, everything = (number(start[key], ".1f", "dB") for key in ("isolated_db", "sqnr_db"))
    source = f"; before it, {start['source']} makes most error of its own" if start["source"] else ""
    return f"Error piles up from {start['name']} on: {alone} alone, {everything} with all before it{source}."


def _rungs(rungs: Rows) -> Iterator[dict[str, Any]]:
    """Yield each rung with what it bought over the one kept before it, the last one kept marked as final."""
    last = max((place for place, rung in enumerate(rungs) if rung.get("kept")), default=None)
    kept: Mapping[str, Any] = {}
    for place, rung in enumerate(rungs):
        gains = {f"{key}_bought": _less(kept.get(key), rung.get(key)) for key in ("points", "ms")}
        yield {**rung, **gains, "final": place == last}
        kept = rung if rung.get("kept") or not kept else kept


def _less(before: Any, after: Any) -> float | None:
    return round(before - after, 6) if known(before) and known(after) else None
