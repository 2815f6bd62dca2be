"""Compress a small net on as many samples as asked, and print by how much each step raised the peak of memory.

python -m tests.onnx.growth SAMPLES
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from sparsify import Context, Dataset, Model, Sample
from sparsify.data import spool
from sparsify.evaluation import evaluate_pair
from sparsify_onnx.alone import drifts_alone
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.model_format import FORMAT
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import open_session

from tests.onnx.models import Builder

SIDE = 12


def net() -> onnx.ModelProto:
    b = Builder(0)
    x = b.op("Relu", b.conv("input", 3, 16, name="stem"))
    y = b.op("Relu", b.conv(x, 16, 16, name="left"))
    x = b.op("Relu", b.op("Add", b.conv(y, 16, 16, name="right"), x))
    x = b.op("Relu", b.conv(x, 16, 32, name="wide", strides=[2, 2]))
    return b.model(b.head(x, 32, 10), ("batch", 3, SIDE, SIDE))


def dataset(count: int) -> Dataset:
    """Draw each sample as it is read."""

    def read(key: str) -> Sample:
        noise = np.random.default_rng(int(key)).standard_normal((3, SIDE, SIDE))
        return Sample({"input": noise.astype(np.float32)})

    return Dataset(tuple(map(str, range(count))), read)


def peak_mb() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def measured(name: str, found: dict[str, float]) -> Iterator[None]:
    """Note the highest memory of a step: Linux forgets the peak so far where 5 is written to clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")
    yield
    found[name] = round(peak_mb(), 1)


def main(count: int) -> dict[str, float]:
    found: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(net(), path)
        dense = FORMAT.load(path)
        with measured("spool", found):
            samples = spool(dataset(count), Path(folder) / "samples")
        context = Context(samples, batch_size=8, threads=1)
        steps: dict[str, Callable[[Model], Model]] = {
            "equalize": lambda model: EqualizationModifier().apply(model, context),
            "prune": lambda model: SparseGPTModifier(sparsity=0.5, allocation="macs", round_weights=True).apply(
                model, context
            ),
            "entropy": lambda model: QuantizationModifier(ranges="entropy", learned_rounding=True).apply(
                model, context
            ),
        }
        model = dense
        for name, step in steps.items():
            with measured(name, found):
                model = step(model)
        path = Path(folder) / "int8.onnx"
        FORMAT.save(model, path)
        with measured("evaluate", found):
            evaluate_pair(open_session(Path(folder) / "model.onnx", 1), open_session(path, 1), samples, ())
        with measured("alone", found):
            drifts_alone(dense, model, context)
        with measured("compare", found):
            FORMAT.compare(dense, model, samples, 8, lambda _: {"points": 0.0})
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
