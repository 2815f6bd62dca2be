"""`sparsify plugins`: what is installed, what is broken and why, conformance, and the scaffold of a new plugin."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.conformance import Finding, check_plugin, named
from sparsify.errors import ExitCode
from sparsify.plugins import Plugin, install_command, load_plugins, missing, singular

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="List, explain, check or scaffold plugins.")
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


class Kind(StrEnum):
    """Name what a scaffolded plugin offers; each value has its templates."""

    USE_CASE = "use-case"
    DATASET = "dataset"
    MODIFIER = "modifier"
    RUNTIME = "runtime"
    EVALUATOR = "evaluator"
    COMMAND = "command"


def row(plugin: Plugin) -> dict[str, Any]:
    """Describe one plugin in plain data, importing nothing."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "state": "broken" if plugin.error else "disabled" if plugin.disabled else "ok",
        "error": plugin.error,
        "entries": {
            catalogue: [asdict(entry) | {"missing": missing(entry)} for entry in entries]
            for catalogue, entries in plugin.entries.items()
        },
    }


@app.command("list")
def show_all(as_json: Json = False) -> None:
    """List plugins, what they offer, and why one is broken."""
    rows = [row(plugin) for plugin in load_plugins().found]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = [("name", "distribution", "version", "state")]
    table += [(item["name"], item["distribution"], item["version"], item["state"]) for item in rows]
    widths = [max(len(cells[column]) for cells in table) for column in range(4)]
    offered = ["offers", *(item["error"] or _offered(item) for item in rows)]
    for cells, last in zip(table, offered, strict=True):
        line = "  ".join((*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last)).rstrip()
        broken, disabled = cells[3] == "broken", cells[3] == "disabled"
        typer.secho(line, fg="red" if broken else None, dim=disabled or None, bold=last == "offers" or None)


def _offered(item: dict[str, Any]) -> str:
    names = [
        f"{singular(catalogue) if len(entries) == 1 else catalogue.replace('_', ' ')} "
        + ", ".join(entry["name"] for entry in entries)
        for catalogue, entries in item["entries"].items()
    ]
    return "; ".join(names)


@app.command()
def info(name: Annotated[str, typer.Argument(help="plugin or distribution")], as_json: Json = False) -> None:
    """Show a plugin's entries: target, formats, and what it takes to install what they need."""
    rows = [row(plugin) for plugin in named(name, load_plugins())]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for item in rows:
        typer.secho(
            f"{item['name']} ({item['distribution']} {item['version']}, {item['module']}): {item['state']}", bold=True
        )
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
        faults |= any(finding.fault for finding in findings)
        _show_findings(one, findings)
    if faults:
        raise typer.Exit(ExitCode.PLUGIN)


def _show_findings(name: str, findings: tuple[Finding, ...]) -> None:
    if not any(finding.fault for finding in findings):
        typer.secho(f"{name}: ok", fg="green")
    for finding in findings:
        typer.secho(str(finding), fg="red" if finding.fault else "yellow")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the distribution's name, such as my-plugin")],
    kind: Annotated[Kind, typer.Option(help="what the plugin offers")] = Kind.USE_CASE,
    output: Annotated[Path | None, typer.Option(help="a new or empty folder; default ./NAME")] = None,
) -> None:
    """Write a working third-party plugin: package, entry point, one real implementation, tests, README."""
    from sparsify.scaffold import write_plugin

    for file in write_plugin(name, kind.value, output or Path(name)):
        typer.echo(str(file))
    typer.echo(f"next: pip install -e {output or name} && python -m pytest {output or name}", err=True)
