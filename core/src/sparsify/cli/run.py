"""`sparsify run one-shot|training-aware|sparse-transfer`: options come from the fields of `Experiment`."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.experiment import Experiment, make_experiment, read_config

FLAGS = {
    "config": (str | None, None, "read options from a YAML file; options given here win"),
    "resume": (bool, False, "go on with the run in --output, or with the latest one"),
    "dry_run": (bool, False, "check the request and stop before the first weight is read"),
    "json": (bool, False, "print metrics.json on stdout"),
    "quiet": (bool, False, "say only warnings and errors"),
}
KINDS = {
    "one-shot": "Prune and quantize after training, with calibration data only.",
    "training-aware": "Prune and quantize while training.",
    "sparse-transfer": "Fine-tune an already sparse model (not in this version).",
}


def _options() -> list[inspect.Parameter]:
    """Turn the fields of Experiment, all read as text, and the flags into parameters that Typer understands."""
    parameters = []
    for name, field in Experiment.model_fields.items():
        if name == "kind":
            continue
        kind = list[str] | None if name == "runtime" else str | None
        shown = "" if field.is_required() or field.default is None else f" [default: {_shown(field.default)}]"
        parameters.append(_option(name, kind, None, f"{field.description}{shown}"))
    return parameters + [_option(name, kind, default, text) for name, (kind, default, text) in FLAGS.items()]


def _shown(default: Any) -> str:
    return " ".join(default) if isinstance(default, tuple) else str(default)


def _option(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    declared = f"--{name.replace('_', '-')}"
    annotation = Annotated[kind, typer.Option(declared, help=text, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _command(kind: str) -> Callable[..., None]:
    def command(**given: Any) -> None:
        run_command(kind, given)

    parameters = _options()
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = KINDS[kind]
    return command


def run_command(kind: str, given: Mapping[str, Any]) -> None:
    """Run one experiment from command-line options, print the outcome, and exit with its code."""
    from sparsify.pipeline import run
    from sparsify.plugins import load_plugins
    from sparsify.resolve import resolve
    from sparsify.talk import Talk

    options = {name: value for name, value in given.items() if name not in FLAGS and value not in (None, [])}
    settings = read_config(Path(given["config"])) if given["config"] else {}
    experiment = make_experiment({**settings, **options, "kind": kind})
    plugins = load_plugins()
    if given["dry_run"]:
        plan = resolve(experiment, plugins, resume=given["resume"])
        typer.echo(json.dumps({**experiment.model_dump(mode="json"), "resolved": plan.summary()}, indent=2))
        return
    result = run(experiment, plugins, Talk(quiet=given["quiet"]), resume=given["resume"])
    show_result(result.metrics, as_json=given["json"], quiet=given["quiet"])
    raise typer.Exit(result.exit_code)


def show_result(metrics: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print the outcome: metrics.json on stdout, or the table."""
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
    elif not quiet:
        from rich.console import Console

        from sparsify.report_table import terminal_table

        console = Console(file=sys.stdout)
        console.print(terminal_table(metrics, console.width))


app = typer.Typer(
    help="Make a model smaller and faster, and verify it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
)
for _kind in KINDS:
    app.command(_kind)(_command(_kind))
