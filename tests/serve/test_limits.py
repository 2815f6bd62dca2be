"""Limits: bodies too large, clients too slow, queues too full; each is refused, and the next request is served."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from sparsify_serve.serving import ServedModel

from tests.serve.serving import Told, rows, serving, told
from tests.serve.test_batching import eventually, metric


@pytest.fixture
def session() -> Told:
    return Told()


@pytest.fixture
def served(session: Told) -> ServedModel:
    return told(session, max_rows=1, max_queue=2)


@pytest.fixture
def address(served: ServedModel) -> Iterator[str]:
    with serving([served], max_body=10_000, read_timeout=1.0) as found:
        yield f"{found}/v2/models/told"


def wire(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").partition("/")[0].split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_a_body_over_the_limit_is_refused_before_it_is_sent(address: str) -> None:
    with wire(address) as client:
        client.sendall(b"POST /v2/models/told/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10001\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")  # and not a byte of the body was sent


@pytest.mark.parametrize("path", ["infer", "predict"])
def test_a_body_over_the_limit_however_it_is_sent(address: str, path: str) -> None:
    with httpx.Client() as client:
        for content in (b"x" * 1_000_000, iter([b"x" * 6_000] * 100)):
            found = client.post(f"{address}/{path}", content=content)
            assert found.status_code == 413
            assert found.json()["error"] == (
                "the body is larger than 10000 bytes; fix: send less, or start the server with a larger --max-body"
            )
        assert client.post(f"{address}/infer", json=rows(1.0)).status_code == 200


@pytest.mark.parametrize("framing", [b"Content-Length: 9000", b"Transfer-Encoding: chunked"])
def test_a_slow_client_is_told_so_and_let_go(address: str, framing: bytes) -> None:
    with wire(address) as client:
        client.sendall(b"POST /v2/models/told/infer HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        client.sendall(b"3\r\n{  \r\n")
        answer = b""
        while part := client.recv(1000):  # until the server closes
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert body == b'{"error":"the body did not arrive within 1 s; fix: send faster, or less"}'
    assert httpx.post(f"{address}/infer", json=rows(1.0)).status_code == 200


def test_a_client_that_hangs_up_while_it_sends(address: str) -> None:
    with wire(address) as client:
        client.sendall(b"POST /v2/models/told/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\nhalf")
        eventually(lambda: metric(address, "sparsify_requests_in_flight") == 1)
    eventually(lambda: metric(address, "sparsify_requests_in_flight") == 0)
    assert httpx.post(f"{address}/infer", json=rows(1.0)).status_code == 200


def test_clients_that_go_away_leave_their_places(address: str, session: Told) -> None:
    session.gate.clear()
    first = threading.Thread(target=httpx.post, args=(f"{address}/infer",), kwargs={"json": rows(1.0), "timeout": 60})
    first.start()
    assert session.entered.acquire(timeout=20)
    for _ in range(6):  # two may wait
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/infer", json=rows(2.0), timeout=0.1)
        eventually(lambda: metric(address, "sparsify_requests_in_flight") == 1)
    session.gate.set()
    first.join(20)
    assert httpx.post(f"{address}/infer", json=rows(3.0)).status_code == 200
    assert session.batches == [[1.0], [3.0]]


def test_a_full_queue_refuses_and_then_serves_what_waits(address: str, served: ServedModel, session: Told) -> None:
    session.gate.clear()
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(f"{address}/infer", json=rows(1.0), timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: served.batcher.running and len(served.batcher.waiting) == 2)
    found = httpx.post(f"{address}/infer", json=rows(1.0))
    assert found.status_code == 503
    reason = "2 requests wait already; fix: try again later, or start the server with a larger --max-queue"
    assert found.json()["error"] == reason
    session.gate.set()
    for thread in threads:
        thread.join(20)
    assert answers == [200, 200, 200]
    assert 'outcome="busy"' in httpx.get(f"{address.partition('/v2')[0]}/metrics").text
