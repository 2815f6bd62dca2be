"""The run folder of DESIGN §6: made, resumed, and written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sparsify.contracts import Array, Arrays
from sparsify.errors import RequestError

if TYPE_CHECKING:
    from sparsify.experiment import Experiment

PREFIX = "array "
STATE = ".state"  # unfinished work; removed when the run is done


class RunFolder:
    """Name the places inside a run folder."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.deployment: Final = path / "deployment"  # what is shipped
        self.model: Final = self.deployment / "model.onnx"
        self.training: Final = path / "training_artifacts"  # checkpoints and logs of kinds that train
        self.state: Final = path / STATE
        self.experiment: Final = path / "experiment.yaml"  # the resolved request
        self.metrics: Final = path / "metrics.json"  # only a finished run has it
        self.measurements: Final = DiskCheckpoint(path / "measurements")  # measured times, which stay

    def checkpoint(self, name: str) -> DiskCheckpoint:
        """Return the store of one modifier's finished layers."""
        return DiskCheckpoint(self.state / _safe(name))


def plan_folder(experiment: Experiment, use_case: str, *, resume: bool) -> RunFolder:
    """Choose the run folder without writing; raises RequestError where it would write over something."""
    chosen = Path(experiment.output) if experiment.output else None
    if chosen is None and resume:
        chosen = _latest(Path(experiment.working_dir), f"{experiment.kind}_{_safe(use_case)}_")
    if chosen is None:
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        chosen = Path(experiment.working_dir) / f"{experiment.kind}_{_safe(use_case)}_{stamp}"
    if chosen.exists() and not chosen.is_dir():
        raise RequestError(f"--output: {chosen} is a file", fix="give a folder that does not exist yet")
    folder = RunFolder(chosen)
    holds_run = folder.experiment.is_file()
    if resume and not holds_run:
        raise RequestError(f"--resume: {chosen} holds no run", fix="leave --resume out, or name the run's folder")
    if chosen.exists() and any(chosen.iterdir()) and not resume:
        fix = "add --resume to go on with it, or give another folder" if holds_run else "give an empty or a new folder"
        raise RequestError(f"--output: {chosen} is not empty", fix=fix)
    return folder


def _latest(root: Path, prefix: str) -> Path:
    runs = sorted(path for path in root.glob(f"{prefix}*") if (path / "experiment.yaml").is_file())
    if not runs:
        raise RequestError(f"--resume: no run {prefix}* in {root}", fix="name the run's folder with --output")
    return runs[-1]


def check_resumable(folder: RunFolder, request: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was asked for differently; raises RequestError."""
    import yaml

    recorded = yaml.safe_load(folder.experiment.read_text(encoding="utf-8"))["request"]
    for name, value in request.items():
        if name not in ("output", "working_dir") and recorded.get(name) != value:
            raise RequestError(
                f"--resume: {folder.path} was run with {name} = {recorded.get(name)!r}, not {value!r}",
                fix=f"give the recorded options again (see {folder.experiment}), or start in a new folder",
            )


def _safe(name: str) -> str:
    """Make a name fit for a folder, distinct where two names would become one."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return safe if safe == name and len(safe) <= 60 else f"{safe[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_atomic(path: Path, content: str | bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file so that a killed run leaves either the old or the new one; with `sync`, a lost power supply too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is a bug and raises ValueError."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML atomically, keys in the order given."""
    import yaml

    write_atomic(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110))


@dataclass(frozen=True)
class DiskCheckpoint:
    """Keep arrays in one NPZ file a name."""

    folder: Path

    def load(self, name: str) -> dict[str, Array] | None:
        """Return the arrays saved under `name`, or None."""
        path = self.folder / f"{_safe(name)}.npz"
        return read_arrays(path) if path.is_file() else None

    def save(self, name: str, arrays: Arrays) -> None:
        """Write arrays atomically under `name`."""
        write_arrays(self.folder / f"{_safe(name)}.npz", arrays)


def write_arrays(path: Path, arrays: Arrays, *, sync: bool = True) -> None:
    """Write named arrays to an NPZ file atomically; names are prefixed, for `numpy.savez` keeps some to itself."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    prefixed: Any = {f"{PREFIX}{name}": array for name, array in arrays.items()}
    np.savez(buffer, **prefixed)
    write_atomic(path, buffer.getbuffer(), sync=sync)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read what `write_arrays` wrote."""
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name.removeprefix(PREFIX): arrays[name] for name in arrays.files}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
