"""Join waiting requests into batches: one queue and one worker thread for each model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import RequestError, SparsifyError, StageError

from sparsify_serve.loading import Loaded
from sparsify_serve.metrics import Metrics
from sparsify_serve.refusals import Refusal

LINGER_S = 0.005  # a client that was answered this short a time ago is likely to be back: it counts as in flight
Arrays = Mapping[str, NDArray[Any]]
Outcome = dict[str, NDArray[Any]] | Exception


@dataclass(frozen=True)
class Batching:
    """Say how requests of a model are joined; `max_delay` is in seconds."""

    max_rows: int = 8
    max_delay: float = 0.002
    max_queue: int = 256


@dataclass(eq=False)
class Waiting:
    """Hold a request in the queue, with the loaded model that it was checked against."""

    loaded: Loaded
    inputs: Arrays
    future: asyncio.Future[dict[str, NDArray[Any]]]
    since: float

    def __post_init__(self) -> None:
        self.rows = len(next(iter(self.inputs.values()))) if self.loaded.batchable else 1
        # types are the model's: two requests to one loaded model can differ in free axes alone
        self.shapes = {name: array.shape[1:] for name, array in self.inputs.items()}


class Batcher:
    """Run requests of one model in batches, in the order of their arrival. All methods belong to the event loop.

    A batch starts when it is full, when its first request has waited `max_delay` seconds, or when nobody else is in
    flight that could join it, so that a lone client never waits.
    """

    def __init__(self, name: str, batching: Batching, metrics: Metrics) -> None:
        self.batching = batching
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"sparsify-{name}")
        self.waiting: list[Waiting] = []
        self.arrived = 0  # requests in flight: those being read, waiting, running, or being answered
        self.running = False
        self.timer: asyncio.TimerHandle | None = None
        self.lately = (0.0, 0)  # when the last batch ended, and how many were in flight then
        self.queued, self.rows = metrics.queued.labels(name), metrics.rows.labels(name)
        self.batched, self.in_flight = metrics.batched.labels(name), metrics.in_flight.labels(name)

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Count a request as in flight, from its headers to its answer; raises Refusal where the queue is full."""
        self.check_room()
        self.arrived += 1
        self.in_flight.inc()
        try:
            yield
        finally:
            self.arrived -= 1
            self.in_flight.dec()
            self._start()

    def check_room(self) -> None:
        """Raise Refusal where the queue is full."""
        if len(self.waiting) >= self.batching.max_queue:
            problem = f"{len(self.waiting)} requests wait already"
            fix = "try again later, or start the server with a larger --max-queue"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, problem, fix=fix)

    async def run(self, loaded: Loaded, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one request in a batch with others.

        Cancelling the call drops the request where it has not begun. Raises RequestError for inputs that the runtime
        refuses, StageError where it fails on good ones too.
        """
        self.check_room()
        future: asyncio.Future[dict[str, NDArray[Any]]] = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(loaded, inputs, future, time.monotonic()))
        self._start()
        try:
            return await future
        except asyncio.CancelledError:  # the place in the queue is free at once, also while a batch runs
            self.waiting = [request for request in self.waiting if request.future is not future]
            raise

    def _start(self) -> None:
        """Start a batch if one is ready, or set the timer for when it will be."""
        if self.running:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.waiting = [request for request in self.waiting if not request.future.done()]  # clients that went away
        if not self.waiting:
            return
        batch, full = self._gather()
        remaining = 0.0 if full else self._patience()
        if remaining > 0:
            self.timer = asyncio.get_running_loop().call_later(remaining, self._start)
            return
        self._launch(batch)

    def _gather(self) -> tuple[list[Waiting], bool]:
        """Return the requests that fit into a batch with the first one, and whether no other could join them."""
        first = self.waiting[0]
        batch, rows = [first], first.rows
        if self.batching.max_rows == 1 or not first.loaded.batchable:
            return batch, True
        for request in self.waiting[1:]:
            if request.loaded is first.loaded and request.shapes == first.shapes:
                if rows + request.rows > self.batching.max_rows:
                    return batch, True
                batch.append(request)
                rows += request.rows
        return batch, rows >= self.batching.max_rows

    def _patience(self) -> float:
        """Return the seconds to wait for others: none where all in flight wait already."""
        now = time.monotonic()
        until = self.waiting[0].since + self.batching.max_delay
        if self.arrived <= len(self.waiting):
            ended, many = self.lately
            until = min(until, ended + LINGER_S) if many > len(self.waiting) else now
        return until - now

    def _launch(self, batch: list[Waiting]) -> None:
        self.running = True
        chosen = set(map(id, batch))
        self.waiting = [request for request in self.waiting if id(request) not in chosen]
        now = time.monotonic()
        for request in batch:
            self.queued.observe(now - request.since)
        self.batched.observe(len(batch))
        self.rows.observe(sum(request.rows for request in batch))
        loop = asyncio.get_running_loop()
        work = self.thread.submit(run_batch, batch)
        work.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, batch, done))

    def _finish(self, batch: list[Waiting], done: Future[list[Outcome]]) -> None:
        self.running = False
        self.lately = (time.monotonic(), self.arrived)
        for request, outcome in zip(batch, done.result(), strict=True):
            if request.future.done():
                continue
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)
        self._start()

    def close(self) -> None:
        """Let the running batch end, and stop the thread."""
        self.thread.shutdown()


def run_batch(batch: Sequence[Waiting]) -> list[Outcome]:
    """Run a batch and give each request its rows; where that fails, run them one by one, so that one alone fails."""
    loaded = batch[0].loaded
    if len(batch) > 1:
        try:
            joined = {name: np.concatenate([request.inputs[name] for request in batch]) for name in batch[0].inputs}
            results = loaded.session.run(joined)
        except Exception:  # noqa: BLE001 - a runtime is anyone's, and each request is run again below
            return [run_alone(request) for request in batch]
        if all(array.ndim and len(array) == sum(request.rows for request in batch) for array in results.values()):
            return split(results, [request.rows for request in batch])
        loaded.batchable = False  # an output without the axis of the batch belongs to nobody
    return [run_alone(request) for request in batch]


def split(results: Arrays, rows: Sequence[int]) -> list[Outcome]:
    """Give each request its rows, in order."""
    ends = np.cumsum(rows).tolist()
    return [
        {name: array[end - count : end] for name, array in results.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def run_alone(request: Waiting) -> Outcome:
    """Run one request; a failure is the request's where the runtime still runs inputs that ran before."""
    loaded = request.loaded
    try:
        return loaded.session.run(request.inputs)
    except Exception as error:  # noqa: BLE001 - a runtime is anyone's, and must not end the worker
        reason = error.problem if isinstance(error, SparsifyError) else f"{type(error).__name__}: {error}"
        reason = reason.replace(f"{loaded.deployment.folder}/", "")  # clients need not know our folders
        try:
            if loaded.known_good:
                loaded.session.run(loaded.known_good)
        except Exception:  # noqa: BLE001 - as above
            return StageError(f"the runtime fails: {reason}", fix="start the server again, and see what it printed")
        return RequestError(
            f"the model cannot run these inputs: {reason}",
            fix="compare them with its inputs, which GET /v2/models/NAME lists",
        )
