"""What each ATen operator does to the channels of the tensors it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from sparsify_torch.labels import align, common_sizes, varying
from sparsify_torch.tracing import operator, shape
from sparsify_torch.walk import Held, Walk, along, layer_of

Rule = Callable[[Walk, Node], Any]


def follow(walk: Walk, node: Node) -> None:
    """Note what one node yields, and couple the channels that it couples."""
    if node.op == "placeholder":
        name = walk.trace.held.get(node.name)
        walk.values[node] = Held(name) if name in walk.shapes else _own(walk, node, "the input's own channels")
    elif node.op == "get_attr":
        walk.values[node] = _own(walk, node, "a constant's own channels")
    elif node.op == "output":
        for read in node.all_input_nodes:
            walk.pin_all(read, "the module returns them")
    else:
        walk.values[node] = _rule(node)(walk, node)


def _rule(node: Node) -> Rule:
    name = operator(node)
    if name in RULES:
        return RULES[name]
    return _pointwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else _unknown


def _args(node: Node) -> Any:
    """Return a node's positional arguments, whose types its operator's schema knows."""
    return node.args


def _own(walk: Walk, node: Node, reason: str) -> Tensor:
    return walk.labels.pinned(len(shape(node)), reason)


def _unknown(walk: Walk, node: Node) -> Tensor:
    reason = f"{operator(node)} reads them"
    for read in node.all_input_nodes:
        walk.pin_all(read, reason)
    return _own(walk, node, f"{operator(node)} makes them")


def _pointwise(walk: Walk, node: Node) -> Tensor:
    rank = len(shape(node))
    reads = [read for read in node.all_input_nodes if not _whole(walk, read)]
    labels = [(align(walk.label(read), rank), _sizes(read, rank)) for read in reads]
    axes = sorted({dim for label, _ in labels for dim in varying(label)})
    whole = [read for read in node.all_input_nodes if _whole(walk, read)]
    labels += [(_matched(walk, read, axes, rank), _sizes(read, rank)) for read in whole]
    return _together(walk, labels, axes, rank)


def _whole(walk: Walk, read: Node) -> bool:
    """Whether an operand is a parameter with several axes, of which the other operands say which one matters."""
    return isinstance(walk.values[read], Held) and sum(size > 1 for size in shape(read)) > 1


def _matched(walk: Walk, read: Node, axes: Sequence[int], rank: int) -> Tensor:
    sizes, held = _sizes(read, rank), walk.values[read]
    if len(axes) == 1 and sizes[axes[0]] > 1:
        channels = walk.axis(held, axes[0] - rank + len(shape(read)), "along")
        return walk.labels.find(along(channels, rank, axes[0]))
    return align(walk.pin_all(read, f"{held.name} is used as a whole"), rank)


def _sizes(read: Node, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape(read))) + shape(read)


def _together(walk: Walk, labels: Sequence[tuple[Tensor, tuple[int, ...]]], axes: Sequence[int], rank: int) -> Tensor:
    """Couple operands of one elementwise operator; one that is broadcast along the channels takes no part."""
    takes = [label for label, sizes in labels if label.numel() > 1 or not axes or any(sizes[dim] > 1 for dim in axes)]
    if not takes:
        return walk.labels.pinned(rank, "values that are no tensors")
    first = takes[0].expand(common_sizes(*takes))
    for other in takes:
        walk.labels.merge(first, other)
    return walk.labels.find(first)


def _only(walk: Walk, label: Tensor, dim: int) -> Tensor:
    """Return the channels along one axis, those along the others coupled into them."""
    dim %= label.ndim
    return walk.labels.collapse(label, *(other for other in range(label.ndim) if other != dim)).reshape(-1)


def _linear(walk: Walk, node: Node) -> Tensor:
    read, weight, *bias = _args(node)
    held = walk.values[weight]
    if not isinstance(held, Held):
        return _unknown(walk, node)
    return _product(walk, node, _only(walk, walk.label(read), -1), held, (0, 1), bias)


def _product(walk: Walk, node: Node, reads: Tensor, held: Held, dims: tuple[int, int], bias: Sequence[Any]) -> Tensor:
    made, taken = walk.axis(held, dims[0], "out"), walk.axis(held, dims[1], "in")
    walk.labels.merge(taken, reads)
    if bias and bias[0] is not None:
        walk.labels.merge(made, _only(walk, walk.label(bias[0]), -1))
    positions = math.prod(shape(node)[:-1])
    walk.work(
        node, layer_of(held.name), positions * math.prod(walk.shapes[held.name]), made, taken, positions=positions
    )
    return walk.labels.find(along(made, len(shape(node)), len(shape(node)) - 1))


def _matmul(walk: Walk, node: Node) -> Tensor:
    left, right = _args(node)[:2]
    held = walk.values[right]
    if isinstance(held, Held) and len(walk.shapes[held.name]) == 2 and not isinstance(walk.values[left], Held):
        return _product(walk, node, _only(walk, walk.label(left), -1), held, (1, 0), ())
    if min(len(shape(left)), len(shape(right))) < 3:
        return _unknown(walk, node)
    label = _heads(walk, node, (left, right))
    walk.work(node, "", math.prod(shape(node)) * shape(left)[-1], label)
    return label


def _attention(walk: Walk, node: Node) -> Tensor:
    query, key, value, *rest = _args(node)
    if node.kwargs.get("enable_gqa") or len(shape(query)) < 3:
        return _unknown(walk, node)
    masks = [read for read in (*rest[:1], node.kwargs.get("attn_mask")) if isinstance(read, Node)]
    label = _heads(walk, node, (query, key, value, *masks))
    walk.work(node, "", math.prod(shape(query)) * shape(key)[-2] * 2, label)
    return label


def _heads(walk: Walk, node: Node, reads: Sequence[Any]) -> Tensor:
    """Couple the factors of batched matrix products: a head goes whole, and the same head of each of them."""
    rank = len(shape(node))
    labels = []
    for read in reads:
        label = align(walk.label(read), rank)
        labels.append((walk.labels.collapse(label, rank - 2, rank - 1), _sizes(read, rank)))
    labels = [(walk.labels.find(label), sizes) for label, sizes in labels]
    axes = sorted({dim for label, _ in labels for dim in varying(label)})
    return _together(walk, labels, axes, rank)


def _conv(walk: Walk, node: Node) -> Tensor:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, _args(node), strict=False)), **node.kwargs}
    read, weight, groups = given["input"], given["weight"], int(given.get("groups", 1))
    held = walk.values[weight]
    spatial = len(shape(weight)) - 2
    if not isinstance(held, Held) or len(shape(read)) != spatial + 2:
        return _unknown(walk, node)
    reads = _only(walk, walk.label(read), 1).expand(shape(read)[1])
    channels = (_dense_conv if groups == 1 else _grouped_conv)(walk, held, reads, groups)
    if isinstance(given.get("bias"), Node):
        walk.labels.merge(channels[0], walk.label(given["bias"]))
    macs = math.prod(shape(weight)) * math.prod(shape(node)) // shape(node)[1]
    facts = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
    walk.work(
        node, layer_of(held.name), macs, *channels, shape=shape(read), weight=shape(weight), groups=groups, **facts
    )
    return walk.labels.find(along(channels[0], len(shape(node)), 1))


def _dense_conv(walk: Walk, held: Held, reads: Tensor, groups: int) -> tuple[Tensor, ...]:
    made, taken = walk.axis(held, 0, "out"), walk.axis(held, 1, "in")
    walk.labels.merge(taken, reads)
    return made, taken


def _grouped_conv(walk: Walk, held: Held, reads: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Couple what a group reads and makes: groups go whole, so depthwise channels go one by one."""
    made = walk.axis(held, 0, "along")
    rows = torch.cat([reads.reshape(groups, -1), made.reshape(groups, -1)], 1)
    walk.labels.collapse(rows, 1)
    return (made,)


