"""Resolve use-case names: every documented spelling and alias, the misspelt, and custom ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sparsify.errors import MissingLibraryError, RequestError
from sparsify.plugins import Offer, Plugins

CUSTOM = "custom"


@dataclass(frozen=True)
class Known:
    """Describe a use case that has a documented name; `distribution` is where its plugin lives, '' for none."""

    aliases: tuple[str, ...]
    metric: str
    distribution: str


@dataclass(frozen=True)
class UseCaseChoice:
    """Hold the canonical name a user meant, and the plugin entry that serves it."""

    name: str
    offer: Offer


@cache
def known_use_cases() -> Mapping[str, Known]:
    """Read the documented use cases by canonical name (known_use_cases.yaml)."""
    import yaml

    table = yaml.safe_load(files("sparsify").joinpath("known_use_cases.yaml").read_text("utf-8"))
    return {name: Known(tuple(row["aliases"]), row["metric"], row["distribution"]) for name, row in table.items()}


def squash(name: str) -> str:
    """Drop what users vary freely: case, spaces, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def spellings(plugins: Plugins) -> dict[str, str]:
    """Map every squashed spelling, documented or offered by a plugin, to its canonical name."""
    table = {squash(word): offer.entry.name for offer in plugins.offers("use_cases") for word in offer.names}
    for name, known in known_use_cases().items():
        table |= {squash(word): name for word in (name, *known.aliases)}
    return table


def resolve_use_case(name: str, plugins: Plugins, kind: str) -> UseCaseChoice:
    """Find the use case a user named; an unknown name is a custom use case, in one-shot only.

    Raises MissingLibraryError for a known name without its plugin, RequestError for a near miss or no name.
    """
    if not name.strip():
        raise RequestError("--use-case is empty", fix="name one, see `sparsify use-cases`, or use custom:NAME")
    if name.lower().startswith(f"{CUSTOM}:"):
        return _custom(name.split(":", 1)[1], plugins, kind)
    table = spellings(plugins)
    canonical = table.get(squash(name))
    if canonical is None:
        near = _near(squash(name), table)
        if near is None:
            return _custom(name, plugins, kind)
        raise RequestError(f"there is no use case '{name}'", fix=f"did you mean '{near}'? Else use custom:{name}")
    if canonical not in {offer.entry.name for offer in plugins.offers("use_cases")}:
        raise _not_installed(canonical)
    return UseCaseChoice(canonical, plugins.find("use_cases", canonical))


def _custom(name: str, plugins: Plugins, kind: str) -> UseCaseChoice:
    if kind != "one-shot":
        problem = f"'{name}' is a custom use case, and {kind} has no training loop for it"
        raise RequestError(problem, fix="use one-shot, or a use case of `sparsify use-cases`")
    if not name.strip():
        raise RequestError("custom: needs a name", fix="write --use-case custom:my-task")
    return UseCaseChoice(f"{CUSTOM}:{name.strip()}", plugins.find("use_cases", CUSTOM))


def _not_installed(canonical: str) -> MissingLibraryError | RequestError:
    distribution = known_use_cases()[canonical].distribution
    if not distribution:
        problem = f"use case '{canonical}' means LLM fine-tuning, which Sparsify does not do"
        return RequestError(problem, fix="use llm-compressor for LLMs, or a use case of `sparsify use-cases`")
    fix = f"pip install {distribution}; with NPZ data and no plugin, use --use-case custom:{canonical}"
    return MissingLibraryError(f"use case '{canonical}' needs {distribution}, not installed here", fix=fix)


def _near(squashed: str, table: Mapping[str, str]) -> str | None:
    """Name the use case spelt within two edits; short names must be longer than the edits, or every one is near."""
    edits, nearest = min((edit_distance(squashed, spelling), spelling) for spelling in table if len(spelling) > 4)
    return table[nearest] if edits <= 2 else None


def edit_distance(left: str, right: str) -> int:
    """Count the insertions, deletions and substitutions between two words (Levenshtein 1966)."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
