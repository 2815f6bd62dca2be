"""`sparsify use-cases`: canonical names, aliases, metric, plugin."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sparsify.plugins import Plugins, load_plugins
from sparsify.use_cases import KNOWN, documented

app = typer.Typer(rich_markup_mode=None)


def rows(plugins: Plugins) -> list[dict[str, Any]]:
    """List every use case, installed or only known."""
    found = [documented(offer) for offer in plugins.offers("use_cases")]
    listed = [
        {
            "name": offer.entry.name,
            "aliases": list(offer.entry.aliases),
            "metric": offer.entry.metric,
            "plugin": offer.plugin.distribution,
            "installed": True,
        }
        for offer in found
    ]
    installed = {row["name"] for row in listed}
    listed += [
        {
            "name": name,
            "aliases": list(known.aliases),
            "metric": known.metric,
            "plugin": known.distribution,
            "installed": False,
        }
        for name, known in KNOWN.items()
        if name not in installed and known.distribution
    ]
    return listed


@app.command()
def use_cases(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """List use cases: canonical name, aliases, metric, plugin."""
    listed = rows(load_plugins())
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("use case", "aliases", "metric", "plugin"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "use case")
    for row in listed:
        style = None if row["installed"] else "dim"
        plugin = row["plugin"] if row["installed"] else f"pip install {row['plugin']}"
        table.add_row(row["name"], ", ".join(row["aliases"]), row["metric"], plugin, style=style)
    Console().print(table)
    typer.echo("Any other name is a custom use case (NPZ data, one-shot only): custom:NAME")
