"""Load a deployment so that nothing done to its files later reaches the loaded model."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import (
    Deployment,
    Plugins,
    RequestError,
    Session,
    SparsifyError,
    StageError,
    UseCase,
    fixed_batch,
    load_target,
    read_deployment,
    resolve_use_case,
)

from sparsify_serve.datatypes import check_types, is_batchable

OpenSession = Callable[[Path, int], Session]
Stamp = frozenset[tuple[str, int, int, int]]  # path, time, size and inode of each file
Arrays = dict[str, NDArray[Any]]


@dataclass(eq=False)
class Loaded:
    """Hold a loaded deployment; its session closes when the last request that uses it is answered.

    task: how its use case reads raw inputs, or the error that says why it cannot. known_good: inputs that ran.
    """

    deployment: Deployment
    session: Session
    files: tuple[Path, ...]
    stamp: Stamp
    task: UseCase | SparsifyError
    batch: int | None = None  # the one that the model prescribes
    batchable: bool = False
    known_good: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.session.close)


def load(folder: Path, open_session: OpenSession, threads: int, plugins: Plugins) -> Loaded:
    """Open a deployment in a session of its own, and run it once.

    Raises RequestError for missing, edited or changing files, StageError where the runtime cannot open or run it.
    """
    home = read_deployment(folder).folder
    first = stamp(home)
    deployment = read_deployment(folder)  # again: what is read from here on is what the stamp stands for
    check_types(deployment)
    files = tuple(plugins.load("model_loaders", "onnx").files(deployment.model))
    before = stamp(home, files)
    session = open_privately(deployment.model, files, open_session, threads)
    loaded = Loaded(deployment, session, files, before, find_task(deployment, plugins), fixed_batch(deployment.inputs))
    loaded.batchable = is_batchable(deployment) and not session.facts.get("static_shapes", False)
    if not first <= before == stamp(home, files):
        raise RequestError(f"{deployment.folder} changed while it was read", fix="wait until the copy is complete")
    warm_up(loaded)
    return loaded


def stamp(folder: Path, files: Sequence[Path] = ()) -> Stamp:
    """Return what tells one state of a folder, and of files elsewhere, from another; hidden files do not count."""
    listed = (Path(home, name) for home, _, names in os.walk(folder) for name in names if not name.startswith("."))
    return frozenset(found for file in {*files, *listed} if (found := _stamp(file)))


def _stamp(file: Path) -> tuple[str, int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return str(file), found.st_mtime_ns, found.st_size, found.st_ino


def open_privately(model: Path, files: Sequence[Path], open_session: OpenSession, threads: int) -> Session:
    """Open a session that no later write to the files can reach.

    Runtimes read a model file as a whole, but map external data (ONNX Runtime since 1.12, OpenVINO), so that a write
    to it would change the weights of a running model, or end the process with SIGBUS: such a model is opened from a
    copy, whose files are removed at once and live on in the mapping.
    """
    if len(files) == 1:
        return open_session(model, threads)
    with tempfile.TemporaryDirectory(prefix="sparsify-serve-") as folder:
        try:
            _copy(model, files, Path(folder))
        except OSError as error:
            problem = f"{model} cannot be copied to {tempfile.gettempdir()}: {error.strerror or error}"
            raise StageError(problem, fix="set TMPDIR to a folder with space for its external data") from None
        return open_session(Path(folder) / model.name, threads)


def _copy(model: Path, files: Sequence[Path], folder: Path) -> None:
    """Copy a model's files; its external data may lie beside a link to the model or beside the model itself."""
    for file in files:
        home = model.parent if model.parent in file.parents else model.resolve().parent
        target = folder / file.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def find_task(deployment: Deployment, plugins: Plugins) -> UseCase | SparsifyError:
    """Find how raw inputs are read, or the error that says why they cannot be; tensors are served all the same."""
    try:
        task: UseCase = load_target(resolve_use_case(deployment.use_case, plugins, "one-shot").offer)
    except SparsifyError as error:
        return error
    return task


def warm_up(loaded: Loaded) -> None:
    """Run zeros once, which become the known good inputs.

    Raises StageError where a model of given shapes fails, RequestError where its outputs are others.
    """
    specs = loaded.deployment.inputs
    shapes = {spec.name: tuple(axis if isinstance(axis, int) else 1 for axis in spec.shape) for spec in specs}
    zeros = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in specs}
    free = any(not isinstance(axis, int) for spec in specs for axis in spec.shape[1:])
    with suppress(*([StageError] if free else [])):  # a free axis may have a least length that nobody tells
        results = loaded.session.run(zeros)
        for spec in loaded.deployment.outputs:
            if spec.name not in results or str(results[spec.name].dtype) != spec.dtype:
                problem = f"{loaded.deployment.folder}/config.json: output '{spec.name}' is not what the model gives"
                raise RequestError(problem, fix="copy the whole deployment folder of a finished run again")
        loaded.known_good = zeros
