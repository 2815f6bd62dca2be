"""Write report.md and report.html from metrics.json; what they say and how they look stands in templates, `report/`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from sparsify import report_figures
from sparsify.explanation import explanation

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN = ("tone", "title", "text", "summary", "rows", "tables", "remarks", "given_up", "curves", "narrower", "dash")


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all reports show: the explanation as data, and in words what `figures.jinja` describes."""
    found = {"metrics": metrics, **explanation(metrics)}
    exported = vars(_environment().get_template("figures.jinja").make_module(found))
    return found | {name: exported[name] for name in SHOWN}


def render_html(metrics: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page; everything that comes from files is escaped."""
    return _environment().get_template("report.html.jinja").render(figures(metrics))


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the report as Markdown; names from files are escaped."""
    return _environment().overlay(finalize=_text).get_template("report.md.jinja").render(figures(metrics))


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return at most `most` + 2 round numbers, evenly spaced, that reach from `low` to `high` or beyond."""
    # below 1e-300 powers of ten have no precision left, or are zero
    least = next((length for length in ((high - low) / most, abs(high)) if length > 1e-300), 1.0)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    first = math.floor(low / step)
    return [step * place for place in range(first, max(math.ceil(high / step), first + 1) + 1)]


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "report"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.ChainableUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: one for name, one in vars(report_figures).items() if isinstance(one, FunctionType)}
    environment.filters["ticks"], environment.tests["known"] = ticks, report_figures.known
    return environment


def _text(value: Any) -> str:
    """Escape what Markdown would read as markup or as the end of a cell."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(value).split()))
