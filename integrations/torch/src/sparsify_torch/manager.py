"""Attach the modifiers of a recipe to a training loop: read and check them, and keep their state."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify import Recipe, RequestError, Step, dump_recipe, load_plugins, load_recipe, resolve_modifiers
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsify_torch.conflicts import STRUCTURAL, check_claims, check_epochs
from sparsify_torch.loop import Loop, log_to
from sparsify_torch.removal import apply_structure
from sparsify_torch.running import Run, check_wrapped
from sparsify_torch.schedule import NEAR, Turn
from sparsify_torch.stepping import RecipeOptimizer, RecipeScaler
from sparsify_torch.weights import bare


class ScheduledModifierManager:
    """Run a recipe in a training loop of your own.

    manager = ScheduledModifierManager.from_yaml("recipe.yaml")
    optimizer = manager.modify(model, optimizer, steps_per_epoch=len(loader))
    for epoch in range(manager.max_epochs): … the loop as it was …
    manager.finalize(model)
    """

    def __init__(self, modifiers: Iterable[Any], steps: Iterable[Step] = ()) -> None:
        """Take options objects in any order; raises RequestError for epochs that contradict one another.

        steps: how a recipe writes them, one for each, else they are written from their fields.
        """
        found = list(modifiers)
        written = list(steps) or [_step(options) for options in found]
        pairs = sorted(zip(found, written, strict=True), key=lambda pair: _order(*pair))
        self.recipe = Recipe(tuple(written))  # in the order in which it was written
        self.modifiers: tuple[Any, ...] = tuple(options for options, _ in pairs)
        self.steps = tuple(step for _, step in pairs)
        self.notes: tuple[str, ...] = ()
        self._run: Run | None = None
        self._pending: Mapping[str, Any] | None = None
        check_epochs([(step.name, options) for options, step in pairs])

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        add_modifiers: Iterable[Any] | None = None,
        recipe_variables: Mapping[str, Any] | str | None = None,
    ) -> ScheduledModifierManager:
        """Read a recipe file (.yaml, .yml, .json, or the front matter of .md).

        recipe_variables, a mapping or JSON, replace the recipe's own; add_modifiers are options objects to run beside
        it. Raises RequestError for whatever is wrong with the recipe, and for modifiers that cannot run in a training
        loop here.
        """
        recipe = load_recipe(Path(path), _variables(recipe_variables))
        return cls.from_recipe(recipe, add_modifiers or ())

    @classmethod
    def from_recipe(cls, recipe: Recipe, add_modifiers: Iterable[Any] = ()) -> ScheduledModifierManager:
        """Take a recipe that was read or made already; raises RequestError as `from_yaml` does."""
        modifiers = []
        for step, options in resolve_modifiers(recipe, load_plugins(), "training-aware"):
            if step.phase != "training":
                problem = f"modifier '{step.name}' ({step.group}) works on a trained model, not in a training loop"
                fix = f"remove !{step.name} from the recipe, or apply it after training with `sparsify run one-shot`"
                raise RequestError(problem, fix=fix)
            modifiers.append(options)
        added = list(add_modifiers)
        manager = cls([*modifiers, *added], [*recipe.steps, *map(_step, added)])
        manager.notes = recipe.notes
        return manager

    @property
    def max_epochs(self) -> int:
        """Return the epoch that the recipe ends with, rounded up: how many epochs to train."""
        return math.ceil(max((max(one.start_epoch, one.end_epoch) for one in self.modifiers), default=0.0) - NEAR)

    @property
    def min_epochs(self) -> int:
        """Return the epoch that the recipe begins with, rounded down."""
        return math.floor(max(min((one.start_epoch for one in self.modifiers), default=0.0), 0.0) + NEAR)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Return by parameter name which weights stay (True), as far as they are held now."""
        return self._running.loop.masks.by_name()

    @property
    def structure(self) -> list[dict[str, Any]]:
        """Return what was taken out so far, as the steps of `sparsify_torch.apply_structure`."""
        return list(self._running.loop.structure)

    @property
    def runner(self) -> nn.Module:
        """Return the module to call in training: that given to `modify`, or what `rewrap` made of it since."""
        return self._running.runner

    def iter_modifiers(self) -> Iterator[Any]:
        """Yield the options in the order in which they act."""
        yield from self.modifiers

    def named(self, word: str) -> list[Any]:
        """Return the options whose modifier's name contains a word: "Pruning", "Quantization", "Distillation"."""
        return [options for options, step in zip(self.modifiers, self.steps, strict=True) if word in step.name]

    def modify(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        steps_per_epoch: int,
        *,
        epoch: float = 0.0,
        wrap_optim: Any = None,
        distillation_teacher: nn.Module | str | None = None,
        grad_sampler: Mapping[str, Any] | None = None,
        example_inputs: Any = None,
        rewrap: Callable[[nn.Module], nn.Module] | None = None,
        loggers: Sequence[Any] = (),
    ) -> Any:
        """Return what stands in for the optimizer, or with `wrap_optim=scaler` for the AMP scaler.

        steps_per_epoch: optimizer steps, after gradient accumulation. epoch: where training begins.
        distillation_teacher: a module, "self" or "disable". grad_sampler: see `gradients.py`. example_inputs: as the
        module takes them; what takes channels or layers out needs them. rewrap: makes DistributedDataParallel of the
        bare module anew where its parameters were replaced; `runner` is what it made. loggers: callables (tag, value,
        epoch), or objects with `add_scalar` or `log_scalar` (tag, value, step). Raises RequestError for what the recipe
        names and the model lacks, and for modifiers that set the same thing at once; module and optimizer are as before
        then.
        """
        if steps_per_epoch < 1:
            fix = "give how many optimizer steps an epoch has, such as len(loader)"
            raise RequestError(f"steps_per_epoch is {steps_per_epoch}", fix=fix)
        loop = Loop(bare(module), optimizer, steps_per_epoch, distillation_teacher, grad_sampler, epoch=epoch)
        loop.log, loop.example_inputs = log_to(loggers, steps_per_epoch), example_inputs
        loop.structure = list((self._pending or {}).get("structure", ()))
        check_wrapped(module, [step.name for step in self.steps if step.name in STRUCTURAL], rewrap)
        turns = self._attach(loop)
        if self._run is not None:
            self._run.hook.remove()
        self._run = Run(loop, turns, module, rewrap)
        if self._pending is not None:
            self._run.load_state_dict(self._pending)
            self._pending = None
        self._run.update(between_steps=True)
        stepping = RecipeOptimizer(optimizer, self._run)
        return stepping if wrap_optim is None else RecipeScaler(wrap_optim, stepping)

    def check(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        grad_sampler: Mapping[str, Any] | None = None,
        example_inputs: Any = None,
    ) -> None:
        """Raise what `modify` would of the recipe, the teacher left out; the module and the optimizer are spent then.

        Give copies, before hours of training that the recipe comes after.
        """
        loop = Loop(bare(module), optimizer, 1, "disable", grad_sampler)
        loop.example_inputs = example_inputs
        self._attach(loop)

    def apply_structure(self, module: nn.Module, epoch: float = math.inf, example_inputs: Any = None) -> None:
        """Give a fresh module the structure that it has at an epoch, so that a checkpoint from then can be loaded.

        Call `load_state_dict` before: what was taken out stands in the checkpoint. example_inputs: as the module takes
        them; QuantizationModifier needs them.
        """
        apply_structure(bare(module), list((self._pending or {}).get("structure", ())))
        for options in self.modifiers:
            restructure = getattr(options, "apply_structure", None)
            if restructure is not None and options.start_epoch <= epoch:
                restructure(bare(module), epoch, example_inputs)

    def update(self) -> None:
        """Let the modifiers act that are due before the step at hand; the wrapped `step` does it by itself."""
        self._running.update()

    def optimizer_pre_step(self) -> None:
        """Do what `step` does before the optimizer's own."""
        self._running.before_step()

    def optimizer_post_step(self) -> None:
        """Do what `step` does after the optimizer's own, and go on by one step."""
        self._running.after_step()

    def loss_update(self, loss: Tensor, outputs: Any = None, inputs: Any = None) -> Tensor:
        """Return the loss to minimise; raises StageError where it is not finite."""
        return self._running.loss(loss, outputs, inputs)

    def apply_masks(self, module: nn.Module) -> None:
        """Zero what is pruned in another module with the same parameter names, such as an average of the weights."""
        self._running.loop.masks.apply_to(bare(module))

    def finalize(self, module: nn.Module | None = None) -> None:
        """Let what is due at the end act, and leave the module as it is to be saved; masks stay in its zeros.

        module: the one that was modified, or another with the same names, which gets its zeros too.
        """
        self._running.finalize()
        if module is not None:
            self.apply_masks(module)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the module's and the optimizer's; fits `weights_only=True`."""
        return self._running.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, before or after `modify`; raises RequestError for one of another recipe or model."""
        if self._run is None:
            self._pending = state
        else:
            self._run.load_state_dict(state)

    def save(self, path: str | Path) -> None:
        """Write the recipe, variables resolved."""
        Path(path).write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        return dump_recipe(self.recipe)

    @property
    def _running(self) -> Run:
        if self._run is None:
            fix = "call optimizer = manager.modify(model, optimizer, steps_per_epoch=…) first"
            raise RequestError("the manager is not attached to a training loop", fix=fix)
        return self._run

    def _attach(self, loop: Loop) -> list[Turn]:
        groups = len(loop.optimizer.param_groups)
        turns: list[Turn] = []
        try:
            for step, options, key in zip(self.steps, self.modifiers, _keys(self.steps), strict=True):
                place = next(index for index, written in enumerate(self.recipe.steps) if written is step)
                turns.append(Turn(step.name, key, options, options.attach(loop), options.end_epoch, place))
            check_claims(turns)
        except RequestError:
            del loop.optimizer.param_groups[groups:]  # what a modifier may have added
            raise
        turns.sort(key=lambda turn: turn.end if turn.end >= 0 else math.inf)  # an end may have moved
        loop.parts = [turn.part for turn in turns]
        return turns


def _variables(given: Mapping[str, Any] | str | None) -> Mapping[str, Any] | None:
    """Read what replaces a recipe's variables."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = given
    if found is not None and not isinstance(found, Mapping):
        problem = f"recipe_variables is {given!r}, no mapping of names to values"
        raise RequestError(problem, fix="""give one such as {"num_epochs": 3}, or that as JSON""")
    return found


def _step(options: Any) -> Step:
    """Write options as a recipe does."""
    return Step(type(options).__name__, "", options.model_dump(exclude_unset=True), "modifiers")


def _order(options: Any, step: Step) -> tuple[float, float, str]:
    end = options.end_epoch if options.end_epoch >= 0 else math.inf
    return end, options.start_epoch, _identifier(step)


def _identifier(step: Step) -> str:
    """Name a modifier by what it says: its name and a digest of its options."""
    said = json.dumps([step.name, step.options], sort_keys=True, default=str)
    return f"{step.name}#{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _keys(steps: Sequence[Step]) -> list[str]:
    """Give every modifier a name of its own, the same in every run."""
    seen: Counter[str] = Counter()
    keys = []
    for identifier in map(_identifier, steps):
        seen[identifier] += 1
        keys.append(f"{identifier}#{seen[identifier]}")
    return keys
