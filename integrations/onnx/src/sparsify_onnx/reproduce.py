"""`sparsify reproduce RUN`: run a recorded experiment again, with its stored measurements, and compare."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import sparsify
import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sparsify import ExitCode, RequestError, is_there, make_experiment

from sparsify_onnx.explain import PLAIN_WIDTH, read
from sparsify_onnx.repetition import Repetition, compare_runs

PATHS = ("model", "weights", "teacher", "data", "eval_data", "class_list", "recipe")  # of a request
DIGEST, SHORT = 64, 12  # characters of a SHA-256, and of it in a table
COLOURS = {"same": "green", "differs": "yellow", "beyond its interval": "red"}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def reproduce(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run", metavar="RUN", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="the new run folder  [default: RUN-again]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a repetition that was cut off")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say only warnings and errors")] = False,
) -> None:
    """Run a recorded experiment again and compare; exits 0 where the model is the same, byte for byte, else 6."""
    record = recorded(run)
    again = output or run.resolve().with_name(f"{run.resolve().name}-again")
    request = {**record["request"], "output": str(again)}
    if not resume:
        prepare(run, again, request)
    launch = getattr(sparsify, request["kind"].replace("-", "_"))
    launch(**request, resume=True, quiet=quiet or as_json)
    found = compare_runs(run, again)
    if as_json:
        facts = {"run": str(run), "again": str(again), "same": found.same, "first_difference": found.why}
        typer.echo(json.dumps({**facts, "rows": [asdict(row) for row in found.rows]}, indent=2, allow_nan=False))
    else:
        show(found)
    raise typer.Exit(ExitCode.OK if found.same else ExitCode.MISSED)


def recorded(run: Path) -> dict[str, Any]:
    """Read what a finished run recorded, its request checked; raises RequestError where that or its data is gone."""
    file = run / "experiment.yaml"
    if not run.is_dir() or not file.is_file():
        problem = f"RUN: {run} holds no experiment.yaml" if run.is_dir() else f"RUN: {run} is no folder"
        raise RequestError(problem, fix="give the folder of a finished run")
    read(run)
    try:
        record = yaml.safe_load(file.read_text(encoding="utf-8"))
        experiment = make_experiment(record["request"], source=str(file))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        problem = f"RUN: {file} records no request: {type(error).__name__}"
        raise RequestError(problem, fix="bring the file back from a copy of the run") from error
    request = experiment.model_dump(mode="json")
    for name in PATHS:
        # a path is recorded as an absolute one, so that other words are names
        if request[name] is not None and Path(request[name]).is_absolute() and not is_there(request[name]):
            fix = f"bring it back to that path, or run `sparsify run {request['kind']} --config` with its new one"
            raise RequestError(f"RUN: --{name.replace('_', '-')} of {run} is gone: {request[name]}", fix=fix)
    return {**record, "request": request}


def prepare(run: Path, again: Path, request: Mapping[str, Any]) -> None:
    """Make the new run folder, to the pipeline a run to resume: the request, and what the old run measured.

    Its times and its figures on the selection samples decided, so with them its decisions repeat. Raises RequestError
    where there is something already.
    """
    if again.exists() and (not again.is_dir() or any(again.iterdir())):
        begun = (again / "experiment.yaml").is_file() and not (again / "metrics.json").exists()
        fix = "add --resume to go on with it" if begun else "give --output a folder that is empty or new"
        raise RequestError(f"--output: {again} is not empty", fix=fix)
    again.mkdir(parents=True, exist_ok=True)
    if (run / "measurements").is_dir():
        shutil.copytree(run / "measurements", again / "measurements")
    (again / "experiment.yaml").write_text(yaml.safe_dump({"request": dict(request)}), encoding="utf-8")


def show(found: Repetition) -> None:
    """Print the comparison on stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("", "recorded", "again", ""):
        table.add_column(heading, overflow="fold")
    for row in found.rows:
        sides = (side[:SHORT] if len(side) == DIGEST else side for side in (row.recorded, row.again))
        table.add_row(row.what, *sides, Text(row.outcome, COLOURS.get(row.outcome, "dim")))
    console.print(table)
    console.print()
    console.print(Text(found.sentence, "green" if found.same else "red"))
