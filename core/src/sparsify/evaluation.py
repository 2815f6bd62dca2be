"""Measure one model on a dataset, or two side by side over the same batches; only records are kept, never outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sparsify.agreement import Records, observe_agreement, summarise_agreement
from sparsify.confidence import Prediction, observe_predictions
from sparsify.contracts import Arrays, Metric, Progress, Session, silent
from sparsify.data import Batch, Dataset
from sparsify.errors import PluginError, RequestError, StageError
from sparsify.intervals import Interval, difference_interval, jackknife, mean_interval


@dataclass(frozen=True)
class Evaluation:
    """Hold a model's metrics by name with their 95 % intervals."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    samples: int


@dataclass(frozen=True)
class Pair:
    """Hold two evaluations over the same samples.

    agreement: `top1` in 0–100, `cosine`, `kl` in nats, None where an output has no classes. drop_intervals: 95 %
    interval, by metric, of how much worse the candidate is, paired by sample; `agreement` is among them. predictions:
    by sample, none where no output scores classes.
    """

    baseline: Evaluation
    candidate: Evaluation
    agreement: Mapping[str, float | None]
    drop_intervals: Mapping[str, Interval]
    predictions: Mapping[str, Prediction]

    @property
    def drop_interval(self) -> Interval:
        """Return that of the deciding metric: the first, or agreement where there are no targets."""
        return next(iter(self.drop_intervals.values()))


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
    with progress("evaluate", len(dataset)) as advance:
        (records,), *_, samples = _observe(
            {"the model": session}, dataset.batches(batch_size, pad=pad), metrics, advance
        )
    return _summarise(metrics, records, samples)


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
    sessions = {"the baseline": baseline, "the optimized model": candidate}
    with progress("evaluate", len(dataset)) as advance:
        batches = dataset.batches(batch_size, pad=pad)
        (before, after), agreement, predictions, samples = _observe(sessions, batches, metrics, advance)
    means, disagreement = summarise_agreement(agreement)
    drops = {metric.name: _drop_interval(metric, before[metric.name], after[metric.name]) for metric in metrics}
    drops["agreement"] = disagreement
    old, new = (_summarise(metrics, records, samples) for records in (before, after))
    return Pair(old, new, means, drops, predictions)


def _observe(
    sessions: Mapping[str, Session], batches: Iterator[Batch], metrics: Sequence[Metric], advance: Callable[[], None]
) -> tuple[list[Records], Records, dict[str, Prediction], int]:
    """Return each model's records by metric, of two how far they agree and what they predict, and the sample count."""
    found: list[Records] = [defaultdict(list) for _ in sessions]
    agreement: Records = defaultdict(list)
    predictions: dict[str, Prediction] = {}
    samples = 0
    for batch in batches:
        outputs = [_checked(session.run(batch.inputs), batch, who) for who, session in sessions.items()]
        for records, own in zip(found, outputs, strict=True):
            for metric in metrics:
                records[metric.name].extend(_records(metric, own, batch))
        if len(outputs) == 2:
            predictions |= zip(batch.keys, observe_predictions(*outputs), strict=False)
            for measure, rows in observe_agreement(*outputs).items():
                agreement[measure].extend(rows)
        for _ in batch.keys:
            samples += 1
            advance()
    if not samples:
        raise RequestError("there are no samples to evaluate on", fix="give a dataset with at least one test sample")
    return found, agreement, predictions, samples


def _records(metric: Metric, outputs: Arrays, batch: Batch) -> Sequence[Any]:
    records = metric.observe(outputs, batch.targets)
    if len(records) != len(batch.keys):
        raise PluginError(
            f"metric '{metric.name}' gave {len(records)} records for {len(batch.keys)} samples",
            fix="its observe(outputs, targets) must return one record a sample",
        )
    return records


def _checked(raw: Arrays, batch: Batch, who: str) -> Arrays:
    """Cut the padding off and refuse NaN and infinity; outputs without a batch axis are left out."""
    import numpy as np

    rows, count = len(next(iter(batch.inputs.values()))), len(batch.keys)
    arrays = {name: array for name, array in raw.items() if isinstance(array, np.ndarray) and array.ndim}
    outputs = {name: array[:count] for name, array in arrays.items() if len(array) == rows}
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


def _summarise(metrics: Sequence[Metric], records: Records, samples: int) -> Evaluation:
    values = {metric.name: _value(metric, records[metric.name]) for metric in metrics}
    return Evaluation(values, {metric.name: _interval(metric, records[metric.name]) for metric in metrics}, samples)


def _value(metric: Metric, records: Sequence[Any]) -> float:
    return float(metric.reduce(records) if metric.reduce else 100 * fmean(records))


def _interval(metric: Metric, records: Sequence[Any]) -> Interval:
    import numpy as np

    if metric.reduce is None:
        return mean_interval(np.asarray(records, np.float64))
    low, high = jackknife(len(records), lambda chosen: _value(metric, [records[index] for index in chosen]))
    return (max(low, 0.0), min(high, 100.0)) if metric.higher_is_better else (low, high)  # a rate


def _drop_interval(metric: Metric, before: Sequence[Any], after: Sequence[Any]) -> Interval:
    """Bound by how much the metric got worse, paired by sample."""
    import numpy as np

    old, new = (before, after) if metric.higher_is_better else (after, before)
    if metric.reduce is None:
        return difference_interval(np.asarray(old, np.float64), np.asarray(new, np.float64))

    def drop(chosen: Sequence[int]) -> float:
        return _value(metric, [old[index] for index in chosen]) - _value(metric, [new[index] for index in chosen])

    return jackknife(len(old), drop)
