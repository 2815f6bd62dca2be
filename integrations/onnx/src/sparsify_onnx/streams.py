"""Run several sessions of one model at once, as a server with several clients does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray
from sparsify import Session

Arrays = Mapping[str, NDArray[Any]]


def open_streams(open_session: Callable[[int], Session], streams: int, threads: int) -> Session:
    """Open a session for each stream; `threads` are shared out among them, at least one each."""
    if streams == 1:
        return open_session(threads)
    return _Streams([open_session(max(threads // streams, 1)) for _ in range(streams)])


class _Streams:
    """Run a batch on every stream and wait for all: a round of as many batches as there are streams."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions, self.facts = sessions, sessions[0].facts
        self.pool = ThreadPoolExecutor(len(sessions), "stream")

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one round; runtimes let go of Python's lock while they compute."""
        rounds = [self.pool.submit(session.run, inputs) for session in self.sessions]
        results = [one.result() for one in rounds]
        return results[0]

    def close(self) -> None:
        """Free threads and memory."""
        self.pool.shutdown()
        for session in self.sessions:
            session.close()
