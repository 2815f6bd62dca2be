"""`sparsify plugins`: what is installed, what is broken and why, conformance, and the scaffold of a new plugin."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from sparsify import Entry, ExitCode, Plugin, install_command, load_plugins, missing, singular

from sparsify_plugin_kit.conformance import check_plugin, named
from sparsify_plugin_kit.scaffold import KINDS, write_plugin

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="List, explain, check or scaffold plugins."
)


def row(plugin: Plugin) -> dict[str, Any]:
    """Describe one plugin in plain data, importing nothing."""
    entries = {catalogue: [_facts(entry) for entry in rows] for catalogue, rows in plugin.entries.items()}
    return asdict(plugin) | {"state": plugin.state, "entries": entries}


def _facts(entry: Entry) -> dict[str, Any]:
    absent = missing(entry)
    return asdict(entry) | {"missing": absent, "install": install_command(absent) if absent else ""}


@app.command("list")
def show_all(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List plugins, what they offer, and why one is broken."""
    found = load_plugins().found
    if as_json:
        typer.echo(json.dumps([row(plugin) for plugin in found], indent=2))
        return
    table = [("name", "distribution", "version", "state", "offers")]
    table += [(one.name, one.distribution, one.version, one.state, one.error or _offered(one)) for one in found]
    *widths, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    for cells in table:
        line = "  ".join(map(str.ljust, cells, (*widths, 0))).rstrip()
        typer.secho(line, fg="red" if cells[3] == "broken" else None)


def _offered(plugin: Plugin) -> str:
    names = {
        singular(catalogue) if len(entries) == 1 else catalogue.replace("_", " "): [entry.name for entry in entries]
        for catalogue, entries in plugin.entries.items()
    }
    return "; ".join(f"{kind} {', '.join(listed)}" for kind, listed in names.items())


@app.command()
def info(name: Annotated[str, typer.Argument(help="plugin or distribution")]) -> None:
    """Show a plugin's entries: target, formats, and what it takes to install what they need."""
    for one in named(name, load_plugins()):
        typer.secho(f"{one.name} ({one.distribution} {one.version}, {one.module}): {one.state}", bold=True)
        if one.error:
            typer.secho(f"  {one.error}", fg="red")
        for catalogue, entries in one.entries.items():
            for entry in entries:
                _show_entry(singular(catalogue), entry)


def _show_entry(kind: str, entry: Entry) -> None:
    typer.echo(f"\n  {kind} {entry.name}: {entry.summary}")
    facts = _facts(entry)
    for label in ("aliases", "target", "accepts", "returns", "metric", "phase", "requires", "missing", "install"):
        value = facts[label]
        if value:
            typer.echo(f"    {label:9}{value if isinstance(value, str) else ', '.join(value)}")


@app.command()
def check(name: Annotated[str | None, typer.Argument(help="plugin or distribution; default all")] = None) -> None:
    """Import every target of a plugin and check it against its contract; exits 3 where one fails."""
    plugins = load_plugins()
    names = dict.fromkeys(plugin.name for plugin in (named(name, plugins) if name else plugins.found))
    faults = False
    for one in names:
        findings = check_plugin(one, plugins)
        if any(finding.fault for finding in findings):
            faults = True
        else:
            typer.secho(f"{one}: ok", fg="green")
        for finding in findings:
            typer.secho(str(finding), fg="red" if finding.fault else "yellow")
    if faults:
        raise typer.Exit(ExitCode.PLUGIN)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the distribution's name, such as my-plugin")],
    kind: Annotated[str, typer.Option(help=f"what it offers: {', '.join(KINDS)}")] = "use-case",
    output: Annotated[Path | None, typer.Option(help="a new or empty folder; default ./NAME")] = None,
) -> None:
    """Write a working third-party plugin: package, entry point, one real implementation, tests, README."""
    for file in write_plugin(name, kind, output or Path(name)):
        typer.echo(str(file))
    typer.echo(f"next: pip install -e {output or name} && python -m pytest {output or name}", err=True)
