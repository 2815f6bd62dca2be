"""Check every name, option, file, library and format of a request before the first weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import distributions, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.contracts import Data, DatasetLoader, Description, Metric, Model, ModelFormat, Trainer, UseCase
from sparsify.errors import RequestError
from sparsify.formats import find_format, find_runtime
from sparsify.plugins import Plugins, load_target
from sparsify.recipe import Recipe
from sparsify.remembering import Outputs
from sparsify.run_folder import RunFolder, check_resumable, plan_folder
from sparsify.splits import Splits
from sparsify.use_cases import UseCaseChoice, resolve_use_case

if TYPE_CHECKING:
    from sparsify.experiment import Experiment

IDLE = {  # options that have no effect
    "one-shot": ("teacher", "train_kwargs", "train_samples"),
    "training-aware": ("time_budget", "max_memory"),
}


@dataclass(frozen=True)
class Plan:
    """Hold everything a run needs, resolved."""

    experiment: Experiment
    plugins: Plugins
    folder: RunFolder
    resume: bool
    use_case_name: str
    use_case: UseCase
    model_path: Path
    model_format: ModelFormat
    data_path: Path
    loader_name: str
    loader: DatasetLoader
    eval_path: Path | None
    eval_loader: DatasetLoader | None
    class_list: Path | None
    metrics: tuple[Metric, ...]
    recipe: Recipe | None
    trainer: Trainer | None = None

    def summary(self) -> dict[str, Any]:
        """Show the resolved request, as experiment.yaml records it."""
        return {
            "use_case": self.use_case_name,
            "dataset_loader": self.loader_name,
            "metrics": [metric.name for metric in self.metrics],
            "plugins": {row.distribution: row.version for row in self.plugins.found if not row.error},
            "libraries": libraries(self.plugins),
        }


@dataclass(frozen=True)
class Loaded:
    """Hold the model and the data of a run; source: what is trained, of which `model` is the dense export.

    before: keeps what the model as it came gives.
    """

    model: Model
    description: Description
    data: Data
    splits: Splits
    metrics: tuple[Metric, ...]
    batch_size: int
    fixed_batch: bool
    memory: int
    source: Model | None = None
    before: Outputs = field(default_factory=Outputs)


def libraries(plugins: Plugins) -> dict[str, str]:
    """Return the versions of what the plugins' distributions require and is installed here."""
    lines = [line for row in plugins.found if not row.error for line in requires(row.distribution) or ()]
    names = sorted({re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line})
    return {name: version(name) for name in names if any(distributions(name=name))}


def resolve(experiment: Experiment, plugins: Plugins, *, resume: bool = False) -> Plan:
    """Turn a request into a plan; raises RequestError or MissingLibraryError, and writes nothing."""
    if experiment.kind == "sparse-transfer":
        raise RequestError("sparse-transfer does not exist yet in this version", fix="use `sparsify run one-shot`")
    refuse_idle_options(experiment)
    if experiment.kind == "one-shot" and experiment.sparsity == "structured":
        problem = "--sparsity: structured pruning removes channels while training, which one-shot does not do"
        raise RequestError(problem, fix="use `sparsify run training-aware`, or another --sparsity")
    choice = resolve_use_case(experiment.use_case, plugins, experiment.kind)
    use_case: UseCase = load_target(choice.offer)
    named = experiment.kind != "one-shot" or experiment.weights  # a model that the use case's trainer makes
    given = None if named else existing(experiment.model, "--model")
    data_path = existing(experiment.data, "--data")
    loader_name, loader = find_loader(choice, data_path, plugins)
    eval_path = existing(experiment.eval_data, "--eval-data") if experiment.eval_data else None
    class_list = existing(experiment.class_list, "--class-list") if experiment.class_list else None
    for runtime in experiment.runtime:
        find_runtime(runtime, plugins)
    folder = plan_folder(experiment, choice.name, resume=resume)
    model_path = given or folder.training / "dense.onnx"
    if resume:
        check_resumable(folder, request_of(experiment))
    return Plan(
        experiment=experiment,
        plugins=plugins,
        folder=folder,
        resume=resume,
        use_case_name=choice.name,
        use_case=use_case,
        model_path=model_path,
        model_format=load_target(find_format(model_path, plugins)),
        data_path=data_path,
        loader_name=loader_name,
        loader=loader,
        eval_path=eval_path,
        eval_loader=find_loader(choice, eval_path, plugins)[1] if eval_path else None,
        class_list=class_list,
        metrics=find_metrics(use_case, experiment.eval_metric, plugins),
        recipe=_recipe(experiment, plugins),
        trainer=plugins.load("trainers", choice.name) if given is None else None,
    )


