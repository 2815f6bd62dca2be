"""Offer PerLayerDistillationModifier: learn a teacher's features, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from sparsify import RequestError
from torch import Tensor, nn

from sparsify_torch.distillation import Teacher
from sparsify_torch.loop import Forward, Loop, Part, Watch
from sparsify_torch.options import FROZEN, Epoch, Frequency, SomeNames
from sparsify_torch.prunable import end_layers, weighted_layers
from sparsify_torch.weights import matching, no_match

NAME = "PerLayerDistillationModifier"


class PerLayerDistillationModifier(BaseModel):
    """Learn a teacher's features: loss + gain · Σ mean square of their difference (Romero et al. 2015).

    normalize: divide each layer's by the mean square of the teacher's features (Kurtic et al. 2023). Layers: names or
    `re:` patterns, by default all Linear and Conv of both but the last; the teacher's by default as the student's.
    project_features: learn a linear map where the student's layer has fewer or more channels.
    """

    model_config = FROZEN

    gain: float = Field(1.5, ge=0)
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    update_frequency: Frequency = -1
    normalize: bool = True
    student_layer_names: SomeNames = None
    teacher_layer_names: SomeNames = None
    project_features: bool = True
    epsilon: float = Field(1e-6, ge=0)

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError where there is no teacher, for layers without match, and for channels that differ.

        Adds the projections, where there are any, to the optimizer as a parameter group of their own.
        """
        return Part() if loop.teacher == "disable" else LayerPart(self, loop)


class LayerPart(Part):
    """Catch the features of both models with hooks."""

    between_steps = True

    def __init__(self, options: PerLayerDistillationModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.teacher = Teacher(loop, NAME)
        learnt = loop.module if self.teacher.module is None else self.teacher.module
        self.pairs = _pairs(options, loop.module, learnt)
        self.claims = frozenset(f"features of {student}" for student, _ in self.pairs)
        self.features: dict[tuple[str, str], Tensor] = {}
        self.hooks: list[Any] = []
        self.projections = nn.ModuleDict()
        for student, taught in self.pairs:
            self._project(student, loop.module.get_submodule(student), learnt.get_submodule(taught))
        if len(self.projections):
            device = next(loop.module.parameters()).device
            loop.optimizer.add_param_group({"params": list(self.projections.to(device).parameters())})

    def start(self, epoch: float) -> None:
        """Get the teacher ready and hook the layers."""
        self.teacher.start()
        self._hook()

    def end(self, epoch: float) -> None:
        """Unhook them."""
        self.finalize()

    def loss(self, loss: Tensor, forward: Forward) -> Tensor:
        """Add the distance of the features; raises RequestError where none were seen or shapes differ."""
        self.teacher.outputs(forward, None)
        total = loss
        there = dict(self.loop.module.named_modules())
        for student, taught in self.pairs:
            if student not in there:
                continue  # taken out since
            own, other = self.features.get(("student", student)), self.features.get(("teacher", taught))
            if own is None or other is None:
                problem = f"{NAME}: layer '{student if own is None else taught}' did not run in the forward pass"
                raise RequestError(problem, fix="leave it out of student_layer_names and teacher_layer_names")
            total = total + self.options.gain * self._distance(student, own, other)
        self.features.clear()
        return total

    def finalize(self) -> None:
        """Unhook the layers."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.features.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the projections and the teacher's copy."""
        return {"projections": self.projections.state_dict(), "hooked": bool(self.hooks), **self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them over."""
        self.finalize()
        self.teacher.load_state_dict(state)
        self.projections.load_state_dict(state["projections"])
        if state["hooked"]:
            self._hook()

    def _hook(self) -> None:
        assert self.teacher.module is not None  # noqa: S101 - made by start
        for side, module, index in (("student", self.loop.module, 0), ("teacher", self.teacher.module, 1)):
            there = dict(module.named_modules())
            for name in {pair[index] for pair in self.pairs if pair[index] in there}:
                self.hooks.append(there[name].register_forward_hook(self._catch(side, name)))

    def _catch(self, side: str, name: str) -> Watch:
        def catch(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if side == "teacher" or layer.training:
                self.features[side, name] = output

        return Watch(catch)

    def _project(self, name: str, student: nn.Module, teacher: nn.Module) -> None:
        own, other = _channels(student), _channels(teacher)
        if own is None or other is None or own == other:
            return
        if not self.options.project_features:
            problem = f"{NAME}: '{name}' has {own} channels, its teacher's {other}"
            raise RequestError(problem, fix="set project_features: true, or name other layers")
        projection = nn.Linear(own, other, bias=False)
        nn.init.eye_(projection.weight)  # no random numbers: a run stays the same with and without
        self.projections[name.replace(".", "/")] = projection

    def _distance(self, name: str, own: Tensor, other: Tensor) -> Tensor:
        key = name.replace(".", "/")
        if key in self.projections:
            layer = self.loop.module.get_submodule(name)
            axis = 1 if hasattr(layer, "out_channels") or hasattr(layer, "num_features") else -1
            own = self.projections[key](own.movedim(axis, -1)).movedim(-1, axis)
        if own.shape != other.shape:
            problem = f"{NAME}: '{name}' gives the shape {tuple(own.shape)}, its teacher's {tuple(other.shape)}"
            fix = "name layers that see the same resolution, and whose channels no modifier takes out"
            raise RequestError(problem, fix=fix)
        square = (own.float() - other.float()).square().mean()
        return square / (other.float().square().mean() + self.options.epsilon) if self.options.normalize else square


def _pairs(options: PerLayerDistillationModifier, module: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    own, other = weighted_layers(module), weighted_layers(teacher)
    if options.student_layer_names is None and options.teacher_layer_names is None:
        last = list(own)[-1:] if not (ends := end_layers(module, own)) else [n for n in list(own)[1:] if n in ends]
        found = [(name, name) for name in own if name in other and name not in last]
        if not found:
            fix = "give student_layer_names and teacher_layer_names"
            raise RequestError(f"{NAME}: model and teacher have no Linear or Conv of the same name", fix=fix)
        return found
    names = options.student_layer_names or options.teacher_layer_names or ()
    students = _layers(names, module, "student_layer_names")
    teachers = _layers(options.teacher_layer_names or names, teacher, "teacher_layer_names")
    if len(students) != len(teachers):
        problem = f"{NAME}: {len(students)} student_layer_names, {len(teachers)} teacher_layer_names"
        raise RequestError(problem, fix="name as many of both; they are taken in order")
    return list(zip(students, teachers, strict=True))


def _layers(patterns: tuple[str, ...], module: nn.Module, field: str) -> list[str]:
    names = [name for name, _ in module.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        found = matching(pattern, names, NAME, field)
        if not found:
            raise no_match(field, pattern, names, NAME)
        chosen += [name for name in names if name in found and name not in chosen]
    return chosen


def _channels(layer: nn.Module) -> int | None:
    """Return how many channels a layer gives, None where it does not say."""
    for name in ("out_channels", "out_features", "num_features", "nf"):
        if isinstance(found := getattr(layer, name, None), int):
            return found
    return None
