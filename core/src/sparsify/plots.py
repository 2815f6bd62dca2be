"""Draw plots as inline SVG that stretches to any width: no text inside, so that none shrinks on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 1000, 240
Values = Sequence[float | None]


def bar_plot(values: Values, titles: Sequence[str], classes: Sequence[str], top: float) -> str:
    """Draw one bar a value, from 0 to `top`; a missing value leaves its place empty, a title shows on hover."""
    step = WIDTH / max(1, len(values))
    gap = min(0.3 * step, 8)
    bars = []
    for index, (value, title, name) in enumerate(zip(values, titles, classes, strict=True)):
        if value is not None:
            height = max(2.0, HEIGHT * min(value / top, 1.0))
            place = f'x="{index * step + gap / 2:.2f}" y="{HEIGHT - height:.2f}" width="{step - gap:.2f}"'
            bars.append(f'<rect class="{name}" {place} height="{height:.2f}">{_title(title)}</rect>')
    return _frame("".join(bars))


def line_plot(values: Values, titles: Sequence[str], top: float) -> str:
    """Draw values from 0 to `top` as points joined by a line, which breaks where a value is missing."""
    step = WIDTH / max(1, len(values))
    path, dots, pen = "", "", "M"
    for index, (value, title) in enumerate(zip(values, titles, strict=True)):
        if value is None:
            pen = "M"
            continue
        place = f"{(index + 0.5) * step:.2f} {HEIGHT * (1 - min(max(value / top, 0.0), 1.0)):.2f}"
        path, pen = f"{path}{pen}{place}", "L"
        # a line of no length with round caps stays a round dot however the plot is stretched
        dots += f'<path class="dot" d="M{place}h0">{_title(title)}</path>'
    return _frame(f'<path class="line" d="{path}"/>{dots}')


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


def _frame(content: str) -> str:
    grid = "".join(f'<path class="grid" d="M0 {HEIGHT * quarter / 4:.1f}H{WIDTH}"/>' for quarter in range(5))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{grid}{content}</svg>'


def round_top(values: Values) -> float:
    """Return the least multiple of 10 at or above every value, at least 10."""
    return max(10.0, 10.0 * math.ceil(max((value for value in values if value is not None), default=0) / 10))
