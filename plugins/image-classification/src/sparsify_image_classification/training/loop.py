"""Run the epochs: train, validate, keep the best, write checkpoints; go on where a killed run stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sparsify import Training
from torch import Tensor, nn

from sparsify_image_classification.training.averaging import Average, snapshot
from sparsify_image_classification.training.checkpoints import (
    BEST,
    LAST,
    check_finite,
    check_identity,
    random_state,
    read,
    save,
    set_random_state,
)
from sparsify_image_classification.training.feeding import Feed
from sparsify_image_classification.training.journal import write_events, write_logs
from sparsify_image_classification.training.options import TrainOptions
from sparsify_image_classification.training.stepping import take_step
from sparsify_image_classification.training.stopping import Stop

COMPRESSING = ("Pruning", "Thinning", "Quantization")  # modifiers whose end an epoch must have reached to be the best


@dataclass
class Run:
    """Hold one training run. module: without what runs it in parallel, which is `runner`, made anew where it changed.

    rate: the peak learning rate, None where the recipe sets it. at_once: images that pass the model together.
    rows: one for each finished epoch.
    """

    training: Training
    options: TrainOptions
    feed: Feed
    accelerator: Any
    manager: Any
    module: nn.Module
    optimizer: Any
    identity: Mapping[str, Any]
    epochs: int
    rate: float | None
    at_once: int
    average: Average | None = None
    epoch: int = 0
    step: int = 0
    loss: Tensor | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    logged: dict[str, Any] = field(default_factory=dict)

    @property
    def runner(self) -> nn.Module:
        """Return what a step calls."""
        runner: nn.Module = self.manager.runner
        return runner

    @property
    def folder(self) -> Path:
        """Return where checkpoints and logs lie."""
        return Path(self.training.folder)


def run_epochs(run: Run, stop: Stop) -> None:
    """Train to the last epoch, or until nothing gets better; a signal is acted on after a checkpoint."""
    while run.epoch < run.epochs and not _hopeless(run):
        began = time.perf_counter()
        loss = _train_epoch(run, stop)
        accuracy = validate(run)
        check_finite(run.module, (run.epoch + 1) * run.feed.steps, run.folder / LAST)
        row = {"epoch": run.epoch, "loss": loss, "accuracy": accuracy, "lr": run.optimizer.param_groups[0]["lr"]}
        row |= {"sparsity": sparsity(run), "seconds": round(time.perf_counter() - began, 3)}
        run.rows.append(row | {name: _plain(value) for name, value in run.logged.items()})
        _keep_best(run, accuracy)
        run.logged.clear()  # the recipe's modifiers go on writing into it
        run.epoch, run.step, run.loss = run.epoch + 1, 0, None
        write_last(run)
        if run.feed.place.rank == 0:
            write_logs(run.folder, run.rows)
            write_events(run.folder, run.rows[-1])
        if heard(stop):
            stop.act()


def _train_epoch(run: Run, stop: Stop) -> float:
    steps, main = run.feed.steps, run.feed.place.rank == 0
    label = f"epoch {run.epoch + 1}/{run.epochs}"
    loss = run.loss if run.loss is not None else torch.zeros((), device=run.feed.place.device)
    with run.training.progress(label, steps) if main else nullcontext(lambda: None) as advance:
        for _ in range(run.step):
            advance()
        while run.step < steps:
            loss = loss + take_step(run, run.epoch, run.step)
            run.step, run.loss = run.step + 1, loss
            advance()
            if heard(stop) and run.step < steps:
                write_last(run)
                stop.act()
    return float(run.accelerator.reduce(loss, "mean")) / steps


def heard(stop: Stop) -> bool:
    """Say whether any process has heard a signal: all stop after the same step."""
    from sparsify_torch import agreed

    stop.number = agreed(stop.number)
    return bool(stop.number)


def validate(run: Run) -> float:
    """Return the accuracy on the validation images, 0–100, of the averaged weights where there are any."""
    found = torch.zeros(2, device=run.feed.place.device)
    with result_inside(run), torch.no_grad():
        if run.feed.place.ranks > 1:
            share_buffers(run)
        run.module.eval()
        for images, targets in run.feed.evaluation(max(run.at_once, 1)):
            with torch.autocast(run.feed.place.device.type, torch.bfloat16, enabled=run.options.amp):
                hits = run.module(images).argmax(1) == targets
            found += torch.tensor([hits.sum(), len(hits)], device=found.device)
    right, count = run.accelerator.reduce(found, "sum").tolist()
    return 100.0 * float(right) / float(count)


def share_buffers(run: Run) -> None:
    """Give every process the norm statistics of the first one."""
    import torch.distributed as dist

    for buffer in run.module.buffers():
        dist.broadcast(buffer, 0)


def result_inside(run: Run) -> Any:
    """Put the average of the weights into the module for a `with` block, where one is kept."""
    return run.average.inside(run.module, run.manager.masks) if run.average is not None else nullcontext()


def sparsity(run: Run) -> float:
    """Return zeros ÷ weights in 0–1 of what the recipe holds at zero; 0 where it holds nothing."""
    masks = run.manager.masks.values()
    weights = sum(kept.numel() for kept in masks)
    return 1 - sum(int(kept.sum()) for kept in masks) / weights if weights else 0.0


def settled(run: Run) -> float:
    """Return the epoch at which the last pruning, thinning or quantization is what it will be."""
    found = [options for word in COMPRESSING for options in run.manager.named(word)]
    return max((max(options.start_epoch, options.end_epoch) for options in found), default=-1.0)


def _keep_best(run: Run, accuracy: float) -> None:
    """Keep the weights of a better epoch, among those that are as small as the result must be."""
    # what is due at an epoch happens in its first step, so one that ends exactly there is not there yet
    reached = run.epoch + 1 > settled(run) or run.epoch + 1 == run.epochs
    best = fitting_best(run)
    if not reached or (best is not None and accuracy <= best["accuracy"]):
        return
    run.best = {"epoch": run.epoch, "accuracy": accuracy, "changes": len(run.manager.structure)}
    if run.feed.place.rank == 0:
        with result_inside(run):
            state = snapshot(run.module)
        save({"state_dict": state, "identity": dict(run.identity), **run.best}, run.folder / BEST)


def fitting_best(run: Run) -> dict[str, Any] | None:
    """Return the best epoch whose weights fit the module as it is: before, it may have had more channels."""
    fits = run.best is not None and run.best.get("changes", 0) == len(run.manager.structure)
    return run.best if fits else None


def _hopeless(run: Run) -> bool:
    patience, best = run.options.patience, fitting_best(run)
    return patience is not None and best is not None and run.epoch - 1 - int(best["epoch"]) >= patience


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor | int | float):
        return str(value)
    return round(float(value), 6) if math.isfinite(value) else None


def write_last(run: Run) -> None:
    """Write the checkpoint that a run goes on from; every process calls this, and the first one writes.

    own: what each process has of its own, by rank.
    """
    from sparsify_torch import agreed, gathered

    own = gathered({"random": random_state(), "loss": run.loss})
    if run.feed.place.rank == 0:
        _write(run, own)
    agreed(0)  # nobody leaves before it is written


def _write(run: Run, own: list[Any]) -> None:
    average = run.average and {"steps": run.average.steps, "tensors": run.average.tensors}
    place = {"epoch": run.epoch, "step": run.step, "at_once": run.at_once, "own": own}
    parts = {"module": run.module.state_dict(), "optimizer": run.optimizer.state_dict()}
    state = {"identity": dict(run.identity), **parts, "manager": run.manager.state_dict(), "average": average}
    save({**state, "rows": run.rows, "best": run.best, **place}, run.folder / LAST)


def read_last(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, None where there is none; raises RequestError for another run's."""
    path = folder / LAST
    if not path.exists():
        return None
    state = read(path)
    check_identity(state["identity"], identity, path)
    return state


def go_on(run: Run, state: Mapping[str, Any]) -> None:
    """Take over a checkpoint; the module's weights are loaded already."""
    run.optimizer.load_state_dict(state["optimizer"])
    run.manager.load_state_dict(state["manager"])
    if run.average is not None:
        device = run.feed.place.device
        run.average.steps = state["average"]["steps"]
        held = state["average"]["tensors"].items()
        run.average.tensors = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in held}
    run.epoch, run.step, run.at_once = state["epoch"], state["step"], state["at_once"]
    own = state["own"][run.feed.place.rank]
    run.loss = None if own["loss"] is None else own["loss"].to(run.feed.place.device)
    run.rows, run.best = list(state["rows"]), state["best"]
    set_random_state(own["random"])
