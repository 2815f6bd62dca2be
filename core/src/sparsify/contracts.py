"""The values that cross a boundary between core and plugins. Plain frozen data; core never opens `Model.value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsify.data import Dataset
    from sparsify.deployment import Deployment
    from sparsify.experiment import Experiment
    from sparsify.recipe import Recipe
    from sparsify.search import Search

Array: TypeAlias = "NDArray[Any]"  # NumPy itself is imported where it is used
Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"


@dataclass(frozen=True)
class Model:
    """Hold a model of one format; `facts` carries what later stages and the report may want to know."""

    format: str
    value: Any
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """Describe a model input or output; a dynamic axis is its name, or None where it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """Return the batch size that a model prescribes, None where it takes any."""
    first = next(iter(inputs[0].shape), None)
    return first if isinstance(first, int) else None


@dataclass(frozen=True)
class Layer:
    """Describe one weighted layer; `sparsity` is zeros ÷ weights in 0–1, `eligible` says pruning may touch it."""

    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    sparsity: float
    precision: str
    eligible: bool
    reason: str = ""


@dataclass(frozen=True)
class Description:
    """Describe a model: inputs, outputs, weighted layers, and the count of all parameters in the file.

    `computing` counts Conv, ConvTranspose, Gemm and MatMul nodes of the float graph (the `of` of metrics.json).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    parameters: int
    zeros: int
    computing: int


Score = Callable[[Model], Mapping[str, float]]


@dataclass(frozen=True)
class ModelFormat:
    """Adapt one model format.

    load(path) reads and checks a file. save(model, path) writes it atomically. describe(model) reads its structure.
    compare(reference, candidate, dataset, batch_size, score) measures by layer name `sqnr_db`, the error of its output
    with all before it compressed too, and where it can `isolated_db`, with this layer compressed alone, `saturation`,
    the share of its input's values beyond its grid, `ms_before`, `ms_after`, and by score(model), which gives `points`
    lost and `kl`, `drop_if_alone` and `kl_if_alone`. fit(model, limit) says what a limit on the process leaves: the
    bytes that a modifier may work with, and how many samples to run at once; raises RequestError for too low a one.
    files(path) lists the files that a model consists of, where it is more than one. read(path) reads any file of the
    format, compressed ones too, by default as `load` does.
    """

    load: Callable[[Path], Model]
    save: Callable[[Model, Path], None]
    describe: Callable[[Model], Description]
    compare: Callable[[Model, Model, Dataset, int, Score | None], Mapping[str, Mapping[str, float]]]
    fit: Callable[[Model, int], tuple[int, int]] = lambda model, limit: (limit, 1)
    files: Callable[[Path], Sequence[Path]] = lambda path: (path,)
    read: Callable[[Path], Model] | None = None


@dataclass(frozen=True)
class DataRequest:
    """Ask a dataset loader for data that fits a model.

    preprocess: a name, a file, or an already resolved description; None = the default. model: the model's path, beside
    which preprocessing files are looked for. labels: class names in id order where they are known already (those of a
    deployment); they act as a class list.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: str | Mapping[str, Any] | None = None
    class_list: Path | None = None
    model: Path | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Hold what a dataset loader found.

    splits: `train` and/or `validation`, or `all` where the folder has no splits. labels: class names in id order.
    chance: the metric's value at random guessing, 0–100. notes: lines printed with the baseline.
    """

    splits: Mapping[str, Dataset]
    has_targets: bool
    labels: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] | None = None
    chance: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetLoader:
    """Adapt one dataset layout: `recognises` looks at names only, `load` reads what it must."""

    recognises: Callable[[Path], bool]
    load: Callable[[DataRequest], Data]


@dataclass(frozen=True)
class UseCase:
    """Serve one task.

    metrics: evaluators computed where there are targets, the deciding one first. check(data, description) raises
    RequestError where data and model do not fit. readme(data, description) gives deployment/README.md with a sample
    that runs. picture(data, key) gives a small PNG of a sample for the report, or nothing where it cannot be seen; the
    only split of `data` is the one that holds the key. prepare(raw, deployment) turns what a user of the deployment
    holds, such as a path or an image, into one sample's inputs; interpret(outputs, deployment) turns one sample's
    outputs into a result. Both know of the model what the folder's files say.
    """

    metrics: tuple[str, ...]
    check: Callable[[Data, Description], None]
    readme: Callable[[Data, Description], str]
    picture: Callable[[Data, str], bytes] | None = None
    prepare: Callable[[Any, Deployment], Arrays] | None = None
    interpret: Callable[[Arrays, Deployment], Any] | None = None


@dataclass(frozen=True)
class Metric:
    """Measure predictions against targets.

    observe(outputs, targets) gives one record a sample of a batch; reduce(records) gives the value, by default 100 ×
    the mean, so that records are hits in 0–1. Records stay small: all of a test set's are kept for the interval.
    """

    name: str
    observe: Callable[[Arrays, Sequence[Any]], Sequence[Any]]
    reduce: Callable[[Sequence[Any]], float] | None = None
    higher_is_better: bool = True


class Session(Protocol):
    """Run a model that a runtime has opened.

    facts: `precision` (what was executed, e.g. "float32", "int8"), `int8_executed` (nodes), each None where the runtime
    does not tell, `uses_zeros` (whether unstructured zeros make it faster), `static_shapes` (whether it compiles again
    for each batch size), and whatever else it knows of itself.
    """

    @property
    def facts(self) -> Mapping[str, Any]:
        """Tell what the runtime knows of the model."""
        ...

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...


class Checkpoint(Protocol):
    """Keep finished pieces of a stage on disk, so that a killed run repeats only what was unfinished."""

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Return the arrays saved under `name`, or None."""
        ...

    def save(self, name: str, arrays: Arrays) -> None:
        """Write arrays atomically under `name`."""
        ...


