"""Run the turns of a recipe in one training loop: before and after each step, on the loss, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sparsify import RequestError, StageError
from torch import Tensor, nn

from sparsify_torch.loop import Forward, Loop, Watch
from sparsify_torch.prunable import weighted_layers
from sparsify_torch.schedule import Turn

Rewrap = Callable[[nn.Module], nn.Module]


class Run:
    """Hold the turns of one loop and how many steps it has taken; the epoch is counted from whole steps."""

    def __init__(self, loop: Loop, turns: Sequence[Turn], module: nn.Module, rewrap: Rewrap | None = None) -> None:
        self.loop, self.turns, self.rewrap = loop, tuple(turns), rewrap
        self.begin, self.steps = loop.epoch, 0
        self.looked = -1  # the step whose gradients were looked at last: a closure may make them several times
        self.built = len(loop.structure)  # what the wrapped module was made for
        self._follow(module)

    @property
    def epoch(self) -> float:
        """Return the epoch of the step at hand, in fractions."""
        return self.begin + self.steps / self.loop.steps_per_epoch

    def before_step(self) -> None:
        """Act on the gradients at hand, once a step, and clear those of pruned weights."""
        if self.looked != self.steps:
            self.looked = self.steps
            self.update()
            for turn in self.turns:
                if turn.active:
                    turn.part.before_step()
        self.loop.masks.mask_gradients()

    def after_step(self) -> None:
        """Zero the pruned weights again, go on by one step, and let what stands between steps act."""
        self.loop.masks.mask_weights()
        self.skip_step()

    def skip_step(self) -> None:
        """Go on by one step."""
        self.steps += 1
        self.loop.forward = Forward()
        self.update(between_steps=True)

    def update(self, *, between_steps: bool = False) -> None:
        """Let the parts act that are due at this epoch: those before a step, or those between two."""
        self.loop.epoch = self.epoch
        for turn in self.turns:
            if turn.part.between_steps == between_steps:
                turn.advance(self.epoch)
        if self.rewrap is not None and self.built != len(self.loop.structure):
            self.built = len(self.loop.structure)
            self.hook.remove()
            del self.runner  # its hooks sit on parameters that stay: it has to be gone before there is another
            self._follow(self.rewrap(self.loop.module))

    def _follow(self, module: nn.Module) -> None:
        self.runner = module
        self.hook = module.register_forward_hook(Watch(self._catch), with_kwargs=True)

    def loss(self, loss: Tensor, outputs: Any = None, inputs: Any = None) -> Tensor:
        """Return the loss that the active parts make of this one; raises StageError where it is not finite."""
        forward = self.loop.forward
        if inputs is not None:
            named = isinstance(inputs, Mapping)
            arguments = () if named else tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
            forward = Forward(arguments, inputs if named else {}, forward.outputs)
        if outputs is not None:
            forward = Forward(forward.arguments, forward.keywords, outputs)
        given = loss
        for turn in self.turns:
            if turn.active:
                loss = turn.part.loss(loss, forward)
        if not torch.isfinite(loss).all():  # looked at once a step: on a GPU it waits for the forward pass
            raise self._not_finite(given, loss)
        return loss

    def finalize(self) -> None:
        """Let what is due at the end act, and every part leave the module as it is to be saved."""
        self.update()
        self.update(between_steps=True)
        for turn in self.turns:
            turn.part.finalize()
        self.loop.masks.mask_weights()
        self.hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the masks, and the state of all turns by key."""
        turns = {turn.key: turn.state_dict() for turn in self.turns}
        clock = {"begin": self.begin, "steps": self.steps, "steps_per_epoch": self.loop.steps_per_epoch}
        held = {"masks": self.loop.masks.state_dict(), "structure": list(self.loop.structure)}
        return {**clock, **held, "turns": turns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run of the same recipe stopped; raises RequestError for one of another recipe."""
        keys, found = {turn.key for turn in self.turns}, set(state["turns"])
        if keys != found:
            names = ", ".join(sorted(key.split("#")[0] for key in keys ^ found))
            problem = f"the state was saved by another recipe: it differs in {names}"
            raise RequestError(problem, fix="resume with the recipe that the run began with")
        if state.get("structure", []) != self.loop.structure:
            fix = "call load_state_dict, apply_structure and modify, in this order, on a fresh module"
            raise RequestError("the state is of a module with fewer channels or layers than this one", fix=fix)
        parameters = dict(self.loop.module.named_parameters())
        for held in state["masks"].values():
            for name, kept in held.items():
                _check_mask(name, kept, parameters)
        self.begin, self.steps, self.looked = state["begin"], state["steps"], -1
        if state["steps_per_epoch"] != self.loop.steps_per_epoch:  # another batch size: only the epoch stays
            self.begin, self.steps = self.begin + self.steps / state["steps_per_epoch"], 0
        self.loop.epoch = self.epoch
        for turn in self.turns:
            turn.load_state_dict(state["turns"][turn.key])
        self.loop.masks.load_state_dict(state["masks"], parameters)

    def _catch(self, module: nn.Module, arguments: Any, keywords: Any, outputs: Any) -> None:
        if module.training:
            self.loop.forward = Forward(arguments, keywords, outputs)

    def _not_finite(self, given: Tensor, loss: Tensor) -> StageError:
        what = "the loss after the recipe's modifiers" if torch.isfinite(given).all() else "the loss"
        value, where = loss.detach().mean().item(), _first_bad_layer(self.loop.module, self.loop.forward)
        problem = f"{what} is {value} at step {self.steps} (epoch {self.epoch:.4g}): {where}"
        fix = "lower the learning rate or clip gradients, and go on from the last good checkpoint"
        return StageError(problem, fix=fix)


def check_wrapped(module: nn.Module, structural: Sequence[str], rewrap: Rewrap | None) -> None:
    """Raise RequestError where DistributedDataParallel would go on with parameters that a recipe replaces."""
    if structural and rewrap is None and isinstance(module, nn.parallel.DistributedDataParallel):
        problem = f"{structural[0]} replaces parameters, which DistributedDataParallel does not notice"
        fix = "give manager.modify(…, rewrap=DistributedDataParallel), and train with manager.runner"
        raise RequestError(problem, fix=fix)


def _check_mask(name: str, kept: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    if name not in parameters or parameters[name].shape != kept.shape:
        found = f"has the shape {tuple(parameters[name].shape)}" if name in parameters else "does not exist"
        problem = f"the state holds a mask of '{name}' with the shape {tuple(kept.shape)}, here it {found}"
        raise RequestError(problem, fix="resume with the model that the run began with")


def _first_bad_layer(module: nn.Module, forward: Forward) -> str:
    """Say where values stop being finite: in a weight, else in a layer's output for the latest batch."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"'{name}' of layer '{name.rpartition('.')[0]}' is the first that is not finite"
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return look

    if forward.arguments or forward.keywords:
        layers = {name: layer for name, layer in module.named_modules() if name and not list(layer.children())}
        hooks = [layer.register_forward_hook(watch(name)) for name, layer in (layers | weighted_layers(module)).items()]
        with torch.no_grad():
            module(*forward.arguments, **forward.keywords)
        for hook in hooks:
            hook.remove()
    return f"layer '{found[0]}' is the first whose output is not finite" if found else "all layers give finite values"
