"""Write report.md from metrics.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparsify.report_figures import DASH, dig, number, percent, rows, summary, verdict


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the report as Markdown; names from files are escaped."""
    return "\n".join(_lines(metrics)) + "\n"


def _lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    judged = verdict(metrics)
    yield f"# {judged.title}: {_text(metrics.get('use_case'))}, {_text(metrics.get('kind'))}"
    level, seed = number(metrics.get("optim_level"), ".3g"), number(metrics.get("seed"), "d")
    yield from ("", f"{summary(metrics)}. {judged.text}", "", f"Optim level {level}, seed {seed}.", "")
    yield from _table(("", "before", "after", "change"), ((r.label, r.before, r.after, r.change) for r in rows(metrics)))
    if metrics.get("fix"):
        yield from ("", f"**Fix:** {_text(metrics['fix'])}")
    for title, key in (("Warnings", "warnings"), ("Notes", "notes")):
        if metrics.get(key):
            yield from ("", f"## {title}", "", *(f"- {_text(note)}" for note in metrics[key]))
    yield from ("", "## Layers", "")
    headings = ("layer", "op", "shape", "sparsity", "precision", "SQNR dB", "drop if alone", "why")
    yield from _table(headings, map(layer_cells, metrics.get("layers") or ()))
    yield from ("", "## Stages", "")
    stages = metrics.get("stages") or ()
    yield from _table(("stage", "seconds", "peak memory MB"), map(stage_cells, stages))
    yield from ("", "## Measured with", "")
    yield from (f"- {_text(name)}: {_text(value)}" for name, value in particulars(metrics))


def layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Write one layer as cells."""
    return (
        str(dig(layer, "name") or DASH),
        str(dig(layer, "op") or DASH),
        "×".join(map(str, dig(layer, "shape") or ())) or DASH,
        percent(dig(layer, "sparsity")),
        str(dig(layer, "precision") or DASH),
        number(dig(layer, "sqnr_db"), ".1f"),
        number(dig(layer, "drop_if_alone"), ".2f"),
        ", ".join(str(why) for key in ("kept_dense", "kept_float") if (why := dig(layer, key))),
    )


def stage_cells(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """Write one stage as cells."""
    return (
        str(dig(stage, "name") or DASH),
        number(dig(stage, "seconds"), ".2f"),
        number(dig(stage, "peak_rss_mb"), ".0f"),
    )


def particulars(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List samples, environment and files as names and values."""
    found = [(f"{name} samples", str(count)) for name, count in (dig(metrics, "samples") or {}).items()]
    for name, value in (dig(metrics, "environment") or {}).items():
        pairs = value.items() if isinstance(value, Mapping) else [(name, value)]
        found += [(str(key), DASH if one is None else str(one)) for key, one in pairs]
    unreadable = metrics.get("unreadable") or {}
    if unreadable:
        found.append(("unreadable samples, skipped", ", ".join(map(str, unreadable))))
    return found + [(str(name), str(path)) for name, path in (dig(metrics, "files") or {}).items()]


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "|".join("---" for _ in headings) + "|"
    yield from ("| " + " | ".join(map(_text, cells)) + " |" for cells in lines)


def _text(value: Any) -> str:
    """Escape what Markdown would read as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(DASH if value is None else value).split()))
