"""`sparsify recipe`: read, check and explain a recipe file without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sparsify.recipe import Recipe

app = typer.Typer(help="Read, check and generate recipes.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="a .yaml, .yml or .json recipe, or .md with front matter", metavar="FILE")]
Args = Annotated[str | None, typer.Option("--recipe-args", help="JSON that overrides the recipe's variables")]


@app.command()
def show(file: File, recipe_args: Args = None) -> None:
    """Print a recipe in one dialect, its variables resolved."""
    from sparsify.recipe import dump_recipe

    recipe = _load(file, recipe_args)
    typer.echo(dump_recipe(recipe), nl=False)


@app.command()
def check(
    file: File,
    recipe_args: Args = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Say in words what each step of a recipe does, and which cannot run here."""
    from dataclasses import asdict

    from sparsify.modifiers import check_recipe
    from sparsify.plugins import load_plugins

    recipe = _load(file, recipe_args)
    findings = check_recipe(recipe, load_plugins())
    if as_json:
        steps = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"notes": recipe.notes, "steps": steps}, indent=2, ensure_ascii=False, default=str))
        return
    for number, finding in enumerate(findings, start=1):
        typer.echo(f"{number}. {finding.modifier} ({finding.group}): {finding.sentence}.")
        if not finding.runnable:
            typer.echo(f"   cannot run here: {finding.why_not}")
    stuck = sum(not finding.runnable for finding in findings)
    count = f"{len(findings)} step{'s' if len(findings) != 1 else ''}"
    typer.echo(f"{count}, all known; {f'{stuck} cannot run here' if stuck else 'all can run here'}")


@app.command()
def write(
    model: Annotated[str, typer.Option("--model", help="the trained model")],
    optim_level: Annotated[str, typer.Option("--optim-level", help="0 to 1, or 2 to 100 per cent")] = "0.5",
    sparsity: Annotated[str, typer.Option("--sparsity", help="unstructured, N:M or RxC")] = "unstructured",
    output: Annotated[Path | None, typer.Option("--output", help="a new file, in place of stdout")] = None,
) -> None:
    """Generate the recipe that a one-shot run would apply to a model."""
    from sparsify.errors import RequestError
    from sparsify.experiment import make_experiment
    from sparsify.plugins import load_plugins
    from sparsify.recipe import dump_recipe
    from sparsify.resolve import existing, find_format

    plugins = load_plugins()
    request = {"kind": "one-shot", "use_case": "custom", "model": model, "data": "."}
    experiment = make_experiment({**request, "optim_level": optim_level, "sparsity": sparsity})
    path = existing(model, "--model")
    adapter = find_format(path, plugins)
    generate = plugins.load("recipe_generators", experiment.kind)
    recipe = generate(experiment, adapter.describe(adapter.load(path)))
    text = dump_recipe(recipe, f"one-shot, {path.name}, optim-level {experiment.optim_level:g}")
    _say(recipe.notes)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fix = "give a new file in an existing folder"
        raise RequestError(f"--output: {output} cannot be written: {error.strerror}", fix=fix) from error


def _load(file: Path, recipe_args: str | None) -> Recipe:
    from sparsify.recipe import load_recipe

    recipe = load_recipe(file, _overrides(recipe_args))
    _say(recipe.notes)
    return recipe


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _overrides(text: str | None) -> dict[str, Any]:
    from sparsify.errors import RequestError

    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        fix = """write --recipe-args '{"num_epochs": 5}'"""
        raise RequestError(f"--recipe-args is no JSON object: {text}", fix=fix)
    return value
