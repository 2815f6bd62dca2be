"""Match the steps of a recipe with installed modifiers: resolve them for a run, or explain each in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsify.errors import PluginError, RequestError, SparsifyError
from sparsify.known_modifiers import REQUIRED, known_modifier, known_names, nearest
from sparsify.plugins import Offer, Plugins, load_target
from sparsify.recipe import Recipe, Step

_WORDS = {"__ALL__": "every parameter", "__ALL_PRUNABLE__": "every prunable weight", "None": "the default layers"}
_WORDS |= {REQUIRED: "(not given)", "0:0": "unstructured"}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_WHERE_GIVEN = re.compile(r"\[([^][]*\{(\w+)\}[^][]*)\]")


@dataclass(frozen=True)
class Finding:
    """Explain one step: what it does in a sentence, and whether it can run here, else why not."""

    modifier: str
    group: str
    sentence: str
    runnable: bool
    why_not: str = ""
    options: Any = None


def resolve_modifiers(recipe: Recipe, plugins: Plugins, kind: str) -> list[tuple[Step, Any]]:
    """Return each step, its phase decided, with the validated options object of its installed modifier.

    Raises RequestError for a modifier that is unknown, not installed, or of the wrong kind, and for wrong options.
    """
    resolved = []
    for step in recipe.steps:
        phase = step.phase or _phase(step.name, plugins, kind)
        if not _offers(plugins, step.name, phase) or (kind == "one-shot" and phase == "training"):
            raise _not_offered(step, phase, plugins, kind)
        resolved.append((replace(step, phase=phase), _validate(step, plugins.find("modifiers", step.name, phase))))
    return resolved


def _phase(name: str, plugins: Plugins, kind: str) -> str:
    """Let the kind decide, and in training kinds take a modifier that exists only after training as it is."""
    offered = {offer.entry.phase for offer in _offers(plugins, name)}
    return "post-training" if kind == "one-shot" or offered == {"post-training"} else "training"


def check_recipe(recipe: Recipe, plugins: Plugins) -> tuple[Finding, ...]:
    """Explain every step; raises RequestError for a modifier or field that neither the field nor a plugin knows.

    A modifier with `check_beside` is asked about those that can run, as pairs of a name and options.
    """
    found = [_check(step, plugins) for step in recipe.steps]
    pairs = [(finding.modifier, finding.options) for finding in found if finding.options is not None]
    return tuple(_beside(finding, pairs) for finding in found)


def _beside(finding: Finding, pairs: list[tuple[str, Any]]) -> Finding:
    try:
        getattr(finding.options, "check_beside", lambda others: None)(pairs)
    except RequestError as error:
        return replace(finding, runnable=False, why_not=error.problem)
    return finding


def _offers(plugins: Plugins, name: str, phase: str = "") -> list[Offer]:
    """Find what is offered under a name, training first."""
    found = [one for one in plugins.offers("modifiers") if one.entry.name == name and phase in ("", one.entry.phase)]
    return sorted(found, key=lambda offer: offer.entry.phase, reverse=True)


def _not_offered(step: Step, phase: str, plugins: Plugins, kind: str) -> SparsifyError:
    known, elsewhere = known_modifier(step.name, phase), _offers(plugins, step.name)
    offered = [offer.entry for offer in plugins.offers("modifiers")]
    where = f"modifier '{step.name}' ({step.group})"
    if known is None and not elsewhere:
        names = sorted(known_names() | {entry.name for entry in offered})
        return RequestError(f"there is no {where}", fix=_nearest(step.name, names))
    if kind == "one-shot" and (phase == "training" or elsewhere or (known and known.phase == "training")):
        fix = "remove it, or `pip install sparsify-torch` and use `sparsify run training-aware`"
        return RequestError(f"{where} works during training, and one-shot does not train", fix=fix)
    names = [entry.name for entry in offered if entry.phase == phase]
    fix = f"remove it, or use one of: {', '.join(names) or 'none is installed'}"
    if elsewhere:
        fix = "put it into a stage with `run_type: train`, or remove it"
    elif phase == "training" and not names:
        fix = "pip install sparsify-torch, or remove the modifier from the recipe"
    return RequestError(f"no installed plugin offers the {phase} {where}", fix=fix)


def _nearest(name: str, names: Collection[str]) -> str:
    return nearest(name, names, f"remove it, or use one of: {', '.join(names) or 'none'}")


def _validate(step: Step, offer: Offer) -> Any:
    from pydantic import ValidationError

    target = load_target(offer)
    if not hasattr(target, "model_validate"):
        problem = f"modifier '{step.name}' of plugin '{offer.plugin.name}' is no pydantic model of its options"
        raise PluginError(problem, fix=f"run `sparsify plugins check {offer.plugin.name}`")
    known = known_modifier(step.name, offer.entry.phase)
    defaults = known.fields if known else {}
    idle = {name: default for name, default in defaults.items() if name not in target.model_fields}
    try:  # what is at its default needs nobody to do it
        return target.model_validate({key: value for key, value in step.options.items() if idle.get(key, ...) != value})
    except ValidationError as error:
        raise _wrong_option(step, target.model_fields, defaults, error.errors(include_url=False)[0]) from error


def _wrong_option(step: Step, fields: Collection[str], known: Collection[str], first: Any) -> RequestError:
    name, where = ".".join(map(str, first["loc"])), f"modifier '{step.name}' ({step.group})"
    if first["type"] == "extra_forbidden" and name in known:
        problem = f"{where}, field '{name}': nothing installed can do {first['input']!r}"
        return RequestError(problem, fix=f"remove '{name}'")
    if first["type"] == "extra_forbidden":
        return _unknown_field(step, name, fields, first["input"])
    if first["type"] == "missing":
        return RequestError(f"{where} lacks its field '{name}'", fix=f"add `{name}: …` below !{step.name}")
    message = first["msg"].removeprefix("Value error, ").replace("Input ", "it ", 1)
    if not name:
        return RequestError(f"{where}: {message}", fix=f"change its options: {', '.join(step.options)}")
    return RequestError(f"{where}, field '{name}': {message}; found {first['input']!r}", fix=f"change '{name}'")


def _unknown_field(step: Step, name: str, fields: Collection[str], found: object) -> RequestError:
    problem = f"modifier '{step.name}' ({step.group}) has no field '{name}' (found {found!r})"
    return RequestError(problem, fix=_nearest(name, fields))


def _check(step: Step, plugins: Plugins) -> Finding:
    known, offers = known_modifier(step.name, step.phase), _offers(plugins, step.name)
    if known is None and not offers:
        raise _not_offered(step, step.phase, plugins, "")
    fields = {name: None for offer in offers for name in _fields_of(offer)} | dict(known.fields if known else {})
    for name, value in step.options.items():
        if fields and name not in fields:
            raise _unknown_field(step, name, fields, value)
    fitting = [offer for offer in offers if step.phase in ("", offer.entry.phase)]
    why_not = ""
    for offer in fitting:
        try:
            options = _validate(step, offer)
        except SparsifyError as error:
            why_not = why_not or error.problem
        else:
            found = _finding(step, offer.entry.phase, offer.entry.summary, options.model_dump())
            return replace(found, options=options)
    phases = (step.phase, known.phase if known else "")
    if "training" in phases and not any(offer.entry.phase == "training" for offer in plugins.offers("modifiers")):
        why_not = "it works during training, and no installed plugin offers it (pip install sparsify-torch)"
    summary = fitting[0].entry.summary if fitting else ""
    return _finding(step, phases[0] or phases[1], summary, fields, why_not or "no installed plugin offers it")


def _fields_of(offer: Offer) -> Iterable[str]:
    try:
        return tuple(getattr(load_target(offer), "model_fields", ()))
    except SparsifyError:
        return ()  # why it cannot be loaded is reported with the step


def _finding(step: Step, phase: str, summary: str, fields: Mapping[str, Any], why_not: str = "") -> Finding:
    known, values = known_modifier(step.name, phase), {**fields, **step.options}
    does = summary or "does what its plugin says"
    needed = set(_PLACEHOLDER.findall(_WHERE_GIVEN.sub("", known.does))) if known else set()
    if known and (known.phase == phase or not summary) and needed <= values.keys():
        does = _WHERE_GIVEN.sub(lambda found: found[1] if values.get(found[2]) else "", known.does)
        does = _PLACEHOLDER.sub(lambda found: _say(values[found[1]]), does)
    sentence = f"{does}, {_when(step, phase, values)}"
    return Finding(step.name, step.group, sentence, not why_not, why_not)


def _say(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_say(key)} of {_say(names)}" for key, names in value.items())
    if isinstance(value, list | tuple) and all(isinstance(item, int) for item in value):
        return str(list(value))
    if isinstance(value, list | tuple) and value:
        return ", ".join(map(_say, value[:2])) + (f" and {len(value) - 2} more" if len(value) > 2 else "")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _WORDS.get(text, f"names like {text[3:]}" if text.startswith("re:") else text)


def _when(step: Step, phase: str, values: Mapping[str, Any]) -> str:
    start, end, every = (values.get(name) for name in ("start_epoch", "end_epoch", "update_frequency"))
    if not {"start_epoch", "end_epoch"} & step.options.keys() and (phase == "post-training" or start is None):
        return "once, on the trained model"
    begins = "from the start" if start in (None, -1, REQUIRED) else f"from epoch {_say(start)}"
    ends = "to the end" if end in (None, -1, REQUIRED) else f"to epoch {_say(end)}"
    often = f", every {_say(every)} epochs" if isinstance(every, int | float) and every > 0 else ""
    return f"{begins} {ends}{often.replace('every 1 epochs', 'every epoch')}"
