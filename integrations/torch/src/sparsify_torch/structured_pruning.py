"""Offer StructuredPruningModifier: whole filters and channels leave the module, step by step, while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from sparsify import RequestError
from torch import nn

from sparsify_torch.channels import Choice, choose, first_removal, macs, steps
from sparsify_torch.compensation import make_up
from sparsify_torch.coupling import Coupling, Group, couple
from sparsify_torch.gradients import check_sampler
from sparsify_torch.importance import Score, Worth, score_groups
from sparsify_torch.interpolation import Curve, interpolate, progress
from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, Frequency, Names
from sparsify_torch.removal import describe_removal
from sparsify_torch.restructuring import agreed, followed, restructure
from sparsify_torch.thinning import check_removal, cost_of, failing_groups
from sparsify_torch.walk import layer_of
from sparsify_torch.weights import select_weights

NAME = "StructuredPruningModifier"


def _gone(value: bool) -> bool:
    if not value:
        raise ValueError("only true is possible: channels that are gone do not come back")
    return value


def _listed(value: Any) -> Any:
    return [tuple(group) if isinstance(group, list) else (group,) for group in value] if value else value


BelowOne = Annotated[float, Field(ge=0, lt=1)]
ParamGroups = Annotated[tuple[tuple[str, ...], ...] | None, BeforeValidator(_listed)]


class StructuredPruningModifier(BaseModel):
    """Take whole filters out of the module, with all that depends on them (Fang et al. 2023, arXiv:2301.12900).

    The share that is gone goes from init_sparsity to final_sparsity along inter_func, every update_frequency epochs:
    of each layer's channels, or with `of: macs` of the module's MACs, wherever they are worth least. Channels that can
    only go together go where every layer that makes them (mask_type `filter`) or reads them (`channel`) is in `params`
    or `param_groups`. Widths stay multiples of `multiple`: ONNX Runtime computes 16 channels at a time on x86, and 20
    cost what 32 do. score: `l2`, `l1`, `bn`, or `taylor`, which samples gradients. compensate: where the loop has a
    grad_sampler, the inputs that stay make up for those that go (He et al. 2017, arXiv:1707.06168).
    """

    model_config = FROZEN

    init_sparsity: BelowOne
    final_sparsity: BelowOne
    start_epoch: Epoch
    end_epoch: Ending
    update_frequency: Frequency
    param_groups: ParamGroups = None
    params: Names = ("__ALL_PRUNABLE__",)
    leave_enabled: Annotated[bool, AfterValidator(_gone)] = True
    inter_func: Curve = "cubic"
    mask_type: Literal["filter", "channel"] = "filter"
    multiple: Annotated[int, Field(ge=1)] = 16
    score: Score = "l2"
    of: Literal["channels", "macs"] = "channels"
    compensate: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> StructuredPruningModifier:
        first, last = self.init_sparsity, self.final_sparsity
        if last < first:
            raise ValueError(f"init_sparsity {first:g} is above final_sparsity {last:g}; give a lower one")
        return self

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match, layers whose channels cannot go, and MACs out of reach."""
        if self.score == "taylor":
            check_sampler(loop, NAME)
        return StructuredPart(self, loop)


