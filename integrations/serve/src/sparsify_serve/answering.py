"""Answer requests for an inference: measured, bounded, and dropped where the client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from sparsify import RequestError, SparsifyError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sparsify_serve.protocol import VERSION, read_request, write_response
from sparsify_serve.reading import read_body
from sparsify_serve.refusals import Refusal, explain, status_of
from sparsify_serve.results import write_result
from sparsify_serve.serving import ServedModel

HEADER = "Inference-Header-Content-Length"
CLIENT_CLOSED = 499  # nginx's number: nobody reads the answer
JSON = "application/json"
Found = TypeVar("Found")
Work = Callable[[Request, ServedModel], Awaitable[Response]]


def measured(work: Work) -> Callable[[Request], Awaitable[Response]]:
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


async def refused(request: Request, error: Exception) -> Response:
    """Answer a deliberate error."""
    assert isinstance(error, SparsifyError)  # noqa: S101 - the handler is registered for it
    status = status_of(error)
    # after a timeout the rest of the body would be taken for the next request
    headers = {"Connection": "close"} if status == HTTPStatus.REQUEST_TIMEOUT else None
    return as_json({"error": explain(error)}, status, headers)


def as_json(value: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value as JSON."""
    return Response(orjson.dumps(value), status, headers=dict(headers or {}), media_type=JSON)
