"""Find plugins through entry points and read their catalogues; a broken plugin is a row, never a dead program."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, distributions
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pluggy

from sparsify.errors import MissingLibraryError, PluginError, RequestError
from sparsify.hooks import CATALOGUES, PROJECT, Entry, Hooks

GROUP = "sparsify"
DISABLE = "SPARSIFY_DISABLE_PLUGINS"  # names of plugins or distributions, separated by commas
OBSERVER = "experiment_finished"  # the one hook that returns no entries
# libraries that pip knows under another name than Python
PIP_NAMES: Mapping[str, str] = {
    "PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "skimage": "scikit-image", "yaml": "pyyaml"
}  # fmt: skip


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

    @property
    def state(self) -> str:
        """Say `ok`, `broken` or `disabled`."""
        return "broken" if self.error else "disabled" if self.disabled else "ok"


@dataclass(frozen=True)
class Offer:
    """Hold one entry with the plugin that offers it."""

    entry: Entry
    plugin: Plugin

    @property
    def names(self) -> tuple[str, ...]:
        """Return the entry's name and its aliases."""
        return self.entry.name, *self.entry.aliases


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
        offers = self.offers(catalogue)
        named = [offer for offer in offers if name in offer.names and phase in ("", offer.entry.phase)]
        if len(named) > 1:
            raise _offered_twice(catalogue, name, named)
        if not named:
            raise self._unknown(catalogue, name)
        return named[0]

    def load(self, catalogue: str, name: str, phase: str = "") -> Any:
        """Import and return the target of the entry of this name."""
        return load_target(self.find(catalogue, name, phase))

    def _unknown(self, catalogue: str, name: str) -> RequestError:
        offers = self.offers(catalogue)
        names = ", ".join(offer.entry.name for offer in offers)
        near = get_close_matches(name, [word for offer in offers for word in offer.names], n=1)
        fix = f"use one of: {names}" if names else "install a plugin that offers one"
        fix = f"use '{near[0]}'" if near else fix
        broken = ", ".join(plugin.name for plugin in self.found if plugin.error)
        if broken:
            fix += f"; or mend the broken plugin {broken} (see `sparsify plugins list`)"
        disabled = ", ".join(plugin.name for plugin in self.found if plugin.disabled)
        if disabled:
            fix += f"; or take {disabled} out of {DISABLE}"
        return RequestError(f"there is no {singular(catalogue)} '{name}'", fix=fix)


def singular(catalogue: str) -> str:
    """Say a catalogue's name for one of its entries: `use_cases` → `use case`."""
    return catalogue.removesuffix("s").replace("_", " ")


def _offered_twice(catalogue: str, name: str, named: list[Offer]) -> PluginError:
    owners = " and ".join(f"{offer.plugin.distribution} ({offer.plugin.module})" for offer in named)
    first, last = named[0].plugin, named[-1].plugin
    off = last.distribution if first.name == last.name else last.name
    fix = f"uninstall one of them, or set {DISABLE}={off}"
    if first == last:
        fix = f"rename one of the two in {first.module}"
    return PluginError(f"{singular(catalogue)} '{name}' is offered twice, by {owners}", fix=fix)


def missing(entry: Entry) -> tuple[str, ...]:
    """Name the libraries that an entry needs and that are not installed, without importing any."""
    return tuple(name for name in entry.requires if not _installed(name))


def _installed(name: str) -> bool:
    """Say whether a name, as Python or as pip knows it, is installed."""
    if "." not in name and find_spec(name.replace("-", "_")) is not None:  # a dotted name would import its parent
        return True
    return any(distributions(name=name))


def install_command(names: Iterable[str]) -> str:
    """Write the command that installs libraries."""
    return f"pip install {' '.join(PIP_NAMES.get(name, name) for name in names)}"


def needs(offer: Offer, names: Sequence[str]) -> MissingLibraryError:
    """Say which libraries an entry lacks, and the command that installs them."""
    problem = f"'{offer.entry.name}' of {offer.plugin.distribution} needs {', '.join(names)}, not installed here"
    return MissingLibraryError(problem, fix=install_command(names))


