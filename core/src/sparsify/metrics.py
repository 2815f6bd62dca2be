"""The metric of any classifier, and a user's own function as a metric."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from sparsify.contracts import Array, Arrays, Metric
from sparsify.errors import PluginError, RequestError


def class_scores(outputs: Arrays, *, ids: bool = True) -> Array:
    """Return the output that scores classes, as (samples, classes), or, with `ids`, class ids as (samples,).

    It is the only output that fits; of several the one named *logits*, else the first, as exporters put auxiliary
    outputs behind it; scores go before ids. Raises RequestError where none fits.
    """
    scores, numbers = {}, {}
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.ndim > 1 and 1 < max(array.shape[1:]) == array[:1].size:
            scores[name] = array.reshape(len(array), -1)  # (N, C), or (N, C, 1, 1) of a fully convolutional model
        elif ids and array.dtype.kind in "iu" and array.size == len(array):
            numbers[name] = array.reshape(-1)  # the graph ends in ArgMax
    fitting = scores or numbers
    if not fitting:
        shapes = ", ".join(f"'{name}' {array.dtype} {array.shape}" for name, array in outputs.items())
        raise RequestError(
            f"no output scores classes: expected (samples, classes), found {shapes}",
            fix="give --eval-metric package.module:function, or data without labels (then agreement decides)",
        )
    return fitting[next((name for name in fitting if "logits" in name.lower()), next(iter(fitting)))]


def class_ids(targets: Sequence[Any], scores: Array) -> Array:
    """Return the targets as class ids that these scores can have; raises RequestError for any other."""
    import numpy as np

    ids = np.asarray(targets)
    if ids.dtype.kind not in "iub" or ids.size != len(targets):
        raise RequestError(
            f"targets are class ids, one integer a sample; found {ids.dtype} of shape {ids.shape[1:]}",
            fix="store the label as one integer, or give --eval-metric package.module:function",
        )
    ids = ids.reshape(-1).astype(np.int64)
    classes = scores.shape[1] if scores.ndim == 2 else np.iinfo(np.int64).max
    wrong = ids[(ids < 0) | (ids >= classes)]
    if len(wrong):
        raise RequestError(
            f"target {wrong[0]} is outside the model's {classes} classes (0 to {classes - 1})",
            fix="number classes from 0 as the model does, or give --class-list FILE",
        )
    return ids


def _top1(outputs: Arrays, targets: Sequence[Any]) -> list[bool]:
    scores = class_scores(outputs)
    predicted = scores.argmax(axis=1) if scores.ndim == 2 else scores
    return [bool(hit) for hit in predicted == class_ids(targets, scores)]


ACCURACY = Metric("accuracy", _top1)


def function_metric(spec: str) -> Metric:
    """Make a metric of `package.module:function`, where f(outputs, targets) gives one number in 0–1 a sample.

    outputs maps names to arrays whose first axis is the samples. Raises RequestError where there is no such function,
    and PluginError, while measuring, where it raises or returns anything else.
    """
    import numpy as np

    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module or "."), name, None)
    except Exception as error:  # a user's module may raise anything
        raise RequestError(
            f"--eval-metric {spec}: importing '{module}' failed: {type(error).__name__}: {error}",
            fix="run where the module can be imported, for example with PYTHONPATH=. in front",
        ) from error
    if not inspect.isroutine(function):
        problem = f"--eval-metric {spec}: {module} has no function '{name}'"
        raise RequestError(problem, fix=f"define {name}(outputs, targets) there")

    def observe(outputs: Arrays, targets: Sequence[Any]) -> list[float]:
        try:
            numbers = np.asarray(function(outputs, targets), dtype=np.float64)
        except Exception as error:  # and so may the function
            raise PluginError(
                f"--eval-metric {spec} failed: {type(error).__name__}: {error}",
                fix=f"mend {spec}, or run again with --debug for the traceback",
            ) from error
        wrong = numbers[~((numbers >= 0) & (numbers <= 1))]  # NaN among them
        if numbers.shape == (len(targets),) and not len(wrong):
            return [float(number) for number in numbers]
        found = f"{wrong[0]:g}" if numbers.shape == (len(targets),) else f"shape {numbers.shape}"
        raise PluginError(
            f"--eval-metric {spec} returned {found}, expected {len(targets)} numbers from 0 to 1",
            fix="return a list with one number from 0 to 1 for each sample of the batch",
        )

    return Metric(spec, observe)
