"""Serve one model: check and batch its requests, and take up changed files while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import RequestError, SparsifyError, Talk, check_inputs

from sparsify_serve.batching import Batcher, Batching
from sparsify_serve.loading import Loaded, stamp
from sparsify_serve.metrics import Metrics
from sparsify_serve.refusals import explain

CHECK_S = 1.0  # between two looks at the files
Arrays = Mapping[str, NDArray[Any]]


class ServedModel:
    """Hold a model under its name; `loaded` is replaced when its files change and load."""

    batcher: Batcher  # from `start` on, which the application calls: its metrics are those of all models
    metrics: Metrics
    talk: Talk

    def __init__(self, name: str, runtime: str, open_model: Callable[[], Loaded], batching: Batching) -> None:
        self.name, self.runtime, self.open_model = name, runtime, open_model
        self.loaded = open_model()
        self.batching = batching
        self.problem = ""  # why the files as they are now do not load
        self.seen = self.loaded.stamp  # the state of the files that was tried last
        self.looked = time.monotonic()
        self.looking: asyncio.Task[None] | None = None

    def start(self, metrics: Metrics, talk: Talk) -> None:
        """Make the queue, and set what is told of the model."""
        self.metrics, self.talk = metrics, talk
        self.batcher = Batcher(self.name, self.batching, metrics)
        metrics.info.labels(self.name, self.runtime, self.loaded.deployment.use_case).set(1)
        metrics.stale.labels(self.name).set(0)
        self._tell_loaded()

    async def infer(self, loaded: Loaded, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run tensors; raises RequestError where several inputs disagree in the first axis."""
        rows = {len(array) for array in inputs.values()} if loaded.batchable else {1}
        if len(rows) > 1:
            problem = f"the inputs have {' and '.join(map(str, sorted(rows)))} rows"
            raise RequestError(problem, fix="give every input the same number of rows")
        return await self.batcher.run(loaded, inputs)

    async def predict(self, raw: bytes) -> Any:
        """Give the use case's result for what a file holds; raises RequestError for what it cannot read."""
        loaded, task = self.loaded, self.loaded.task
        if isinstance(task, SparsifyError):
            raise RequestError(task.problem, fix=f"{task.fix}, or send tensors to /infer")
        if task.prepare is None or task.interpret is None:
            problem = f"use case '{loaded.deployment.use_case}' has no pre- and postprocessing"
            raise RequestError(problem, fix="send tensors to /infer")
        # decoding takes long, and leaves the interpreter to others
        sample = await asyncio.to_thread(task.prepare, raw, loaded.deployment)
        check_inputs(sample, loaded.deployment.inputs)
        inputs = {name: np.repeat(array[np.newaxis], loaded.batch or 1, axis=0) for name, array in sample.items()}
        outputs = await self.infer(loaded, inputs)
        rows = {name: array[0] for name, array in outputs.items() if array.ndim}
        return await asyncio.to_thread(task.interpret, rows, loaded.deployment)

    def look(self) -> None:
        """Begin to look at the files, at most once a second, and to load them where they have changed."""
        if self.looking is None and time.monotonic() - self.looked >= CHECK_S:
            self.looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """Work in another thread: a disk may be slow, and a model takes its time to load."""
        try:
            found = await asyncio.to_thread(stamp, self.loaded.deployment.folder, self.loaded.files)
            if found != self.seen:
                self.seen = found
                await self._reload()
        finally:
            self.looking, self.looked = None, time.monotonic()

    async def _reload(self) -> None:
        try:
            loaded = await asyncio.to_thread(self.open_model)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new files, the old model is served
            known = isinstance(error, SparsifyError)
            why = explain(error) if isinstance(error, SparsifyError) else f"{type(error).__name__}: {error}"
            self.problem = why.replace(f"{self.loaded.deployment.folder}/", "")  # clients need not know our folders
            self.metrics.loads.labels(self.name, "refused" if known else "failed").inc()
            self.metrics.stale.labels(self.name).set(1)
            self.talk.warn(f"{self.name}: its files changed and do not load, the old ones are served: {why}")
        else:
            self.loaded, self.seen, self.problem = loaded, loaded.stamp, ""
            self.metrics.stale.labels(self.name).set(0)
            self._tell_loaded()
            self.talk.say(f"{self.name}: loaded its changed files")

    def _tell_loaded(self) -> None:
        self.metrics.loads.labels(self.name, "loaded").inc()
        self.metrics.loaded.labels(self.name).set_to_current_time()

    def close(self) -> None:
        """Let the running batch end, and free the thread."""
        self.batcher.close()