class StructuredPart(Part):
    """Choose channels and take them out. units: by group, how many there were; cost: MACs that there were."""

    between_steps: ClassVar[bool] = True

    def __init__(self, options: StructuredPruningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        module, self.inputs = followed(loop, NAME)
        patterns = [*options.params, *(name for group in options.param_groups or () for name in group)]
        self.layers = {layer_of(weight.name) for weight in select_weights(module, patterns, NAME)}
        coupling = couple(module, self.inputs)
        open_ = self._open(module, coupling)
        self.units = {key: len(coupling.groups[place].units) for key, place in open_.items()}
        self.cost = cost_of(coupling, macs)
        self.claims = self._claims(module, coupling, list(open_.values()))

    def update(self, epoch: float) -> None:
        """Take out what is due at this epoch; raises StageError where the rest would not compute the same."""
        options, module = self.options, self.loop.module
        done = progress(epoch, options.start_epoch, options.end_epoch)
        share = interpolate(options.inter_func, done, options.init_sparsity, options.final_sparsity)
        coupling = couple(module, self.inputs)
        worths = score_groups(module, coupling, options.score if share else "l2", **self._samples())
        choice = self._of_macs if options.of == "macs" else self._of_channels
        units = agreed(choice(coupling, worths, share), next(module.parameters()).device)
        if units:
            check_removal(module, coupling, units, self.inputs)
            step = describe_removal(module, coupling, units)
            if options.compensate:
                make_up(self.loop, step, NAME)
            restructure(self.loop, step)
        self.loop.log(f"{NAME}/macs", cost_of(coupling, macs, units) / self.cost, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what the shares are of."""
        return {"units": dict(self.units), "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self.units, self.cost = dict(state["units"]), state["cost"]

    def _open(self, module: nn.Module, coupling: Coupling) -> dict[str, int]:
        """Return the groups that may go, by a name that stays: their first maker's, and which of its groups."""
        failing = failing_groups(module, coupling, self.inputs)
        found: dict[str, int] = {}
        for place, group in enumerate(coupling.groups):
            ends = _layers(group, coupling, self.options.mask_type)
            if ends and ends <= self.layers and place not in failing:
                first = layer_of(group.makers[0][0])
                found[f"{first}#{sum(key.startswith(f'{first}#') for key in found)}"] = place
        return found

    def _claims(self, module: nn.Module, coupling: Coupling, places: Sequence[int]) -> frozenset[str]:
        if self.options.of == "macs":
            self._check_reachable(module, coupling, places)
            return frozenset({"MACs"})
        self._check_possible(coupling, places)
        makers = {layer_of(axis[0]) for place in places for axis in coupling.groups[place].makers}
        return frozenset(f"width of {name}" for name in makers)

    def _check_possible(self, coupling: Coupling, places: Sequence[int]) -> None:
        ends = [_layers(group, coupling, self.options.mask_type) for group in coupling.groups]
        if not any(found & self.layers for found in ends):
            held = [f"'{name}': {why}" for name, why in coupling.pinned.items() if name in self.layers][:3]
            problem = (
                f"{NAME}, field 'params': no channels of these layers can go ({'; '.join(held) or 'none is known'})"
            )
            raise RequestError(problem, fix="name other layers, such as params: [__ALL__]")
        share, multiple = self.options.final_sparsity, self.options.multiple
        wide = [
            place
            for place in places
            if share * len(coupling.groups[place].units) + 1e-6 >= first_removal(coupling.groups[place], multiple)
        ]
        if share and places and not wide and not self.loop.structure:
            problem = f"{NAME}: no layer is wide enough to lose {share:g} of its channels in steps of {multiple}"
            raise RequestError(problem, fix="give a smaller `multiple`, such as 1, or a higher final_sparsity")

    def _check_reachable(self, module: nn.Module, coupling: Coupling, places: Sequence[int]) -> None:
        choice = self._choose(coupling, score_groups(module, coupling), 1e-9, places)
        if 1 - self.options.final_sparsity < choice.least - 1e-6 and not self.loop.structure:
            problem = f"{NAME}, field 'final_sparsity': at most {1 - choice.least:.3f} of the MACs can go"
            fix = f"give {int((1 - choice.least) * 1000) / 1000} or less, a smaller multiple, or more params"
            raise RequestError(f"{problem} with widths in multiples of {self.options.multiple}", fix=fix)

    def _of_channels(self, coupling: Coupling, worths: Sequence[Worth], share: float) -> list[int]:
        found: list[int] = []
        for key, place in self._open(self.loop.module, coupling).items():
            group = coupling.groups[place]
            whole = self.units.setdefault(key, len(group.units))
            gone = whole - len(group.units)
            for step in steps(group, coupling, worths[place], self.options.multiple):
                gone += len(step)
                if gone > share * whole + 1e-6:
                    break
                found += step
        return found

    def _of_macs(self, coupling: Coupling, worths: Sequence[Worth], share: float) -> list[int]:
        left = (1 - share) * self.cost / cost_of(coupling, macs)
        places = list(self._open(self.loop.module, coupling).values())
        return list(self._choose(coupling, worths, left, places).units) if left < 1 else []

    def _choose(self, coupling: Coupling, worths: Sequence[Worth], target: float, places: Sequence[int]) -> Choice:
        skip = set(range(len(coupling.groups))) - set(places)
        return choose(coupling, worths, target, multiple=self.options.multiple, skip=skip)

    def _samples(self) -> dict[str, Any]:
        if self.options.score != "taylor":
            return {}
        sampler = self.loop.grad_sampler or {}
        return {"data": sampler["data_loader_builder"](), "loss": sampler["loss_function"]}


def _layers(group: Group, coupling: Coupling, mask_type: str) -> set[str]:
    role = "out" if mask_type == "filter" else "in"
    return {layer_of(axis[0]) for axis in group.share if coupling.roles[axis] == role}
