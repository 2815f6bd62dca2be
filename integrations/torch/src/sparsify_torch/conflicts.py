"""Refuse recipes that contradict themselves: epochs, and two modifiers that set the same thing at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

from sparsify import RequestError

from sparsify_torch.loop import Part
from sparsify_torch.schedule import NEAR, Turn

RANGE, QUANTIZATION, LAYERS = "EpochRangeModifier", "QuantizationModifier", "LayerPruningModifier"
PRUNING = tuple(
    f"{name}PruningModifier" for name in ("GM", "Magnitude", "GlobalMagnitude", "Movement", "OBS", "ACDC", "RigL")
)
# what takes channels and layers out, which must be over before quantization looks where it rounds
STRUCTURAL = ("StructuredPruningModifier", LAYERS, "LayerThinningModifier")


def check_epochs(modifiers: Sequence[tuple[str, Any]]) -> None:
    """Raise RequestError for a start after an end, and for pruning outside the recipe's EpochRange."""
    for name, one in modifiers:
        if 0 <= one.end_epoch < one.start_epoch:
            problem = f"{name}: start_epoch {one.start_epoch:g} is after end_epoch {one.end_epoch:g}"
            raise RequestError(problem, fix="raise end_epoch, or lower start_epoch")
    _check_structure_first(modifiers)
    ranges = [one for name, one in modifiers if name == RANGE]
    last = max((one.end_epoch for one in ranges), default=math.inf)
    first = min((one.start_epoch for one in ranges), default=0.0)
    for name, one in modifiers:
        if "Pruning" not in name:
            continue
        wrong = [("start_epoch", one.start_epoch)] if 0 <= one.start_epoch < first - NEAR else []
        beyond = [("start_epoch", one.start_epoch), ("end_epoch", one.end_epoch)]
        wrong += [(field, epoch) for field, epoch in beyond if epoch > last + NEAR]
        if name == LAYERS and 0 <= one.end_epoch < last - NEAR:
            problem = f"{name}, field 'end_epoch': layers that were taken out do not come back at {one.end_epoch:g}"
            raise RequestError(problem, fix="remove end_epoch, or set it to the last epoch of the recipe")
        if wrong:
            field, epoch = wrong[0]
            problem = f"{name}, field '{field}': epoch {epoch:g} is outside {RANGE}'s {first:g} to {last:g}"
            raise RequestError(problem, fix=f"change {field}, or the epochs of {RANGE}")


def _check_structure_first(modifiers: Sequence[tuple[str, Any]]) -> None:
    """Raise RequestError where channels or layers would go after QuantizationModifier has begun."""
    begun = min((max(one.start_epoch, 0.0) for name, one in modifiers if name == QUANTIZATION), default=math.inf)
    for name, one in modifiers:
        at_once = name == LAYERS and one.update_frequency < 0  # its end_epoch changes nothing
        last = one.start_epoch if at_once else max(one.start_epoch, one.end_epoch)
        last = max([last, *(getattr(one, "update_epochs", None) or ())])
        if name in STRUCTURAL and last > begun + NEAR:
            problem = f"{name} still changes the module at epoch {last:g}, and {QUANTIZATION} begins at {begun:g}"
            raise RequestError(problem, fix=f"let {name} end by then: quantization keeps to the places it found")


def check_names(modifiers: Sequence[tuple[str, Any]]) -> None:
    """Raise RequestError for what contradicts itself in any model: epochs, and names that two prune at once."""
    check_epochs(modifiers)
    turns = []
    for place, (name, options) in enumerate(modifiers):
        if name in PRUNING:
            shares = getattr(options, "final_sparsity", 0.0)
            named = chain(options.params, *(shares.values() if isinstance(shares, Mapping) else ()))
            part = Part()
            part.claims = frozenset(f"pruning of {one}" for one in named)
            turns.append(Turn(name, "", options, part, options.end_epoch, place))
    check_claims(turns)


def check_claims(turns: Sequence[Turn]) -> None:
    """Raise RequestError where two parts set the same thing at once.

    What is set once holds until another sets it. A part that sets something for good takes it over from one that began
    before and yields; any part that never ends (−1) ends where a later one claims the same.
    """
    spans = [_Span(turn, max(turn.options.start_epoch, 0.0), _end(turn)) for turn in turns]
    spans.sort(key=lambda span: (span.start, span.turn.place))  # so that an open one meets its next first
    for first, second in combinations(spans, 2):
        shared = _shared(first.turn.part, second.turn.part)
        if shared and not _taken_over(first, second, shared):
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


def _taken_over(first: _Span, second: _Span, shared: frozenset[str]) -> bool:
    """Let the second part have what both claim, where the first yields: all of it by ending, some by letting go of it.

    Of two switches that begin together the later in the recipe has what both name, unless both name the same.
    """
    claims, at_once = first.turn.part.claims, abs(first.start - second.start) <= NEAR
    for_good = second.turn.part.once or second.end == math.inf
    if not first.turn.part.yields or first.end <= second.start + NEAR or not (for_good or first.end == math.inf):
        return False
    if at_once and (first.turn.part.once or second.turn.part.once or shared == claims or not for_good):
        return False
    if shared == claims:
        first.end = first.turn.end = second.start
    else:
        first.turn.yielded.append((second.start, shared))
    return True


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
