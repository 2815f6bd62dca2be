"""Resolve use-case names: every documented spelling and alias, the misspelt, and custom ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sparsify.errors import MissingLibraryError, RequestError
from sparsify.plugins import Offer, Plugins

CUSTOM = "custom"


@dataclass(frozen=True)
class Known:
    """Describe a use case that has a documented name; `distribution` is where its plugin lives, '' for none."""

    aliases: tuple[str, ...]
    metric: str
    distribution: str


# The spellings of the old guides and of the old registry, including those its own code could not resolve
# (`qa`, `mlm`, `ir`, `nlp-question_answering`, `nlp-named_entity_recognition`).
KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "image-classification": Known(
            ("ic", "classification", "cv-classification", "cv-image-classification"),
            "accuracy",
            "sparsify-plugin-image-classification",
        ),
        "object-detection": Known(
            ("od", "detection", "cv-detection", "cv-object-detection", "yolo"), "map50_95", "sparsify-plugin-yolo"
        ),
        "segmentation": Known(
            ("image-segmentation", "instance-segmentation", "cv-segmentation"), "map50_95", "sparsify-plugin-yolo"
        ),
        "question-answering": Known(("qa", "nlp-question-answering"), "f1", "sparsify-plugin-nlp"),
        "text-classification": Known(("glue", "nlp-text-classification"), "accuracy", "sparsify-plugin-nlp"),
        "sentiment-analysis": Known(("sentiment", "nlp-sentiment-analysis"), "accuracy", "sparsify-plugin-nlp"),
        "multilabel-text-classification": Known(("nlp-multilabel-text-classification",), "f1", "sparsify-plugin-nlp"),
        "document-classification": Known(("nlp-document-classification",), "accuracy", "sparsify-plugin-nlp"),
        "token-classification": Known(
            ("ner", "named-entity-recognition", "nlp-token-classification", "nlp-named-entity-recognition"),
            "f1",
            "sparsify-plugin-nlp",
        ),
        "masked-language-modeling": Known(("mlm", "nlp-masked-language-modeling"), "accuracy", "sparsify-plugin-nlp"),
        "information-retrieval": Known(("ir", "nlp-information-retrieval"), "agreement", "sparsify-plugin-nlp"),
        "finetune": Known(("finetuning", "fine tune"), "", ""),
    }
)


@dataclass(frozen=True)
class UseCaseChoice:
    """Hold the canonical name a user meant, and the plugin entry that serves it."""

    name: str
    offer: Offer


def squash(name: str) -> str:
    """Drop what users vary freely: case, spaces, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def spellings(plugins: Plugins) -> dict[str, str]:
    """Map every squashed spelling, documented or offered by a plugin, to its canonical name."""
    table = {squash(offer.entry.name): offer.entry.name for offer in plugins.offers("use_cases")}
    for offer in plugins.offers("use_cases"):
        table |= {squash(alias): offer.entry.name for alias in offer.entry.aliases}
    for name, known in KNOWN.items():
        table |= {squash(spelling): name for spelling in (name, *known.aliases)}
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
        if near:
            raise RequestError(
                f"there is no use case '{name}'", fix=f"did you mean '{table[near]}'? Else use custom:{name}"
            )
        return _custom(name, plugins, kind)
    installed = {offer.entry.name for offer in plugins.offers("use_cases")}
    if canonical not in installed:
        raise _not_installed(canonical)
    return UseCaseChoice(canonical, plugins.find("use_cases", canonical))


def _custom(name: str, plugins: Plugins, kind: str) -> UseCaseChoice:
    if kind != "one-shot":
        raise RequestError(
            f"'{name}' is a custom use case, and {kind} has no training loop for it",
            fix="use one-shot, or a use case of `sparsify use-cases`",
        )
    if not name.strip():
        raise RequestError("custom: needs a name", fix="write --use-case custom:my-task")
    return UseCaseChoice(f"{CUSTOM}:{name.strip()}", plugins.find("use_cases", CUSTOM))


def _not_installed(canonical: str) -> MissingLibraryError | RequestError:
    distribution = KNOWN[canonical].distribution
    if not distribution:
        return RequestError(
            f"use case '{canonical}' means LLM fine-tuning, which Sparsify does not do",
            fix="use llm-compressor for LLMs, or a use case of `sparsify use-cases`",
        )
    return MissingLibraryError(
        f"use case '{canonical}' needs {distribution}, not installed here",
        fix=f"pip install {distribution}; with NPZ data and no plugin, use --use-case custom:{canonical}",
    )


def _near(squashed: str, table: Mapping[str, str]) -> str | None:
    """Find a spelling within two edits; short names must be longer than the edits, or every one is near."""
    distances = {spelling: edit_distance(squashed, spelling) for spelling in table if len(spelling) > 4}
    best = min(distances, key=lambda spelling: (distances[spelling], spelling), default=None)
    return best if best is not None and distances[best] <= 2 else None


def edit_distance(left: str, right: str) -> int:
    """Count the insertions, deletions and substitutions between two words (Levenshtein 1966)."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def documented(offer: Offer) -> Offer:
    """Add a use case's documented aliases to those its plugin gives."""
    known = KNOWN.get(offer.entry.name)
    aliases = (*offer.entry.aliases, *(known.aliases if known else ()))
    return replace(offer, entry=replace(offer.entry, aliases=tuple(dict.fromkeys(aliases))))
