"""Make the application: the routes of the Open Inference Protocol, raw inputs, health, and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sparsify import SparsifyError, Talk
from starlette.exceptions import HTTPException

from sparsify_serve.answering import as_json, find_model, infer, measured, predict, refused
from sparsify_serve.datatypes import DATATYPES, dims
from sparsify_serve.metrics import Metrics
from sparsify_serve.protocol import VERSION
from sparsify_serve.reading import Limits
from sparsify_serve.serving import ServedModel


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
        app.add_route(f"{path}/infer", measured(infer), methods=["POST"])
        app.add_route(f"{path}/predict", measured(predict), methods=["POST"])
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


async def server_metadata(request: Request) -> Response:
    """Describe the server."""
    return as_json({"name": "sparsify", "version": version("sparsify-serve"), "extensions": ["binary_tensor_data"]})


async def live(request: Request) -> Response:
    """Say that the server lives."""
    return as_json({"live": True})


async def ready(request: Request) -> Response:
    """Say that all models are loaded, which they are before the server listens."""
    return as_json({"ready": True})


async def model_metadata(request: Request) -> Response:
    """Describe a model: inputs and outputs, -1 for what is free."""
    model = find_model(request)
    model.look()
    deployment = model.loaded.deployment
    tensors = {
        side: [{"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": dims(spec)} for spec in specs]
        for side, specs in (("inputs", deployment.inputs), ("outputs", deployment.outputs))
    }
    return as_json({"name": model.name, "versions": [VERSION], "platform": f"{model.runtime}_onnx", **tensors})


async def model_ready(request: Request) -> Response:
    """Say that a model is loaded, and what is wrong with its files where they have changed and do not load."""
    model = find_model(request)
    model.look()
    return as_json({"name": model.name, "ready": True, **({"problem": model.problem} if model.problem else {})})


async def show_metrics(request: Request) -> Response:
    """Show the metrics in Prometheus' text format."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def no_such_route(request: Request, error: Exception) -> Response:
    """Answer an unknown address or method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for it
    problem, fix = f"there is no address {request.url.path[:200]}", "see docs/how-to/serve.md"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        problem = f"{request.method[:20]} is no method of this address"
        fix = f"use {(error.headers or {}).get('Allow', 'another')}"
    return as_json({"error": f"{problem}; fix: {fix}"}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Answer a bug of ours, or a plugin's; the traceback is in the server's log."""
    return as_json({"error": f"{type(error).__name__}; see what the server printed"}, HTTPStatus.INTERNAL_SERVER_ERROR)
