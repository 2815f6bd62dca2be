"""Run a deployment folder on raw inputs: `Pipeline.create("image-classification", "deployment/")(["photo.jpg"])`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from sparsify.contracts import Arrays, Session, TensorSpec, UseCase, fixed_batch
from sparsify.data import Dataset, Sample
from sparsify.deployment import Deployment, read_deployment
from sparsify.errors import RequestError, UnreadableSample
from sparsify.formats import fit, load_runtime
from sparsify.pipeline import BATCH
from sparsify.plugins import Plugins, load_plugins, load_target
from sparsify.use_cases import resolve_use_case

Prepare = Callable[[Any, Deployment], Arrays]
Interpret = Callable[[Arrays, Deployment], Any]


@dataclass(eq=False)
class Pipeline(AbstractContextManager["Pipeline"]):
    """Turn raw inputs into typed results, in batches; close it, or use it in a `with` block.

    What raw inputs and results are is the use case's: paths, PIL images or arrays become `Classification`s in image
    classification, mappings of arrays become mappings of arrays in a custom use case.
    """

    deployment: Deployment
    prepare: Prepare
    interpret: Interpret
    session: Session
    batch_size: int
    fitted: ExitStack

    @classmethod
    def create(
        cls,
        use_case: str,
        deployment: str | Path,
        *,
        runtime: str = "onnxruntime",
        batch_size: int = BATCH,
        threads: int = 0,
        plugins: Plugins | None = None,
    ) -> Pipeline:
        """Open a deployment folder on a runtime; raises RequestError where it serves another use case."""
        plugins, found = plugins or load_plugins(), read_deployment(Path(deployment))
        choice, own = (resolve_use_case(name, plugins, "one-shot") for name in (use_case, found.use_case))
        if choice.name != own.name:
            problem = f"{found.folder} serves '{own.name}', not '{choice.name}'"
            raise RequestError(problem, fix=f'use Pipeline.create("{own.name}", …)')
        task: UseCase = load_target(choice.offer)
        if task.prepare is None or task.interpret is None:
            problem = f"use case '{choice.name}' of {choice.offer.plugin.distribution} has no pre- and postprocessing"
            raise RequestError(problem, fix="run the sample in the folder's README.md")
        opener, size = load_runtime(runtime, plugins), fixed_batch(found.inputs) or batch_size
        with ExitStack() as fitted:
            folder = fitted.enter_context(TemporaryDirectory(prefix="sparsify-"))
            session = opener(fit(found.model, runtime, plugins, Path(folder)), threads)
            return cls(found, task.prepare, task.interpret, session, size, fitted.pop_all())

    def __call__(self, raw: Any) -> Any:
        """Give one result for one raw input, a list of results for a list or tuple of them.

        Raises RequestError for an input that cannot be read or does not fit, StageError where the runtime fails.
        """
        several = isinstance(raw, list | tuple)
        results = list(self.stream(raw if several else [raw]))
        return results if several else results[0]

    def stream(self, raw: Sequence[Any]) -> Iterator[Any]:
        """Yield the results one after the other, holding one batch at a time."""
        batches = Dataset(tuple(map(str, range(len(raw)))), lambda key: self._prepare(raw[int(key)]))
        for batch in batches.batches(self.batch_size, pad=fixed_batch(self.deployment.inputs) is not None):
            rows = len(next(iter(batch.inputs.values())))
            found = self.session.run(batch.inputs)
            outputs = {name: array for name, array in found.items() if array.ndim and len(array) == rows}
            for row in range(len(batch.keys)):
                yield self.interpret({name: array[row] for name, array in outputs.items()}, self.deployment)

    def _prepare(self, raw: Any) -> Sample:
        try:
            inputs = self.prepare(raw, self.deployment)
        except UnreadableSample as error:  # which a dataset would leave out, and the results shift by one
            raise RequestError(error.problem, fix=error.fix) from error
        check_inputs(inputs, self.deployment.inputs)
        return Sample(inputs)

    def close(self) -> None:
        """Free the model's threads and memory."""
        self.session.close()
        self.fitted.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(inputs: Arrays, specs: Sequence[TensorSpec]) -> None:
    """Compare one sample's arrays with what the model takes; raises RequestError naming input, found and expected."""
    names = [spec.name for spec in specs]
    if sorted(inputs) != sorted(names):
        problem = f"a sample has {', '.join(sorted(inputs)) or 'no arrays'}, the model takes {', '.join(names)}"
        raise RequestError(problem, fix="give one array for each input, under its name")
    for spec in specs:
        found, wanted = inputs[spec.name], spec.shape[1:]
        fits = len(found.shape) == len(wanted) and all(
            side == own or not isinstance(side, int) for side, own in zip(wanted, found.shape, strict=True)
        )
        if not fits or str(found.dtype) != spec.dtype:
            shown = "×".join("?" if side is None else str(side) for side in wanted) or "one number"
            raise RequestError(
                f"input '{spec.name}' is {found.dtype} {'×'.join(map(str, found.shape)) or 'one number'}, "
                f"the model takes {spec.dtype} {shown}",
                fix="give samples without a batch axis, in the model's type",
            )
