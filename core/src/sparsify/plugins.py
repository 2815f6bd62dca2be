"""Find plugins through entry points and read their catalogues; a broken plugin is a row, never a dead program."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, distributions, entry_points
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from sparsify.errors import MissingLibraryError, PluginError, RequestError, SparsifyError
from sparsify.hooks import CATALOGUES, PROJECT, Entry, Hooks

GROUP = "sparsify"
DISABLE = "SPARSIFY_DISABLE_PLUGINS"  # names of plugins or distributions, separated by commas
# libraries that pip knows under another name than Python
PIP_NAMES: Mapping[str, str] = MappingProxyType(
    {"PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "skimage": "scikit-image", "yaml": "pyyaml"}
)


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
            raise _offered_twice(catalogue, name, named)
        if not named:
            raise self._unknown(catalogue, name)
        return named[0]

    def _unknown(self, catalogue: str, name: str) -> SparsifyError:
        names = [offer.entry.name for offer in self.offers(catalogue)]
        aliases = [alias for offer in self.offers(catalogue) for alias in offer.entry.aliases]
        near = get_close_matches(name, (*names, *aliases), n=1)
        hint = f"use one of: {', '.join(names)}" if names else "install a plugin that offers one"
        hint = f"use '{near[0]}'" if near else hint
        broken = [plugin.name for plugin in self.found if plugin.error]
        if broken:
            hint += f"; or mend the broken plugin {', '.join(broken)} (see `sparsify plugins list`)"
        disabled = [plugin.name for plugin in self.found if plugin.disabled]
        if disabled:
            hint += f"; or take {', '.join(disabled)} out of {DISABLE}"
        return RequestError(f"there is no {singular(catalogue)} '{name}'", fix=hint)

    def load(self, catalogue: str, name: str, phase: str = "") -> Any:
        """Import and return the target of the entry of this name."""
        return load_target(self.find(catalogue, name, phase))


def singular(catalogue: str) -> str:
    """Say a catalogue's name for one of its entries: `use_cases` → `use case`."""
    return catalogue.removesuffix("s").replace("_", " ")


def _offered_twice(catalogue: str, name: str, named: list[Offer]) -> PluginError:
    owners = " and ".join(f"{offer.plugin.distribution} ({offer.plugin.module})" for offer in named)
    if named[0].plugin == named[-1].plugin:
        fix = f"rename one of the two in {named[0].plugin.module}"
    else:
        same_name = named[0].plugin.name == named[-1].plugin.name
        off = named[-1].plugin.distribution if same_name else named[-1].plugin.name
        fix = f"uninstall one of them, or set {DISABLE}={off}"
    return PluginError(f"{singular(catalogue)} '{name}' is offered twice, by {owners}", fix=fix)


def missing(entry: Entry) -> tuple[str, ...]:
    """Name the libraries that an entry needs and that are not installed, without importing any."""
    return tuple(name for name in entry.requires if not _installed(name))


def _installed(name: str) -> bool:
    """Say whether a name, as Python or as pip knows it, is installed."""
    if "." not in name and find_spec(name.replace("-", "_")) is not None:  # a dotted name would import its parent
        return True
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def install_command(names: Iterable[str]) -> str:
    """Write the command that installs libraries."""
    return f"pip install {' '.join(PIP_NAMES.get(name, name) for name in names)}"


def needs(offer: Offer, names: Iterable[str]) -> MissingLibraryError:
    """Say which libraries an entry lacks, and the command that installs them."""
    listed = tuple(names)
    return MissingLibraryError(
        f"'{offer.entry.name}' of {offer.plugin.distribution} needs {', '.join(listed)}, not installed here",
        fix=install_command(listed),
    )


def load_target(offer: Offer) -> Any:
    """Import an entry's target; raises MissingLibraryError for an absent library, PluginError for anything else."""
    absent = missing(offer.entry)
    if absent:
        raise needs(offer, absent)
    module, _, attribute = offer.entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".")[0]
        if library and library != module.split(".")[0]:
            raise needs(offer, [library]) from error
        raise _broken_target(offer, error) from error
    except (Exception, SystemExit) as error:  # a third party's import may raise anything
        raise _broken_target(offer, error) from error


