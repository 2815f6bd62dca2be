"""`sparsify serve DEPLOYMENT|FILE.yaml`: serve deployments over HTTP until it is told to stop."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from sparsify import (
    ExitCode,
    Plugins,
    RequestError,
    Session,
    Stopped,
    Talk,
    load_plugins,
    load_runtime,
    parse_duration,
    parse_memory,
)

from sparsify_serve.app import create_app
from sparsify_serve.batching import Batching
from sparsify_serve.datatypes import model_name
from sparsify_serve.loading import load
from sparsify_serve.options import COMMAND_LINE, ModelOptions, ServerOptions, make_options, read_options
from sparsify_serve.reading import Limits
from sparsify_serve.serving import ServedModel

BACKLOG = 2048
PATIENCE_S = 30  # that a client has to fetch its answer when the server stops

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def serve(
    deployment: Annotated[Path, typer.Argument(help="a deployment, the run folder around it, or a YAML file")],
    host: Annotated[str | None, typer.Option(help="address to listen on; default 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="0 = any free one; default 8000")] = None,
    runtime: Annotated[str | None, typer.Option(help="the runtime; default onnxruntime")] = None,
    threads: Annotated[int | None, typer.Option(help="threads of a session; default 0 = all cores")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="rows of a batch; 1 = no batching; default 8")] = None,
    max_delay_us: Annotated[int | None, typer.Option(help="most a request waits for others; default 2000")] = None,
    max_body: Annotated[str | None, typer.Option(help="largest body; default 64MB")] = None,
    max_queue: Annotated[int | None, typer.Option(help="most requests that wait, a model; default 256")] = None,
    read_timeout: Annotated[str | None, typer.Option(help="most a body may take to arrive; default 10s")] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; default: its use case")] = None,
) -> None:
    """Serve deployments over HTTP, in the Open Inference Protocol (v2) with binary tensors."""
    own = {"runtime": runtime, "threads": threads, "max_batch_size": max_batch_size, "max_delay_us": max_delay_us}
    shared = {"host": host, "port": port, "max_body": max_body, "max_queue": max_queue, "read_timeout": read_timeout}
    options = gather(deployment, {**own, "name": name}, shared)
    talk = Talk()
    models = open_models(options, load_plugins())
    limits = Limits(parse_memory(options.max_body), parse_duration(options.read_timeout))
    listener = listen(options.host, options.port)
    announce(listener, models, talk)
    config = uvicorn.Config(
        create_app(models, limits, talk),
        log_config=None,  # errors go to stderr as they are
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=PATIENCE_S,
        proxy_headers=False,
        ws="none",
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # which both signals end in, after the last answer
        talk.say("stopped")
        raise Stopped(ExitCode.INTERRUPTED) from None


def gather(path: Path, own: Mapping[str, Any], shared: Mapping[str, Any]) -> ServerOptions:
    """Put the options of the command line and of a YAML file together; the command line's count."""
    own, shared = ({key: value for key, value in row.items() if value is not None} for row in (own, shared))
    if path.suffix not in (".yaml", ".yml"):
        return make_options({**shared, "models": [{**own, "deployment": path}]}, COMMAND_LINE)
    if own:
        option = f"--{next(iter(own)).replace('_', '-')}"
        raise RequestError(f"{option} has no effect with {path.name}", fix=f"write it into {path}, to a model")
    return make_options({**read_options(path), **shared}, str(path))


def open_models(options: ServerOptions, plugins: Plugins) -> list[ServedModel]:
    """Load every model; raises RequestError for two of one name, and whatever is wrong with one."""
    models: dict[str, ServedModel] = {}
    for model in options.models:
        served = open_model(model, options.max_queue, plugins)
        if served.name in models:
            problem = f"two models are called '{served.name}', after their use case"
            raise RequestError(problem, fix="give each a name of its own in the YAML file")
        models[served.name] = served
    return list(models.values())


def open_model(options: ModelOptions, max_queue: int, plugins: Plugins) -> ServedModel:
    """Load one model."""
    open_session: Callable[..., Session] = load_runtime(options.runtime, plugins)
    if "spin" in signature(open_session).parameters:  # threads that spin would take the cores from HTTP and clients
        open_session = partial(open_session, spin=False)
    opening = partial(load, options.deployment, open_session, options.threads, plugins)
    batching = Batching(options.max_batch_size, options.max_delay_us / 1e6, max_queue)
    served = ServedModel(options.name, options.runtime, opening, batching)
    served.name = options.name or model_name(served.loaded.deployment)
    return served


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; raises RequestError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        problem = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise RequestError(problem, fix="give another --port (0 = any free one) or --host") from None


def announce(listener: socket.socket, models: Sequence[ServedModel], talk: Talk) -> None:
    """Print the models' addresses on stdout, and what there is to say of them on stderr."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not ipaddress.ip_address(host).is_loopback:
        talk.warn(f"{address} can be reached from other machines, and the server has no authentication")
    for model in models:
        rows = model.batching.max_rows if model.loaded.batchable else 1
        how = f"batches of up to {rows}" if rows > 1 else "no batching"
        talk.say(f"{model.name}: {model.loaded.deployment.folder} on {model.runtime}, {how}")
    # all at once: who waits for the first line finds the others too
    typer.echo("\n".join(f"{address}/v2/models/{model.name}" for model in models))
