"""Try a recipe, judge it against the budget, and record it as a rung of the ladder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sparsify import Model, Recipe, Search


@dataclass(frozen=True)
class Attempt:
    """Hold what one recipe came to; `figures` are those of `Search.measure`."""

    name: str
    what: str
    recipe: Recipe
    model: Model
    figures: Mapping[str, float]
    seconds: float

    @property
    def points(self) -> float:
        """Return the points of the deciding metric that are lost."""
        return self.figures["points"]

    @property
    def noise(self) -> float:
        """Return the standard error of the points."""
        return self.figures["noise"]

    @property
    def meets(self) -> bool:
        """Say whether the loss stays within the budget by its standard error, or by half the budget.

        Selection samples are a draw: a loss that just fits on them misses the budget on test samples half the time.
        """
        budget = self.figures["budget"]
        return self.points + min(self.noise, budget / 2) <= budget


def attempt(search: Search, name: str, what: str, recipe: Recipe) -> Attempt:
    """Apply a recipe to the original model and measure it on the selection samples."""
    started = monotonic()
    search.talk.say(f"trying: {name}, {what}")
    model = search.apply(recipe)
    figures = search.measure(recipe, model)
    return Attempt(name, what, recipe, model, figures, monotonic() - started)


def keep(search: Search, tried: Attempt, why: str) -> Attempt:
    """Record an attempt that is the best so far, and put it on disk."""
    search.store(tried.model)
    return _record(search, tried, why, kept=True)


def drop(search: Search, tried: Attempt, why: str) -> Attempt:
    """Record an attempt that brought nothing."""
    return _record(search, tried, why, kept=False)


def _record(search: Search, tried: Attempt, why: str, *, kept: bool) -> Attempt:
    figures = tried.figures
    rung: dict[str, Any] = {"name": tried.name, "what": tried.what, "kept": kept, "why": why, "meets": tried.meets}
    rung |= {"points": round(tried.points, 4), "noise": round(tried.noise, 4), "ms": round(figures["ms"], 4)}
    rung |= {"kl": round(figures["kl"], 6) if figures["kl"] >= 0 else None, "sparsity": figures["sparsity"]}
    rung |= {"compressed_bytes": int(figures["compressed_bytes"]), "seconds": round(tried.seconds, 2)}
    search.rungs.append(rung)
    search.talk.event("rung", **rung)
    verdict = f"{'kept' if kept else 'dropped'}: {why}"
    search.talk.say(f"  {tried.name}: {tried.points:+.2f} points, {figures['ms']:.3g} ms, {verdict}")
    return tried