def _broken_target(offer: Offer, error: BaseException) -> PluginError:
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
    with redirect_stdout(sys.stderr):  # stdout is data; a plugin that prints at import must not spoil --json
        for point in sorted(discover() if points is None else points, key=_identity):
            # an editable install beside a wheel lists the same entry point twice
            key = "/".join(_identity(point))
            if key not in found:
                found[key] = _load(manager, point, off)
    return Plugins(tuple(found.values()), manager)


def discover() -> Iterable[EntryPoint]:
    """Return the installed entry points of our group; a distribution with damaged metadata is left out."""
    try:
        return entry_points(group=GROUP)
    except Exception:  # noqa: BLE001 - importlib.metadata parses every installed package's file, and any may be damaged
        return [point for package in distributions() for point in _points_of(package)]


def _points_of(package: Any) -> Iterator[EntryPoint]:
    try:
        yield from package.entry_points.select(group=GROUP)
    except Exception as error:  # noqa: BLE001 - as above
        text = package.read_text("entry_points.txt") or ""
        if f"[{GROUP}]" in text:
            sys.stderr.write(f"warning: entry points of {package.name} cannot be read: {error}\n")


def _identity(point: EntryPoint) -> tuple[str, str, str]:
    return point.name, point.value, point.dist.name if point.dist else ""


def _load(manager: pluggy.PluginManager, point: EntryPoint, off: set[str]) -> Plugin:
    name, package = point.name, point.dist.name if point.dist else "?"
    version = point.dist.version if point.dist else "?"
    if name in off or package in off:
        return Plugin(name, package, version, point.value, disabled=True)
    module: ModuleType | None = None
    try:
        module = point.load()
        if not manager.is_registered(module):
            manager.register(module, name=f"{package}:{name}")
        entries = _read_entries(manager, module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - isolation: in llm (issue 1280) one plugin kills --help
        if module is not None and manager.is_registered(module):
            manager.unregister(module)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Plugin(name, package, version, point.value, error=reason)
    return Plugin(name, package, version, point.value, entries=entries)


def _read_entries(manager: pluggy.PluginManager, module: ModuleType) -> dict[str, tuple[Entry, ...]]:
    entries: dict[str, tuple[Entry, ...]] = {}
    known = {*CATALOGUES, "experiment_finished"}
    for caller in manager.get_hookcallers(module) or []:
        if caller.name not in known:
            near = get_close_matches(caller.name, sorted(known), n=1)
            raise ValueError(f"unknown hook '{caller.name}'" + (f", did you mean '{near[0]}'?" if near else ""))
        if caller.name in CATALOGUES:
            (hook,) = (impl.function for impl in caller.get_hookimpls() if impl.plugin is module)
            entries[caller.name] = _rows(caller.name, hook())
    return entries


def _rows(hook: str, returned: object) -> tuple[Entry, ...]:
    if not isinstance(returned, Iterable) or isinstance(returned, str | Entry):
        raise TypeError(f"hook '{hook}' returned {type(returned).__name__}, expected a list of sparsify.Entry")
    return tuple(_checked(hook, row) for row in returned)


def _checked(hook: str, row: object) -> Entry:
    if not isinstance(row, Entry):
        raise TypeError(f"hook '{hook}' returned {type(row).__name__}, expected sparsify.Entry")
    for name in ("name", "target", "summary", "returns", "metric", "phase"):
        if not isinstance(getattr(row, name), str):
            raise TypeError(f"entry '{row.name}' of '{hook}' has {name} {getattr(row, name)!r}, expected a string")
    for name in ("requires", "accepts", "aliases"):
        value = getattr(row, name)
        if not (isinstance(value, tuple) and all(isinstance(word, str) for word in value)):
            raise TypeError(f"entry '{row.name}' of '{hook}' has {name} {value!r}, expected a tuple of strings")
    if not row.name.strip():
        raise ValueError(f"an entry of '{hook}' has no name")
    module, colon, attribute = row.target.partition(":")
    if not (colon and module and attribute):
        raise ValueError(
            f"entry '{row.name}' of '{hook}' has target '{row.target}', expected 'package.module:attribute'"
        )
    if hook == "modifiers" and row.phase not in ("post-training", "training"):
        raise ValueError(f"modifier '{row.name}' has phase '{row.phase}', expected 'post-training' or 'training'")
    return row