def _transposed_conv(walk: Walk, node: Node) -> Tensor:
    read, weight, bias, *rest = (*_args(node), *(None,) * 6)[:9]
    held = walk.values[weight]
    if not isinstance(held, Held) or (rest[3] or 1) != 1:
        return _unknown(walk, node)
    made, taken = walk.axis(held, 1, "out"), walk.axis(held, 0, "in")
    walk.labels.merge(taken, _only(walk, walk.label(read), 1).expand(shape(read)[1]))
    if isinstance(bias, Node):
        walk.labels.merge(made, walk.label(bias))
    macs = math.prod(shape(weight)) * math.prod(shape(read)) // shape(read)[1]
    walk.work(node, layer_of(held.name), macs, made, taken)
    return walk.labels.find(along(made, len(shape(node)), 1))


def _per_channel(walk: Walk, node: Node) -> Tensor:
    """Follow an operator whose vectors hold one value a channel: batch norm, instance norm, PReLU."""
    read, *vectors = _args(node)
    rank = len(shape(node))
    channels = _only(walk, walk.label(read), 1).expand(shape(read)[1])
    for vector in vectors:
        if isinstance(vector, Node) and math.prod(shape(vector)) > 1:
            walk.labels.merge(channels, _only(walk, walk.label(vector), -1))
    return walk.labels.find(along(channels, rank, 1))


