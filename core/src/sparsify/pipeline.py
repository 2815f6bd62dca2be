"""The path of the data, top to bottom: resolve → load → baseline → recipe → apply → export → verify → report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sparsify.contracts import Context, Data, DataRequest, Description, Model
from sparsify.data import spool
from sparsify.errors import RequestError
from sparsify.evaluation import evaluate, evaluate_pair
from sparsify.experiment import Experiment
from sparsify.modifiers import resolve_modifiers
from sparsify.outcome import SLOWER, Measured, build_metrics, exit_code, near_chance
from sparsify.plugins import Plugins, load_plugins
from sparsify.recipe import Recipe, dump_recipe
from sparsify.resolve import Plan, request_of, resolve
from sparsify.run_folder import RunFolder, file_hash, write_atomic, write_json, write_yaml
from sparsify.splits import Splits, draw_splits
from sparsify.stages import stage
from sparsify.talk import Talk
from sparsify.timing import BLOCKS, Candidate, Timing, time_interleaved, time_ratio

BATCH = 8  # large enough for BLAS, small enough that one batch of activations is a modest share of memory


@dataclass(frozen=True)
class Result:
    """Hold the outcome of an experiment; `metrics` is what metrics.json holds."""

    folder: Path
    verdict: str
    exit_code: int
    metrics: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """Return the path of the model to deploy."""
        return self.folder / "deployment" / "model.onnx"


@dataclass(frozen=True)
class Loaded:
    """Hold the model and the data of a run."""

    model: Model
    description: Description
    data: Data
    splits: Splits
    batch_size: int
    fixed_batch: bool


@dataclass(frozen=True)
class Notes:
    """Gather lines for the report, and tell them at once."""

    talk: Talk
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        """Keep a line and tell it."""
        self.lines.append(line)
        self.talk.say(f"  {line}")


def run(
    experiment: Experiment, plugins: Plugins | None = None, talk: Talk | None = None, *, resume: bool = False
) -> Result:
    """Run an experiment to a verified artefact; raises SparsifyError. A missed budget is a result, not an error."""
    plugins, talk = plugins or load_plugins(), talk or Talk()
    records: list[dict[str, Any]] = []
    notes = Notes(talk)
    timed = partial(stage, plugins=plugins, talk=talk, records=records)
    with timed("resolve"):
        plan = resolve(experiment, plugins, resume=resume)
        open_folder(plan, talk)
    with timed("load"):
        loaded = load(plan, notes)
    with timed("baseline"):
        measure_baseline(plan, loaded, talk, notes)
    with timed("recipe"):
        recipe = write_recipe(plan, loaded)
    with timed("apply"):
        model = apply(plan, loaded, recipe, talk, notes)
    with timed("export"):
        artefact = export(plan, loaded, model)
    with timed("verify"):
        measured = verify(plan, loaded, model, artefact, talk)
    with timed("report"):
        metrics = build_metrics(plan, loaded, recipe, model, measured, records, notes.lines)
        write_report(plan.folder, metrics)
    observe(plugins, talk, plan.folder.path, metrics)
    return Result(plan.folder.path, metrics["verdict"], exit_code(metrics["verdict"]), metrics)


def open_folder(plan: Plan, talk: Talk) -> None:
    """Make the run folder and record the request in it."""
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    record = {"request": request_of(plan.experiment), "resolved": plan.summary()}
    if not plan.resume:
        write_yaml(plan.folder.experiment, record)
    talk.attach(plan.folder.path / "logs")
    talk.say(f"run folder: {plan.folder.path}")


def load(plan: Plan, notes: Notes) -> Loaded:
    """Read the model, find the data, check that they fit, and draw the splits."""
    model = plan.model_format.load(plan.model_path)
    description = plan.model_format.describe(model)
    request = DataRequest(
        path=plan.data_path,
        inputs=description.inputs,
        outputs=description.outputs,
        preprocess=plan.experiment.preprocess,
        class_list=plan.class_list,
        model=plan.model_path,
    )
    data = plan.loader.load(request)
    plan.use_case.check(data, description)
    held_out = _held_out(plan, request, data)
    splits = draw_splits(
        data,
        held_out,
        calibration=plan.experiment.calibration_samples,
        test=plan.experiment.val_samples,
        seed=plan.experiment.seed,
    )
    for line in (*model.facts.get("notes", ()), *data.notes):
        notes(line)
    if not splits.verified:
        notes(f"only {len(splits.test)} samples to test on: the result stays unverified")
    fixed = description.inputs[0].shape[0] if description.inputs[0].shape else None
    batch = fixed if isinstance(fixed, int) else BATCH
    write_yaml(plan.folder.experiment, _record(plan, model, data, splits))
    return Loaded(model, description, data, splits, batch, isinstance(fixed, int))


def _held_out(plan: Plan, request: DataRequest, data: Data) -> Data | None:
    if plan.eval_path is None or plan.eval_loader is None:
        return None
    from dataclasses import replace

    held_out = plan.eval_loader.load(replace(request, path=plan.eval_path))
    if held_out.labels != data.labels or held_out.has_targets != data.has_targets:
        raise RequestError(
            f"--eval-data: {plan.eval_path} has other classes than --data",
            fix="give --class-list FILE with one folder name a line, so that ids agree",
        )
    return held_out


def _record(plan: Plan, model: Model, data: Data, splits: Splits) -> dict[str, Any]:
    return {
        "request": request_of(plan.experiment),
        "resolved": plan.summary(),
        "model": {"sha256": file_hash(plan.model_path), "opset": dict(model.facts.get("opset", {}))},
        "preprocess": data.preprocess,
        "samples": splits.counts(),
        "data_sha256": splits.hashes(),
    }


def measure_baseline(plan: Plan, loaded: Loaded, talk: Talk, notes: Notes) -> None:
    """Measure the model as it came, before anything is changed, and warn where it is no better than guessing."""
    open_session = plan.plugins.load("runtimes", plan.experiment.runtime[0])
    session = open_session(plan.model_path, plan.experiment.threads)
    try:
        baseline = evaluate(
            session, loaded.splits.test, plan.metrics if loaded.data.has_targets else (),
            batch_size=loaded.batch_size, pad=loaded.fixed_batch, progress=talk.progress,
        )  # fmt: skip
    finally:
        session.close()
    shown = ", ".join(f"{name} {value:.2f}" for name, value in baseline.values.items()) or "no labels"
    notes(f"baseline on {baseline.samples} test samples: {shown}")
    for key, why in loaded.splits.test.unreadable.items():
        talk.warn(f"skipped {key}: {why}")
    if near_chance(baseline, loaded.data, plan.metrics):
        talk.warn(
            f"the baseline's {plan.metrics[0].name} is near chance ({loaded.data.chance:.2f}): the preprocessing "
            "(--preprocess) or the class order (--class-list) is probably not what the model was trained with"
        )


def write_recipe(plan: Plan, loaded: Loaded) -> Recipe:
    """Take the user's recipe or generate one, and put it on disk."""
    recipe = plan.recipe
    if recipe is None:
        recipe = plan.plugins.load("recipe_generators", plan.experiment.kind)(plan.experiment, loaded.description)
    header = f"{plan.experiment.kind}, {plan.use_case_name}, optim-level {plan.experiment.optim_level:g}"
    write_atomic(plan.folder.path / "recipe.yaml", dump_recipe(recipe, header))
    return recipe


