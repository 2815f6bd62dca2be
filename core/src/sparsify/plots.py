"""Draw plots as inline SVG that stretches to any width: no text inside, so that none shrinks on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 1000, 240
GRID = 4


def bar_plot(values: Sequence[float | None], titles: Sequence[str], classes: Sequence[str], top: float) -> str:
    """Draw one bar a value, from 0 to `top`; a missing value leaves its place empty, a title shows on hover."""
    step = WIDTH / max(1, len(values))
    gap = min(0.3 * step, 8)
    bars = []
    for index, (value, title, name) in enumerate(zip(values, titles, classes, strict=True)):
        if value is None:
            continue
        height = max(2.0, HEIGHT * min(value / top, 1.0))
        bars.append(
            f'<rect class="{html.escape(name)}" x="{index * step + gap / 2:.2f}" y="{HEIGHT - height:.2f}" '
            f'width="{step - gap:.2f}" height="{height:.2f}"><title>{html.escape(title)}</title></rect>'
        )
    return _frame("".join(bars))


def line_plot(values: Sequence[float | None], titles: Sequence[str], top: float) -> str:
    """Draw values from 0 to `top` as points joined by a line, which breaks where a value is missing."""
    step = WIDTH / max(1, len(values))
    places = [
        None if value is None else ((index + 0.5) * step, HEIGHT * (1 - min(max(value / top, 0.0), 1.0)))
        for index, value in enumerate(values)
    ]
    path, pen_down = [], False
    for place in places:
        if place is not None:
            path.append(f"{'L' if pen_down else 'M'}{place[0]:.2f} {place[1]:.2f}")
        pen_down = place is not None
    # a line of no length with round caps stays a round dot however the plot is stretched
    dots = [
        f'<path class="dot" d="M{place[0]:.2f} {place[1]:.2f}h0"><title>{html.escape(title)}</title></path>'
        for place, title in zip(places, titles, strict=True)
        if place is not None
    ]
    return _frame(f'<path class="line" d="{" ".join(path)}"/>{"".join(dots)}')


def _frame(content: str) -> str:
    lines = "".join(f'<path class="grid" d="M0 {HEIGHT * index / GRID:.1f}H{WIDTH}"/>' for index in range(GRID + 1))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-hidden="true">'
        f"{lines}{content}</svg>"
    )


def round_top(values: Sequence[float | None]) -> float:
    """Return the least multiple of 10 at or above every value."""
    return max(10.0, 10.0 * math.ceil(max((value for value in values if value is not None), default=0) / 10))
