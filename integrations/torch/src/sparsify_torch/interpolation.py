"""How values move between two epochs: progress, and the three curves of the field's recipes."""

from __future__ import annotations

from typing import Literal

Curve = Literal["linear", "cubic", "inverse_cubic"]


def progress(epoch: float, start: float, end: float) -> float:
    """Return how much of a span has passed, 0–1; a span without length is over at once."""
    begin = max(start, 0.0)
    return min(max((epoch - begin) / (end - begin), 0.0), 1.0) if end > begin else 1.0


def interpolate(curve: Curve, done: float, first: float, last: float) -> float:
    """Return the value at a progress of 0–1; cubic is 1 − (1 − t)³ (Zhu & Gupta 2017), fast first and slow last."""
    if curve == "cubic":
        done = 1 - (1 - done) ** 3
    elif curve == "inverse_cubic":
        done = 1 - (1 - done) ** (1 / 3)
    return first + (last - first) * done
