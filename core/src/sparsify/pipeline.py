"""The path of the data, top to bottom: resolve → load → baseline → recipe → apply → export → verify → report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from sparsify.applying import make_context, train
from sparsify.confidence import show_examples
from sparsify.contracts import Data, DataRequest, Model, fixed_batch
from sparsify.errors import RequestError, StageError
from sparsify.evaluation import evaluate
from sparsify.experiment import Experiment
from sparsify.formats import convert, find_runtime, installed_runtimes
from sparsify.levels import parse_memory
from sparsify.outcome import SLOWER, Measured, build_metrics, exit_code, near_chance
from sparsify.plugins import Plugins, load_plugins
from sparsify.recipe import Recipe, dump_recipe
from sparsify.remembering import OUTPUT_BYTES, Outputs
from sparsify.resolve import Loaded, Plan, request_of, resolve
from sparsify.run_folder import RunFolder, file_hash, write_atomic, write_json, write_yaml
from sparsify.search import Search, compress, evaluate_beside_baseline, foresee, remember_baseline, score
from sparsify.splits import draw_splits
from sparsify.stages import stage
from sparsify.talk import Talk, leads
from sparsify.timing import BLOCK_S, BLOCKS, Timing, time_ratio
from sparsify.use_cases import resolve_use_case

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
        return RunFolder(self.folder).model


def run(
    experiment: Experiment, plugins: Plugins | None = None, talk: Talk | None = None, *, resume: bool = False
) -> Result:
    """Run an experiment to a verified artefact; raises SparsifyError. A missed budget is a result, not an error.

    Of several processes the first one runs it; the others take part in the training, and exit.
    """
    plugins, talk = plugins or load_plugins(), talk or Talk()
    if not leads():
        raise SystemExit(follow(experiment, plugins))
    started, records = monotonic(), list[dict[str, Any]]()
    timed = partial(stage, plugins=plugins, talk=talk, records=records)
    with timed("resolve"):
        plan = resolve(experiment, plugins, resume=resume)
        made = open_folder(plan, talk)
    with timed("load"), refusing(plan, talk, keep=not made):
        loaded = load(plan, talk)
    with timed("baseline"):
        measure_baseline(plan, loaded, talk)
    with timed("recipe"):
        recipe = write_recipe(plan, loaded)
    with timed("apply"):
        context = make_context(plan, loaded, talk)
        search = Search(plan, loaded, context, talk, partial(export, plan, loaded), started)
        with refusing(plan, talk, keep=not made):
            recipe = foresee(search, recipe)
            record_recipe(plan, recipe)
            recipe, model = compress(search, recipe)
    with timed("export"):
        record_recipe(plan, recipe)
        artefact = export(plan, loaded, model)
    with timed("verify"):
        measured = verify(search, model, artefact)
    with timed("report"):
        metrics = build_metrics(plan, loaded, recipe, model, measured, records, talk.notes, search.rungs)
        write_report(plan.folder, metrics)
    observe(plugins, talk, plan.folder.path, metrics)
    code = exit_code(metrics["verdict"])
    if plan.trainer:
        plan.trainer.ended(code)
    return Result(plan.folder.path, metrics["verdict"], code, metrics)


def follow(experiment: Experiment, plugins: Plugins) -> int:
    """Take part in the training that the first process leads; returns its exit code. One-shot is for that one alone."""
    name = resolve_use_case(experiment.use_case, plugins, experiment.kind).name
    return 0 if experiment.kind == "one-shot" else plugins.load("trainers", name).follow(experiment)


def open_folder(plan: Plan, talk: Talk) -> bool:
    """Make the run folder and record the request in it; returns whether it is new."""
    made = not plan.folder.path.exists()
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    if not plan.resume:
        record(plan)
    talk.attach(plan.folder.path / "logs")
    talk.say(f"run folder: {plan.folder.path}")
    for name in plan.experiment.runtime:
        talk.note(f"runtime {name}: {find_runtime(name, plan.plugins).entry.summary}")
    return made


@contextmanager
def refusing(plan: Plan, talk: Talk, *, keep: bool) -> Iterator[None]:
    """Take away what a request that is refused has written, so that the mended one may name its folder again.

    keep: leave the folder itself, empty as the user made it. What was trained stays: it took hours.
    """
    try:
        yield
    except RequestError:
        trained = {path for path in plan.folder.training.rglob("*") if path.is_file()} - {plan.model_path}
        if trained:
            talk.note(f"what was trained stays in {plan.folder.training}")
        elif not plan.resume:
            talk.logs = None
            shutil.rmtree(plan.folder.path, ignore_errors=True)
            if keep:
                plan.folder.path.mkdir(exist_ok=True)
        raise


def record(plan: Plan, **found: Any) -> None:
    """Write experiment.yaml: the request, and what is known of the run so far."""
    known = {"request": request_of(plan.experiment), "resolved": plan.summary()}
    write_yaml(plan.folder.experiment, {**known, **found})


def load(plan: Plan, talk: Talk) -> Loaded:
    """Read the model, find the data, check that they fit, and draw the splits."""
    asked = plan.experiment
    source = plan.trainer.load(asked) if plan.trainer else None
    model = load_dense(plan, source)
    description = plan.model_format.describe(model)
    request = DataRequest(
        plan.data_path, description.inputs, description.outputs, asked.preprocess, plan.class_list, plan.model_path
    )
    data = plan.loader.load(request)
    plan.use_case.check(data, description)
    held_out = _held_out(plan, request, data)
    splits = draw_splits(data, held_out, calibration=asked.calibration_samples, test=asked.val_samples, seed=asked.seed)
    for line in (*(source.facts.get("notes", ()) if source else ()), *model.facts.get("notes", ()), *data.notes):
        talk.note(line)
    if not splits.verified:
        talk.note(f"only {len(splits.test)} samples to test on: the result stays unverified")
    if source is not None and source.facts.get("untrained"):
        source = train(plan, source, data, (), talk, "dense")
        model = load_dense(plan, source)
    origin = {"sha256": file_hash(plan.model_path), "opset": model.facts.get("opset")}
    record(plan, model=origin, preprocess=data.preprocess, samples=splits.counts(), data_sha256=splits.hashes())
    metrics, batch = plan.metrics if data.has_targets else (), fixed_batch(description.inputs)
    memory, most = plan.model_format.fit(model, parse_memory(asked.max_memory)) if asked.max_memory else (0, BATCH)
    size = batch or min(most, BATCH)
    before = Outputs(room=memory // 8 or OUTPUT_BYTES)
    return Loaded(model, description, data, splits, metrics, size, batch is not None, memory, source, before)


def load_dense(plan: Plan, source: Model | None) -> Model:
    """Load the model that everything is measured against; of what is trained it is the export."""
    if source is not None:
        plan.model_path.parent.mkdir(parents=True, exist_ok=True)
        plan.model_format.save(convert(source, ("onnx",), plan.plugins), plan.model_path)
    return plan.model_format.load(plan.model_path)


def _held_out(plan: Plan, request: DataRequest, data: Data) -> Data | None:
    if plan.eval_path is None or plan.eval_loader is None:
        return None
    held_out = plan.eval_loader.load(replace(request, path=plan.eval_path))
    if held_out.labels != data.labels or held_out.has_targets != data.has_targets:
        raise RequestError(
            f"--eval-data: {plan.eval_path} has other classes than --data",
            fix="give --class-list FILE with one folder name a line, so that ids agree",
        )
    return held_out


def measure_baseline(plan: Plan, loaded: Loaded, talk: Talk) -> None:
    """Measure the model as it came, before anything is changed, and warn where it is no better than guessing."""
    test = loaded.splits.test
    try:
        with remember_baseline(plan, loaded) as session:
            baseline = evaluate(
                session, test, loaded.metrics,
                batch_size=loaded.batch_size, pad=loaded.fixed_batch, progress=talk.progress,
            )  # fmt: skip
    except StageError:
        # names the layer where NaN starts
        plan.model_format.compare(loaded.model, loaded.model, test, loaded.batch_size, None)
        raise
    shown = ", ".join(f"{name} {value:.2f}" for name, value in baseline.values.items()) or "no labels"
    talk.note(f"baseline on {baseline.samples} test samples: {shown}")
    for key, why in loaded.splits.test.unreadable.items():
        talk.warn(f"skipped {key}: {why}")
    if near_chance(baseline, loaded.data, plan.metrics):
        talk.warn(
            f"the baseline's {plan.metrics[0].name} is near chance ({loaded.data.chance:.2f}): the preprocessing "
            "(--preprocess) or the class order (--class-list) is probably not what the model was trained with"
        )


def write_recipe(plan: Plan, loaded: Loaded) -> Recipe:
    """Take the user's recipe or generate one, and put it on disk."""
    asked, recipe = plan.experiment, plan.recipe
    if recipe is None:
        recipe = plan.plugins.load("recipe_generators", asked.kind).write(asked, loaded.description)
    record_recipe(plan, recipe)
    return recipe


