"""Check a plugin against its contracts: the layout of its code, and what every entry's target turns out to be."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from sparsify import (
    DISABLE,
    DatasetLoader,
    Metric,
    MissingLibraryError,
    ModelFormat,
    Offer,
    Plugin,
    PluginError,
    Plugins,
    RecipeGenerator,
    RequestError,
    Trainer,
    UseCase,
    load_plugins,
    load_target,
    singular,
)

from sparsify_plugin_kit.layout import check_package_init, check_plugin_module

# what a target has to be: a function of these arguments, or a record of such functions
FUNCTIONS: Mapping[str, str] = {"exporters": "model", "runtimes": "path threads", "installers": "say"}
RECORDS: Mapping[str, tuple[type[Any], Mapping[str, str]]] = {
    "use_cases": (UseCase, {"check": "data description", "readme": "data description", "picture": "data key",
                            "prepare": "raw deployment", "interpret": "outputs deployment"}),
    "dataset_loaders": (DatasetLoader, {"recognises": "path", "load": "request"}),
    "model_loaders": (
        ModelFormat, {"load": "path", "save": "model path", "describe": "model",
                      "compare": "reference candidate dataset batch_size score", "fit": "model limit", "files": "path",
                      "read": "path"},
    ),
    "recipe_generators": (
        RecipeGenerator,
        {"write": "experiment description", "rescue": "search recipe", "foresee": "search recipe"},
    ),
    "trainers": (Trainer, {"load": "experiment", "train": "model modifiers training"}),
    "evaluators": (Metric, {"observe": "outputs targets", "reduce": "records"}),
}  # fmt: skip
# what an entry has to say besides its name, target and summary
REQUIRED: Mapping[str, tuple[str, ...]] = {"model_loaders": ("accepts",), "exporters": ("accepts", "returns")}


@dataclass(frozen=True)
class Finding:
    """Say what is wrong with a plugin, where, and the edit or command that mends it.

    fault is False for what could not be checked here: a library that is not installed, a plugin that is switched off.
    """

    plugin: str
    where: str
    problem: str
    fix: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.plugin}: {self.where}: {self.problem} (fix: {self.fix})"


def check_plugin(name: str, plugins: Plugins | None = None) -> tuple[Finding, ...]:
    """Check every plugin of this name or distribution, importing every target; () means that nothing is wrong.

    For a plugin's own tests: `assert check_plugin("my-plugin") == ()`. Raises RequestError where none has the name.
    """
    plugins = plugins or load_plugins()
    return tuple(finding for plugin in named(name, plugins) for finding in _findings(plugin, plugins))


def named(name: str, plugins: Plugins) -> tuple[Plugin, ...]:
    """Return the plugins of this name or distribution; raises RequestError for none."""
    found = tuple(plugin for plugin in plugins.found if name in (plugin.name, plugin.distribution))
    if not found:
        near = get_close_matches(name, [word for row in plugins.found for word in (row.name, row.distribution)], n=1)
        fix = f"did you mean '{near[0]}'?" if near else "see `sparsify plugins list`; a plugin has to be installed"
        raise RequestError(f"there is no plugin '{name}'", fix=fix)
    return found


def _findings(plugin: Plugin, plugins: Plugins) -> Iterator[Finding]:
    finding = partial(Finding, plugin.name, plugin.module)
    if plugin.disabled:
        yield finding("is switched off", f"take it out of {DISABLE}", fault=False)
        return
    if plugin.error:
        yield finding(plugin.error, "mend the module, then run this check again")
        return
    yield from _layout(plugin)
    registered = plugins.manager.get_plugin(f"{plugin.distribution}:{plugin.name}")
    if not any(plugin.entries.values()) and not plugins.manager.get_hookcallers(registered):
        yield finding("offers nothing", "mark its functions with @hookimpl, return entries")
    for catalogue, entries in plugin.entries.items():
        for entry in entries:
            yield from _entry(catalogue, Offer(entry, plugin), plugins)


def _layout(plugin: Plugin) -> Iterator[Finding]:
    name = plugin.module.partition(":")[0]
    check_module = partial(check_plugin_module, core=name == "sparsify.plugin")
    for module, rule in ((name, check_module), (name.split(".")[0], check_package_init)):
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        for line, problem in rule(Path(file).read_text(encoding="utf-8")) if file.endswith(".py") else ():
            yield Finding(plugin.name, f"{module}:{line}", problem, "see docs/reference/hooks.md")


def _entry(catalogue: str, offer: Offer, plugins: Plugins) -> Iterator[Finding]:
    entry = offer.entry
    finding = partial(Finding, offer.plugin.name, f"{singular(catalogue)} '{entry.name}'")
    if not entry.summary.strip():
        yield finding("has no summary", "say in one line what it does: Entry(summary=…)")
    for name in offer.names:
        try:
            plugins.find(catalogue, name, entry.phase)
        except PluginError as error:
            yield finding(error.problem, error.fix)
    try:
        target = load_target(offer)
    except MissingLibraryError as error:
        lack = error.problem.partition(f" of {offer.plugin.distribution} ")[2]
        yield finding(f"{lack}, so it was not checked", error.fix, fault=False)
    except PluginError as error:
        yield finding(error.problem.partition(" failed to load ")[2], f"mend {entry.target}")
    else:
        for problem in _contract(catalogue, target, offer, plugins):
            yield finding(f"{entry.target} {problem}", f"see {catalogue} in docs/reference/hooks.md")


def _contract(catalogue: str, target: Any, offer: Offer, plugins: Plugins) -> Iterator[str]:
    absent = [name for name in REQUIRED.get(catalogue, ()) if not getattr(offer.entry, name)]
    yield from (f"has an entry without '{name}'" for name in absent)
    if catalogue in FUNCTIONS:
        yield from _takes(target, FUNCTIONS[catalogue])
    elif catalogue in RECORDS:
        yield from _record(target, *RECORDS[catalogue])
        if isinstance(target, UseCase):
            yield from _known("evaluators", "measures", target.metrics, plugins)
            yield from _known("dataset_loaders", "accepts", offer.entry.accepts, plugins)
            if offer.entry.metric != next(iter(target.metrics), ""):
                yield f"decides by another metric than its entry, which names '{offer.entry.metric}'"
    elif catalogue == "modifiers":
        yield from _modifier(target, offer.entry.phase)
    elif catalogue == "commands":
        from typer import Typer

        if not isinstance(target, Typer):
            yield f"is {type(target).__name__}, expected typer.Typer"


def _takes(target: Any, names: str) -> Iterator[str]:
    """Yield a problem where something is not callable with these positional arguments."""
    expected = f"({', '.join(names.split())})"
    if not callable(target):
        yield f"is {type(target).__name__}, expected a function of {expected}"
        return
    try:
        inspect.signature(target).bind(*names.split())
    except TypeError:
        yield f"takes {inspect.signature(target)}, expected {expected}"
    except ValueError:
        return  # a builtin without a signature


def _record(target: Any, kind: type[Any], functions: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(target, kind):
        yield f"is {type(target).__name__}, expected sparsify.{kind.__name__}"
        return
    for name, arguments in functions.items():
        value = getattr(target, name)
        if value is not None or getattr(kind, name, 0) is not None:  # a function without a default is no attribute
            yield from (f"has a function {name} that {problem}" for problem in _takes(value, arguments))


def _known(catalogue: str, verb: str, names: tuple[str, ...], plugins: Plugins) -> Iterator[str]:
    if isinstance(names, str) or not names:
        yield f"has {names!r}, expected a tuple of names of {catalogue.replace('_', ' ')}"
        return
    known = [word for offer in plugins.offers(catalogue) for word in offer.names]
    for name in names:
        if name not in known:
            yield f"{verb} the {singular(catalogue)} '{name}', which no installed plugin offers"


def _modifier(target: Any, phase: str) -> Iterator[str]:
    from pydantic import BaseModel

    if not (isinstance(target, type) and issubclass(target, BaseModel)):
        yield "is no pydantic model of the modifier's options"
        return
    if not target.model_config.get("frozen") or target.model_config.get("extra") != "forbid":
        yield "is not frozen or takes unknown options; set model_config = ConfigDict(frozen=True, extra='forbid')"
    name, arguments = ("apply", "self model context") if phase == "post-training" else ("attach", "self loop")
    found = _takes(getattr(target, name, None), arguments)
    yield from (f"has a function {name} that {problem}" for problem in found)
