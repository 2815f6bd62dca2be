"""Show a finished run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsify.report_figures import dig, rows, summary, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS = {"good": "green", "calm": "cyan", "warn": "yellow", "bad": "red"}
NARROW = 90  # columns below which the change moves under the figures


def terminal_table(metrics: Mapping[str, Any], width: int) -> RenderableType:
    """Return what Rich prints of metrics.json: the comparison, the verdict, and where the files are."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", ratio=2 if width < NARROW else None)
    for heading in ("before", "after") if width < NARROW else ("before", "after", "change"):
        table.add_column(heading, overflow="fold")
    for row in rows(metrics):
        cells = [Text(row.label), Text(row.before, style="dim"), Text(row.after)]
        if width < NARROW:
            cells[2].append(f"\n{row.change}" if row.change else "", style="dim")
        table.add_row(*cells, *([Text(row.change)] if width >= NARROW else []))
    judged = verdict(metrics)
    line = Text.assemble((judged.title, f"bold {COLOURS[judged.tone]}"), "  ", summary(metrics))
    return Group(table, Text(), line, Text(judged.text, style="dim"), *(_lines(metrics)))


def _lines(metrics: Mapping[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    lines = [Text(f"warning: {text}", style="yellow") for text in metrics.get("warnings") or ()]
    if metrics.get("fix"):
        lines.append(Text(f"fix: {metrics['fix']}"))
    files = metrics.get("files") or {}
    width = max((len(name) for name in files), default=0)
    lines += [Text(f"{name:{width}}  {path}", overflow="fold") for name, path in files.items()]
    samples = ", ".join(f"{count} {name}" for name, count in (dig(metrics, "samples") or {}).items())
    return [*lines, Text(f"samples: {samples}", style="dim")] if samples else [*lines]
