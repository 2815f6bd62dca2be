"""Offer DistillationModifier: learn a teacher's outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from sparsify import RequestError
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from sparsify_torch.loop import Forward, Loop, Part
from sparsify_torch.options import FROZEN, Epoch, Frequency, Share, SomeNames

NAME = "DistillationModifier"
FORWARD_FIX = (
    "call optimizer.loss_update(loss, outputs=…, inputs=…), or let the (compiled) module that modify was given run"
)


class DistillationModifier(BaseModel):
    """Learn a teacher's outputs: (1 − hardness)·loss + hardness·T²·KL(teacher ‖ student) (Hinton et al. 2015).

    The teacher is given to manager.modify: a module, "self" (a copy of the model as it is at start_epoch), or
    "disable". distill_output_keys: the outputs to learn, by default all that are floating point; teacher_input_keys:
    those of the named inputs that the teacher takes. Classes are on the last axis, of images on the second.
    """

    model_config = FROZEN

    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    distill_output_keys: SomeNames = None
    teacher_input_keys: SomeNames = None
    update_frequency: Frequency = -1
    hardness: Share = 0.5
    temperature: float = Field(2.0, gt=0)

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError where there is no teacher."""
        if loop.teacher == "disable":
            return Part()
        return DistillationPart(self, loop, Teacher(loop, NAME))


class Teacher:
    """Hold the module that is learnt from, frozen, or for "self" the copy that is made at the start."""

    def __init__(self, loop: Loop, modifier: str) -> None:
        given = loop.teacher
        if given is None or (isinstance(given, str) and given != "self"):
            said = "there is no teacher" if given is None else f"'{given}' is no teacher"
            fix = 'give manager.modify(…, distillation_teacher=…): a module, "self", or "disable" to go without'
            raise RequestError(f"{modifier}: {said}", fix=fix)
        self.loop = loop
        self.own = given == "self"
        self.module = None if isinstance(given, str) else given.eval()

    def start(self) -> None:
        """Copy the model, for "self"."""
        if self.own:
            self.module = copy.deepcopy(self.loop.module).requires_grad_(False).eval()

    def outputs(self, forward: Forward, keys: tuple[str, ...] | None) -> Any:
        """Run the teacher on the inputs of the student's latest forward pass."""
        if self.module is None or (not forward.arguments and not forward.keywords):
            raise RequestError(f"{NAME} saw no inputs", fix=FORWARD_FIX)
        named = {name: value for name, value in forward.keywords.items() if keys is None or name in keys}
        self.module.eval()
        with torch.no_grad():
            return self.module(*forward.arguments, **named)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of a copy; a teacher that was given is given again."""
        return {"copy": self.module.state_dict() if self.own and self.module is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy over."""
        if state["copy"] is not None:
            self.start()
            assert self.module is not None  # noqa: S101 - made by start
            self.module.load_state_dict(state["copy"])


class DistillationPart(Part):
    """Mix the losses."""

    between_steps = True

    def __init__(self, options: DistillationModifier, loop: Loop, teacher: Teacher) -> None:
        self.options, self.loop, self.teacher = options, loop, teacher
        self.claims = frozenset({"distillation of the outputs"})

    def start(self, epoch: float) -> None:
        """Get the teacher ready."""
        self.teacher.start()

    def loss(self, loss: Tensor, forward: Forward) -> Tensor:
        """Mix the task's loss with the distance to the teacher; raises RequestError for outputs of other shapes."""
        if forward.outputs is None:
            raise RequestError(f"{NAME} saw no outputs of the model", fix=FORWARD_FIX)
        options = self.options
        student = named_outputs(forward.outputs, options.distill_output_keys)
        teacher = named_outputs(self.teacher.outputs(forward, options.teacher_input_keys), options.distill_output_keys)
        distances = [
            distance(output, _partner(name, output, teacher), options.temperature) for name, output in student.items()
        ]
        learnt = torch.stack(distances).mean()
        self.loop.log(f"{NAME}/loss", learnt.detach(), self.loop.epoch)
        return (1 - options.hardness) * loss + options.hardness * learnt

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's copy."""
        return self.teacher.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self.teacher.load_state_dict(state)


def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T²·KL(teacher ‖ student) of softened outputs, the mean over samples and positions."""
    axis = 1 if student.dim() == 4 else -1
    own = log_softmax(student.float() / temperature, dim=axis)
    learnt = log_softmax(teacher.float() / temperature, dim=axis)
    positions = student.numel() / student.shape[axis]
    return kl_div(own, learnt, reduction="sum", log_target=True) * temperature**2 / positions


def named_outputs(outputs: Any, keys: tuple[str, ...] | None) -> dict[str, Tensor]:
    """Return a model's outputs by name: of a tensor, a sequence or a mapping (such as Hugging Face's), without loss."""
    if isinstance(outputs, Tensor):
        found: dict[str, Any] = {"output": outputs}
    elif isinstance(outputs, Mapping):
        found = {str(name): value for name, value in outputs.items() if name != "loss"}
    else:
        found = {f"output {index}": value for index, value in enumerate(outputs)}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.is_floating_point()}
    absent = [key for key in keys or () if key not in tensors]
    if absent or not tensors:
        what = f"'{absent[0]}' is none of the outputs" if absent else "no output is a floating point tensor"
        fix = f"use one of: {', '.join(tensors) or 'none'}"
        raise RequestError(f"{NAME}, field 'distill_output_keys': {what}", fix=fix)
    return {key: tensors[key] for key in keys} if keys else tensors


def _partner(name: str, output: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
    found = teacher.get(name)
    if found is None or found.shape != output.shape:
        shape = "no such output" if found is None else f"the shape {tuple(found.shape)}"
        problem = f"{NAME}: {name} of the model has the shape {tuple(output.shape)}, the teacher {shape}"
        raise RequestError(problem, fix="give a teacher with the same classes, or choose distill_output_keys")
    return found
