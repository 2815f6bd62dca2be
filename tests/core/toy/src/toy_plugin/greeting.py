"""`sparsify toy`."""

from __future__ import annotations

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def greet(name: str = "world", fail: bool = False) -> None:
    """Greet, or fail."""
    if fail:
        raise ValueError("the toy is broken")
    typer.echo(f"hello {name}")
