"""`sparsify plugins`: what is installed, what is broken and why, conformance, and the scaffold of a new plugin."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.conformance import check_plugin, named
from sparsify.errors import ExitCode
from sparsify.plugins import Plugin, install_command, load_plugins, missing, singular
from sparsify.scaffold import KINDS, write_plugin

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="List, explain, check or scaffold plugins.")
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def row(plugin: Plugin) -> dict[str, Any]:
    """Describe one plugin in plain data, importing nothing."""
    entries = {
        catalogue: [asdict(entry) | {"missing": missing(entry)} for entry in entries]
        for catalogue, entries in plugin.entries.items()
    }
    state = "broken" if plugin.error else "disabled" if plugin.disabled else "ok"
    return asdict(plugin) | {"state": state, "entries": entries}


@app.command("list")
def show_all(as_json: Json = False) -> None:
    """List plugins, what they offer, and why one is broken."""
    rows = [row(plugin) for plugin in load_plugins().found]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = [("name", "distribution", "version", "state", "offers")]
    table += [(*(item[name] for name in table[0][:4]), item["error"] or _offered(item["entries"])) for item in rows]
    widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:4]]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        typer.secho("  ".join((*padded, cells[4])).rstrip(), fg="red" if cells[3] == "broken" else None)


def _offered(entries: dict[str, list[dict[str, Any]]]) -> str:
    names = {
        singular(catalogue) if len(rows) == 1 else catalogue.replace("_", " "): [entry["name"] for entry in rows]
        for catalogue, rows in entries.items()
    }
    return "; ".join(f"{kind} {', '.join(listed)}" for kind, listed in names.items())


@app.command()
def info(name: Annotated[str, typer.Argument(help="plugin or distribution")], as_json: Json = False) -> None:
    """Show a plugin's entries: target, formats, and what it takes to install what they need."""
    rows = [row(plugin) for plugin in named(name, load_plugins())]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for item in rows:
        typer.secho("{name} ({distribution} {version}, {module}): {state}".format(**item), bold=True)
        if item["error"]:
            typer.secho(f"  {item['error']}", fg="red")
        for catalogue, entries in item["entries"].items():
            for entry in entries:
                _show_entry(singular(catalogue), entry)


def _show_entry(kind: str, entry: dict[str, Any]) -> None:
    typer.echo(f"\n  {kind} {entry['name']}: {entry['summary']}")
    shown = ("aliases", "target", "accepts", "returns", "metric", "phase", "requires", "missing")
    facts = {label: entry[label] if isinstance(entry[label], str) else ", ".join(entry[label]) for label in shown}
    facts["install"] = install_command(entry["missing"]) if entry["missing"] else ""
    for label, value in facts.items():
        if value:
            typer.secho(f"    {label:9}{value}", fg="red" if label == "missing" else None)


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
