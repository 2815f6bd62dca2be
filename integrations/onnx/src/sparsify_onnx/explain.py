"""`sparsify explain RUN`: which layers cost accuracy or time, where error starts, and what each rescue step bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sparsify import RequestError, figures

SCHEMA = 1
PLAIN_WIDTH = 200  # of a table that goes into a file or a pipe
NARROW = 120  # columns of a terminal below which some columns of a table are left out
COLOURS = {"good": "green", "calm": "cyan", "warn": "yellow", "bad": "red"}
# the columns that explain something; the report has all
COLUMNS = {
    "Layers": (
        "layer", "drop if alone", "SQNR dB alone", "SQNR dB", "saturation", "ms before", "ms after", "sparsity",
        "precision", "kept as it was",
    ),
    "What each rung bought": (
        "rung", "outcome", "points lost", "points bought", "p50", "time bought", "compressed", "why",
    ),
    "Left in float": ("node", "op", "why"),
}  # fmt: skip

WIDE = ("sparsity", "precision", "kept as it was", "p50", "compressed")  # left out first
TEXTS = ("layer", "rung", "node", "why", "kept as it was")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="a run folder, or its metrics.json", metavar="RUN", show_default=False)],
    layers: Annotated[int, typer.Option(min=0, help="how many layers to show, the worst first; 0 = all")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say which layers cost accuracy or time, where the error starts, and what each rescue step bought."""
    metrics = read(run)
    found = figures(metrics)
    if as_json:
        typer.echo(json.dumps(facts(metrics, found, layers), indent=2, allow_nan=False))
    else:
        show(found, layers)


def read(path: Path) -> dict[str, Any]:
    """Read the metrics.json of a finished run; raises RequestError."""
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        problem = f"RUN: {path} holds no metrics.json" if path.is_dir() else f"RUN: {path} does not exist"
        raise RequestError(problem, fix="give the folder of a finished run; an unfinished one goes on with --resume")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        fix = "run the experiment again, or bring the file back from a copy"
        raise RequestError(f"RUN: {file} cannot be read as JSON: {error}", fix=fix) from error
    return _checked(metrics, file)


def _checked(metrics: Any, file: Path) -> dict[str, Any]:
    """Refuse what a run of this version has not written."""
    schema = metrics.get("schema") if isinstance(metrics, dict) else None
    if schema != SCHEMA:
        problem = f"RUN: {file} has schema {json.dumps(schema)}, and this version reads schema {SCHEMA}"
        raise RequestError(problem, fix="give the metrics.json of a run, and use the version that wrote it")
    for key in ("layers", "rungs", "excluded"):
        rows = metrics.get(key) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            problem = f"RUN: '{key}' in {file} is no list of objects"
            raise RequestError(problem, fix="run the experiment again, or bring the file back from a copy")
    return dict(metrics)


def facts(metrics: Mapping[str, Any], found: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return the explanation as data."""
    told = {key: metrics.get(key) for key in ("schema", "verdict", "metric", "budget")}
    told |= {key: found[key] for key in ("summary", "start", "rungs", "given_up")}
    return {**told, "excluded": metrics.get("excluded") or [], "layers": found["layers"][: most or None]}


def show(found: Mapping[str, Any], most: int) -> None:
    """Print the explanation on stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(Text.assemble((found["title"], f"bold {COLOURS[found['tone']]}"), "  ", found["summary"]))
    for title, lines in sections(found, most, console.width):
        console.print()
        console.print(Text(title, "bold"))
        for line in lines:
            console.print(Text(line) if isinstance(line, str) else line)


def sections(found: Mapping[str, Any], most: int, width: int) -> Iterator[tuple[str, list[Table | str]]]:
    """Yield headings with what stands below each."""
    count = len(found["layers"])
    if "Layers" in found["tables"]:
        more = [f"{most} of {count} layers; --layers 0 shows all"] if 0 < most < count else []
        yield "Layers, worst first", [_table(found, "Layers", width, most), *more]
        yield "Where the error starts", [_start(found)]
    if found["rungs"]:
        yield "What each rung bought", [_table(found, "What each rung bought", width)]
    if "Left in float" in found["tables"]:
        yield "Left in float", [_table(found, "Left in float", width)]
    yield "What was given up", found["given_up"] or ["nothing: what was asked for is what was kept"]


def _table(found: Mapping[str, Any], title: str, width: int, most: int = 0) -> Table:
    headings, lines, places = found["tables"][title]
    narrow = width < NARROW
    wanted = set(COLUMNS[title]).difference(WIDE if narrow else ())
    shown = [place for place in places if headings[place] in wanted]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place in shown:
        folds = headings[place] in TEXTS  # figures are never broken, their headings are
        heading = headings[place].replace(" ", "\n") if narrow and not folds else headings[place]
        table.add_column(heading, overflow="fold", no_wrap=not folds)
    for line in lines[: most or None]:
        table.add_row(*(Text(line[place]) for place in shown))
    return table


def _start(found: Mapping[str, Any]) -> str:
    if found["start"]:
        return str(found["start"]["sentence"])
    if any(layer.get("isolated_db") is not None for layer in found["layers"]):
        return "Nowhere: each layer's error is mostly its own."
    return "Not known: this run did not measure layers alone."
