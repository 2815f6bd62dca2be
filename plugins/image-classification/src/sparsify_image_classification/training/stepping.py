"""Take one optimizer step: gradients over all its batches, and fewer images at once where memory runs out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from sparsify import StageError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparsify_image_classification.training.options import TrainOptions

if TYPE_CHECKING:
    from sparsify_image_classification.training.loop import Run

BATCH = 128  # the default learning rates are for so many images a step
RATES = {"sgd": 0.05, "adamw": 0.001}
# of the rate, for trained weights: at the full one ResNet-20 forgets more than 70 % zeros or half of its structure cost
# it, and 90 % zeros need it (docs/figures/training-aware.md)
GENTLE, MOST_GENTLE = 0.6, 0.8
CLIPPED = 1.0
WARM_UP_MOST = 0.2  # of the training
# what allocators say, where they raise no OutOfMemoryError: on CPUs, and in cuDNN and cuBLAS
EXHAUSTED = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def make_optimizer(module: nn.Module, options: TrainOptions, rate: float) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum or AdamW; biases and norms do not decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in trained if one.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [one for one in trained if one.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, nesterov=options.momentum > 0)


def peak_rate(options: TrainOptions, images: int, share: float) -> float:
    """Return the learning rate after warm-up: as given, else scaled with the images to a step (Goyal et al. 2017).

    images: to one step, of all processes. share: of the optimizer's rate, see `share_of_rate`.
    """
    return options.lr or RATES[options.optimizer] * min(images / BATCH, 8.0) * share


def share_of_rate(module: nn.Module, manager: Any, untrained: bool) -> float:
    """Return 1 for fresh weights, for more zeros in trained ones than low rates mend, and without norm layers.

    Without these, gradients are clipped, which is gentle enough: half of SqueezeNet's structure ends at 72.8 % of ten
    classes at the low rate, and at 75.0 %.
    """
    from sparsify_torch import has_norms

    finals = [getattr(options, "final_sparsity", 0.0) for options in manager.named("Pruning")]
    much = untrained or not has_norms(module) or any(_overall(final) > MOST_GENTLE for final in finals)
    return 1.0 if much else GENTLE


def _overall(final: float | Mapping[float, Sequence[str]]) -> float:
    """Return a sparsity, of several the mean over the weights that they are for."""
    if not isinstance(final, Mapping):
        return final
    return fmean(final, weights=[len(names) for names in final.values()])


def rate_at(peak: float, step: int, total: int, warm: float) -> float:
    """Return the learning rate of a step: linear warm-up over `warm` steps, then half a cosine to zero."""
    warm = min(warm, WARM_UP_MOST * total)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))


def largest_norm(module: nn.Module, options: TrainOptions) -> float:
    """Return the norm that gradients are clipped to, 0 where they are not.

    What holds a network's gradients together without its norm layers (Brock et al. 2021): SqueezeNet fine-tuned at the
    default rate ends in NaN within twelve steps, clipped it learns better than at a tenth of the rate.
    """
    from sparsify_torch import has_norms

    if options.clip_grad is not None:
        return options.clip_grad
    return 0.0 if has_norms(module) else CLIPPED


def take_step(run: Run, epoch: int, step: int) -> Tensor:
    """Train on one step's images; returns their mean loss. Raises StageError for NaN, and where one image is too much.

    Where memory runs out, the step is begun again with half the images at once, which changes no schedule.
    """
    if run.rate is not None:
        _set_rate(run, epoch * run.feed.steps + step)
    run.runner.train()
    while True:
        try:
            loss = _gradients(run, epoch, step)
            break
        except (RuntimeError, MemoryError) as error:
            if not _exhausted(error):
                raise
            _fewer_at_once(run, error)
    most = largest_norm(run.module, run.options)
    if most:
        run.accelerator.clip_grad_norm_(run.module.parameters(), most)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.module)
    return loss


def _set_rate(run: Run, step: int) -> None:
    total, warm = run.epochs * run.feed.steps, run.options.warmup_epochs * run.feed.steps
    for group in run.optimizer.param_groups:
        group["lr"] = rate_at(run.rate or 0.0, step, total, warm)


def _gradients(run: Run, epoch: int, step: int) -> Tensor:
    options, device = run.options, run.feed.place.device
    count = len(run.feed.indices(epoch, step))
    total, seen = torch.zeros((), device=device), 0
    for images, targets in run.feed.batches(epoch, step, run.at_once):
        seen += len(images)
        share = len(images) / count
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with run.accelerator.no_sync(run.runner) if seen < count else torch.enable_grad():
            with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
                logits = run.runner(images)
                loss = cross_entropy(logits.float(), targets, label_smoothing=options.label_smoothing)
                loss = run.optimizer.loss_update(loss)
            run.accelerator.backward(loss * share)
        total += loss.detach() * share
    return total


def _exhausted(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in EXHAUSTED)


def _fewer_at_once(run: Run, error: BaseException) -> None:
    run.optimizer.zero_grad()
    if run.at_once == 1 or run.feed.place.ranks > 1:
        most = "one image" if run.at_once == 1 else f"a batch of {run.at_once} in one of several processes"
        fix = "give a smaller --train-kwargs batch_size, image_size, or a machine with more memory"
        raise StageError(f"training: memory is exhausted by {most}", fix=fix) from error
    run.at_once = max(1, run.at_once // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    run.training.note(f"memory is exhausted: {run.at_once} images at once from here on, gradients are accumulated")
