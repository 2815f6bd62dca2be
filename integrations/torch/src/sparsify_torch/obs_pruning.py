"""Offer OBSPruningModifier: prune what costs the least loss by the second order, and correct the weights that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from sparsify_torch.fisher import Blocks, block_scores, correction, inverse_fisher, single_scores
from sparsify_torch.gradients import check_sampler, sample_gradients
from sparsify_torch.gradual_pruning import Gradual
from sparsify_torch.interpolation import interpolate, progress
from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.masks import from_rank_0
from sparsify_torch.options import MaskType, Share
from sparsify_torch.pruned_groups import follow_weights, prune, resolve_groups
from sparsify_torch.structures import parse_mask_type
from sparsify_torch.weights import Weight, check_finite

NAME = "OBSPruningModifier"


class OBSPruningModifier(Gradual):
    """Prune by the loss that it costs, w²/2[F⁻¹]ᵢᵢ, and correct the others by −F⁻¹: oBERT (Kurtic et al. 2022).

    F is the empirical Fisher matrix of num_grads batches, in blocks of fisher_block_size weights, damped by `damp`.
    num_recomputations: how often F is measured anew on the way of one update. Needs a grad_sampler.
    """

    final_sparsity: Share
    global_sparsity: bool = True
    num_grads: int = Field(1024, ge=1)
    damp: float = Field(1e-7, gt=0)
    fisher_block_size: int = Field(1, ge=1)
    grad_sampler_kwargs: Mapping[str, Any] | None = None
    num_recomputations: int = Field(1, ge=1)

    @field_validator("mask_type")
    @classmethod
    def _check_mask_type(cls, value: MaskType) -> MaskType:
        structure = parse_mask_type(value)
        if structure.keep or structure.rows > 1:
            raise ValueError(f"OBS prunes single weights or blocks along inputs (block4), not '{value}'")
        return value

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match, and where there is no grad_sampler."""
        check_sampler(loop, NAME)
        return OBSPart(self, loop)


class OBSPart(Part):
    """Sample, choose, correct."""

    def __init__(self, options: OBSPruningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.structure = parse_mask_type(options.mask_type)
        (self.group,) = resolve_groups(loop.module, options, NAME)
        self.claims = frozenset(f"pruning of {weight.name}" for weight in self.group.weights)
        self.reached = 0.0

    def update(self, epoch: float) -> None:
        """Prune to the sparsity of this epoch; raises StageError for weights that are not finite."""
        for weight in self.group.weights:
            check_finite(weight, NAME, epoch)
        options = self.options
        done = progress(epoch, options.start_epoch, options.end_epoch)
        goal = interpolate(options.inter_func, done, self.group.first(self.group.weights), options.final_sparsity)
        begin, times = self.reached, options.num_recomputations
        for turn in range(1, times + 1):
            self._prune(begin + (goal - begin) * turn / times)
        self.reached = goal

    def end(self, epoch: float) -> None:
        """Let the masks go, where they are not to stay."""
        if not self.options.leave_enabled:
            self.loop.masks.release([weight.name for weight in self.group.weights], NAME)

    def state_dict(self) -> dict[str, Any]:
        """Return the sparsity reached, and where `__FROM_PARAM__` began."""
        return {"reached": self.reached, "first": dict(self.group.measured)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them over."""
        self.reached = state["reached"]
        self.group.measured.update(state["first"])

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        follow_weights([self.group], old, new)

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        weights = self.group.weights
        before = [self._kept(weight) for weight in weights]
        inverses = self._inverses(before)
        scores = [self._scores(weight, inverse) for weight, inverse in zip(weights, inverses, strict=True)]
        for chosen in [range(len(weights))] if self.options.global_sparsity else [[i] for i in range(len(weights))]:
            prune_these = [weights[i] for i in chosen]
            old = [weight.parameter.detach().clone() for weight in prune_these]
            prune(self.loop, NAME, prune_these, [scores[i] for i in chosen], sparsity, self.structure)
            for weight, value, i in zip(prune_these, old, chosen, strict=True):
                gone = before[i] & ~self._kept(weight)
                self._correct(weight, value, gone, inverses[i])
        self.loop.masks.mask_weights()

    def _kept(self, weight: Weight) -> Tensor:
        return self.loop.masks.kept(weight.name, torch.ones_like(weight.parameter, dtype=torch.bool))

    def _inverses(self, kept: Sequence[Tensor]) -> list[Tensor]:
        options, weights = self.options, self.group.weights
        parameters = [weight.parameter for weight in weights]
        samples = sample_gradients(
            self.loop, parameters, options.num_grads, options.grad_sampler_kwargs or {}, NAME
        )  # a pruned weight's gradient is none of its own: it stays out of the Fisher matrix
        flat = (
            [self._blocks(weight, gradient * mask) for weight, gradient, mask in zip(weights, one, kept, strict=True)]
            for one in samples
        )
        return inverse_fisher(flat, options.num_grads, options.damp)

    def _blocks(self, weight: Weight, tensor: Tensor) -> Blocks:
        """Cut a tensor into blocks of fisher_block_size, inputs side by side, so that none of block4 is cut."""
        matrix = weight.to_matrix(tensor)
        flat = pad(matrix, (0, -matrix.shape[2] % self.structure.columns)).flatten()
        size = -(-self.options.fisher_block_size // self.structure.columns) * self.structure.columns
        return pad(flat, (0, -flat.numel() % size)).view(-1, size)

    def _whole(self, weight: Weight, blocks: Blocks) -> Tensor:
        """Undo `_blocks`, as a matrix."""
        shape = weight.to_matrix(weight.parameter).shape
        inputs = shape[2] + -shape[2] % self.structure.columns
        return blocks.flatten()[: shape[0] * shape[1] * inputs].view(*shape[:2], inputs)[..., : shape[2]]

    def _scores(self, weight: Weight, inverse: Tensor) -> Tensor:
        values, columns = self._blocks(weight, weight.parameter.detach()), self.structure.columns
        scores = single_scores(values, inverse) if columns == 1 else block_scores(values, inverse, columns)
        return self._whole(weight, scores)

    def _correct(self, weight: Weight, value: Tensor, gone: Tensor, inverse: Tensor) -> None:
        values, dropped = self._blocks(weight, value), self._blocks(weight, gone)
        changed = values + correction(values, dropped, inverse)
        weight.parameter.copy_(from_rank_0(weight.from_matrix(self._whole(weight, changed))))
