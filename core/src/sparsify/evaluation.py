"""Measure one model on a dataset, or two side by side over the same batches; only records are kept, never outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sparsify.agreement import Records, observe_agreement, summarise_agreement
from sparsify.contracts import Metric, Progress, Session, silent
from sparsify.errors import PluginError, RequestError, StageError
from sparsify.intervals import Interval, difference_interval, jackknife, mean_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsify.data import Batch, Dataset

    Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """Hold a model's metrics by name with their 95 % intervals; `seconds` were spent inside the session."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    samples: int
    seconds: float


@dataclass(frozen=True)
class Pair:
    """Hold two evaluations over the same samples.

    agreement: `top1` in 0–100, `cosine`, `kl` in nats, None where an output has no classes. drop_intervals: 95 %
    interval, by metric, of how much worse the candidate is, paired by sample; `agreement` is among them.
    """

    baseline: Evaluation
    candidate: Evaluation
    agreement: Mapping[str, float | None]
    drop_intervals: Mapping[str, Interval]

    @property
    def drop_interval(self) -> Interval:
        """Return that of the deciding metric: the first, or agreement where there are no targets."""
        return next(iter(self.drop_intervals.values()))


@dataclass
class _Observed:
    """Gather one model's records while batches pass."""

    who: str
    session: Session
    records: dict[str, list[Any]] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0

    def run(self, batch: Batch, metrics: Sequence[Metric]) -> Outputs:
        started = perf_counter()
        raw = self.session.run(batch.inputs)
        self.seconds += perf_counter() - started
        outputs = _checked(raw, batch, self.who)
        self.samples += len(batch.keys)
        for metric in metrics:
            records = metric.observe(outputs, batch.targets)
            if len(records) != len(batch.keys):
                raise PluginError(
                    f"metric '{metric.name}' gave {len(records)} records for {len(batch.keys)} samples",
                    fix="its observe(outputs, targets) must return one record a sample",
                )
            self.records.setdefault(metric.name, []).extend(records)
        return outputs

    def summary(self, metrics: Sequence[Metric]) -> Evaluation:
        found = {metric.name: _summarise(metric, self.records[metric.name]) for metric in metrics}
        values = {name: value for name, (value, _) in found.items()}
        return Evaluation(values, {name: bounds for name, (_, bounds) in found.items()}, self.samples, self.seconds)


def evaluate(
    session: Session,
    dataset: Dataset,
    metrics: Sequence[Metric],
    batch_size: int = 8,
    pad: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Run a dataset through a session and measure it.

    pad fills the last batch, for models of a fixed batch size; the padding never reaches a metric. Raises RequestError
    for an empty dataset, StageError for NaN or infinity among the outputs, naming output and sample.
    """
    observed = _Observed("the model", session)
    _pass_through([observed], dataset.batches(batch_size, pad=pad), len(dataset), metrics, progress)
    return observed.summary(metrics)


def evaluate_pair(
    baseline: Session,
    candidate: Session,
    dataset: Dataset,
    metrics: Sequence[Metric],
    batch_size: int = 8,
    pad: bool = False,
    progress: Progress = silent,
) -> Pair:
    """Measure two models over the same batches in one pass, and how far they agree; raises as `evaluate` does."""
    before, after = _Observed("the baseline", baseline), _Observed("the optimized model", candidate)
    batches = dataset.batches(batch_size, pad=pad)
    means, disagreement = summarise_agreement(_pass_through([before, after], batches, len(dataset), metrics, progress))
    drops = {metric.name: _drop_interval(metric, before.records, after.records) for metric in metrics}
    return Pair(before.summary(metrics), after.summary(metrics), means, {**drops, "agreement": disagreement})


def _pass_through(
    models: Sequence[_Observed], batches: Iterator[Batch], total: int, metrics: Sequence[Metric], progress: Progress
) -> Records:
    """Run every batch through the models; return the records of how far two of them agree."""
    agreement: Records = {}
    with progress("evaluate", total) as advance:
        for batch in batches:
            outputs = [model.run(batch, metrics) for model in models]
            if len(outputs) == 2:
                for name, records in observe_agreement(*outputs).items():
                    agreement.setdefault(name, []).extend(records)
            for _ in batch.keys:
                advance()
    if not models[0].samples:
        raise RequestError("there are no samples to evaluate on", fix="give a dataset with at least one test sample")
    return agreement


def _checked(raw: Mapping[str, NDArray[Any]], batch: Batch, who: str) -> Outputs:
    """Cut the padding off and refuse NaN and infinity; outputs without a batch axis are left out."""
    import numpy as np

    rows, count = len(next(iter(batch.inputs.values()))), len(batch.keys)
    outputs = {
        name: array[:count]
        for name, array in raw.items()
        if isinstance(array, np.ndarray) and array.ndim > 0 and len(array) == rows
    }
    if not outputs:
        shapes = ", ".join(f"'{name}' {np.shape(array)}" for name, array in raw.items())
        raise StageError(
            f"no output of {who} has the batch of {rows} as its first axis: {shapes}",
            fix="export the model with the batch as the first axis of its outputs",
        )
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            finite = np.isfinite(array).reshape(count, -1).all(axis=1)
            raise StageError(
                f"output '{name}' of {who} holds NaN or infinity for sample '{batch.keys[int(finite.argmin())]}'",
                fix="check that sample and the preprocessing; if only the optimized model fails, lower --optim-level",
            )
    return outputs


def _summarise(metric: Metric, records: list[Any]) -> tuple[float, Interval]:
    import numpy as np

    reduce = metric.reduce
    if reduce is None:
        numbers = np.asarray(records, dtype=np.float64)
        return 100 * float(numbers.mean()), mean_interval(numbers)
    low, high = jackknife(len(records), lambda chosen: reduce(_pick(records, chosen)))
    if metric.higher_is_better:  # a rate
        low, high = max(low, 0.0), min(high, 100.0)
    return float(reduce(records)), (low, high)


def _drop_interval(metric: Metric, before: Mapping[str, list[Any]], after: Mapping[str, list[Any]]) -> Interval:
    """Bound by how much the metric got worse, paired by sample."""
    import numpy as np

    old, new = before[metric.name], after[metric.name]
    if not metric.higher_is_better:
        old, new = new, old
    reduce = metric.reduce
    if reduce is None:
        return difference_interval(np.asarray(old, np.float64), np.asarray(new, np.float64))
    return jackknife(len(old), lambda chosen: reduce(_pick(old, chosen)) - reduce(_pick(new, chosen)))


def _pick(records: list[Any], chosen: Sequence[int]) -> list[Any]:
    return [records[index] for index in chosen]
