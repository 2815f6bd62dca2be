"""What a training modifier is, and what it works with.

A modifier is a frozen pydantic model of its options, under the name that recipes use, offered by an
`Entry(..., phase="training")`. It has the fields `start_epoch` and `end_epoch`, may have `update_frequency`, and one
method:

    class NoiseModifier(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        start_epoch: float = -1
        end_epoch: float = -1
        update_frequency: float = -1
        scale: float = 0.01

        def attach(self, loop: Loop) -> Part:
            return Noise(self, loop)

`attach` looks at the model and refuses what is impossible; it changes nothing. The `Part` that it returns holds all
state of one run and overrides what it needs of the methods below. The manager calls `start` once when
epoch ≥ start_epoch or start_epoch = −1, then `update` at once and again every update_frequency epochs (at every step
where −1), and `end` after a last `update` when epoch ≥ end_epoch ≥ 0. Parts never look at the clock themselves.

When: before the optimizer's step, while gradients are at hand. A part with `between_steps = True` acts after the step
instead, and when it is attached: those that change what the next forward pass computes, such as modules, observers,
which parameters train. One that replaces parameters calls `loop.swap(old, new, carry)` for each: the optimizer's
groups and state follow, and so do the masks and the state of all other parts. One that takes channels or layers out
calls `restructuring.restructure(loop, step)`, which does that and keeps the step for checkpoints. New parameters go
into the optimizer by `add_param_group`. Options whose modifier adds to the module by rules of its own also have
`apply_structure(module, epoch, example_inputs)`, which does it to a fresh module before a checkpoint is loaded;
`attach` then finds a module that is changed already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsify_torch.masks import Masks

Carry = Callable[[Tensor], Tensor]
Log = Callable[[str, Any, float], None]


@dataclass
class Forward:
    """Hold the latest forward pass of a step; None before there was one."""

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    outputs: Any = None


@dataclass
class Loop:
    """Give parts what they work with: one per call of `manager.modify`.

    module: without DistributedDataParallel and torch.compile around it. epoch: that of the step at hand, in fractions.
    teacher: a module, "self", "disable" or None. grad_sampler: see `gradients.py`. log(tag, value, epoch): writes to
    all loggers. structure: the steps of `apply_structure` that the module has been through since it was made.
    """

    module: nn.Module
    optimizer: Optimizer
    steps_per_epoch: int
    teacher: nn.Module | str | None = None
    grad_sampler: Mapping[str, Any] | None = None
    example_inputs: Any = None
    structure: list[dict[str, Any]] = field(default_factory=list)
    log: Log = lambda tag, value, epoch: None
    epoch: float = 0.0
    masks: Masks = field(default_factory=Masks)
    forward: Forward = field(default_factory=Forward)
    parts: list[Part] = field(default_factory=list)

    def groups(self, wanted: Sequence[int] | None) -> list[dict[str, Any]]:
        """Return these of the optimizer's parameter groups, or all."""
        groups = self.optimizer.param_groups
        return list(groups) if wanted is None else [groups[index] for index in wanted]

    def swap(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Replace a parameter everywhere, or take it out where `new` is None.

        carry: turns a tensor of the old parameter's shape (momentum, a mask, a score) into one of the new's.
        """
        for group in self.optimizer.param_groups:
            found = [new if one is old else one for one in group["params"]]
            group["params"] = [one for one in found if one is not None]
        state = self.optimizer.state.pop(old, None)
        if state is not None and new is not None:
            tensors = [value for value in state.values() if isinstance(value, Tensor) and value.ndim]
            if all(value.shape == old.shape for value in tensors):  # factored moments begin anew
                self.optimizer.state[new] = {
                    name: carry(value) if isinstance(value, Tensor) and value.ndim else value
                    for name, value in state.items()
                }
        self.masks.swap(old, new, carry)
        for part in self.parts:
            part.swapped(old, new, carry)


class Part:
    """Hold one modifier's state in one training loop; every method may be overridden, none has to be.

    between_steps: act after the optimizer's step and on attaching, not before the step. once: all is done at the start.
    claims: what the part alone sets while it is active, such as "learning rate of group 0". needs: what others must not
    claim meanwhile. Two parts that claim the same at once are refused. yields: but a later one may take claims over for
    good, see `release`.
    """

    between_steps: ClassVar[bool] = False
    once: bool = False
    yields: ClassVar[bool] = False
    claims: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    def start(self, epoch: float) -> None:
        """Begin; comes once."""

    def update(self, epoch: float) -> None:
        """Act: at the start, whenever the update frequency is over, and at the end."""

    def end(self, epoch: float) -> None:
        """Stop; comes once, after the last update."""

    def release(self, claims: frozenset[str]) -> None:
        """Leave some of the claims to another part from now on; comes at every update after that."""

    def before_step(self) -> None:
        """Look at the gradients before the optimizer's step; comes at every step between start and end."""

    def loss(self, loss: Tensor, forward: Forward) -> Tensor:
        """Return the loss to minimise; comes at every step between start and end."""
        return loss

    def finalize(self) -> None:
        """Leave the module as it is to be saved; comes once, after training."""

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow a parameter that another part has replaced."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class TrainingModifier(Protocol):
    """Describe what a recipe's modifier must have; options are frozen, all state is in the part."""

    @property
    def start_epoch(self) -> float:
        """Return the epoch of the first action, −1 for the beginning."""
        ...

    @property
    def end_epoch(self) -> float:
        """Return the epoch of the last action, −1 for never."""
        ...

    def attach(self, loop: Loop) -> Part:
        """Return the part for a loop, or raise RequestError."""
        ...


class Watch:
    """Call a function from a forward hook; copies and pickles of the module, such as an EMA's, hold a silent one.

    A hook that torch.compile traces is silent too: give `modify` the compiled module, whose own hooks are not traced.
    """

    def __init__(self, report: Callable[..., None]) -> None:
        self.report = report

    def __call__(self, *seen: Any) -> None:
        """Report what the hook is given."""
        if not torch.compiler.is_compiling():
            self.report(*seen)

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, (silent,)


def silent(*seen: Any) -> None:
    """Do nothing."""


def log_to(loggers: Iterable[Any], steps_per_epoch: int) -> Log:
    """Return a function that writes to all loggers: callables, or objects with `add_scalar` or `log_scalar`."""
    writers = [
        getattr(logger, "add_scalar", None) or getattr(logger, "log_scalar", None) or logger for logger in loggers
    ]
    direct = [callable(logger) for logger in loggers]

    def log(tag: str, value: Any, epoch: float) -> None:
        for writer, plain in zip(writers, direct, strict=True):
            writer(tag, value, epoch if plain else round(epoch * steps_per_epoch))

    return log
