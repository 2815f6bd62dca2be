"""Write report.md from metrics.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsify.report_figures import DASH, number, summary, tables, verdict


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the report as Markdown; names from files are escaped."""
    return "\n".join(_lines(metrics)) + "\n"


def _lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    _, title, text = verdict(metrics)
    level, seed = number(metrics.get("optim_level"), ".3g"), number(metrics.get("seed"), "d")
    yield f"# {title}: {_text(metrics.get('use_case'))}, {_text(metrics.get('kind'))}"
    yield from ("", f"{_text(summary(metrics))}. {text}", "", f"Optim level {level}, seed {seed}.")
    if metrics.get("fix"):
        yield from ("", f"**Fix:** {_text(metrics['fix'])}")
    for key in ("warnings", "notes"):
        if metrics.get(key):
            yield from ("", f"## {key.capitalize()}", "", *(f"- {_text(note)}" for note in metrics[key]))
    for table in tables(metrics):
        yield from ("", f"## {table.title}", "", _row(table.headings), "|---" * len(table.headings) + "|")
        yield from map(_row, table.lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(value: Any) -> str:
    """Escape what Markdown would read as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(DASH if value is None else value).split()))
