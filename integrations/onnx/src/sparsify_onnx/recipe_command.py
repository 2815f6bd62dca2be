"""`sparsify recipe`: read, check and explain a recipe file without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from sparsify import (
    Recipe,
    RequestError,
    check_recipe,
    dump_recipe,
    existing,
    find_format,
    load_plugins,
    load_recipe,
    load_target,
    make_experiment,
)

app = typer.Typer(help="Read, check, write recipes.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)

File = Annotated[Path, typer.Argument(help="a .yaml, .yml or .json recipe, or .md with front matter", metavar="FILE")]
Args = Annotated[str, typer.Option("--recipe-args", help="JSON that overrides the recipe's variables")]
Model = Annotated[str, typer.Option(help="the trained model")]
Level = Annotated[str, typer.Option(help="0 to 1, or 2 to 100 per cent")]
Shape = Annotated[str, typer.Option(help="unstructured, N:M or RxC")]
Kind = Annotated[str, typer.Option(help="one-shot or training-aware")]
Output = Annotated[Path | None, typer.Option(help="a new file, in place of stdout")]


@app.command()
def show(file: File, recipe_args: Args = "{}") -> None:
    """Print a recipe in one dialect, its variables resolved."""
    typer.echo(dump_recipe(_load(file, recipe_args)), nl=False)


@app.command()
def check(file: File, recipe_args: Args = "{}") -> None:
    """Say in words what each step of a recipe does, and which cannot run here."""
    findings = check_recipe(_load(file, recipe_args), load_plugins())
    for number, finding in enumerate(findings, start=1):
        typer.echo(f"{number}. {finding.modifier} ({finding.group}): {finding.sentence}.")
        if not finding.runnable:
            typer.echo(f"   cannot run here: {finding.why_not}")
    stuck = sum(not finding.runnable for finding in findings)
    plural = "s" if len(findings) != 1 else ""
    typer.echo(f"{len(findings)} step{plural}, all known; {stuck or 'all'} {'cannot' if stuck else 'can'} run here")


@app.command()
def write(
    model: Model,
    optim_level: Level = "0.5",
    sparsity: Shape = "unstructured",
    kind: Kind = "one-shot",
    output: Output = None,
) -> None:
    """Generate the recipe that a run would begin with; a run measures more of the model first."""
    request = {"kind": kind, "use_case": "custom", "model": model, "data": "."}
    experiment = make_experiment({**request, "optim_level": optim_level, "sparsity": sparsity})
    plugins, path = load_plugins(), existing(model, "--model")
    adapter = load_target(find_format(path, plugins))
    recipe = plugins.load("recipe_generators", experiment.kind).write(experiment, adapter.describe(adapter.load(path)))
    text = dump_recipe(recipe, f"{kind}, {path.name}, optim-level {experiment.optim_level:g}")
    _say_notes(recipe)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fix = "give a new file in an existing folder"
        raise RequestError(f"--output: {output} cannot be written: {error.strerror}", fix=fix) from error


def _load(file: Path, recipe_args: str) -> Recipe:
    try:
        overrides = json.loads(recipe_args)
    except json.JSONDecodeError:
        overrides = None
    if not isinstance(overrides, dict):
        fix = """write --recipe-args '{"num_epochs": 5}'"""
        raise RequestError(f"--recipe-args is no JSON object: {recipe_args}", fix=fix)
    recipe = load_recipe(file, overrides)
    _say_notes(recipe)
    return recipe


def _say_notes(recipe: Recipe) -> None:
    for note in recipe.notes:
        typer.echo(f"note: {note}", err=True)
