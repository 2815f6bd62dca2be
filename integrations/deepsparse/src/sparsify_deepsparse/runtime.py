"""Run ONNX models in DeepSparse, in a process of its own environment, over a pipe."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from sparsify import Session, StageError

from sparsify_deepsparse import worker
from sparsify_deepsparse.environment import VERSION, python

QUIET = {"NM_DISABLE_ANALYTICS": "1", "NM_LOGGING_LEVEL": "error"}  # it reports home otherwise
PIPE_BYTES = 1 << 20  # the most that Linux lets any user take: a batch of images needs fewer turns
GRACE_S = 10.0  # for a worker to end by itself
Arrays = Mapping[str, NDArray[Any]]


def open_session(path: Path, threads: int = 0) -> Session:
    """Start a process for a model; `threads` 0 takes all physical cores.

    DeepSparse compiles for one set of shapes: the first run does it, and each run with other shapes again. Raises
    MissingLibraryError where its environment was not made, and StageError with its reason where it refuses the model.
    """
    return _Session(path, threads)


class _Session:
    """Hold the process.

    facts: runtime, version, uses_zeros, static_shapes; precision and int8_executed, which it does not tell; supported,
    the share of operators that its own kernels run, and threads, for which it compiles the model.
    """

    def __init__(self, path: Path, threads: int) -> None:
        command = [str(python()), "-I", worker.__file__, str(path), str(threads)]
        self.path = path
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        self.facts: Mapping[str, Any] = _Facts(self)
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(  # noqa: S603 - our own words
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, **QUIET}
        )
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch."""
        if not inputs:
            raise self._refusal("it takes at least one input")
        return self.ask(dict(inputs))[1]

    def ask(self, inputs: dict[str, NDArray[Any]]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send one message, and give the answer; raises StageError."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            raise StageError(f"the session of {self.path} is closed", fix="open it again")
        try:
            worker.send(process.stdin, {}, inputs)
            answer = worker.receive(process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise self._refusal(f"its process ended with {process.wait()}: {self._last_words()}")
        if "error" in answer[0]:
            raise self._refusal(answer[0]["error"])
        return answer

    def _refusal(self, why: str) -> StageError:
        return StageError(
            f"DeepSparse {VERSION} cannot run {self.path}: {why}",
            fix="check the inputs with `sparsify analyze MODEL`, or use --runtime onnxruntime or --runtime openvino",
        )

    def _last_words(self) -> str:
        self.log.seek(0)
        return " ".join(self.log.read().decode(errors="replace").split()[-40:]) or "it said nothing"

    def close(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # it died with a request unread, which closing would still send
                    stream.close()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.log.close()


class _Facts(Mapping[str, Any]):
    """Tell what needs no compiled model at once, and compile it for the rest."""

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.known: dict[str, Any] = {
            "runtime": "deepsparse",
            "version": VERSION,
            "precision": None,
            "int8_executed": None,
            "uses_zeros": True,
            "static_shapes": True,
        }

    @cached_property
    def _asked(self) -> dict[str, Any]:
        return self.session.ask({})[0]

    def __getitem__(self, key: str) -> Any:
        return self.known[key] if key in self.known else self._asked[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.known, **self._asked})

    def __len__(self) -> int:
        return len(self.known) + len(self._asked)
