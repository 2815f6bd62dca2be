"""Load the module that --model names, with its weights, and a fresh last layer where the data's classes are others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from sparsify import Experiment, Model, RequestError
from torch import Tensor, nn

from sparsify_image_classification.forms import count_classes
from sparsify_image_classification.training.factories import factory
from sparsify_image_classification.training.heads import put_head
from sparsify_image_classification.training.options import read_options
from sparsify_image_classification.training.weights import Weights, fit_weights, read_weights

SIZES: Mapping[str, int] = MappingProxyType({"cifar_resnet20": 32, "inception_v3": 299})
ANY_SIZE = 224


def load(experiment: Experiment) -> Model:
    """Return the module that --model names, with --weights; raises RequestError, MissingLibraryError.

    It has the data's classes: where the weights are of others, its last layer is a fresh one. One-shot takes the
    module as the weights are.
    """
    option = "--weights" if experiment.weights else "--model"
    given = experiment.weights or (experiment.model if _is_file(experiment.model) else None)
    weights = read_weights(Path(given), option) if given else None
    name = _architecture(experiment.model, weights)
    data, listed = Path(experiment.data), experiment.class_list
    fixed = (weights and weights.classes) or 0
    as_it_is = experiment.kind == "one-shot" and fixed > 0
    classes = fixed if as_it_is else count_classes(data, Path(listed) if listed else None)
    module = make(name, fixed or classes, weights)
    trained = weights is not None or _brings_weights(name, classes, module)
    size = read_options(experiment.train_kwargs).image_size or _size(name, module)
    # no zeros: what channels and blocks do is compared on it where they are taken out
    example = torch.randn(2, _channels(module), size, size, generator=torch.Generator().manual_seed(0))
    width = _check_output(name, module, example)
    notes = [f"model {name}, {classes} classes, images of {size} px"]
    if not trained:
        notes.append(f"no --weights: {name} starts from random weights")
    elif width != classes and not as_it_is:
        notes.append(_new_head(name, module, example, width, classes))
        trained = False
    if experiment.teacher not in (None, "self", "disable"):
        load_teacher(str(experiment.teacher), experiment, classes)  # told of before anything is trained
    facts = {"example_inputs": (example,), "input_names": ("input",), "output_names": ("logits",), "notes": notes}
    return Model("torch", module, {**facts, "architecture": name, "classes": classes, "untrained": not trained})


def _new_head(name: str, module: nn.Module, example: Tensor, width: int, classes: int) -> str:
    """Give a module the data's classes, and say so."""
    layer = put_head(name, module, example, classes)
    if _check_output(name, module, example) != classes:
        problem = f"--model: {name} gives {width} classes whatever its layer '{layer}' gives, the data has {classes}"
        raise RequestError(problem, fix="name a factory that takes num_classes")
    return (
        f"the weights are of {width} classes, the data has {classes}: layer '{layer}' is a fresh one "
        "(--class-list FILE names the classes where the data holds some of them only)"
    )


def load_teacher(said: str, experiment: Experiment, classes: int) -> nn.Module:
    """Return the teacher that --teacher names: a FILE of this model's weights or with an arch_key, or NAME=FILE."""
    name, _, file = said.rpartition("=")
    weights = read_weights(Path(file), "--teacher")
    own = _architecture(experiment.model, None) if not (name or weights.arch) else ""
    found = weights.classes
    if found != classes:
        problem = f"--teacher: {file} has {found} classes, the model has {classes}"
        raise RequestError(problem, fix="give a teacher of the same classes, or --teacher disable")
    return make(name or weights.arch or own, classes, weights)


def make(name: str, classes: int, weights: Weights | None = None) -> nn.Module:
    """Make a network by name with so many classes; raises RequestError with the nearest name."""
    torch.manual_seed(0)  # fresh weights are the same in every run and every process
    module = factory(name)(classes)
    if weights:
        fit_weights(module, weights, name)
        # torchvision's GoogLeNet and Inception have it set beside weights; a factory of the user's decides for itself
        if ":" not in name and hasattr(module, "transform_input"):
            module.transform_input = True  # type: ignore[assignment]
    return module.eval()


def _brings_weights(name: str, classes: int, module: nn.Module) -> bool:
    """Say whether a factory loads weights itself: then they do not follow the random numbers."""
    if ":" not in name or name.startswith("timm:"):
        return False
    torch.manual_seed(1)
    other = dict(factory(name)(classes).named_parameters())
    weights = {key: value for key, value in module.named_parameters() if value.dim() > 1}
    return bool(weights) and all(key in other and torch.equal(value, other[key]) for key, value in weights.items())


def _is_file(model: str) -> bool:
    return Path(model).is_file() or model.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _architecture(model: str, weights: Weights | None) -> str:
    if not _is_file(model):
        return model
    if weights is None:
        weights = read_weights(Path(model), "--model")
    if not weights.arch:
        problem = f"--model: {model} holds weights, but not the name of their architecture (arch_key)"
        raise RequestError(problem, fix=f"name it: --model NAME --weights {model}")
    return weights.arch


def _size(name: str, module: nn.Module) -> int:
    config = getattr(module, "pretrained_cfg", None) or {}  # timm's
    shape = config.get("input_size") if isinstance(config, Mapping) else None
    return int(shape[-1]) if shape else SIZES.get(name, ANY_SIZE)


def _channels(module: nn.Module) -> int:
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else 3


def _check_output(name: str, module: nn.Module, example: Tensor) -> int:
    """Return how many classes a module gives; raises RequestError where it gives none or takes no such images."""
    fix = "give the side of its input: --train-kwargs '{\"image_size\": 32}'"
    try:
        with torch.no_grad():
            output = module(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"--model: {name} does not take images of {tuple(example.shape)}: {reason}"
        raise RequestError(problem, fix=fix) from None
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(example):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        problem = f"--model: {name} gives {found}, a classifier gives (batch, classes)"
        raise RequestError(problem, fix="name a factory whose module returns logits alone")
    return int(output.shape[1])