def apply(plan: Plan, loaded: Loaded, recipe: Recipe, talk: Talk, notes: Notes) -> Model:
    """Apply the post-training modifiers one at a time; finished layers survive a kill in the run folder."""
    model = loaded.model
    steps = resolve_modifiers(recipe, plan.plugins, plan.experiment.kind)
    calibration = loaded.splits.calibration
    if steps:
        calibration = spool(calibration, plan.folder.state / "calibration")
    for index, (step, modifier) in enumerate(steps):
        context = Context(
            calibration=calibration,
            selection=loaded.splits.selection,
            batch_size=loaded.batch_size,
            seed=plan.experiment.seed,
            threads=plan.experiment.threads,
            checkpoint=plan.folder.checkpoint(f"{index}-{step.name}"),
            progress=talk.progress,
            note=notes,
        )
        talk.say(f"{step.name} ({index + 1} of {len(steps)})")
        model = convert(model, plan.plugins.find("modifiers", step.name, "post-training").entry.accepts, plan.plugins)
        model = modifier.apply(model, context)
    return model


def convert(model: Model, accepted: tuple[str, ...], plugins: Plugins) -> Model:
    """Bring a model into one of these formats by one exporter; raises RequestError where none does it."""
    if not accepted or model.format in accepted:
        return model
    for offer in plugins.offers("exporters"):
        if model.format in offer.entry.accepts and offer.entry.returns in accepted:
            exported: Model = plugins.load("exporters", offer.entry.name)(model)
            return exported
    raise RequestError(
        f"no exporter turns a {model.format} model into {' or '.join(accepted)}",
        fix="install an integration that exports this format, see `sparsify plugins list`",
    )


