"""What the field's recipes may hold: SparseML's modifiers and fields (known_modifiers.yaml), and the dead spellings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

REQUIRED = "required"  # stands in the table where a field has no default
TRAINING_ONLY = frozenset({"ConstantPruningModifier", "OutputDistillationModifier"})  # of the key dialect
_TO_TAG = {"start": "start_epoch", "end": "end_epoch", "update": "update_frequency"}
_PRUNING_TO_TAG = {"targets": "params", "update_scheduler": "inter_func", "mask_structure": "mask_type"}


@dataclass(frozen=True)
class Known:
    """Describe one modifier: its phase, what it does (`{field}` stands for an option), its fields with defaults."""

    phase: str
    does: str
    fields: Mapping[str, Any]


@cache
def _table() -> Mapping[str, Any]:
    import yaml

    table: Mapping[str, Any] = yaml.safe_load(files("sparsify").joinpath("known_modifiers.yaml").read_text("utf-8"))
    return table


def known_names() -> frozenset[str]:
    """Return the name of every modifier of either dialect."""
    return frozenset({*_table()["tag"], *_table()["key"]})


def known_modifier(name: str, phase: str) -> Known | None:
    """Return the modifier of this name: of the key dialect for post-training, of the tag dialect for any other phase.

    Its fields are those of both dialects, because old files mix them; defaults are those of the one asked for.
    """
    order = ("key", "tag") if phase == "post-training" else ("tag", "key")
    rows = [(dialect, _table()[dialect][name]) for dialect in order if name in _table()[dialect]]
    if not rows:
        return None
    dialect, row = rows[0]
    trains = dialect == "tag" or name in TRAINING_ONLY
    other = {field: None for _, row in rows[1:] for field in row["fields"]}
    return Known("training" if trains else "post-training", row["does"], {**other, **row["fields"]})


def normalise_options(name: str, phase: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename or drop dead fields, with a note for each, and turn training fields of the key dialect into the tag's."""
    if name not in known_names():
        return dict(options), []
    notes: list[str] = []
    given = dict(options)
    if isinstance(given.get("mfac_options"), Mapping):
        given = {**given.pop("mfac_options"), **given}
        notes.append("moved the fields of 'mfac_options' one level up")
    dropped = _dead("dropped", "any", "key" if name in _table()["key"] else "", name)
    renamed = _dead("renamed", "any", name)
    translated = {**_TO_TAG, **(_PRUNING_TO_TAG if name.endswith("PruningModifier") else {})}
    kept: dict[str, Any] = {}
    for field, value in given.items():
        new = renamed.get(field) or (translated.get(field, field) if phase == "training" else field)
        if field in dropped:
            notes.append(f"dropped '{field}': {dropped[field]}")
        elif new != field and new in given:
            notes.append(f"dropped '{field}': '{new}' is given too")
        else:
            kept[new] = value
            if field in renamed:
                notes.append(f"renamed '{field}' to '{new}'")
    return kept, notes


def _dead(what: str, *names: str) -> dict[str, str]:
    return {field: said for name in names for field, said in _table()[what].get(name, {}).items()}


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """Propose the known name that a misspelt one is near to."""
    near = get_close_matches(name, list(names), n=1)
    return f"use '{near[0]}'" if near else otherwise
