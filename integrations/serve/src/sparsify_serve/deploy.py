"""`sparsify deploy --format triton|ovms DEPLOYMENT DIR`: write a model repository for a server that scales."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sparsify import RequestError, Talk, load_plugins, read_deployment

from sparsify_serve import ovms, triton
from sparsify_serve.datatypes import check_name, check_types, model_name
from sparsify_serve.repository import Placed, write_version

FORMATS = ("triton", "ovms")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def deploy(
    deployment: Annotated[Path, typer.Argument(help="a deployment, or the run folder around it")],
    folder: Annotated[Path, typer.Argument(help="the model repository; made where there is none", metavar="DIR")],
    format: Annotated[str, typer.Option(help="triton or ovms")],  # noqa: A002 - the option's name
    name: Annotated[str | None, typer.Option(help="the model's name; default: its use case")] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="rows of a batch that Triton may join")] = 8,
) -> None:
    """Write a model repository for NVIDIA Triton (triton) or OpenVINO Model Server (ovms)."""
    if format not in FORMATS:
        raise RequestError(f"--format: there is no '{format}'", fix=f"use one of: {', '.join(FORMATS)}")
    held = read_deployment(deployment)
    check_types(held)
    name = name or model_name(held)
    check_name(name)
    files = load_plugins().load("model_loaders", "onnx").files(held.model)
    talk, home = Talk(), folder / name
    if format == "triton":
        finish = triton.prepare(held, home, name, max_batch_size)
        command = f"tritonserver --model-repository={folder.absolute()}"
    else:
        finish = ovms.prepare(folder, name)
        command = f"ovms --config_path {folder.absolute() / 'config.json'} --rest_port 8000"
    placed = write_version(held.model, files, home)
    talk.say(_told(placed, name))
    for line in finish():
        talk.say(line)
    talk.say(f"start the server: {command}")
    typer.echo(str(home))


def _told(placed: Placed, name: str) -> str:
    if not placed.written:
        return f"version {placed.version} of '{name}' is this model already"
    if placed.version > 1:
        return f"wrote version {placed.version}: the repository holds other models named '{name}', which stay"
    return "wrote version 1"
