"""Refuse a request: a RequestError becomes status 400, a Refusal says another, and each becomes one JSON object."""

from __future__ import annotations

from http import HTTPStatus

from sparsify import RequestError, SparsifyError


class Refusal(RequestError):
    """Refuse a request with an HTTP status of its own."""

    def __init__(self, status: HTTPStatus, problem: str, *, fix: str) -> None:
        super().__init__(problem, fix=fix)
        self.status = status


def status_of(error: SparsifyError) -> HTTPStatus:
    """Return the status of an error: what a client can mend is 4xx, or 503 where the server is busy."""
    if isinstance(error, Refusal):
        return error.status
    return HTTPStatus.BAD_REQUEST if isinstance(error, RequestError) else HTTPStatus.INTERNAL_SERVER_ERROR


def explain(error: SparsifyError) -> str:
    """Say problem and fix in one line."""
    return f"{error.problem}; fix: {error.fix}"
