"""Write report.md from metrics.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparsify.report_figures import (
    DASH,
    LAYER_HEADINGS,
    STAGE_HEADINGS,
    layer_cells,
    number,
    particulars,
    rows,
    stage_cells,
    summary,
    verdict,
)


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the report as Markdown; names from files are escaped."""
    return "\n".join(_lines(metrics)) + "\n"


def _lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    judged = verdict(metrics)
    yield f"# {judged.title}: {_text(metrics.get('use_case'))}, {_text(metrics.get('kind'))}"
    level, seed = number(metrics.get("optim_level"), ".3g"), number(metrics.get("seed"), "d")
    yield from ("", f"{summary(metrics)}. {judged.text}", "", f"Optim level {level}, seed {seed}.", "")
    yield from _table(
        ("", "before", "after", "change"), ((r.label, r.before, r.after, r.change) for r in rows(metrics))
    )
    if metrics.get("fix"):
        yield from ("", f"**Fix:** {_text(metrics['fix'])}")
    for title, key in (("Warnings", "warnings"), ("Notes", "notes")):
        if metrics.get(key):
            yield from ("", f"## {title}", "", *(f"- {_text(note)}" for note in metrics[key]))
    yield from ("", "## Layers", "")
    yield from _table(LAYER_HEADINGS, map(layer_cells, metrics.get("layers") or ()))
    yield from ("", "## Stages", "")
    yield from _table(STAGE_HEADINGS, map(stage_cells, metrics.get("stages") or ()))
    yield from ("", "## Measured with", "")
    yield from (f"- {_text(name)}: {_text(value)}" for name, value in particulars(metrics))


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "|".join("---" for _ in headings) + "|"
    yield from ("| " + " | ".join(map(_text, cells)) + " |" for cells in lines)


def _text(value: Any) -> str:
    """Escape what Markdown would read as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(DASH if value is None else value).split()))
