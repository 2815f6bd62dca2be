"""Show a finished run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsify.report_pages import figures

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS = {"good": "green", "calm": "cyan", "warn": "yellow", "bad": "red"}
NARROW = 90  # columns below which the change moves under the figures


def terminal_table(metrics: Mapping[str, Any], width: int) -> RenderableType:
    """Return what Rich prints of metrics.json: the comparison, the verdict, and where the files are."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    said = figures(metrics)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "before", "after", "change")[: 3 if width < NARROW else 4]:
        table.add_column(heading, overflow="fold")
    for row in said["rows"]:
        (before, after), change = row["sides"], row["change"]
        cells = [Text(row["label"]), Text(before, "dim"), Text(after), Text(change)]
        if width < NARROW:
            cells[2:] = [Text.assemble(after, (f"\n{change}" if change else "", "dim"))]
        table.add_row(*cells)
    outcome = Text.assemble((said["title"], f"bold {COLOURS[said['tone']]}"), "  ", said["summary"])
    lines = [Text(line, "yellow") for kind, line in said["remarks"] if kind != "note"]
    files = [Text(f"{name}: {path}", overflow="fold") for name, path in (metrics.get("files") or {}).items()]
    return Group(table, "", outcome, Text(said["text"], "dim"), *lines, *files)