class NoCheckpoint:
    """Keep nothing."""

    def load(self, name: str) -> None:
        """Return None."""

    def save(self, name: str, arrays: Arrays) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RecipeGenerator:
    """Write recipes for one kind of experiment.

    write(experiment, description) gives the recipe that was asked for. rescue(search, recipe) applies it where there is
    a budget, looks for one that meets the budget where it misses, and returns the best with its model; it stores each
    model that is the best so far, and appends what it tried to `search.rungs`. foresee(search, recipe) notes what of a
    recipe cannot pay on the deciding runtime, raises RequestError for a --target-speedup that is out of reach, and
    returns the recipe with what had to be measured on the model first.
    """

    write: Callable[[Experiment, Description], Recipe]
    rescue: Callable[[Search, Recipe], tuple[Recipe, Model]] | None = None
    foresee: Callable[[Search, Recipe], Recipe] | None = None


@dataclass(frozen=True)
class Training:
    """Give a trainer what it works with.

    data: as it was loaded for the dense model, with labels and preprocessing. folder: of checkpoints and logs, which
    stay; resume: go on from what lies there. note: puts one line into the log and the report.
    """

    experiment: Experiment
    data: Data
    folder: Path
    resume: bool = False
    progress: Progress = field(default=lambda label, total: nullcontext(lambda: None))
    note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Trainer:
    """Train one use case's models; its entry has the use case's name.

    load(experiment) makes the module that --model names, with --weights, as a Model whose exporter gives ONNX; raises
    RequestError. train(model, modifiers, training) runs a loop with these options objects attached, in order, and
    returns the trained model. Where the facts of the loaded one say `untrained`, it is trained without modifiers first:
    that is the baseline, and what the recipe begins with.

    Where several processes were started (RANK), all this is asked of the first one alone; follow(experiment) is called
    in each of the others, takes part in what the first one trains, writes nothing, and returns the exit code that the
    first one tells by ended(code).
    """

    load: Callable[[Experiment], Model]
    train: Callable[[Model, Sequence[Any], Training], Model]
    follow: Callable[[Experiment], int] = lambda experiment: 0
    ended: Callable[[int], None] = lambda code: None


Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def silent(label: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    """Show no progress."""
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Context:
    """Give a modifier what it works with.

    checkpoint: finished pieces, forgotten when the run is done; kept: what was measured, which stays in the run folder
    and is taken from there by --resume and `reproduce`. memory: bytes to work with, beside the models; 0 where no limit
    was set. note: puts one line into the log and the report.
    """

    calibration: Dataset
    selection: Dataset | None = None
    batch_size: int = 8
    seed: int = 0
    threads: int = 0
    memory: int = 0
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)
    kept: Checkpoint = field(default_factory=NoCheckpoint)
    progress: Progress = silent
    note: Callable[[str], None] = lambda line: None
