"""Batches: results are those of the session alone, nobody waits in vain, and one bad request fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify_serve.batching import Batcher, Batching
from sparsify_serve.metrics import Metrics

from tests.onnx import models
from tests.serve.serving import Told, deployment, every, rows, serving, serving_folder, told

FOREVER = 20.0  # a delay that a test would notice


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address.partition('/v2')[0]}/metrics").text.splitlines()
    (found,) = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return float(found.rpartition(" ")[2])


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_concurrent_clients_get_what_the_session_gives(tmp_path: Path) -> None:
    model = models.conv_net()
    samples = models.samples(model, 40)["input"]
    folder = deployment(model, tmp_path / "net")
    (wanted,) = models.run(folder / "model.onnx", {"input": samples})
    with serving_folder(folder, name="net", max_delay_us=50_000) as address:

        def ask(index: int) -> None:
            with httpx.Client() as client:
                for first in range(index, 32, 8):
                    count = 1 + (first + index) % 3
                    part = samples[first : first + count]
                    row = {"name": "input", "shape": part.shape, "datatype": "FP32", "data": part.ravel().tolist()}
                    found = client.post(f"{address}/infer", json={"inputs": [row]}).json()["outputs"][0]
                    array = np.array(found["data"], np.float32).reshape(found["shape"])
                    np.testing.assert_allclose(array, wanted[first : first + count], rtol=1e-4, atol=1e-5)

        every(8, ask)
        requests, batches = (
            metric(address, "sparsify_batch_requests_sum"),
            metric(address, "sparsify_batch_requests_count"),
        )
        assert requests == 32
        assert requests / batches > 1
        assert metric(address, "sparsify_requests_in_flight") == 0


def test_requests_that_wait_share_a_batch_in_order() -> None:
    session = Told()
    served = told(session, max_rows=4)
    with serving([served]) as address:
        session.gate.clear()
        answers: dict[int, list[float]] = {}

        def ask(index: int) -> None:
            if index:  # one runs, the others wait in order
                eventually(lambda: served.batcher.running and len(served.batcher.waiting) == index - 1)
            found = httpx.post(
                f"{address}/v2/models/told/infer", json=rows(*[float(index)] * (1 + index % 2)), timeout=60
            )
            answers[index] = found.json()["outputs"][0]["data"]

        def release(index: int) -> None:
            if index < 6:
                ask(index)
            else:
                eventually(lambda: len(served.batcher.waiting) == 5)
                session.gate.set()

        every(7, release)
        assert answers == {index: [2.0 * index] * (1 + index % 2) for index in range(6)}
        assert session.batches[0] == [0.0]
        # at most 4 rows: 1 1 2, then 3 3 4, then 5 5
        assert session.batches[1:] == [[1.0, 1.0, 2.0], [3.0, 3.0, 4.0], [5.0, 5.0]]


def test_a_lone_client_does_not_wait() -> None:
    session = Told()
    with serving([told(session, max_delay=FOREVER)]) as address, httpx.Client() as client:
        started = time.monotonic()
        for _ in range(5):
            assert client.post(f"{address}/v2/models/told/infer", json=rows(1.0)).status_code == 200
        assert time.monotonic() - started < FOREVER / 2
        assert session.batches == [[1.0]] * 5


def test_the_delay_ends_where_another_is_slow_to_send() -> None:
    session = Told()
    with serving([told(session, max_delay=0.05)]) as address:
        host = address.removeprefix("http://")
        with httpx.Client() as slow, httpx.Client() as client:

            def drip():  # type: ignore[no-untyped-def]
                yield b'{"inputs": '
                eventually(lambda: len(session.batches) == 1)
                yield b"[]}"

            thread = threading.Thread(
                target=slow.post, args=(f"http://{host}/v2/models/told/infer",), kwargs={"content": drip()}
            )
            thread.start()
            eventually(lambda: metric(address, "sparsify_requests_in_flight") == 1)
            assert client.post(f"{address}/v2/models/told/infer", json=rows(3.0)).status_code == 200
            thread.join(20)
        assert session.batches == [[3.0]]


@pytest.mark.parametrize("how", ["max_rows=1", "shapes", "not batchable"])
def test_what_cannot_be_joined_runs_alone(how: str) -> None:
    session = Told()
    served = told(session, max_rows=1 if how == "max_rows=1" else 8, batchable=how != "not batchable")
    with serving([served]) as address:
        session.gate.clear()

        def ask(index: int) -> None:
            if index == 4:
                eventually(lambda: metric(address, "sparsify_requests_in_flight") == 4)
                session.gate.set()
                return
            length = 1 + index if how == "shapes" else 1
            row = {"name": "x", "shape": [1, length], "datatype": "FP32", "data": [float(index)] * length}
            found = httpx.post(f"{address}/v2/models/told/infer", json={"inputs": [row]}, timeout=60).json()
            assert found["outputs"][0]["data"] == [2.0 * index] * length

        every(5, ask)
        assert sorted(session.batches) == [[0.0], [1.0], [2.0], [3.0]]


def test_only_the_culprit_of_a_batch_fails() -> None:
    session = Told()
    with serving([told(session)]) as address:
        session.gate.clear()

        def ask(index: int) -> None:
            if index == 5:
                eventually(lambda: metric(address, "sparsify_requests_in_flight") == 5)
                session.gate.set()
                return
            value = -1.0 if index == 2 else float(index)
            found = httpx.post(f"{address}/v2/models/told/infer", json=rows(value), timeout=60)
            if index == 2:
                reason = "the model cannot run these inputs: below zero; fix: compare them with its inputs, "
                reason += "which GET /v2/models/NAME lists"
                assert (found.status_code, found.json()["error"]) == (400, reason)
            else:
                assert found.json()["outputs"][0]["data"] == [2.0 * index]

        every(6, ask)


def test_a_runtime_that_fails_on_good_inputs_is_our_failure_and_may_recover() -> None:
    session = Told()
    with serving([told(session)]) as address:
        url = f"{address}/v2/models/told/infer"
        session.broken = True
        found = httpx.post(url, json=rows(1.0))
        assert found.status_code == 500
        reason = "the runtime fails: ValueError: it is broken; fix: start the server again, and see what it printed"
        assert found.json()["error"] == reason
        session.broken = False
        assert httpx.post(url, json=rows(1.0)).status_code == 200
        text = httpx.get(f"{address}/metrics").text
        assert 'sparsify_requests_total{model="told",outcome="failed"} 1.0' in text
        assert 'sparsify_requests_total{model="told",outcome="ok"} 1.0' in text


def test_a_client_that_goes_away_is_dropped_before_it_runs() -> None:
    session = Told()
    with serving([told(session, max_rows=1)]) as address:
        url = f"{address}/v2/models/told/infer"
        session.gate.clear()
        first = threading.Thread(target=httpx.post, args=(url,), kwargs={"json": rows(1.0), "timeout": 60})
        first.start()
        assert session.entered.acquire(timeout=20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=rows(2.0), timeout=0.2)
        eventually(lambda: metric(address, "sparsify_requests_in_flight") == 1)
        session.gate.set()
        first.join(20)
        assert httpx.post(url, json=rows(3.0)).status_code == 200
        assert session.batches == [[1.0], [3.0]]
        assert 'sparsify_requests_total{model="told",outcome="cancelled"} 1.0' in httpx.get(f"{address}/metrics").text


def test_an_output_without_the_batch_axis_turns_batching_off() -> None:
    session = Told()
    run = session.run
    session.run = lambda inputs: {**run(inputs), "y": np.float32(inputs["x"].sum())[None]}  # type: ignore[method-assign]
    served = told(session)
    with serving([served]) as address:
        session.gate.clear()

        def ask(index: int) -> None:
            if index == 4:
                eventually(lambda: metric(address, "sparsify_requests_in_flight") == 4)
                session.gate.set()
                return
            found = httpx.post(f"{address}/v2/models/told/infer", json=rows(float(index)), timeout=60).json()
            assert found["outputs"][0]["data"] == [float(index)]

        every(5, ask)
        assert not served.loaded.batchable


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 2), st.sampled_from([0.0, 0.0, 0.001, 0.004]), st.booleans()),
        max_size=24,
    ),
    max_rows=st.integers(1, 6),
    max_delay=st.sampled_from([0.0, 0.002]),
)
def test_any_interleaving_gives_each_its_own(
    requests: list[tuple[int, int, float, bool]], max_rows: int, max_delay: float
) -> None:
    """Requests of some rows and lengths come at some times, and some go away: each that stays gets its double."""
    session = Told()
    served = told(session)
    batcher = Batcher("told", Batching(max_rows, max_delay, 100), Metrics())

    async def ask(index: int, count: int, length: int, pause: float, leaves: bool) -> None:
        await asyncio.sleep(pause)
        x = np.full((count, length), float(index), np.float32)
        with batcher.arrival():
            running = asyncio.ensure_future(batcher.run(served.loaded, {"x": x}))
            await asyncio.sleep(0)
            if leaves:
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
            else:
                np.testing.assert_array_equal((await running)["y"], 2 * x)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(index, *request) for index, request in enumerate(requests)))

    asyncio.run(all_of_them())
    batcher.close()
    assert batcher.arrived == 0
    assert all(len(batch) <= max(max_rows, 5) for batch in session.batches)
    assert all(len(batch) <= max_rows or len(set(batch)) == 1 for batch in session.batches)
