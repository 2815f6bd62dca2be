"""Take channels out of a module in place: parameters, buffers, attributes, and the optimizer's state of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn

from sparsify_torch.attention import ThinnedAttention
from sparsify_torch.coupling import Coupling

Structure = list[dict[str, Any]]  # steps, each plain JSON data


@dataclass(frozen=True)
class Removed:
    """Hold what a removal did: the step that repeats it, the live tensors it cut, and the parameters it dropped.

    cuts: a parameter and, by axis, the indices kept of it.
    """

    step: dict[str, Any]
    cuts: tuple[tuple[Tensor, Mapping[int, Tensor]], ...]
    dropped: tuple[Tensor, ...] = ()


def describe_removal(module: nn.Module, coupling: Coupling, units: Collection[int]) -> dict[str, Any]:
    """Write the step that removes `units`, as plain data.

    `kept` holds lists of indices, `cuts` says which list holds for which axis of which parameter or buffer, `shapes`
    what these had before, `attributes` gives integers of modules their new values, `attention` names what becomes
    ThinnedAttention.
    """
    gone = torch.tensor(sorted(units), dtype=torch.int64)
    lists: dict[tuple[int, ...], int] = {}
    cuts: dict[str, dict[str, int]] = {}
    for (name, dim), channels in coupling.axes.items():
        stays = ~torch.isin(channels, gone)
        if not bool(stays.all()):
            kept = tuple(stays.nonzero().flatten().tolist())
            cuts.setdefault(name, {})[str(dim)] = lists.setdefault(kept, len(lists))
    whole = [name for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    state = _named(module)
    attention = [name for name in whole if f"{name}.in_proj_weight" in cuts]
    attributes = _attributes(module, coupling, gone)
    return {
        "kept": [list(kept) for kept in lists],
        "cuts": cuts,
        "shapes": {name: list(state[name].shape) for name in cuts},
        "attributes": {path: values for path, values in attributes.items() if path not in attention},
        "attention": attention,
    }


def _attributes(module: nn.Module, coupling: Coupling, gone: Tensor) -> dict[str, dict[str, int]]:
    """Find the integers that a module's own forward reshapes with, by the values they had and would need.

    Where two sizes had the same value and only one changes, the attribute whose name counts something takes the change.
    """
    found: dict[str, dict[str, int]] = {}
    for site in coupling.sites:
        stays = ~torch.isin(site.label, gone)
        sizes: dict[int, set[int]] = {}
        for dim, old in enumerate(site.sizes):
            rest = [other for other in range(stays.ndim) if other != dim]
            new = int(stays.amax(rest).sum()) if stays.shape[dim] > 1 else old
            sizes.setdefault(old, set()).add(new)
        for name, value in vars(module.get_submodule(site.path)).items():
            news = (
                sizes.get(value, set()) - {value} if isinstance(value, int) and not isinstance(value, bool) else set()
            )
            if len(news) == 1 and (len(sizes[value]) == 1 or _counts(name)):
                found.setdefault(site.path, {})[name] = news.pop()
    return found


def _counts(name: str) -> bool:
    return name.startswith(("num_", "n_")) or name.endswith(("heads", "head"))


def apply_step(module: nn.Module, step: Mapping[str, Any]) -> Removed:
    """Carry out one step of a structure in place.

    Parameters keep their identity, so optimizers and references go on to hold them; gradients are cut too.
    Raises RequestError where the module has not the parameters or sizes that the step was written for.
    """
    dropped = tuple(tensor for block in step.get("blocks", ()) for tensor in _shortcut(module, block))
    state = _named(module)
    cuts, seen = [], set()
    for name in step.get("cuts", {}):
        _check_shape(state, name, step["shapes"][name])
    for name, axes in step.get("cuts", {}).items():
        tensor = state[name]
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        kept = {int(dim): torch.tensor(step["kept"][number]) for dim, number in axes.items()}
        _cut(tensor, kept)
        cuts.append((tensor, kept))
    for path in step.get("attention", ()):
        _replace(module, path, ThinnedAttention(module.get_submodule(path)))  # type: ignore[arg-type]
    for path, values in step.get("attributes", {}).items():
        for name, value in values.items():
            setattr(module.get_submodule(path), name, value)
    for path in sorted({name.rpartition(".")[0] for name in step.get("cuts", {})}):
        _refresh(module.get_submodule(path))
    return Removed(dict(step), tuple(cuts), dropped)


def _shortcut(module: nn.Module, block: Mapping[str, Any]) -> list[Tensor]:
    from sparsify_torch.layers import replace_block

    return replace_block(module, block)


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _check_shape(state: Mapping[str, Tensor], name: str, expected: Sequence[int]) -> None:
    fix = "apply a structure to the architecture it was written for, freshly made"
    if name not in state:
        raise RequestError(f"the structure cuts '{name}', which this module lacks", fix=fix)
    if list(state[name].shape) != list(expected):
        shapes = f"of shape {tuple(expected)}, here it is {tuple(state[name].shape)}"
        raise RequestError(f"the structure cuts '{name}' {shapes}", fix=fix)


def _cut(tensor: Tensor, kept: Mapping[int, Tensor]) -> None:
    gradient, data = tensor.grad, _select(tensor.data, kept)
    tensor.grad = None  # a gradient has to have its tensor's shape at all times
    tensor.data = data
    if gradient is not None:
        tensor.grad = _select(gradient, kept)


def _select(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def _refresh(part: Any) -> None:
    """Set the sizes that a layer keeps beside its parameters to what those now have."""
    weight = getattr(part, "weight", None)
    if isinstance(part, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
        made, taken = (1, 0) if part.transposed else (0, 1)
        if part.groups > 1:
            part.groups = part.groups * weight.shape[0] // part.out_channels
        part.out_channels = weight.shape[made]
        part.in_channels = weight.shape[taken] * part.groups
    elif isinstance(part, nn.Linear) and isinstance(weight, Tensor):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.PReLU) and isinstance(weight, Tensor):
        part.num_parameters = weight.numel()
    elif isinstance(part, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else part.running_mean
        part.num_features = part.num_features if held is None else held.numel()
    elif isinstance(part, ThinnedAttention):
        part.num_heads = part.in_proj_weight.shape[0] // 3 // part.head_dim


def apply_structure(module: nn.Module, structure: Structure) -> None:
    """Give a freshly made module the shape of a thinned one, so that its checkpoint loads.

    structure: the steps of one or more reports of `thin`, in their order; plain JSON data.
    A module with the weights it had before thinning gets exactly the weights that thinning left.
    """
    for step in structure:
        apply_step(module, step)


def remap_optimizer(optimizer: torch.optim.Optimizer, removed: Sequence[Removed]) -> None:
    """Cut an optimizer's state as the parameters were cut, and take out parameters that are gone.

    Everything of a parameter's old shape is cut (momentum, both moments of Adam); factored states are dropped, and
    start anew.
    """
    for removal in removed:
        for parameter, kept in removal.cuts:
            state = optimizer.state.get(parameter)
            if state:
                optimizer.state[parameter] = _cut_state(state, parameter, kept)
        gone = {id(parameter) for parameter in removal.dropped}
        for parameter in removal.dropped:
            optimizer.state.pop(parameter, None)
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]


def _cut_state(state: Mapping[str, Any], parameter: Tensor, kept: Mapping[int, Tensor]) -> dict[str, Any]:
    new = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim == parameter.ndim:
            value = _select(value, kept)
            if value.shape != parameter.shape:
                return {}
        elif isinstance(value, Tensor) and value.ndim > 0:
            return {}
        new[name] = value
    return new
