"""Draw plots as inline SVG that stretches to any width: no text inside, so that none shrinks on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 1000, 240
LEAST = 0.01  # of the height, so that a bar of 0 is seen
Values = Sequence[float | None]


def plot(values: Values, titles: Sequence[str], styles: Sequence[str], top: float) -> str:
    """Draw values from 0 to `top`, first to last, as bars; those of style `dot` as points joined by a line.

    A missing value leaves its place empty and breaks the line; a title shows on hover.
    """
    step = WIDTH / max(1, len(values))
    line, marks, pen = "", "", "M"
    for index, (value, title, style) in enumerate(zip(values, titles, styles, strict=True)):
        if value is None:
            pen = "M"
            continue
        height = HEIGHT * min(max(value / top, 0.0 if style == "dot" else LEAST), 1.0)
        x, y, foot = f"{(index + 0.5) * step:.2f}", f"{HEIGHT - height:.2f}", f"{HEIGHT}"
        if style == "dot":
            line, pen, foot = f"{line}{pen}{x} {y}", "L", y  # no length and round caps: a dot however stretched
        marks += f'<path class="{style}" d="M{x} {y}V{foot}"><title>{html.escape(title)}</title></path>\n'
    return f'<path class="line" d="{line}"/>\n<g stroke-width="{step - min(0.3 * step, 8):.2f}">\n{marks}</g>'


def round_top(values: Values) -> float:
    """Return the least multiple of 10 at or above every value, at least 10."""
    return max(10.0, 10.0 * math.ceil(max((value for value in values if value is not None), default=0) / 10))