def export(plan: Plan, loaded: Loaded, model: Model) -> Path:
    """Write the deployment folder: model, config, preprocessing, and a README with a sample that runs."""
    model = convert(model, ("onnx",), plan.plugins)
    deployment = plan.folder.deployment
    deployment.mkdir(exist_ok=True)
    artefact = deployment / "model.onnx"
    plan.model_format.save(model, artefact)
    config = {
        "schema": 1,
        "use_case": plan.use_case_name,
        "labels": list(loaded.data.labels),
        "inputs": [_tensor(spec) for spec in loaded.description.inputs],
        "outputs": [_tensor(spec) for spec in loaded.description.outputs],
    }
    write_json(deployment / "config.json", config)
    if loaded.data.preprocess is not None:
        write_json(deployment / "preprocess.json", loaded.data.preprocess)
    write_atomic(deployment / "README.md", plan.use_case.readme(loaded.data, loaded.description))
    return artefact


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def verify(plan: Plan, loaded: Loaded, model: Model, artefact: Path, talk: Talk) -> Measured:
    """Load the written file, measure it beside the baseline on the test samples, and time both interleaved."""
    deciding = plan.plugins.load("runtimes", plan.experiment.runtime[0])
    before, after = (deciding(path, plan.experiment.threads) for path in (plan.model_path, artefact))
    try:
        pair = evaluate_pair(
            before, after, loaded.splits.test, plan.metrics if loaded.data.has_targets else (),
            batch_size=loaded.batch_size, pad=loaded.fixed_batch, progress=talk.progress,
        )  # fmt: skip
    finally:
        before.close()
        after.close()
    errors = plan.model_format.compare(loaded.model, model, _few(loaded), loaded.batch_size)
    timings = {name: time_runtime(plan, loaded, name, artefact, talk) for name in plan.experiment.runtime}
    return Measured(pair, timings, errors)


def _few(loaded: Loaded) -> Any:
    """Take the samples on which layer errors are measured: selection samples, which no solver has seen."""
    source = loaded.splits.selection if len(loaded.splits.selection) else loaded.splits.calibration
    return source.take(source.keys[:64])


def time_runtime(plan: Plan, loaded: Loaded, runtime: str, artefact: Path, talk: Talk) -> dict[str, Timing]:
    """Time baseline and artefact on one runtime, interleaved, at batch 1 (or the model's fixed batch)."""
    open_session = plan.plugins.load("runtimes", runtime)
    batch = loaded.batch_size if loaded.fixed_batch else 1
    inputs = next(iter(loaded.splits.test.batches(batch, pad=True))).inputs
    candidates = [
        Candidate(name, partial(open_session, path, plan.experiment.threads))
        for name, path in (("baseline", plan.model_path), ("optimized", artefact))
    ]
    timings: dict[str, Timing] = {}
    for blocks in (BLOCKS, 3 * BLOCKS):  # a busy machine can look like a slow model: look longer before saying so
        timings = time_interleaved(
            candidates, inputs, batch=batch, threads=plan.experiment.threads, blocks=blocks, progress=talk.progress
        )
        if time_ratio(timings["optimized"], timings["baseline"]).low <= SLOWER:
            break
    return timings


def write_report(folder: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Write report.md and report.html, then metrics.json, whose presence means that the run is finished."""
    from sparsify.report_html import render_html
    from sparsify.report_markdown import render_markdown

    write_atomic(folder.path / "report.md", render_markdown(metrics))
    write_atomic(folder.path / "report.html", render_html(metrics))
    write_json(folder.metrics, metrics)
    shutil.rmtree(folder.state, ignore_errors=True)


def observe(plugins: Plugins, talk: Talk, folder: Path, metrics: Mapping[str, Any]) -> None:
    """Call every observer on its own; one that raises is a warning, the experiment stands."""
    for caller in plugins.manager.hook.experiment_finished.get_hookimpls():
        try:
            arguments = {"folder": folder, "metrics": metrics}
            caller.function(*(arguments[name] for name in caller.argnames))
        except Exception as error:  # noqa: BLE001 - an observer cannot undo a finished run
            talk.warn(f"observer of plugin '{caller.plugin_name}' failed: {type(error).__name__}: {error}")
