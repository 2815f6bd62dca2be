"""Read a deployment folder: what evaluation, the pipeline and the server know of a model comes from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.contracts import TensorSpec
from sparsify.errors import RequestError

KEYS: Mapping[str, type] = {"use_case": str, "labels": list, "inputs": list, "outputs": list}


@dataclass(frozen=True)
class Deployment:
    """Hold what a deployment folder says; `preprocess` is None where inputs are used as they are."""

    folder: Path
    use_case: str
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Mapping[str, Any] | None

    @property
    def model(self) -> Path:
        """Return the path of the model."""
        return self.folder / "model.onnx"


def read_deployment(folder: Path) -> Deployment:
    """Read a deployment folder, or the run folder around it; raises RequestError for what is missing or was edited."""
    folder = folder if (folder / "config.json").is_file() else folder / "deployment"
    path = folder / "config.json"
    config = _read(path)
    for key, kind in KEYS.items():
        if not isinstance(config.get(key), kind):
            raise _edited(path, f"'{key}' is missing or no {'text' if kind is str else 'list'}")
    if config.get("schema") != 1:
        raise RequestError(
            f"{path}: schema {config.get('schema')} is not 1", fix="upgrade with `pip install -U sparsify`"
        )
    if not (folder / "model.onnx").is_file():
        raise RequestError(f"{folder} has no model.onnx", fix="copy the whole deployment folder of a finished run")
    labels = tuple(map(str, config["labels"]))
    inputs, outputs = (_specs(config[side], path) for side in ("inputs", "outputs"))
    preprocess = _read(folder / "preprocess.json") if (folder / "preprocess.json").is_file() else None
    return Deployment(folder, config["use_case"], labels, inputs, outputs, preprocess)


def _specs(rows: list[Any], path: Path) -> tuple[TensorSpec, ...]:
    try:
        return tuple(TensorSpec(str(row["name"]), str(row["dtype"]), tuple(row["shape"])) for row in rows)
    except (TypeError, KeyError):
        raise _edited(path, "an input or output lacks its name, dtype or shape") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist", fix="give the deployment folder of a finished run") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is no JSON: {error}", fix="restore the file from the run") from None
    if not isinstance(found, dict):
        raise _edited(path, "it holds no object")
    return found


def _edited(path: Path, what: str) -> RequestError:
    return RequestError(f"{path}: {what}", fix="restore the file from the run")
