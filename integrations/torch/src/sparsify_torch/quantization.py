"""Quantize while training, as a recipe says: the modifier around `qat`."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

from sparsify import RequestError
from torch import nn

from sparsify_torch import qat
from sparsify_torch.gradients import sample_batches
from sparsify_torch.loop import Loop, Part
from sparsify_torch.qat_options import QuantizationOptions
from sparsify_torch.schedule import NEAR

NAME = "QuantizationModifier"


class QuantizationModifier(QuantizationOptions):
    """Simulate INT8 from `start_epoch` on, with the grids that are exported (Jacob et al. 2018, arXiv:1712.05877).

    Ranges follow the activations until `disable_quantization_observer_epoch`; batch norms use the statistics of the
    batch until `freeze_bn_stats_epoch`, as they do in training, and those they have gathered from then on.
    `num_calibration_steps` batches of the loop's grad_sampler choose the first ranges, as one-shot does.
    """

    def apply_structure(self, module: nn.Module, epoch: float, example_inputs: Any) -> None:
        """Quantize a fresh module where it was quantized at an epoch: from the first batch after `start_epoch` on.

        Raises RequestError without example inputs.
        """
        if qat.CHILD in dict(module.named_children()) or epoch <= max(self.start_epoch, 0.0) + NEAR:
            return
        if example_inputs is None:
            fix = "give them: manager.apply_structure(module, epoch, images)"
            raise RequestError("QuantizationModifier needs example inputs to go on from a checkpoint", fix=fix)
        qat.begin(module, self, example_inputs)

    def attach(self, loop: Loop) -> Part:
        """Return what quantizes the loop's module; nothing is changed before `start_epoch`."""
        if self.num_calibration_steps and not (loop.grad_sampler or {}).get("data_loader_builder"):
            problem = f"{NAME}, field 'num_calibration_steps': the training loop gives no data to calibrate with"
            fix = 'give manager.modify(…, grad_sampler={"data_loader_builder": …}), or remove the field'
            raise RequestError(problem, fix=f"{fix}: ranges follow every batch that the model is trained with")
        return _Quantizing(self, loop)


class _Quantizing(Part):
    """Begin with the next batch, and freeze what is due."""

    between_steps: ClassVar[bool] = True

    def __init__(self, options: QuantizationModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.armed = False

    def update(self, epoch: float) -> None:
        """Begin at the next batch, unless a checkpoint has brought it along; freeze what is due."""
        if qat.CHILD not in dict(self.loop.module.named_children()):
            if self.options.num_calibration_steps:
                self._calibrate(self.options.num_calibration_steps)
            elif not self.armed:
                qat.begin_at_first_call(self.loop.module, self.options)
                self.armed = True
            return
        for due, freeze in (
            (self.options.disable_quantization_observer_epoch, qat.freeze_observers),
            (self.options.freeze_bn_stats_epoch, qat.freeze_batch_norms),
        ):
            if due is not None and epoch >= due:
                freeze(self.loop.module)

    def _calibrate(self, steps: int) -> None:
        """Begin now, with ranges that are chosen on batches of the loop's own data."""
        sampler = self.loop.grad_sampler or {}
        drawn = sample_batches(sampler["data_loader_builder"], {}, steps, NAME)
        batches = ((arguments, named) for arguments, named, _ in drawn)
        first = next(batches)
        qat.begin(self.loop.module, self.options, first)
        qat.calibrate(self.loop.module, chain([first], batches))

    def finalize(self) -> None:
        """Let nothing move any more: the module computes what is exported."""
        if qat.CHILD in dict(self.loop.module.named_children()):
            qat.finish(self.loop.module)
