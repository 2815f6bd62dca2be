"""Show a finished run in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsify.report_figures import rows, summary, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

COLOURS = {"good": "green", "calm": "cyan", "warn": "yellow", "bad": "red"}
NARROW = 90  # columns below which the change moves under the figures


def terminal_table(metrics: Mapping[str, Any], width: int) -> RenderableType:
    """Return what Rich prints of metrics.json: the comparison, the verdict, and where the files are."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "before", "after", "change")[: 3 if width < NARROW else 4]:
        table.add_column(heading, overflow="fold")
    for label, before, after, change in rows(metrics):
        cells = [Text(label), Text(before, "dim"), Text(after), Text(change)]
        if width < NARROW:
            cells[2:] = [Text.assemble(after, (f"\n{change}" if change else "", "dim"))]
        table.add_row(*cells)
    tone, title, text = verdict(metrics)
    line = Text.assemble((title, f"bold {COLOURS[tone]}"), "  ", summary(metrics))
    return Group(table, "", line, Text(text, "dim"), *_lines(metrics))


def _lines(metrics: Mapping[str, Any]) -> Iterator[Text]:
    from rich.text import Text

    for warning in metrics.get("warnings") or ():
        yield Text(f"warning: {warning}", "yellow")
    if metrics.get("fix"):
        yield Text(f"fix: {metrics['fix']}")
    for name, path in (metrics.get("files") or {}).items():
        yield Text(f"{name}: {path}", overflow="fold")
