"""Whole layers and blocks: a residual block becomes its shortcut, a layer of equal shapes becomes nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn
from torch.fx import Node

from sparsify_torch.tracing import operator, scope, shape, trace

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
}
PASSING = frozenset({"dropout", "contiguous", "clone", "alias", "detach"})


class Shortcut(nn.Module):
    """Run what is left of a block: its children on the shortcut in turn, or nothing. gone: names of what it had."""

    def __init__(self, parts: Mapping[str, nn.Module], gone: Iterable[str] = ()) -> None:
        super().__init__()
        self.gone = tuple(gone)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, reads: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the block's input through what is left; further arguments are taken and not used."""
        for part in self.children():
            reads = part(reads)
        return reads


@dataclass(frozen=True)
class Block:
    """Hold a module that can be taken out: its path, the children that stay, the activation after them.

    parameters: of what goes. residual: whether its shortcut makes a block that does nothing when its branch is zero.
    """

    path: str
    keep: tuple[str, ...]
    activation: str | None
    parameters: int
    residual: bool = True

    def step(self) -> dict[str, Any]:
        """Return the step of a structure that takes this block out."""
        return {"blocks": [{"path": self.path, "keep": list(self.keep), "activation": self.activation}]}


def find_blocks(module: nn.Module, example_inputs: tuple[Any, ...], *, plain: bool = False) -> list[Block]:
    """Find residual blocks that can become their shortcut, outermost first.

    plain: also single layers (convolution, linear) whose output has their input's shape.
    Raises RequestError where the module cannot be traced.
    """
    recorded = trace(module, example_inputs)
    nodes = [node for node in recorded.graph.nodes if node.op == "call_function"]
    inside: dict[str, list[Node]] = {}
    for node in nodes:
        for path in _paths(node):
            inside.setdefault(path, []).append(node)
    found: list[Block] = []
    for path, part in module.named_modules():
        if path in inside:
            block = _block(path, part, inside[path], recorded.held, plain)
            if block is not None and not any(path.startswith(other.path + ".") for other in found if other.residual):
                found.append(block)
    return found


def _paths(node: Node) -> list[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return [str(path) for path, _ in stack.values()]


def _block(path: str, part: nn.Module, nodes: list[Node], held: Mapping[str, str], plain: bool) -> Block | None:
    """Return a block if the module has one tensor in, one out, and a way around its branch."""
    ours = set(nodes)
    reads = {read for node in nodes for read in node.all_input_nodes if read not in ours and read.name not in held}
    makes = [node for node in nodes if any(user not in ours for user in node.users)]
    if not path or len(reads) != 1 or len(makes) != 1:
        return None
    source, result = reads.pop(), makes[0]
    weights = sum(parameter.numel() for parameter in part.parameters())
    if plain and isinstance(part, (nn.Conv2d, nn.Linear)) and shape(source) == shape(result):
        return Block(path, (), None, weights, residual=False)
    way = _around(result, source, path, ours)
    if way is None or (not any(step.startswith(".") for step in way) and shape(source) != shape(result)):
        return None
    keep = tuple(step[1:] for step in way if step.startswith("."))
    activation = way[-1] if way and not way[-1].startswith(".") else None
    if activation is not None and not keep and activation == operator(source) == "relu":
        activation = None
    kept = sum(p.numel() for child in keep for p in part.get_submodule(child).parameters())
    return Block(path, keep, activation, weights - kept) if kept < weights else None


def _around(node: Node, source: Node, path: str, ours: Collection[Node]) -> list[str] | None:
    """Return what lies on the way from a block's input to its output past its branches: `.child`, or an activation."""
    if node is source:
        return []
    if node not in ours:
        return None
    name = operator(node)
    if name == "add" and scope(node) == path and len(node.all_input_nodes) == 2:
        ways = [_around(read, source, path, ours) for read in node.all_input_nodes]
        possible = [way for way in ways if way is not None]
        return min(possible, key=len) if possible else None
    reads = node.all_input_nodes
    if len(reads) == 1 and (name in PASSING or name in ACTIVATIONS):
        way = _around(reads[0], source, path, ours)
        return way if way is None or name in PASSING else [*way, name]
    return _through_child(node, source, path, ours)


def _through_child(node: Node, source: Node, path: str, ours: Collection[Node]) -> list[str] | None:
    """Accept one child that reads the block's input and makes this node: a projection on the shortcut."""
    children = [other for other in _paths(node) if other.rpartition(".")[0] == path and other != path]
    if len(children) != 1:
        return None
    child, waiting, reached = children[0], [node], False
    seen: set[Node] = set()
    while waiting:
        now = waiting.pop()
        if now is source:
            reached = True
        elif now not in seen and now.op == "call_function":
            if now not in ours or child not in _paths(now) or operator(now) == "add":
                return None
            seen.add(now)
            waiting += now.all_input_nodes
    return ["." + child.rpartition(".")[2]] if reached else None


def replace_block(module: nn.Module, block: Mapping[str, Any]) -> list[Tensor]:
    """Put a block's shortcut in its place; return the parameters that went.

    block: `path`, `keep`, `activation`, as in a structure. Raises RequestError where the module has no such block.
    """
    path = str(block["path"])
    try:
        part = module.get_submodule(path)
        parts = {child: part.get_submodule(child) for child in block.get("keep", ())}
    except AttributeError as error:
        raise RequestError(
            f"the structure takes out '{path}', which this module lacks: {error}",
            fix="apply a structure to the architecture it was written for, freshly made",
        ) from error
    if block.get("activation"):
        parts["activation"] = ACTIVATIONS[block["activation"]]()
    parent, _, name = path.rpartition(".")
    before = dict(part.named_parameters())
    shortcut = Shortcut(parts, before).train(part.training)
    setattr(module.get_submodule(parent), name, shortcut)
    left = {id(parameter) for parameter in module.parameters()}
    return [parameter for parameter in before.values() if id(parameter) not in left]


@torch.no_grad()
def drift(outputs: Any, expected: Any) -> float:
    """Return the size of the change of a module's outputs, as a share of their own."""
    pairs = list(zip(_tensors(outputs), _tensors(expected), strict=True))
    changed = sum(float((one.float() - other.float()).square().sum()) for one, other in pairs)
    whole = sum(float(other.float().square().sum()) for _, other in pairs)
    return math.sqrt(changed / max(whole, 1e-30))


def _tensors(value: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
