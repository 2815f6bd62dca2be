"""Write deployment/README.md: its sample is the source of `pixels.py`, so both make the same tensors bit for bit."""

from __future__ import annotations

import inspect
from string import Template

from sparsify import Data, Description

from sparsify_image_classification import pixels
from sparsify_image_classification.preprocessing import summarize

PAGE = Template("""\
# Image classifier

`model.onnx` takes `$input` and gives `$output`$classes.

| file | what |
|---|---|
| `model.onnx` | the optimized model |
$files| `config.json` | labels in the order of class ids, inputs and outputs |

$preprocessing
## Run it

    pip install $packages

Save this as `sample.py` in this folder and run `$command`.

```python
$sample```
""")

IMAGE_SAMPLE = Template("""\
from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps


$functions

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    description = json.loads((here / "preprocess.json").read_text(encoding="utf-8"))
    labels = json.loads((here / "config.json").read_text(encoding="utf-8"))["labels"]
    session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
    for name in sys.argv[1:]:
        with Image.open(name) as image:
            batch = preprocess(description, image)[None]
        scores = session.run(None, {session.get_inputs()[0].name: batch})[0].ravel()
        best = int(scores.argmax())
        print(name, labels[best], scores[best])
""")

NPZ_SAMPLE = """\
import sys
from pathlib import Path

import numpy as np
import onnxruntime

if __name__ == "__main__":
    model = Path(__file__).resolve().parent / "model.onnx"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for name in sys.argv[1:]:
        with np.load(name, allow_pickle=False) as sample:
            batch = {spec.name: sample[spec.name][None] for spec in session.get_inputs()}
        scores = session.run(None, batch)[0].ravel()
        print(name, int(scores.argmax()), scores.max())
"""


ABOUT = Template("""\
Preprocessing: $steps.
`preprocess.json` holds it as data; the sample below executes it with the code that calibrated and tested this model.
Another image library makes other pixels, as decoders and resizing differ: measure again if you change it.
""")
ABOUT_NPZ = "The input is used as it is: one NPZ file a sample, without a batch axis.\n"


def readme(data: Data, description: Description) -> str:
    """Write the page for image data, or for NPZ data where there is no preprocessing to ship."""
    image = data.preprocess is not None
    return PAGE.substitute(
        input=", ".join(spec.name for spec in description.inputs),
        output=description.outputs[0].name,
        classes=f", one score for each of {len(data.labels)} classes" if data.labels else "",
        files="| `preprocess.json` | how an image becomes the input |\n" if image else "",
        preprocessing=ABOUT_NPZ if data.preprocess is None else ABOUT.substitute(steps=summarize(data.preprocess)),
        packages="numpy onnxruntime" + (" pillow" if image else ""),
        command=f"python sample.py {'photo.jpg' if image else 'sample.npz'}",
        sample=image_sample() if image else NPZ_SAMPLE,
    )


def image_sample() -> str:
    """Return the sample: the functions of `pixels.py` between its imports and a main part."""
    source = inspect.getsource(pixels)
    return IMAGE_SAMPLE.substitute(functions=source[source.index("def preprocess(") :])
