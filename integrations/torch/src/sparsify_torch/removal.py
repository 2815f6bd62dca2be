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
class Cut:
    """Hold a parameter or buffer as it was, what took its place, and by axis the indices kept."""

    old: Tensor
    new: Tensor
    kept: Mapping[int, Tensor]


@dataclass(frozen=True)
class Removed:
    """Hold what a removal did: the step that repeats it, the tensors it cut, and the parameters it dropped."""

    step: dict[str, Any]
    cuts: tuple[Cut, ...]
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

    What is cut becomes a new parameter, gradients too: call `remap_optimizer`, and wrap for distributed training anew.
    Raises RequestError where the module has not the parameters or sizes that the step was written for.
    """
    dropped = tuple(tensor for block in step.get("blocks", ()) for tensor in _shortcut(module, block))
    state = _named(module)
    for name in step.get("cuts", {}):
        _check_shape(state, name, step["shapes"][name])
    cuts: dict[int, Cut] = {}
    for name, axes in step.get("cuts", {}).items():
        old = state[name]
        if id(old) not in cuts:  # a tied parameter stays tied
            kept = {int(dim): torch.tensor(step["kept"][number]) for dim, number in axes.items()}
            cuts[id(old)] = Cut(old, _cut(old, kept), kept)
        path, _, short = name.rpartition(".")
        setattr(module.get_submodule(path), short, cuts[id(old)].new)
    for path in step.get("attention", ()):
        whole: Any = module.get_submodule(path)
        _replace(module, path, ThinnedAttention(whole))
    for path, values in step.get("attributes", {}).items():
        for name, value in values.items():
            setattr(module.get_submodule(path), name, value)
    for path in sorted({name.rpartition(".")[0] for name in step.get("cuts", {})}):
        _refresh(module.get_submodule(path))
    return Removed(dict(step), tuple(cuts.values()), dropped)


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


def _cut(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Return the kept part as a tensor of its own.

    Cutting `.data` in place would leave the gradient's node of a graph that is still alive with the old shape.
    """
    new = select(tensor.detach(), kept)
    if not isinstance(tensor, nn.Parameter):
        return new
    parameter = nn.Parameter(new, tensor.requires_grad)
    if tensor.grad is not None:
        parameter.grad = select(tensor.grad, kept)
    return parameter


def select(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Return these indices of a tensor by axis, laid out in memory in the order of axes that it had."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda dim: -strides[dim])  # channels last stays channels last
    laid = tensor.permute(order)
    for dim, indices in kept.items():
        laid = laid.index_select(order.index(dim), indices.to(tensor.device))
    return laid.contiguous().permute([order.index(dim) for dim in range(tensor.ndim)])


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
        news = {id(cut.old): cut.new for cut in removal.cuts}
        for cut in removal.cuts:
            if cut.old in optimizer.state:
                optimizer.state[cut.new] = _cut_state(optimizer.state.pop(cut.old), cut)
        gone = {id(parameter) for parameter in removal.dropped}
        for parameter in removal.dropped:
            optimizer.state.pop(parameter, None)
        for group in optimizer.param_groups:
            left = [parameter for parameter in group["params"] if id(parameter) not in gone]
            group["params"] = [news.get(id(parameter), parameter) for parameter in left]


def _cut_state(state: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    new = {}
    for name, value in state.items():
        kept = value
        if isinstance(value, Tensor) and value.ndim > 0:
            if value.shape != cut.old.shape:
                return {}
            kept = select(value, cut.kept)
        new[name] = kept
    return new
