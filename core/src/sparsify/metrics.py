"""The metrics of plain classifiers, and a user's own function as a metric."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sparsify.contracts import Metric
from sparsify.errors import PluginError, RequestError, SparsifyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsify.contracts import Arrays


def class_scores(outputs: Arrays) -> NDArray[Any]:
    """Return the output that scores classes, as (samples, classes), or a model's own class ids as (samples,).

    It is the only output that fits; of several the one named *logits*, else the first, as exporters put auxiliary
    outputs behind it. Raises RequestError where none fits.
    """
    fitting = {name: flat for name, array in outputs.items() if (flat := _flat(array)) is not None}
    scores = {name: flat for name, flat in fitting.items() if flat.ndim == 2} or fitting
    if not scores:
        shapes = ", ".join(f"'{name}' {array.dtype} {array.shape}" for name, array in outputs.items())
        raise RequestError(
            f"no output scores classes: expected (samples, classes), found {shapes}",
            fix="give --eval-metric package.module:function, or data without labels (then agreement decides)",
        )
    named = [name for name in scores if "logits" in name.lower()]
    return scores[named[0] if named else next(iter(scores))]


def _flat(array: NDArray[Any]) -> NDArray[Any] | None:
    """Drop axes of length 1 behind the samples; None where the rest scores no classes."""
    kept = [size for size in array.shape[1:] if size != 1]
    if array.dtype.kind == "f" and len(kept) == 1:
        return array.reshape(len(array), kept[0])
    if array.dtype.kind in "iu" and array.ndim > 0 and not kept:
        return array.reshape(len(array))
    return None


def _class_ids(targets: Sequence[Any], classes: int | None) -> NDArray[Any]:
    import numpy as np

    ids = np.asarray(targets)
    ids = ids.reshape(len(targets), -1) if len(targets) else ids.reshape(0, 1)
    if ids.dtype.kind not in "iub" or ids.shape[1] != 1:
        raise RequestError(
            f"targets are class ids, one integer a sample; found {ids.dtype} of {ids.shape[1]} values",
            fix="store the label as one integer, or give --eval-metric package.module:function",
        )
    ids = ids[:, 0].astype(np.int64)
    if classes is not None and ((ids < 0) | (ids >= classes)).any():
        wrong = int(ids[(ids < 0) | (ids >= classes)][0])
        raise RequestError(
            f"target {wrong} is outside the model's {classes} classes (0 to {classes - 1})",
            fix="number classes from 0 as the model does, or give --class-list FILE",
        )
    return ids


def _predicted(outputs: Arrays, targets: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    scores = class_scores(outputs)
    if scores.ndim == 1:  # the graph ends in ArgMax
        return scores, _class_ids(targets, None)
    return scores.argmax(axis=1), _class_ids(targets, scores.shape[1])


def _top1(outputs: Arrays, targets: Sequence[Any]) -> Sequence[Any]:
    predicted, ids = _predicted(outputs, targets)
    hits: list[bool] = (predicted == ids).tolist()
    return hits


def _top5(outputs: Arrays, targets: Sequence[Any]) -> Sequence[Any]:
    import numpy as np

    scores = class_scores(outputs)
    if scores.ndim == 1:
        raise RequestError("metric 'top5' needs scores of classes, found class ids", fix="use --eval-metric accuracy")
    ids = _class_ids(targets, scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits: list[bool] = (best == ids[:, None]).any(axis=1).tolist()
    return hits


def _pairs(outputs: Arrays, targets: Sequence[Any]) -> Sequence[Any]:
    predicted, ids = _predicted(outputs, targets)
    return list(zip(predicted.tolist(), ids.tolist(), strict=True))


def _counts(records: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Count by class: right predictions, all predictions, all targets."""
    import numpy as np

    pairs = np.asarray(records, dtype=np.int64)
    _, ids = np.unique(pairs, return_inverse=True)
    predicted, true = ids.reshape(pairs.shape).T
    classes = int(ids.max()) + 1
    right = np.bincount(true[predicted == true], minlength=classes)
    return right, np.bincount(predicted, minlength=classes), np.bincount(true, minlength=classes)


def _macro_f1(records: Sequence[Any]) -> float:
    right, predicted, true = _counts(records)
    return 100 * float((2 * right / (predicted + true)).mean())


def _macro_recall(records: Sequence[Any]) -> float:
    right, _, true = _counts(records)
    return 100 * float((right[true > 0] / true[true > 0]).mean())


ACCURACY = Metric("accuracy", _top1)
TOP5 = Metric("top5", _top5)
F1 = Metric("f1", _pairs, _macro_f1)  # over classes that occur among targets or predictions
RECALL = Metric("recall", _pairs, _macro_recall)  # over classes that occur among targets


def function_metric(spec: str) -> Metric:
    """Make a metric of `package.module:function`, where f(outputs, targets) gives one number in 0–1 a sample.

    outputs maps names to arrays whose first axis is the samples. Raises RequestError where there is no such function,
    and PluginError, while measuring, where it raises or returns anything else.
    """
    function = _import_function(spec)

    def observe(outputs: Arrays, targets: Sequence[Any]) -> Sequence[Any]:
        try:
            result = function(outputs, targets)
        except SparsifyError:
            raise
        except Exception as error:
            raise PluginError(
                f"--eval-metric {spec} failed: {type(error).__name__}: {error}",
                fix=f"mend {spec}, or run again with --debug for the traceback",
            ) from error
        return _checked(spec, result, len(targets))

    return Metric(spec, observe)


def _import_function(spec: str) -> Callable[..., Any]:
    module, colon, name = spec.partition(":")
    if not (colon and module and name):
        raise RequestError(
            f"--eval-metric {spec} is not of the form package.module:function", fix="write for example my_metrics:score"
        )
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise RequestError(
            f"--eval-metric {spec}: importing {module} failed: {type(error).__name__}: {error}",
            fix="run where the module can be imported, for example with PYTHONPATH=. in front",
        ) from error
    if not callable(function) or inspect.isclass(function):
        raise RequestError(
            f"--eval-metric {spec}: {module} has no function '{name}'", fix=f"define {name}(outputs, targets) there"
        )
    found: Callable[..., Any] = function
    return found


def _checked(spec: str, result: Any, samples: int) -> list[float]:
    import numpy as np

    fix = f"return a list of {samples} numbers from 0 to 1, one for each sample of the batch"
    try:
        numbers = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise PluginError(f"--eval-metric {spec} returned {type(result).__name__}, expected numbers", fix=fix) from None
    if numbers.shape != (samples,):
        raise PluginError(
            f"--eval-metric {spec} returned shape {numbers.shape} for {samples} samples, expected ({samples},)", fix=fix
        )
    if not ((numbers >= 0) & (numbers <= 1)).all():  # NaN fails this too
        wrong = float(numbers[~((numbers >= 0) & (numbers <= 1))][0])
        raise PluginError(f"--eval-metric {spec} returned {wrong:g}, expected numbers from 0 to 1", fix=fix)
    records: list[float] = numbers.tolist()
    return records