def record_recipe(plan: Plan, recipe: Recipe) -> None:
    """Write recipe.yaml."""
    asked = plan.experiment
    header = f"{asked.kind}, {plan.use_case_name}, optim-level {asked.optim_level:g}"
    write_atomic(plan.folder.path / "recipe.yaml", dump_recipe(recipe, header))


def export(plan: Plan, loaded: Loaded, model: Model) -> Path:
    """Write the deployment folder: model, config, preprocessing, and a README with a sample that runs."""
    accepted = find_runtime(plan.experiment.runtime[0], plan.plugins).entry.accepts or ("onnx",)
    model = convert(model, accepted, plan.plugins)
    deployment, artefact = plan.folder.deployment, plan.folder.model
    deployment.mkdir(exist_ok=True)
    plan.model_format.save(model, artefact)
    config = {
        "schema": 1,
        "use_case": plan.use_case_name,
        "labels": list(loaded.data.labels),
        "inputs": [asdict(spec) for spec in loaded.description.inputs],
        "outputs": [asdict(spec) for spec in loaded.description.outputs],
    }
    write_json(deployment / "config.json", config)
    if loaded.data.preprocess is not None:
        write_json(deployment / "preprocess.json", loaded.data.preprocess)
    write_atomic(deployment / "README.md", plan.use_case.readme(loaded.data, loaded.description))
    return artefact