def load_target(offer: Offer) -> Any:
    """Import an entry's target; raises MissingLibraryError for an absent library, PluginError for anything else."""
    absent = missing(offer.entry)
    if absent:
        raise needs(offer, absent)
    module, _, attribute = offer.entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a third party's import may raise anything
        library = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if library and library != module.split(".")[0]:
            raise needs(offer, [library]) from error
        plugin = offer.plugin
        raise PluginError(
            f"plugin '{plugin.name}' ({plugin.distribution} {plugin.version}) failed to load {offer.entry.target}: "
            f"{type(error).__name__}: {error}",
            fix=f"run `sparsify plugins check {plugin.name}`, or set {DISABLE}={plugin.name}",
        ) from error


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Import, register and check every plugin, each in its own `try`; `points` replaces discovery in tests."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    off = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    found: dict[tuple[str, str], Plugin] = {}
    with redirect_stdout(sys.stderr):  # stdout is data; a plugin that prints at import must not spoil --json
        for point in sorted(discover() if points is None else points, key=_identity):
            # an editable install beside a wheel lists the same entry point twice; the first on the path counts
            if _identity(point) not in found:
                found[_identity(point)] = _load(manager, point, off)
    return Plugins(tuple(found.values()), manager)


def discover() -> Iterator[EntryPoint]:
    """Yield the installed entry points of our group; a distribution with damaged metadata is left out."""
    for package in distributions():
        try:
            yield from package.entry_points.select(group=GROUP)
        except Exception as error:  # noqa: BLE001 - this parses every installed package's file, and any may be damaged
            if f"[{GROUP}]" in (package.read_text("entry_points.txt") or ""):
                sys.stderr.write(f"warning: entry points of {package.name} cannot be read: {error}\n")


def _identity(point: EntryPoint) -> tuple[str, str]:
    return point.name, point.dist.name if point.dist else "?"


def _load(manager: pluggy.PluginManager, point: EntryPoint, off: set[str]) -> Plugin:
    name, package = _identity(point)
    plugin = Plugin(name, package, point.dist.version if point.dist else "?", point.value)
    if name in off or package in off:
        return replace(plugin, disabled=True)
    key = f"{package}:{name}"
    try:
        module = point.load()
        if not manager.is_registered(module):
            manager.register(module, name=key)
        return replace(plugin, entries=_read_entries(manager, module))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - isolation: in llm (issue 1280) one plugin kills --help
        if manager.has_plugin(key):
            manager.unregister(name=key)
        return replace(plugin, error=" ".join(f"{type(error).__name__}: {error}".split()))


def _read_entries(manager: pluggy.PluginManager, module: ModuleType) -> dict[str, tuple[Entry, ...]]:
    entries: dict[str, tuple[Entry, ...]] = {}
    for caller in manager.get_hookcallers(module) or []:
        if caller.name in CATALOGUES:
            (hook,) = (impl.function for impl in caller.get_hookimpls() if impl.plugin is module)
            entries[caller.name] = _rows(caller.name, hook())
        elif caller.name != OBSERVER:
            near = get_close_matches(caller.name, (*CATALOGUES, OBSERVER), n=1)
            raise ValueError(f"unknown hook '{caller.name}'" + (f", did you mean '{near[0]}'?" if near else ""))
    return entries


def _rows(hook: str, returned: object) -> tuple[Entry, ...]:
    if not isinstance(returned, Iterable) or isinstance(returned, str | Entry):
        raise TypeError(f"hook '{hook}' returned {type(returned).__name__}, expected a list of sparsify.Entry")
    return tuple(_checked(hook, row) for row in returned)


def _checked(hook: str, row: object) -> Entry:
    if not isinstance(row, Entry):
        raise TypeError(f"hook '{hook}' returned {type(row).__name__}, expected sparsify.Entry")
    where = f"entry '{row.name}' of '{hook}'"
    for name, value in vars(row).items():
        if name in ("requires", "accepts", "aliases"):
            if not (isinstance(value, tuple) and all(isinstance(word, str) for word in value)):
                raise TypeError(f"{where} has {name} {value!r}, expected a tuple of strings")
        elif not isinstance(value, str):
            raise TypeError(f"{where} has {name} {value!r}, expected a string")
    if not row.name.strip():
        raise ValueError(f"an entry of '{hook}' has no name")
    if not all(row.target.partition(":")):
        raise ValueError(f"{where} has target '{row.target}', expected 'package.module:attribute'")
    if hook == "modifiers" and row.phase not in ("post-training", "training"):
        raise ValueError(f"modifier '{row.name}' has phase '{row.phase}', expected 'post-training' or 'training'")
    return row
