"""The embedded default: scikit-learn's handwritten digits and a network trained on them by `train_digits.py`."""

from __future__ import annotations

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

PREPROCESS = {
    "schema": 1,
    "color": "L",
    "resize": [8, 8],
    "divide_by": 255,
    "mean": [0.3056],  # of the 1,195 training digits
    "std": [0.3760],
}
app = typer.Typer(rich_markup_mode=None, add_completion=False)


def write_demo(folder: Path) -> tuple[Path, Path]:
    """Write the model with its preprocessing, and the digits as an image folder; returns the paths of both.

    The images are 8 x 8, 8-bit grey: the data's 0..16 times 255/16, rounded, which is one to one.
    """
    model, data = folder / "digits.onnx", folder / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    bundled = files("sparsify_image_classification") / "digits"
    with as_file(bundled / "digits.onnx") as source:
        shutil.copyfile(source, model)
    (folder / "preprocess.json").write_text(json.dumps(PREPROCESS, indent=2) + "\n", encoding="utf-8")
    with as_file(bundled / "digits.npz") as source, np.load(source, allow_pickle=False) as digits:
        images = np.round(digits["images"] * (255 / 16)).astype(np.uint8)
        labels, held_out = digits["labels"].tolist(), digits["held_out"].tolist()
    for index, (image, label, held) in enumerate(zip(images, labels, held_out, strict=True)):
        place = data / ("val" if held else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:04d}.png")
    return model, data


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for the model, the digits and the run")] = Path("sparsify-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="print metrics.json on stdout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say only warnings and errors")] = False,
) -> None:
    """Make the bundled digits network smaller and faster, and verify it; no network, no data of your own."""
    from sparsify import one_shot, show_result

    model, data = write_demo(output)
    result = one_shot(
        model=model,
        data=data,
        use_case="image-classification",
        calibration_samples=256,  # of 8 x 8 pixels: more take longer and change nothing
        working_dir=output,
        quiet=quiet or as_json,
    )
    show_result(result.metrics, as_json=as_json, quiet=quiet)
    raise typer.Exit(result.exit_code)
