"""Quantize while training, as a recipe says: the modifier around `qat`."""

from __future__ import annotations

from typing import ClassVar

from sparsify import RequestError

from sparsify_torch import qat
from sparsify_torch.loop import Loop, Part
from sparsify_torch.qat_options import QuantizationOptions


class QuantizationModifier(QuantizationOptions):
    """Simulate INT8 from `start_epoch` on, with the grids that are exported (Jacob et al. 2018, arXiv:1712.05877).

    Ranges follow the activations until `disable_quantization_observer_epoch`; batch norms use the statistics of the
    batch until `freeze_bn_stats_epoch`, as they do in training, and those they have gathered from then on.
    """

    def attach(self, loop: Loop) -> Part:
        """Return what quantizes the loop's module; nothing is changed before `start_epoch`."""
        if self.num_calibration_steps is not None:
            problem = (
                "QuantizationModifier, field 'num_calibration_steps': a training loop has no data to calibrate with"
            )
            raise RequestError(problem, fix="remove it: ranges follow every batch that the model is trained with")
        return _Quantizing(self, loop)


class _Quantizing(Part):
    """Begin with what the module was last called with, and freeze what is due."""

    between_steps: ClassVar[bool] = True

    def __init__(self, options: QuantizationModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop

    def start(self, epoch: float) -> None:
        """Put fake quantization into the module, unless a checkpoint has brought it along."""
        module, seen = self.loop.module, self.loop.forward
        if qat.CHILD in dict(module.named_children()):
            return
        if seen.arguments or seen.keywords:
            qat.begin(module, self.options, (seen.arguments, dict(seen.keywords)))
        else:
            qat.begin_at_first_call(module, self.options)

    def update(self, epoch: float) -> None:
        """Freeze observers and batch norms from their epochs on."""
        if qat.CHILD not in dict(self.loop.module.named_children()):
            return
        for due, freeze in (
            (self.options.disable_quantization_observer_epoch, qat.freeze_observers),
            (self.options.freeze_bn_stats_epoch, qat.freeze_batch_norms),
        ):
            if due is not None and epoch >= due:
                freeze(self.loop.module)

    def finalize(self) -> None:
        """Let nothing move any more: the module computes what is exported."""
        if qat.CHILD in dict(self.loop.module.named_children()):
            qat.finish(self.loop.module)