def refuse_idle_options(experiment: Experiment) -> None:
    """Raise RequestError for an option that has no effect for this kind of experiment."""
    for name in IDLE[experiment.kind]:
        if getattr(experiment, name) != type(experiment).model_fields[name].default:
            option, (other,) = f"--{name.replace('_', '-')}", IDLE.keys() - {experiment.kind}
            fix = f"leave {option} out, or use `sparsify run {other}`"
            raise RequestError(f"{option} has no effect in {experiment.kind}", fix=fix)


def request_of(experiment: Experiment) -> dict[str, Any]:
    """Return the request as plain data, paths absolute, as experiment.yaml records it and resume compares it."""
    request: dict[str, Any] = experiment.model_dump(mode="json")
    for name in ("model", "weights", "teacher", "data", "eval_data", "class_list", "recipe"):
        if request[name] is not None and is_there(request[name]):  # a model may be a name
            request[name] = str(Path(request[name]).absolute())
    return request


def is_there(path: str) -> bool:
    """Say whether a path exists, or a pattern of names that some file fits."""
    found = Path(path)
    return found.exists() or any(found.parent.glob(found.name))


def existing(path: str, option: str) -> Path:
    """Return an existing path, or a pattern of names that some file fits; raises RequestError naming the option."""
    found = Path(path)
    if not is_there(path):
        fix = "give the path of an existing file or folder"
        if "." not in found.name and "/" not in path:
            fix += "; model and dataset names are not known to this installation"
        raise RequestError(f"{option}: {path} does not exist", fix=fix)
    return found


def find_loader(choice: UseCaseChoice, path: Path, plugins: Plugins) -> tuple[str, DatasetLoader]:
    """Find the first of the use case's dataset loaders that recognises a path; raises RequestError."""
    names = choice.offer.entry.accepts
    for name in names:
        loader: DatasetLoader = plugins.load("dataset_loaders", name)
        if loader.recognises(path):
            return name, loader
    if len(names) == 1 or not (path.is_dir() and any(path.iterdir())):
        return names[0], plugins.load("dataset_loaders", names[0])  # its own error says what is wrong
    raise RequestError(
        f"--data: {path} holds nothing that use case '{choice.name}' reads ({', '.join(names)})",
        fix="give a folder of class folders with images, or of NPZ files; see docs/how-to/data.md",
    )


def find_metrics(use_case: UseCase, asked: str | None, plugins: Plugins) -> tuple[Metric, ...]:
    """Find the use case's metrics, the deciding one first; `asked` may be package.module:function."""
    names = list(use_case.metrics)
    if asked and ":" in asked:
        from sparsify.metrics import function_metric

        return (function_metric(asked), *(plugins.load("evaluators", name) for name in names))
    if asked:
        canonical = plugins.find("evaluators", asked).entry.name
        names = [canonical, *(name for name in names if name != canonical)]
    return tuple(plugins.load("evaluators", name) for name in names)


def _recipe(experiment: Experiment, plugins: Plugins) -> Recipe | None:
    if experiment.recipe is None:
        if experiment.recipe_args:
            raise RequestError("--recipe-args has no effect without --recipe", fix="add --recipe FILE, or leave it out")
        return None
    from sparsify.modifiers import resolve_modifiers
    from sparsify.recipe import load_recipe

    recipe = load_recipe(existing(experiment.recipe, "--recipe"), experiment.recipe_args)
    resolve_modifiers(recipe, plugins, experiment.kind)
    return recipe