def verify(search: Search, model: Model, artefact: Path) -> Measured:
    """Load the written file, measure it beside the baseline on the test samples, and time both interleaved."""
    plan, loaded = search.plan, search.loaded
    pair = evaluate_beside_baseline(plan, loaded, artefact, loaded.splits.test, search.talk.progress)
    unseen = loaded.splits.selection or loaded.splits.calibration  # no solver has seen the selection samples
    judge = partial(score, plan, loaded, unseen.take(unseen.keys[:128]))
    errors = plan.model_format.compare(loaded.model, model, unseen.take(unseen.keys[:64]), loaded.batch_size, judge)
    timings = time_runtimes(search, artefact)
    examples = show_examples(pair.predictions, loaded.data, loaded.splits.test, plan.use_case.picture)
    return Measured(pair, examples, timings, errors)


def time_runtimes(search: Search, artefact: Path) -> Mapping[str, Mapping[str, Timing]]:
    """Time baseline and artefact on the runtimes asked for and on all others that are installed, all in turns."""
    asked = search.plan.experiment.runtime
    others = set(installed_runtimes(search.plan.plugins)) - {name.partition(":")[0] for name in asked}
    runtimes = [*asked, *(name for name in sorted(others) if search.runs(artefact, name))]
    timings = search.time(artefact, runtimes, BLOCKS, BLOCK_S)
    if time_ratio(timings[asked[0]]["optimized"], timings[asked[0]]["baseline"]).low > SLOWER:
        # a busy machine can look like a slow model: look longer before saying so
        timings |= search.time(artefact, asked, 3 * BLOCKS, BLOCK_S)
    return timings


def write_report(folder: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Write report.md and report.html, then metrics.json, whose presence means that the run is finished."""
    from sparsify.report_pages import render_html, render_markdown

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
