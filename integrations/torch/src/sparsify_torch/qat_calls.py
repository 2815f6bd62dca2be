"""See every function that a module's forward calls, under a name that is the same in each step.

QAT has to round tensors that no module returns: sums of residuals, concatenations, the output of a functional Relu.
Rewriting the forward as a graph would freeze control flow, batch norm and dropout, and silence hooks that other
modifiers put on layers. A `TorchFunctionMode` around the forward sees the same calls and leaves the module as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

Ref = tuple[int, int]  # a call's number, -1 for the network's inputs, and the place among what it gives
Place = tuple[int, int]  # of an operand among the arguments, and within a list there, else -1
WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "__matmul__")
RIGHT = ("matmul", "mm", "__matmul__")  # of these the weight has its outputs last


class Site(NamedTuple):
    """Name one call: module, which visit of it in this forward, function, and how often it was called there before.

    What another module calls, or another function, does not count: an auxiliary head or the counter of a batch norm,
    which exist in training only, shift nothing.
    """

    path: str
    visit: int
    function: str
    number: int


Act = Callable[[Site, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class _Frame:
    path: str
    visit: int
    calls: Counter[str] = field(default_factory=Counter)


class Calls(TorchFunctionMode):
    """Hand each function call of one forward to `act`, with its site."""

    def __init__(self, paths: Mapping[int, str], act: Act) -> None:
        super().__init__()
        self._paths, self._act = paths, act
        self._visits: Counter[str] = Counter()
        self._frames = [_Frame("", 0)]

    def __enter__(self) -> Calls:
        self._handles = (
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, args: object) -> None:
        path = self._paths.get(id(module))
        if path:
            self._frames.append(_Frame(path, self._visits[path]))
            self._visits[path] += 1

    def _leave_module(self, module: nn.Module, args: object, output: object) -> None:
        path = self._paths.get(id(module))
        if path and self._frames[-1].path == path:
            self._frames.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.silu:  # exporters write two operators, and what lies between them is rounded too
            return self._silu(*args, **kwargs or {})
        frame, name = self._frames[-1], getattr(func, "__name__", "")
        site = Site(frame.path, frame.visit, name, frame.calls[name])
        frame.calls[name] += 1
        return self._act(site, func, args, kwargs or {})

    def _silu(self, values: Tensor, inplace: bool = False) -> Any:
        return self.__torch_function__(torch.mul, (), (values, self.__torch_function__(torch.sigmoid, (), (values,))))


def module_paths(module: nn.Module) -> dict[int, str]:
    """Map the identity of each module to its path; the module itself has an empty one."""
    return {id(part): path for path, part in module.named_modules()}


@dataclass(frozen=True)
class Call:
    """Hold one recorded call: which values it took and gave, and the weight that it multiplied by, if any."""

    site: Site
    operands: Mapping[Place, Ref]
    results: int
    weight: Tensor | None

    @property
    def weight_axis(self) -> int:
        """Return the axis of the weight that runs over outputs."""
        return -1 if self.site.function in RIGHT else 0

    @property
    def rows(self) -> NDArray[np.float32]:
        """Return the weight as outputs × (inputs · kernel), without rows where there is none."""
        if self.weight is None or self.weight.dim() < 2 or not self.weight.is_floating_point():
            return np.empty((0, 0), dtype=np.float32)
        rows: NDArray[np.float32] = self.weight.float().cpu().movedim(self.weight_axis, 0).flatten(1).numpy()
        return rows


@dataclass(frozen=True)
class Recording:
    """Hold the calls of one forward in order, and what each gave, as float arrays."""

    calls: tuple[Call, ...]
    values: Mapping[Ref, NDArray[np.float32]]


def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recording:
    """Run a module once without gradients and record its calls; its mode must be the wanted one already."""
    calls: list[Call] = []
    values: dict[Ref, NDArray[np.float32]] = {}
    known: dict[int, Ref] = {}
    alive: list[Tensor] = []  # an identity is free again when its tensor is gone

    def keep(tensors: Iterator[Tensor] | list[Tensor], number: int) -> int:
        count = 0
        for count, tensor in enumerate(tensors, 1):
            known[id(tensor)] = (number, count - 1)
            alive.append(tensor)
            if tensor.is_floating_point():
                values[number, count - 1] = tensor.detach().float().cpu().numpy().copy()
        return count

    def act(site: Site, func: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        operands = {place: known[id(item)] for place, item in _operands(given) if id(item) in known}
        weight = given[1] if site.function in WEIGHTED and len(given) > 1 and isinstance(given[1], Tensor) else None
        held = weight.detach().clone() if weight is not None else None
        output = func(*given, **options)
        calls.append(Call(site, operands, keep(_tensors(output), len(calls)), held))
        return output

    keep([item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)], -1)
    with torch.no_grad(), Calls(module_paths(module), act):
        module(*args, **kwargs)
    return Recording(tuple(calls), values)


def _operands(args: tuple[Any, ...]) -> Iterator[tuple[Place, Tensor]]:
    for index, item in enumerate(args):
        if isinstance(item, Tensor):
            yield (index, -1), item
        elif isinstance(item, (list, tuple)):
            yield from (((index, inner), part) for inner, part in enumerate(item) if isinstance(part, Tensor))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [item for item in output if isinstance(item, Tensor)] if isinstance(output, (list, tuple)) else []
