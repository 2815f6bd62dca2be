"""Wrap an optimizer, or an AMP scaler, so that each step runs the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparsify_torch.running import Run


class RecipeOptimizer(Optimizer):
    """Stand in for an optimizer: learning rate schedulers, GradScaler and Accelerate take it as one.

    Everything but `step` is the wrapped optimizer's. Around one of Accelerate's, only the steps that it takes count.
    """

    def __init__(self, optimizer: Optimizer, run: Run) -> None:
        # Optimizer.__init__ is left out: groups and state are the wrapped optimizer's own
        self.wrapped, self.run = optimizer, run

    state = property(lambda self: self.wrapped.state)
    defaults = property(lambda self: self.wrapped.defaults)
    param_groups = property(lambda self: self.wrapped.param_groups)  # whichever list it holds now

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Run what the recipe asks for around the wrapped step, and go on by one step."""
        accumulating = getattr(self.wrapped, "gradient_state", None)
        if accumulating is not None and not accumulating.sync_gradients:
            return self.wrapped.step(closure)
        if closure is None:
            self.run.before_step()
            result = self.wrapped.step()
        else:
            result = self.wrapped.step(self._looked_at(closure))
        self.run.after_step()
        return result

    def _looked_at(self, closure: Callable[[], float]) -> Callable[[], float]:
        """Let the recipe act on the gradients that a closure makes."""

        def run() -> float:
            loss = closure()
            self.run.before_step()
            return loss

        return run

    def emulated_step(self) -> None:
        """Go on by one step without touching the optimizer."""
        self.run.before_step()
        self.run.after_step()

    def loss_update(self, loss: Tensor, outputs: Any = None, inputs: Any = None) -> Tensor:
        """Return the loss to minimise; raises StageError where it is not finite.

        outputs, inputs: of the forward pass, where it was not the module's that was given to modify. inputs: a tensor,
        a sequence of positional ones, or a mapping of named ones.
        """
        return self.run.loss(loss, outputs, inputs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.wrapped.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state; the recipe's is the manager's."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.wrapped.load_state_dict(dict(state_dict))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.wrapped.add_param_group(param_group)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.wrapped!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __getattr__(self, name: str) -> Any:
        if name in ("wrapped", "run"):  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class RecipeScaler:
    """Stand in for a GradScaler: `scaler.step(optimizer)` runs the recipe, on gradients that are unscaled."""

    def __init__(self, scaler: Any, optimizer: RecipeOptimizer) -> None:
        self.wrapped, self.optimizer = scaler, optimizer

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step; where the scaler skips one for infinite gradients, the epoch goes on nevertheless."""
        before = self.optimizer.run.steps
        result = self.wrapped.step(self._ours(optimizer), *args, **kwargs)
        if self.optimizer.run.steps == before:
            self.optimizer.run.skip_step()
        return result

    def unscale_(self, optimizer: Optimizer) -> None:
        """Unscale the gradients."""
        self.wrapped.unscale_(self._ours(optimizer))

    def loss_update(self, loss: Tensor, outputs: Any = None, inputs: Any = None) -> Tensor:
        """Return the loss to scale and minimise; raises StageError where it is not finite."""
        return self.optimizer.loss_update(loss, outputs, inputs)

    def __getattr__(self, name: str) -> Any:
        if name in ("wrapped", "optimizer"):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def _ours(self, optimizer: Optimizer) -> Optimizer:
        """Return one object for both: the scaler keeps a state for each that it sees."""
        return self.optimizer if optimizer is self.optimizer.wrapped else optimizer
