"""Refuse recipes that contradict themselves: epochs, and two modifiers that set the same thing at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sparsify import RequestError

from sparsify_torch.loop import Part
from sparsify_torch.schedule import NEAR, Turn

RANGE, QUANTIZATION = "EpochRangeModifier", "QuantizationModifier"
# what takes channels and layers out, which must be over before quantization looks where it rounds
STRUCTURAL = ("StructuredPruningModifier", "LayerPruningModifier", "LayerThinningModifier")


def check_epochs(modifiers: Sequence[tuple[str, Any]]) -> None:
    """Raise RequestError for a start after an end, and for pruning outside the recipe's EpochRange."""
    for name, one in modifiers:
        if 0 <= one.end_epoch < one.start_epoch:
            problem = f"{name}: start_epoch {one.start_epoch:g} is after end_epoch {one.end_epoch:g}"
            raise RequestError(problem, fix="raise end_epoch, or lower start_epoch")
    _check_structure_first(modifiers)
    ranges = [one for name, one in modifiers if name == RANGE]
    if not ranges:
        return
    last, first = max(one.end_epoch for one in ranges), min(one.start_epoch for one in ranges)
    for name, one in modifiers:
        if "Pruning" not in name:
            continue
        wrong = [("start_epoch", one.start_epoch)] if 0 <= one.start_epoch < first - NEAR else []
        beyond = [("start_epoch", one.start_epoch), ("end_epoch", one.end_epoch)]
        wrong += [(field, epoch) for field, epoch in beyond if epoch > last + NEAR]
        if wrong:
            field, epoch = wrong[0]
            problem = f"{name}, field '{field}': epoch {epoch:g} is outside {RANGE}'s {first:g} to {last:g}"
            raise RequestError(problem, fix=f"change {field}, or the epochs of {RANGE}")


def _check_structure_first(modifiers: Sequence[tuple[str, Any]]) -> None:
    """Raise RequestError where channels or layers would go after QuantizationModifier has begun."""
    begun = min((max(one.start_epoch, 0.0) for name, one in modifiers if name == QUANTIZATION), default=math.inf)
    for name, one in modifiers:
        last = max(one.start_epoch, one.end_epoch, *(getattr(one, "update_epochs", None) or ()))
        if name in STRUCTURAL and last > begun + NEAR:
            problem = f"{name} still changes the module at epoch {last:g}, and {QUANTIZATION} begins at {begun:g}"
            raise RequestError(problem, fix=f"let {name} end by then: quantization keeps to the places it found")


def check_claims(turns: Sequence[Turn]) -> None:
    """Raise RequestError where two parts set the same thing at once.

    A part that never ends (−1) yields to a later one with the same claim: its end is set to the other's start. What is
    set once holds until another sets it.
    """
    spans = [_Span(turn, max(turn.options.start_epoch, 0.0), _end(turn)) for turn in turns]
    spans.sort(key=lambda span: span.start)  # so that an open one meets its next first
    for first, second in combinations(spans, 2):
        shared = _shared(first.turn.part, second.turn.part)
        if shared:
            _settle(first, second, min(shared))


def _shared(one: Part, other: Part) -> frozenset[str]:
    return (one.claims & (other.claims | other.needs)) | (one.needs & other.claims)


@dataclass
class _Span:
    turn: Turn
    start: float
    end: float


def _end(turn: Turn) -> float:
    if turn.part.once:
        return max(float(turn.options.start_epoch), 0.0)
    return turn.end if turn.end >= 0 else math.inf


def _settle(first: _Span, second: _Span, what: str) -> None:
    if first.end == math.inf and second.start > first.start:
        first.end = first.turn.end = second.start
    same_moment = abs(first.start - second.start) <= NEAR
    if first.end <= second.start + NEAR and not same_moment:
        return
    if same_moment and _agree(first, second):
        return
    problem = (
        f"{first.turn.name} (epochs {first.start:g} to {first.end:g}) and {second.turn.name} "
        f"(epochs {second.start:g} to {second.end:g}) both set the {what} at once"
    )
    raise RequestError(problem, fix="remove one of them, or let one end where the other starts")


def _agree(first: _Span, second: _Span) -> bool:
    """Say whether two that begin together do no harm: one acts once and sets what the other begins with."""
    values = []
    for span in (first, second):
        options = span.turn.options
        values.append(getattr(options, "learning_rate", getattr(options, "init_lr", None)))
    return (first.turn.part.once or second.turn.part.once) and values[0] is not None and values[0] == values[1]
