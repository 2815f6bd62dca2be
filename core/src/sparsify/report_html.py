"""Write report.html from metrics.json: one file, no script, nothing fetched. The parts it fills are in report.html."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from string import Template
from typing import Any

from sparsify.plots import plot, round_top
from sparsify.report_figures import DASH, Row, Table, dig, number, remarks, rows, tables, words


class Html(str):
    """Mark text that is HTML already."""

    __slots__ = ()


Fill = Callable[..., Html]


def render_html(metrics: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page; everything that comes from files is escaped."""
    template, style = (files("sparsify").joinpath(name).read_text("utf-8") for name in ("report.html", "report.css"))
    page, *others = re.split(r"\n<!-- (\w+) -->\n", template)
    fill = partial(_fill, {"page": page, **dict(zip(others[::2], others[1::2], strict=True))})
    figures, *more = (_table(fill, table) for table in tables(metrics))
    notes = _join(fill("note", kind=kind, line=line) for kind, line in remarks(metrics))
    content = {
        "cards": _join(_card(fill, row) for row in rows(metrics) if row.card),
        "pairs": _join(_pair(fill, row) for row in rows(metrics) if row.bars),
        "figures": figures,
        "notes": fill("notes", notes=notes) if notes else notes,
        "plots": _join(_plots(fill, metrics.get("layers") or ())),
        "tables": _join(more),
    }
    return fill("page", style=Html(style), **words(metrics), **content)


def _fill(parts: Mapping[str, str], part: str, **values: str) -> Html:
    """Fill a part of the template; what is not Html is escaped."""
    safe = {name: value if isinstance(value, Html) else html.escape(value) for name, value in values.items()}
    return Html(Template(parts[part].removesuffix("\n")).substitute(safe))


def _join(pieces: Iterable[Html], between: str = "\n") -> Html:
    return Html(between.join(pieces))


def _card(fill: Fill, row: Row) -> Html:
    """Show the number that a line's change, or else its outcome, begins with, large."""
    before, after = row.sides
    large = re.match(r"[−+\d]\S*(?: %)?", row.change or after)
    said = (row.change or after)[large.end() if large else 0 :]
    sides = "" if before == DASH else f"{before} → {after}"
    return fill("card", figure=large[0] if large else after, said=said, label=row.label, sides=sides)


def _pair(fill: Fill, row: Row) -> Html:
    top = max(filter(None, row.bars), default=1)
    before, after = row.sides
    widths = [f"{100 * (value or 0) / top:.1f}" for value in row.bars]
    return fill("pair", label=row.label, before=before, after=after, width_before=widths[0], width_after=widths[1])


def _table(fill: Fill, table: Table) -> Html:
    lines = (_join((fill("cell", cell=cell) for cell in line), "") for line in table.lines)
    body = _join(fill("line", cells=cells) for cells in lines)
    head = _join(fill("heading", cell=heading) for heading in table.headings)
    return fill("table", title=table.title, style=table.title.lower().replace(" ", "-"), head=head, lines=body)


def _plots(fill: Fill, layers: Sequence[Any]) -> Iterator[Html]:
    """Draw sparsity and error along the layers, where they are known."""
    styles = ["kept" if dig(layer, "kept_dense") else "pruned" for layer in layers]
    for part, unit, scale in (("sparsity", "%", 100), ("sqnr_db", "dB", 1)):
        found = [dig(layer, part) for layer in layers]
        values = [None if value is None else scale * value for value in found]
        if values.count(None) == len(values):
            continue
        names = [
            f"{dig(layer, 'name') or DASH}: {number(value, '.1f', unit)}"
            for layer, value in zip(layers, values, strict=True)
        ]
        top = 100.0 if unit == "%" else round_top(values)
        marks = Html(plot(values, names, styles if unit == "%" else ["dot"] * len(values), top))
        yield fill(part, plot=fill("plot", marks=marks, top=f"{top:g} {unit}", middle=f"{top / 2:g}"))