def _over_last(walk: Walk, node: Node) -> Tensor:
    """Follow layer and RMS norm: their statistics are over the channels, so none can go."""
    sizes: Any = _args(node)[1]
    label = walk.label(_args(node)[0])
    if any(dim >= label.ndim - len(sizes) for dim in varying(label)):
        return _unknown(walk, node)
    return label


def _over_dim(walk: Walk, node: Node) -> Tensor:
    """Follow softmax and the like: the channels along the axis it works on stay."""
    label, dim = walk.label(_args(node)[0]), int(_argument(node, 1, "dim", -1))
    return _unknown(walk, node) if dim % label.ndim in varying(label) else label


def _reduce(walk: Walk, node: Node) -> Tensor:
    label = walk.label(_args(node)[0])
    dims = _argument(node, 1, "dim", None)
    whole = list(range(label.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % label.ndim for dim in whole}
    if gone & set(varying(label)):
        return _unknown(walk, node)
    if len(shape(node)) == label.ndim:
        return label
    return label.reshape([size for dim, size in enumerate(label.shape) if dim not in gone])


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return _args(node)[position] if len(_args(node)) > position else node.kwargs.get(name, default)


def _spatial(walk: Walk, node: Node) -> Tensor:
    """Follow pooling and resizing: they work within a channel."""
    label = walk.label(_args(node)[0])
    return _unknown(walk, node) if any(dim > 1 for dim in varying(label)) else label


def _same(walk: Walk, node: Node) -> Tensor:
    return walk.label(_args(node)[0])


def _moved(walk: Walk, node: Node) -> Tensor:
    """Move labels as the operator moves elements."""
    read: Any = _args(node)[0]
    target: Any = node.target
    label = walk.label(read).expand(shape(read))
    return walk.labels.find(target(label, *_args(node)[1:], **node.kwargs))


def _reshaped(walk: Walk, node: Node) -> Tensor:
    read: Any = _args(node)[0]
    label = walk.label(read).expand(shape(read))
    if operator(node) == "repeat":
        label = walk.labels.find(label.repeat(*_args(node)[1:]))
    else:
        label = label.expand(shape(node)) if operator(node).startswith("expand") else label.reshape(shape(node))
        label = walk.labels.find(label)
    walk.site(node, shape(node), label)
    return label


def _picked(walk: Walk, node: Node) -> Any:
    """Follow the choice of one index along an axis: that axis keeps its length, so channels along it go together."""
    dim = int(_argument(node, 1, "dim", 0))
    return _with_label(walk, node, lambda label: walk.labels.collapse(label, dim))


def _with_label(walk: Walk, node: Node, change: Callable[[Tensor], Tensor]) -> Any:
    read: Any = _args(node)[0]
    target: Any = node.target
    moved = target(change(walk.label(read)).expand(shape(read)), *_args(node)[1:], **node.kwargs)
    return walk.labels.find(moved) if isinstance(moved, Tensor) else [walk.labels.find(part) for part in moved]


def _sliced(walk: Walk, node: Node) -> Tensor:
    read: Any = _args(node)[0]
    dim = int(_argument(node, 1, "dim", 0)) % len(shape(read))
    if dim in varying(walk.label(read)) and shape(node) != shape(read):
        return _unknown(walk, node)
    return _moved(walk, node)


def _parted(walk: Walk, node: Node) -> Any:
    """Follow split and chunk: parts of equal length lose the same positions; others cannot follow."""
    read: Any = _args(node)[0]
    sizes = [tuple(part.shape) for part in node.meta["val"]]
    dim = int(_argument(node, 2, "dim", 0)) % len(shape(read))
    label = walk.label(read)
    if dim in varying(label):
        if len(set(sizes)) > 1:
            return [_unknown(walk, node) for _ in sizes]
        parts = label.chunk(len(sizes), dim)
        for part in parts[1:]:
            walk.labels.merge(parts[0], part)
        walk.site(node, sizes[0], walk.labels.find(parts[0]))
    return _with_label(walk, node, walk.labels.find)


def _gated(walk: Walk, node: Node) -> Tensor:
    label, dim = walk.label(_args(node)[0]), int(_argument(node, 1, "dim", -1))
    if label.shape[dim] == 1:
        return label
    one, other = label.chunk(2, dim)
    walk.labels.merge(one, other)
    return walk.labels.find(one)


def _item(walk: Walk, node: Node) -> Any:
    value, index = walk.values[_args(node)[0]], _args(node)[1]
    return value[index] if isinstance(value, list) else _own(walk, node, f"{operator(_args(node)[0])} makes them")


def _joined(walk: Walk, node: Node) -> Tensor:
    """Follow concatenation; channels along other axes than the joined one are the same in every part."""
    reads: Any = _args(node)[0]
    reads = [read for read in reads if shape(read) != (0,)]
    rank = len(shape(reads[0]))
    dim = int(_argument(node, 1, "dim", 0)) % (rank + (operator(node) == "stack"))
    labels = [walk.label(read) for read in reads]
    if operator(node) == "stack":
        labels, dim = [label.unsqueeze(dim) for label in labels], dim
    firsts = [label.narrow(dim, 0, 1) for label in labels]
    for first in firsts[1:]:
        if varying(first) or varying(firsts[0]):
            walk.labels.merge(firsts[0], first)
    sizes = [
        (*shape(read)[:dim], 1, *shape(read)[dim:]) if operator(node) == "stack" else shape(read) for read in reads
    ]
    whole = [walk.labels.find(label).expand(size) for label, size in zip(labels, sizes, strict=True)]
    return walk.labels.find(torch.cat(whole, dim))


def _padded(walk: Walk, node: Node) -> Tensor:
    """Follow padding: channels that padding adds stay, whatever is added to them."""
    read, pads = _args(node)[:2]
    label, rank = walk.label(read), len(shape(read))
    touched = {rank - 1 - place // 2 for place, size in enumerate(pads) if size}
    if not touched & set(varying(label)):
        return label
    fill = int(walk.labels.pinned(1, "padding makes them"))
    grown = [size if dim in touched or label.shape[dim] > 1 else 1 for dim, size in enumerate(shape(read))]
    return walk.labels.find(torch.constant_pad_nd(label.expand(grown), list(pads), fill))


def _pixels(walk: Walk, node: Node) -> Tensor:
    factor = int(_args(node)[1]) ** 2
    channels = _only(walk, walk.label(_args(node)[0]), 1)
    if len(channels) == 1:
        return along(channels, len(shape(node)), 1)
    rows = walk.labels.collapse(channels.reshape(-1, factor), 1)
    return along(rows.reshape(-1), len(shape(node)), 1)


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_named(_linear, "linear"),
    **_named(_matmul, "matmul bmm"),
    **_named(_attention, "scaled_dot_product_attention"),
    **_named(_conv, "conv1d conv2d conv3d"),
    **_named(_transposed_conv, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(_per_channel, "batch_norm instance_norm prelu"),
    **_named(_over_last, "layer_norm rms_norm"),
    **_named(_over_dim, "softmax log_softmax cumsum"),
    **_named(_reduce, "mean sum amax amin"),
    **_named(
        _spatial,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d "
        "upsample_bicubic2d upsample_nearest3d upsample_linear1d",
    ),
    **_named(_same, "dropout feature_dropout contiguous clone alias detach to _to_copy type_as native_dropout"),
    **_named(_moved, "permute transpose t squeeze unsqueeze movedim flip roll numpy_T mT"),
    **_named(_reshaped, "view reshape flatten unflatten expand repeat _unsafe_view view_as expand_as"),
    **_named(_picked, "select unbind"),
    **_named(_sliced, "slice"),
    **_named(_parted, "split split_with_sizes chunk"),
    **_named(_gated, "glu"),
    **_named(_joined, "cat concat concatenate stack"),
    **_named(_padded, "pad constant_pad_nd"),
    **_named(_pixels, "pixel_shuffle"),
    **_named(_item, "getitem"),
}
