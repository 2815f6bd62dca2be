"""What the field's recipes may hold: SparseML's modifiers and fields (known_modifiers.yaml), and the dead spellings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from sparsify.recipe import Step

REQUIRED = "required"  # stands in the table where a field has no default
TRAINING_ONLY = frozenset({"ConstantPruningModifier", "OutputDistillationModifier"})  # of the key dialect


@dataclass(frozen=True)
class Known:
    """Describe one modifier: its phase, what it does (`{field}` stands for an option), its fields with defaults."""

    phase: str
    does: str
    fields: Mapping[str, Any]


@cache
def _table() -> Any:
    import yaml

    return yaml.safe_load(files("sparsify").joinpath("known_modifiers.yaml").read_text("utf-8"))


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


def current_name(name: str, phase: str) -> str:
    """Return the name that a modifier has now, which old recipes know under another."""
    retired = _table()["retired"] | (_table()["trained"] if phase != "post-training" else {})
    return str(retired.get(name, name))


def has_epochs(step: Step) -> bool:
    """Say whether a modifier that both dialects have is given epochs, as none is that works on a trained model."""
    given = map(step.options.get, ("start", "end", "start_epoch", "end_epoch", "update_frequency"))
    return step.name in _table()["tag"] and any(value is not None for value in given)


def normalise_options(name: str, phase: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename or drop dead fields, with a note for each, and spell those of the key dialect as the tag dialect does."""
    notes: list[str] = []
    given = dict(options)
    if name not in known_names():
        return given, notes
    if isinstance(given.get("mfac_options"), Mapping):
        given = {**given.pop("mfac_options"), **given}
        notes.append("moved the fields of 'mfac_options' one level up")
    if name == "SparseGPTModifier" and "prunen" in given:
        given.setdefault("mask_structure", f"{given.pop('prunen')}:{given.pop('prunem', 0)}")
        notes.append(f"wrote 'prunen' and 'prunem' as mask_structure {given['mask_structure']}")
    dropped, renamed = _fields("dropped", "any", name), _fields("renamed", "any", name)
    respelt = _fields("respelt", "any", name if phase == "training" else "")
    kept: dict[str, Any] = {}
    for field, value in given.items():
        new = renamed.get(field) or respelt.get(field, field)
        if field in dropped:
            notes.append(f"dropped '{field}': {dropped[field]}")
        elif new != field and new in given:
            notes.append(f"dropped '{field}': '{new}' is given too")
        else:
            kept[new] = value
            if field in renamed:
                notes.append(f"renamed '{field}' to '{new}'")
    return kept, notes


def _fields(table: str, *names: str) -> dict[str, str]:
    return {field: said for name in names for field, said in _table()[table].get(name, {}).items()}


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """Propose the known name that a misspelt one is near to."""
    near = get_close_matches(name, list(names), n=1)
    return f"use '{near[0]}'" if near else otherwise
