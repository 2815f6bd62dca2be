"""Find what makes the network that --model names: ours, torchvision's, timm's, or a factory's."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from sparsify import MissingLibraryError, RequestError
from torch import nn

from sparsify_image_classification.training.cifar_resnet import cifar_resnet20

Factory = Callable[[int], nn.Module]
OWN: Mapping[str, Factory] = MappingProxyType({"cifar_resnet20": cifar_resnet20})


def factory(name: str) -> Factory:
    """Return what makes a network by name; raises RequestError with the nearest names, MissingLibraryError."""
    if name in OWN:
        return OWN[name]
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"))
    if ":" in name:
        return _from_module(name)
    return _from_torchvision(name)


def _from_timm(name: str) -> Factory:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise MissingLibraryError(f"--model: timm:{name} needs timm", fix="pip install timm") from None
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", [f"timm:{known}" for known in timm.list_models()])
    return lambda classes: timm.create_model(name, pretrained=False, num_classes=classes)


def _from_torchvision(name: str) -> Factory:
    try:
        models = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        near = get_close_matches(name, OWN, n=1)
        if near:
            raise _unknown(name, list(OWN)) from None
        problem = f"--model: '{name}' is none of {', '.join(OWN)}; other names are torchvision's, which does not import"
        raise MissingLibraryError(problem, fix="pip install torchvision, or give package.module:factory") from None
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(name, [*OWN, *known])
    return lambda classes: _alone(models, name, classes)


def _alone(models: Any, name: str, classes: int) -> nn.Module:
    """Make a network without the extra classifiers that GoogLeNet and Inception have while they are trained."""
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # how these two draw their weights
        module: nn.Module = models.get_model(name, weights=None, num_classes=classes)
        if getattr(module, "aux_logits", False):
            module = models.get_model(name, weights=None, num_classes=classes, aux_logits=False)
    return module


def _from_module(name: str) -> Factory:
    place, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "give package.module:factory of an importable module; PYTHONPATH=. makes the current folder importable"
        raise RequestError(f"--model: {name} cannot be imported: {error}", fix=fix) from None
    takes = inspect.signature(found).parameters if callable(found) else {}

    def build(classes: int) -> nn.Module:
        module = found(num_classes=classes) if "num_classes" in takes else found() if callable(found) else None
        if not isinstance(module, nn.Module):
            problem = f"--model: {name} gives {type(module).__name__}, not a torch.nn.Module"
            raise RequestError(problem, fix="name a function that returns the module; it may take num_classes")
        return module

    return build


def _unknown(name: str, known: list[str]) -> RequestError:
    within = [one for one in known if name.lower() in one.lower()]
    near = list(dict.fromkeys([*within, *get_close_matches(name, known, n=3, cutoff=0.5)]))[:3]
    names = ", ".join(near)
    fix = (
        f"did you mean {names}?" if near else f"use {', '.join(OWN)}, torchvision's names, timm:NAME or module:factory"
    )
    return RequestError(f"--model: there is no model '{name}'", fix=fix)
