"""Answer HTTP requests: the routes of the Open Inference Protocol, raw inputs, health, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sparsify import RequestError, SparsifyError, Talk
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sparsify_serve.datatypes import DATATYPES, dims
from sparsify_serve.metrics import Metrics
from sparsify_serve.protocol import VERSION, read_request, write_response
from sparsify_serve.reading import Limits, read_body
from sparsify_serve.refusals import Refusal, explain, status_of
from sparsify_serve.results import write_result
from sparsify_serve.serving import ServedModel

HEADER = "Inference-Header-Content-Length"
CLIENT_CLOSED = 499  # nginx's number: nobody reads the answer
JSON = "application/json"
Found = TypeVar("Found")
Work = Callable[[Request, ServedModel], Awaitable[Response]]


def create_app(models: Sequence[ServedModel], limits: Limits, talk: Talk | None = None) -> FastAPI:
    """Make the application that serves these models; they are closed when it shuts down."""
    metrics, talk = Metrics(), talk or Talk()
    for model in models:
        model.start(metrics, talk)

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        for model in models:
            model.close()

    # no pages of documentation: they would load their scripts from elsewhere
    app = FastAPI(title="sparsify", lifespan=closing, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.models = {model.name: model for model in models}
    app.state.limits, app.state.metrics, app.state.talk = limits, metrics, talk
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        # plain routes, first in the list: what FastAPI adds to a route costs as much as a small model
        app.add_route(f"{path}/infer", _measured(infer), methods=["POST"])
        app.add_route(f"{path}/predict", _measured(predict), methods=["POST"])
        app.add_route(f"{path}/ready", model_ready, methods=["GET"])
        app.add_route(path, model_metadata, methods=["GET"])
    for path, answer in (
        ("/v2", server_metadata),
        ("/v2/health/live", live),
        ("/v2/health/ready", ready),
        ("/metrics", show_metrics),
    ):
        app.add_route(path, answer, methods=["GET"])
    app.add_exception_handler(SparsifyError, refused)
    app.add_exception_handler(HTTPException, no_such_route)
    app.add_exception_handler(Exception, failed)
    return app


def _measured(work: Work) -> Callable[[Request], Awaitable[Response]]:
    """Count and time a request, and give every error its status."""

    async def answer(request: Request) -> Response:
        model, metrics = find_model(request), request.app.state.metrics
        started, outcome = time.perf_counter(), "failed"
        try:
            with model.batcher.arrival():
                model.look()
                response = await work(request, model)
            outcome = "ok" if response.status_code == HTTPStatus.OK else "cancelled"
        except ClientDisconnect:
            outcome, response = "cancelled", Response(status_code=CLIENT_CLOSED)
        except SparsifyError as error:
            outcome = "refused" if status_of(error) < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
            outcome = "busy" if status_of(error) == HTTPStatus.SERVICE_UNAVAILABLE else outcome
            if outcome == "failed":
                request.app.state.talk.warn(f"{model.name}: {explain(error)}")
            response = await refused(request, error)
        finally:
            metrics.requests.labels(model.name, outcome).inc()
            metrics.seconds.labels(model.name).observe(time.perf_counter() - started)
        return response

    return answer


async def infer(request: Request, model: ServedModel) -> Response:
    """Run tensors: JSON, or JSON followed by tensors in binary."""
    header = _header_length(request)
    body = await read_body(request, request.app.state.limits, header or 0)
    loaded = model.loaded
    asked = read_request(body, header, loaded.deployment)
    results = await unless_gone(request, model.infer(loaded, asked.inputs))
    content, length = write_response(model.name, asked, results)
    if length is None:
        return Response(content, media_type=JSON)
    return Response(content, media_type="application/octet-stream", headers={HEADER: str(length)})


def _header_length(request: Request) -> int | None:
    _refuse_encoded(request)
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise RequestError(f"{HEADER} is '{text[:40]}', no length", fix="give the bytes of the JSON part")
    return int(text)


def _refuse_encoded(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        problem = f"the body is encoded as {encoding[:40]}"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, problem, fix="send it without Content-Encoding")


async def predict(request: Request, model: ServedModel) -> Response:
    """Run the use case on the bytes of one file."""
    _refuse_encoded(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or kind.startswith("multipart/"):
        problem = f"the body is {kind}, which is no file"
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, problem, fix="send the file's bytes alone, as image/jpeg or so"
        )
    body = await read_body(request, request.app.state.limits)
    result = await unless_gone(request, model.predict(bytes(body)))
    return Response(write_result(model.name, result), media_type=JSON)


async def unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """Return what the work gives; cancels it and raises ClientDisconnect where the client goes away before."""
    current, watching = asyncio.current_task(), True
    watcher = asyncio.ensure_future(_disconnected(request))

    def cancel(done: asyncio.Future[None]) -> None:
        if watching and current is not None and not done.cancelled():
            current.cancel()

    watcher.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if current is None or not watcher.done() or watcher.cancelled():
            raise  # the server stops
        current.uncancel()
        raise ClientDisconnect from None
    finally:
        watching = False
        watcher.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def find_model(request: Request) -> ServedModel:
    """Return the model that the address names; raises Refusal (404)."""
    models: Mapping[str, ServedModel] = request.app.state.models
    name, asked = request.path_params["name"], request.path_params.get("version", VERSION)
    if name not in models:
        problem = f"there is no model '{name[:100]}'"
        raise Refusal(HTTPStatus.NOT_FOUND, problem, fix=f"use: {', '.join(models)}")
    if asked != VERSION:
        problem = f"model '{name}' has no version '{asked[:20]}'"
        raise Refusal(HTTPStatus.NOT_FOUND, problem, fix=f"use version {VERSION}, or none")
    return models[name]


async def server_metadata(request: Request) -> Response:
    """Describe the server."""
    return _json({"name": "sparsify", "version": version("sparsify-serve"), "extensions": ["binary_tensor_data"]})


async def live(request: Request) -> Response:
    """Say that the server lives."""
    return _json({"live": True})


async def ready(request: Request) -> Response:
    """Say that all models are loaded, which they are before the server listens."""
    return _json({"ready": True})


async def model_metadata(request: Request) -> Response:
    """Describe a model: inputs and outputs, -1 for what is free."""
    model = find_model(request)
    model.look()
    deployment = model.loaded.deployment
    tensors = {
        side: [{"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": dims(spec)} for spec in specs]
        for side, specs in (("inputs", deployment.inputs), ("outputs", deployment.outputs))
    }
    return _json({"name": model.name, "versions": [VERSION], "platform": f"{model.runtime}_onnx", **tensors})


async def model_ready(request: Request) -> Response:
    """Say that a model is loaded, and what is wrong with its files where they have changed and do not load."""
    model = find_model(request)
    model.look()
    return _json({"name": model.name, "ready": True, **({"problem": model.problem} if model.problem else {})})


async def show_metrics(request: Request) -> Response:
    """Show the metrics in Prometheus' text format."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def refused(request: Request, error: Exception) -> Response:
    """Answer a deliberate error."""
    assert isinstance(error, SparsifyError)  # noqa: S101 - the handler is registered for it
    status = status_of(error)
    # after a timeout the rest of the body would be taken for the next request
    headers = {"Connection": "close"} if status == HTTPStatus.REQUEST_TIMEOUT else None
    return _json({"error": explain(error)}, status, headers)


async def no_such_route(request: Request, error: Exception) -> Response:
    """Answer an unknown address or method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for it
    problem, fix = f"there is no address {request.url.path[:200]}", "see docs/how-to/serve.md"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        problem = f"{request.method[:20]} is no method of this address"
        fix = f"use {(error.headers or {}).get('Allow', 'another')}"
    return _json({"error": f"{problem}; fix: {fix}"}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Answer a bug of ours, or a plugin's; the traceback is in the server's log."""
    return _json({"error": f"{type(error).__name__}; see what the server printed"}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _json(value: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers=dict(headers or {}), media_type=JSON)
