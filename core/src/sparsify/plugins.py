"""Find plugins through entry points and read their catalogues; a broken plugin is a row, never a dead program."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pluggy

from sparsify.errors import MissingLibraryError, PluginError, RequestError, SparsifyError
from sparsify.hooks import CATALOGUES, PROJECT, Entry, Hooks

GROUP = "sparsify"


@dataclass(frozen=True)
class Plugin:
    """Describe one installed plugin: `error` says why it is broken, `disabled` that the user switched it off."""

    name: str
    distribution: str
    version: str
    module: str
    error: str = ""
    disabled: bool = False
    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """Hold one entry with the plugin that offers it."""

    entry: Entry
    plugin: Plugin


@dataclass(frozen=True)
class Plugins:
    """Hold every plugin found, and the manager that calls observers."""

    found: tuple[Plugin, ...]
    manager: pluggy.PluginManager

    def offers(self, catalogue: str) -> tuple[Offer, ...]:
        """List what all working plugins offer in a catalogue, by name."""
        offers = [Offer(entry, plugin) for plugin in self.found for entry in plugin.entries.get(catalogue, ())]
        return tuple(sorted(offers, key=lambda offer: offer.entry.name))

    def find(self, catalogue: str, name: str, phase: str = "") -> Offer:
        """Return the one entry of this name; raises RequestError for none and PluginError for two."""
        named = [
            offer
            for offer in self.offers(catalogue)
            if name in (offer.entry.name, *offer.entry.aliases) and phase in ("", offer.entry.phase)
        ]
        if len(named) > 1:
            owners = " and ".join(f"{offer.plugin.distribution} ({offer.plugin.module})" for offer in named)
            raise PluginError(
                f"{singular(catalogue)} '{name}' is offered twice, by {owners}",
                fix=f"uninstall one of them, or set {DISABLE}={named[-1].plugin.name}",
            )
        if not named:
            raise self._unknown(catalogue, name)
        return named[0]

    def _unknown(self, catalogue: str, name: str) -> SparsifyError:
        names = [offer.entry.name for offer in self.offers(catalogue)]
        near = get_close_matches(name, names, n=1)
        broken = [plugin.name for plugin in self.found if plugin.error]
        hint = f"use '{near[0]}'" if near else f"use one of: {', '.join(names) or 'none installed'}"
        if broken:
            hint += f"; or mend the broken plugin {', '.join(broken)} (see `sparsify plugins list`)"
        return RequestError(f"there is no {singular(catalogue)} '{name}'", fix=hint)

    def load(self, catalogue: str, name: str, phase: str = "") -> Any:
        """Import and return the target of the entry of this name."""
        return load_target(self.find(catalogue, name, phase))


DISABLE = "SPARSIFY_DISABLE_PLUGINS"


def singular(catalogue: str) -> str:
    """Say a catalogue's name for one of its entries: `use_cases` → `use case`."""
    return catalogue.removesuffix("s").replace("_", " ")


def missing(entry: Entry) -> tuple[str, ...]:
    """Name the libraries that an entry needs and that are not installed, without importing any."""
    return tuple(name for name in entry.requires if find_spec(name.replace("-", "_")) is None)


def load_target(offer: Offer) -> Any:
    """Import an entry's target; raises MissingLibraryError for an absent library, PluginError for anything else."""
    absent = missing(offer.entry)
    if absent:
        raise MissingLibraryError(
            f"'{offer.entry.name}' of {offer.plugin.distribution} needs {', '.join(absent)}, not installed here",
            fix=f"pip install {' '.join(absent)}",
        )
    module, _, attribute = offer.entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith(module.split(".")[0]):
            raise MissingLibraryError(
                f"'{offer.entry.name}' of {offer.plugin.distribution} needs {error.name}, not installed here",
                fix=f"pip install {error.name}",
            ) from error
        raise _broken_target(offer, error) from error
    except Exception as error:
        raise _broken_target(offer, error) from error


def _broken_target(offer: Offer, error: Exception) -> PluginError:
    plugin = offer.plugin
    return PluginError(
        f"plugin '{plugin.name}' ({plugin.distribution} {plugin.version}) failed to load {offer.entry.target}: "
        f"{type(error).__name__}: {error}",
        fix=f"run `sparsify plugins check {plugin.name}`, or set {DISABLE}={plugin.name}",
    )


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Import, register and check every plugin, each in its own `try`; `points` replaces discovery in tests."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    off = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    found: dict[str, Plugin] = {}
    for point in sorted(points if points is not None else entry_points(group=GROUP), key=_identity):
        # an editable install beside a wheel lists the same entry point twice
        found.setdefault("/".join(_identity(point)), _load(manager, point, off))
    return Plugins(tuple(found.values()), manager)


def _identity(point: EntryPoint) -> tuple[str, str, str]:
    return point.name, point.value, point.dist.name if point.dist else ""


def _load(manager: pluggy.PluginManager, point: EntryPoint, off: set[str]) -> Plugin:
    name, distribution = point.name, point.dist.name if point.dist else "?"
    version = point.dist.version if point.dist else "?"
    if name in off or distribution in off:
        return Plugin(name, distribution, version, point.value, disabled=True)
    module: ModuleType | None = None
    try:
        module = point.load()
        if not manager.is_registered(module):
            manager.register(module, name=f"{distribution}:{name}")
        entries = _read_entries(manager, module)
    except Exception as error:  # noqa: BLE001 - isolation is the point: llm issue 1280, one bad plugin kills --help
        if module is not None and manager.is_registered(module):
            manager.unregister(module)
        return Plugin(name, distribution, version, point.value, error=f"{type(error).__name__}: {error}")
    return Plugin(name, distribution, version, point.value, entries=entries)


def _read_entries(manager: pluggy.PluginManager, module: ModuleType) -> dict[str, tuple[Entry, ...]]:
    entries: dict[str, tuple[Entry, ...]] = {}
    known = {*CATALOGUES, "experiment_finished"}
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if caller.name not in known:
            near = get_close_matches(caller.name, sorted(known), n=1)
            raise ValueError(f"unknown hook '{caller.name}'" + (f", did you mean '{near[0]}'?" if near else ""))
        if caller.name in CATALOGUES:
            rows = tuple(getattr(module, caller.name)())
            for row in rows:
                _check_entry(caller.name, row)
            entries[caller.name] = rows
    return entries


def _check_entry(hook: str, row: object) -> None:
    if not isinstance(row, Entry):
        raise TypeError(f"hook '{hook}' returned {type(row).__name__}, expected sparsify.Entry")
    module, colon, attribute = row.target.partition(":")
    if not (colon and module and attribute):
        raise ValueError(
            f"entry '{row.name}' of '{hook}' has target '{row.target}', expected 'package.module:attribute'"
        )
    if hook == "modifiers" and row.phase not in ("post-training", "training"):
        raise ValueError(f"modifier '{row.name}' has phase '{row.phase}', expected 'post-training' or 'training'")
