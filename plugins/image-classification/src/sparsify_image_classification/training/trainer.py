"""Train an image classifier with a recipe's modifiers: from the module to the result."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sparsify import Experiment, Model, RequestError, Trainer, Training
from torch import nn

from sparsify_image_classification.training.averaging import Average
from sparsify_image_classification.training.checkpoints import BEST, identify, read
from sparsify_image_classification.training.feeding import Feed, Place, make_feed
from sparsify_image_classification.training.loop import Run, go_on, read_last, run_epochs
from sparsify_image_classification.training.networks import load, load_teacher
from sparsify_image_classification.training.options import TrainOptions, read_options
from sparsify_image_classification.training.recipes import EPOCHS, check_recipe, epochs_of
from sparsify_image_classification.training.samples import choose
from sparsify_image_classification.training.stepping import make_optimizer, peak_rate, share_of_rate
from sparsify_image_classification.training.stopping import held_back


def load_and_meet(experiment: Experiment) -> Model:
    """Load the module, and meet the other processes where several were started."""
    from sparsify_torch import meet

    model = load(experiment)
    check_recipe(experiment, model)
    meet()
    return model


def train(model: Model, modifiers: Sequence[Any], training: Training) -> Model:
    """Train a copy of the module and return it, on the CPU, with the best weights that are as small as asked.

    A model without trained weights comes without modifiers first, and returns as what the recipe begins with. Writes
    last.pt, best.pt and logs into the folder. Raises RequestError for options, data, a teacher or a checkpoint that do
    not fit, StageError for a loss that is not finite, exhausted memory and a full disk. Of several processes the first
    one calls this, and the others are told what to train.
    """
    from sparsify_torch import failing_as_one, meet, share

    meet()
    with failing_as_one():
        begun = bool(model.facts.get("untrained")), model.value.state_dict()
        share((modifiers, training.data, training.folder, training.resume, *begun))
        return fit(model, modifiers, training)


def follow(experiment: Experiment) -> int:
    """Train in step with the first process whatever that trains, and return the exit code that it ends with."""
    from sparsify_torch import failing_as_one, heed_signals_while_waiting, meet, share, wait_for_the_end

    heed_signals_while_waiting()
    meet()
    with failing_as_one():
        while not isinstance(told := share(), int):
            modifiers, data, folder, resume, untrained, weights = told
            model = load(experiment)
            model.value.load_state_dict(weights)  # the first process may have trained it dense
            model = replace(model, facts={**model.facts, "untrained": untrained})
            fit(model, modifiers, Training(experiment, data, folder, resume))
    if told:
        wait_for_the_end()
    return told


def ended(code: int) -> None:
    """Let the other processes go, where there are any, with this exit code."""
    from sparsify_torch import share

    share(int(code))


def fit(model: Model, modifiers: Sequence[Any], training: Training) -> Model:
    """Train in one process of however many there are."""
    from sparsify_torch import meet

    accelerator = meet()
    place = Place(accelerator.process_index, accelerator.num_processes, accelerator.device)
    options, folder = read_options(training.experiment.train_kwargs), Path(training.folder)
    if model.facts.get("untrained") and not modifiers:
        if options.dense_epochs == 0:
            return model
        options = options.model_copy(update={"epochs": options.dense_epochs or options.epochs or EPOCHS})
        training.note(f"the dense model is trained first, {options.epochs} epochs: the baseline, and the teacher")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose(training.data, training.experiment)
    classes = int(model.facts.get("classes") or len(training.data.labels))
    feed = make_feed(chosen, training, options, classes, place)
    try:
        with held_back() as stop, threads(training.experiment.threads):
            run = _begin(model, modifiers, training, feed, accelerator)
            run_epochs(run, stop)
            return _finish(model, run)
    finally:
        feed.close()
        for file in folder.glob(f"pixels-*-{place.rank}.npy"):
            file.unlink(missing_ok=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads for a `with` block; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(model: Model, modifiers: Sequence[Any], training: Training, feed: Feed, accelerator: Any) -> Run:
    from sparsify_torch import ScheduledModifierManager, share

    manager, options = ScheduledModifierManager(modifiers), feed.options
    epochs = epochs_of(manager, options)
    teacher = _teacher(model, manager, training, feed)
    module = copy.deepcopy(model.value)
    plan = _plan(options, training, feed, epochs)
    keys = [*feed.train.dataset.keys, *feed.validation.dataset.keys]
    identity = identify(module, str(manager), keys, plan)
    first, example = feed.place.rank == 0, model.facts["example_inputs"]
    state = share(read_last(Path(training.folder), identity) if training.resume and first else None)
    if state is not None:
        manager.load_state_dict(state["manager"])
        manager.apply_structure(module, state["epoch"] + state["step"] / feed.steps, example)
        module.load_state_dict(state["module"])
    torch.manual_seed(training.experiment.seed + feed.place.rank)
    module = module.to(feed.place.device)
    if options.channels_last:
        module = module.to(memory_format=torch.channels_last)
    gentle = share_of_rate(module, manager, bool(model.facts.get("untrained")))
    peak = peak_rate(options, feed.per_step * feed.place.ranks, gentle)
    runner, optimizer = accelerator.prepare(module, make_optimizer(module, options, peak))
    logged: dict[str, Any] = {}
    stepping = manager.modify(
        runner,
        optimizer,
        feed.steps,
        distillation_teacher=teacher,
        grad_sampler={"data_loader_builder": feed.sampled, "loss_function": nn.functional.cross_entropy},
        example_inputs=example,
        rewrap=(lambda module: wrap_anew(module, accelerator)) if feed.place.ranks > 1 else None,
        loggers=[lambda tag, value, epoch: logged.update({tag: value})],
    )
    rate = None if manager.named("LearningRate") else peak
    run = Run(training, options, feed, accelerator, manager, module, stepping, identity, epochs, rate, feed.at_once)
    run.logged, run.average = logged, Average(options.ema) if options.ema else None
    if state is not None:
        go_on(run, state)
        training.note(f"resumed at epoch {run.epoch + 1}, step {run.step} of {feed.steps}")
    return run


def wrap_anew(module: nn.Module, accelerator: Any) -> nn.Module:
    """Wrap a module whose parameters were replaced, for training in several processes.

    Accelerate lets the old wrapper go first: its hooks sit on the parameters that stay.
    """
    accelerator.free_memory()
    wrapped: nn.Module = accelerator.prepare_model(module)
    return wrapped


def _finish(model: Model, run: Run) -> Model:
    """Put the best weights in, let the recipe end, and hand the module back."""
    run.accelerator.wait_for_everyone()
    if run.best is not None and run.feed.place.rank == 0:
        run.module.load_state_dict(read(run.folder / BEST)["state_dict"])
        said = f"{run.best['accuracy']:.2f} % of {len(run.feed.validation)} validation images"
        run.training.note(f"best of {len(run.rows)} epochs: epoch {run.best['epoch'] + 1}, {said}")
    run.manager.finalize(run.module)
    module: Any = run.module
    module = module.cpu().to(memory_format=torch.contiguous_format).eval()
    unreadable = len(run.feed.train.dataset.unreadable)
    if unreadable:
        run.training.note(f"{unreadable} unreadable images were left out of training")
    kept = run.best["epoch"] if run.best else len(run.rows) - 1
    history = [{**row, "kept": row["epoch"] == kept} for row in run.rows]
    return Model("torch", module, {**model.facts, "untrained": False, "history": history, "best": run.best})


def _teacher(model: Model, manager: Any, training: Training, feed: Feed) -> nn.Module | str | None:
    """Return what the recipe distils from: by default a frozen copy of the dense module."""
    said = training.experiment.teacher
    if said == "disable":
        return "disable"
    if not manager.named("Distillation"):
        if said is None:
            return None
        problem = f"--teacher: {said} has no effect, the recipe holds no DistillationModifier"
        raise RequestError(problem, fix="add !DistillationModifier {} to the recipe, or leave --teacher out")
    if said is None and model.facts.get("untrained"):
        training.note("nothing is distilled: the dense model has no trained weights (dense_epochs is 0)")
        return "disable"
    teacher = (
        copy.deepcopy(model.value)
        if said in (None, "self")
        else load_teacher(str(said), training.experiment, feed.classes)
    )
    frozen: nn.Module = teacher.requires_grad_(False).eval().to(feed.place.device)
    return frozen


def _plan(options: TrainOptions, training: Training, feed: Feed, epochs: int) -> Mapping[str, Any]:
    """Return what must be the same for a resumed run to be the undisturbed one."""
    said = options.model_dump(exclude={"workers", "cache_mb", "epochs"})
    teacher = training.experiment.teacher or "self"
    plan = {"seed": training.experiment.seed, "teacher": teacher, "epochs": epochs}
    return {**plan, "number of processes": feed.place.ranks, "steps": feed.steps, **said}


TRAINER = Trainer(load=load_and_meet, train=train, follow=follow, ended=ended)
