"""Serve a task that Sparsify knows nothing about: samples are the model's own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import Data, Deployment, Description, RequestError, TensorSpec, UnreadableSample, UseCase

from sparsify_npz.archive import read_archive
from sparsify_npz.conform import LABEL, check_keys, show

README = """# {title}

`model.onnx` takes these inputs; the first axis is the batch.

{inputs}

and gives these outputs:

{outputs}

## Run it

`sample.npz` stands for one of your files: one sample, keys are the input names, no batch axis.

```python
import sys

import numpy as np
import onnxruntime

INPUTS = {table}  # name: (dtype, batch size)

path = sys.argv[1] if len(sys.argv) > 1 else "sample.npz"
with np.load(path, allow_pickle=False) as sample:
    feed = {{
        name: np.repeat(sample[name][np.newaxis].astype(dtype), batch, axis=0)
        for name, (dtype, batch) in INPUTS.items()
    }}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
for output, value in zip(session.get_outputs(), session.run(None, feed)):
    print(output.name, value.shape, value[0])
```

    pip install onnxruntime numpy
"""


def check(data: Data, description: Description) -> None:
    """Raise RequestError where a sample does not cover the model's inputs."""
    for name, split in data.splits.items():
        for key in split.keys:
            try:
                sample = split.read(key)
            except UnreadableSample:
                continue  # counted when the split is read
            check_keys(sample.inputs, description.inputs, key)
            break
        else:
            raise RequestError(f"the split '{name}' holds no sample that can be read", fix="add .npz files to it")


def readme(data: Data, description: Description) -> str:
    """Write deployment/README.md with a sample that runs beside model.onnx."""
    return README.format(
        title="A model of a custom use case" if not data.labels else f"A model of {len(data.labels)} classes",
        inputs=_table(description.inputs),
        outputs=_table(description.outputs),
        table=repr({spec.name: (spec.dtype, _batch(spec)) for spec in description.inputs}),
    )


def _batch(spec: TensorSpec) -> int:
    """Return the batch size that a graph was exported with, 1 where it takes any."""
    return spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 1


def _table(specs: tuple[TensorSpec, ...]) -> str:
    rows = [f"| `{spec.name}` | {spec.dtype} | {show(spec.shape)} |" for spec in specs]
    return "\n".join(["| name | dtype | shape |", "|---|---|---|", *rows])


def prepare(raw: Any, deployment: Deployment) -> Mapping[str, NDArray[Any]]:
    """Take one sample: arrays by input name, an NPZ file's path or bytes, or an array where there is one input."""
    if isinstance(raw, str | PathLike | bytes):
        raw = read_archive(raw if isinstance(raw, bytes) else Path(raw))
    elif isinstance(raw, np.ndarray) and len(deployment.inputs) == 1:
        raw = {deployment.inputs[0].name: raw}
    if not isinstance(raw, Mapping):
        names = ", ".join(spec.name for spec in deployment.inputs)
        raise RequestError(f"a sample cannot be {type(raw).__name__}", fix=f"give arrays by input name: {names}")
    return {name: np.asarray(array) for name, array in raw.items() if name != LABEL}


def interpret(outputs: Mapping[str, NDArray[Any]], deployment: Deployment) -> Mapping[str, NDArray[Any]]:
    """Return one sample's outputs as they are."""
    return dict(outputs)


CUSTOM = UseCase(metrics=("accuracy",), check=check, readme=readme, prepare=prepare, interpret=interpret)
