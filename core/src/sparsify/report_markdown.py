"""Write report.md from metrics.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.report_figures import remarks, tables, words


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the report as Markdown; names from files are escaped."""
    said = {name: _text(word) for name, word in words(metrics).items()}
    blocks = ["# {title}: {use_case}, {kind}", "{summary}. {text}", "Optim level {level}, seed {seed}."]
    blocks = [block.format_map(said) for block in blocks]
    if notes := [f"- {_text(line)}" for _, line in remarks(metrics)]:
        blocks += ["## Notes", "\n".join(notes)]
    for title, headings, lines in tables(metrics):
        rule = "|---" * len(headings) + "|"
        blocks += [f"## {title}", "\n".join([_row(headings), rule, *map(_row, lines)])]
    return "\n\n".join(blocks) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(value: str) -> str:
    """Escape what Markdown would read as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(value.split()))
