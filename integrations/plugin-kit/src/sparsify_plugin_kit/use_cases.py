"""`sparsify use-cases`: canonical names, aliases, metric, plugin."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from sparsify import Plugins, known_use_cases, load_plugins

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def rows(plugins: Plugins) -> list[dict[str, Any]]:
    """List every use case: those installed, by name, then those only known, with the plugin that would serve them."""
    listed, absent = [], dict(known_use_cases())
    for offer in plugins.offers("use_cases"):
        known = absent.pop(offer.entry.name, None)
        aliases = (*offer.entry.aliases, *(known.aliases if known else ()))
        listed.append(_row(offer.entry.name, aliases, offer.entry.metric, offer.plugin.distribution, installed=True))
    for name, row in absent.items():
        if row.distribution:
            listed.append(_row(name, row.aliases, row.metric, row.distribution, installed=False))
    return listed


def _row(name: str, aliases: tuple[str, ...], metric: str, plugin: str, *, installed: bool) -> dict[str, Any]:
    unique = list(dict.fromkeys(aliases))
    return {"name": name, "aliases": unique, "metric": metric, "plugin": plugin, "installed": installed}


@app.command()
def use_cases(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List use cases: canonical name, aliases, metric, plugin."""
    listed = rows(load_plugins())
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
        return
    columns = "{:30}  {:9}  {:48}  {}".format
    typer.echo(columns("use case", "metric", "plugin", "aliases"))
    for row in listed:
        plugin = row["plugin"] if row["installed"] else f"pip install {row['plugin']}"
        typer.echo(columns(row["name"], row["metric"], plugin, ", ".join(row["aliases"])).rstrip())
    typer.echo("Any other name is a custom use case (NPZ data, one-shot only): custom:NAME")
