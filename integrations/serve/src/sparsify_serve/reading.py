"""Read a request's body: bounded in size and time, and laid out so that the tensors in it need no copy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
from starlette.requests import Request

from sparsify_serve.refusals import Refusal

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Limits:
    """Bound what one request may cost; `read_timeout` is in seconds, for the whole body."""

    max_body: int = 64_000_000
    read_timeout: float = 10.0


async def read_body(request: Request, limits: Limits, header: int = 0) -> memoryview:
    """Return the body, with the byte after the first `header` ones aligned where its length is declared.

    Raises Refusal: 413 for too large a body, before it is read where it says so; 408 for one that comes too slowly.
    """
    declared = int(request.headers.get("content-length", -1))  # the HTTP parser lets no other text through
    if declared > limits.max_body:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.read_timeout):
            if declared < 0:
                return await _read_chunks(request, limits)
            return await _read_into(request, declared, header)
    except TimeoutError:
        problem = f"the body did not arrive within {limits.read_timeout:g} s"
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, problem, fix="send faster, or less") from None


async def _read_into(request: Request, length: int, header: int) -> memoryview:
    buffer = np.empty(length + ALIGNMENT, np.uint8)
    start = -(buffer.__array_interface__["data"][0] + header) % ALIGNMENT
    body = buffer.data[start : start + length]
    filled = 0
    async for chunk in request.stream():
        body[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return body[:filled]


async def _read_chunks(request: Request, limits: Limits) -> memoryview:
    chunks, length = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        length += len(chunk)
        if length > limits.max_body:
            raise _too_large(limits)
    return memoryview(b"".join(chunks))


def _too_large(limits: Limits) -> Refusal:
    problem = f"the body is larger than {limits.max_body} bytes"
    fix = "send less, or start the server with a larger --max-body"
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem, fix=fix)
