"""Round tensors to 8-bit grids in the forward pass and let gradients through where nothing was cut off.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018);
the straight-through estimator is Bengio et al. (2013).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 255  # uint8 activations, zero among them
LARGEST = 127  # int8 weights, symmetric: -128 stays unused
REDUCED = 64  # weights that cannot overflow int16 on x86 CPUs without VNNI (see sparsify_onnx.rounding)


class _Round(torch.autograd.Function):
    """Round to multiples of a scale between two integers.

    On CPUs torch's fused kernel is not vectorised: forward and backward of 2 M values took 9.6 ms on two cores, and
    these four plain operations 1.6 ms (torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = (low - 0.5) * scale, (high + 0.5) * scale
        return torch.mul(values, 1.0 / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (values,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], values, *ctx.bounds), None, None, None


class _RoundChannels(torch.autograd.Function):
    """Round to multiples of a scale per channel, symmetrically."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scales: Tensor, most: int) -> Tensor:
        ctx.save_for_backward(values, scales)
        ctx.most = most
        return torch.div(values, scales).round_().clamp_(-most, most).mul_(scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        values, scales = ctx.saved_tensors
        return grads[0] * (values.abs() <= (ctx.most + 0.5) * scales), None, None


def round_activation(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round to scale · (q - zero_point) with q in 0..255; scale and zero point have one element, of the same device.

    The gradient is 1 where the value lies within half a step of the grid, and 0 beyond.
    """
    if values.device.type != "cpu":  # there one fused kernel beats four, and reading a scale would wait for the device
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, LEVELS)
    zero = int(zero_point.item())
    rounded: Tensor = _Round.apply(values, scale.item(), -zero, LEVELS - zero)  # type: ignore[no-untyped-call]
    return rounded


def round_weight(weight: Tensor, scales: Tensor, axis: int, most: int = LARGEST) -> Tensor:
    """Round to multiples of one scale a channel along `axis`; a zero stays zero."""
    shape = [1] * weight.dim()
    shape[axis] = -1
    rounded: Tensor = _RoundChannels.apply(weight, scales.reshape(shape), most)  # type: ignore[no-untyped-call]
    return rounded


def weight_scales(weight: Tensor, axis: int, most: int = LARGEST) -> Tensor:
    """Return for each channel the scale at which its largest weight becomes `most`; 1 for a channel of zeros."""
    rows = weight.detach().movedim(axis, 0).flatten(1)
    scales = torch.linalg.vector_norm(rows, float("inf"), dim=1).float() / most
    return torch.where(scales > torch.finfo(torch.float32).tiny, scales, 1.0)


def make_grids(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Span ranges, widened to hold zero, by 256 integers each: float32 scales and int32 zero points.

    The same numbers as `sparsify_onnx.ranges.grid` computes; a constant zero gets scale 1.
    """
    bottom, top = low.double().clamp(max=0), high.double().clamp(min=0)
    scale = ((top - bottom) / LEVELS).float()
    flat = scale < torch.finfo(torch.float32).tiny
    scale = torch.where(flat, 1.0, scale)
    zero_point = torch.where(flat, 0.0, (-bottom / scale.double()).round().clamp(0, LEVELS))
    return scale, zero_point.to(torch.int32)
