"""Compare a run with its repetition: the deployment byte by byte, recipe and figures, and what else was different."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsify_onnx.explain import read

SAME, DIFFERS, WITHIN, BEYOND = "same", "differs", "within its interval", "beyond its interval"
NOT_JUDGED = "not judged"
MODEL = "deployment/model.onnx"


@dataclass(frozen=True)
class Row:
    """Compare one thing; the outcome is one of the words above."""

    what: str
    recorded: str
    again: str
    outcome: str


@dataclass(frozen=True)
class Repetition:
    """Hold the rows, whether the same came out, and what was different first, '' where nothing is known to be."""

    rows: tuple[Row, ...]
    same: bool
    why: str

    @property
    def sentence(self) -> str:
        """Say the outcome."""
        if self.same:
            return "The same: model, byte for byte, and figures."
        return f"Not the same. {self.why or 'Nothing that is recorded differs: versions, data and CPU are the same'}."


def compare_runs(run: Path, again: Path) -> Repetition:
    """Compare two finished run folders; the second repeats the first."""
    records = [yaml.safe_load((one / "experiment.yaml").read_text(encoding="utf-8")) for one in (run, again)]
    metrics = [read(one) for one in (run, again)]
    outcomes = (*_files(run, again), *_figures(*metrics))
    causes = tuple(_causes(*records, *metrics))
    judged = {row.outcome for row in outcomes if row.what != "recipe.yaml"}
    return Repetition((*outcomes, *causes), judged.isdisjoint((DIFFERS, BEYOND)), _first(causes, records[0]))


def _files(run: Path, again: Path) -> Iterator[Row]:
    """Compare the recipe and the deployment; of its files besides the model only those that differ are told."""
    names = {path.relative_to(one).as_posix() for one in (run, again) for path in (one / "deployment").rglob("*")}
    for name in (MODEL, "recipe.yaml", *sorted(names - {MODEL})):
        old, new = (_digest(one / name) for one in (run, again))
        if name in (MODEL, "recipe.yaml") or (old != new and (run / name).is_file() == (again / name).is_file()):
            yield Row(name, old, new, SAME if old == new else DIFFERS)


def _digest(path: Path) -> str:
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Row]:
    """Compare metrics by their intervals; time depends on what else the machine does, so it is told only."""
    for side in ("baseline", "optimized"):
        for name, value in old[side]["metrics"].items():
            bounds = old[side].get("intervals", {}).get(name)
            yield _figure(f"{name}, {side}", value, new[side]["metrics"].get(name), bounds)
    yield _figure("points lost", old["drop"]["points"], new["drop"]["points"], old["drop"]["interval"])
    for name in ("top1", "cosine", "kl"):
        yield _figure(f"agreement, {name}", old["agreement"][name], new["agreement"][name], None)
    yield _figure("sparsity", old["optimized"]["sparsity"], new["optimized"]["sparsity"], None)
    for runtime, times in old["speedup"].items():
        yield _figure(f"times faster, {runtime}", times, new["speedup"].get(runtime), None)


def _figure(what: str, old: float | None, new: float | None, bounds: Any) -> Row:
    outcome = NOT_JUDGED
    if old == new:
        outcome = SAME
    elif bounds and new is not None:
        outcome = WITHIN if bounds[0] <= new <= bounds[1] else BEYOND
    was, now = ("–" if value is None else f"{value:.6g}" for value in (old, new))
    return Row(what, was, now, outcome)


def _causes(
    old: Mapping[str, Any], new: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield what may explain a difference: versions first, then model and data, then the machine."""
    for kind in ("plugins", "libraries"):
        yield from _changed(old.get("resolved", {}).get(kind, {}), new.get("resolved", {}).get(kind, {}))
    yield from _changed(_part(was, "python"), _part(now, "python"))
    yield from _changed({"model": old.get("model", {}).get("sha256")}, {"model": new.get("model", {}).get("sha256")})
    hashes = [{f"{name} samples": found for name, found in one.get("data_sha256", {}).items()} for one in (old, new)]
    yield from _changed(*hashes)
    yield from _changed({"preprocessing": old.get("preprocess")}, {"preprocessing": new.get("preprocess")})
    yield from _changed(_part(was, "cpu", "cores", "system"), _part(now, "cpu", "cores", "system"))


def _part(metrics: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: metrics.get("environment", {}).get(name) for name in names}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Row]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            was, now = ("absent" if one.get(name) is None else str(one[name]) for one in (old, new))
            yield Row(name, was, now, DIFFERS)


def _first(causes: tuple[Row, ...], record: Mapping[str, Any]) -> str:
    if causes:
        return f"What differs first: {causes[0].what}, {causes[0].recorded} → {causes[0].again}"
    if record["request"].get("time_budget"):
        return "The run had a --time-budget: where the clock cuts the search, decisions need not repeat"
    return ""
