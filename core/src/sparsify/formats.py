"""Find model formats and runtimes, and bring models into the form that a runtime takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import cast

from sparsify.contracts import Model, ModelFormat, Session
from sparsify.errors import MissingLibraryError, RequestError
from sparsify.plugins import Offer, Plugins, install_command, load_target, missing, needs

HOMES: Mapping[str, str] = {  # of runtimes that a user may name before anything offers them
    "onnxruntime": "sparsify-onnx",
    "openvino": "sparsify-openvino",
    "deepsparse": "sparsify-deepsparse",
}


def require(offer: Offer) -> None:
    """Raise MissingLibraryError where an entry's libraries are not installed, without importing any."""
    absent = missing(offer.entry)
    if absent:
        raise needs(offer, absent)


def find_format(path: Path, plugins: Plugins) -> Offer:
    """Find the model format that accepts a file's suffix; raises RequestError."""
    offers = plugins.offers("model_loaders")
    for offer in offers:
        if path.suffix.lower() in offer.entry.accepts:
            return plugins.find("model_loaders", offer.entry.name)
    known = ", ".join(suffix for offer in offers for suffix in offer.entry.accepts) or "none"
    raise RequestError(f"--model: {path.name} is of no known format", fix=f"give a file that ends in one of: {known}")


def find_runtime(name: str, plugins: Plugins) -> Offer:
    """Find a runtime, also as NAME:PRECISION; raises MissingLibraryError where its package or a library is absent."""
    name = name.partition(":")[0]
    offered = [word for offer in plugins.offers("runtimes") for word in offer.names]
    installed = {plugin.distribution for plugin in plugins.found}  # a broken or disabled one has a message of its own
    if name in HOMES and name not in offered and HOMES[name] not in installed:
        problem = f"runtime '{name}' needs {HOMES[name]}, not installed here"
        raise MissingLibraryError(problem, fix=install_command([HOMES[name]]))
    offer = plugins.find("runtimes", name)
    require(offer)
    return offer


def installed_runtimes(plugins: Plugins) -> list[str]:
    """Name the runtimes whose libraries are installed."""
    return [offer.entry.name for offer in plugins.offers("runtimes") if not missing(offer.entry)]


def load_runtime(name: str, plugins: Plugins) -> Callable[[Path, int], Session]:
    """Import a runtime's `open_session`, for the precision in NAME:PRECISION; raises RequestError where it has none."""
    opener: Callable[..., Session] = load_target(find_runtime(name, plugins))
    base, _, precision = name.partition(":")
    if precision and "precision" not in signature(opener).parameters:
        raise RequestError(f"runtime '{base}' chooses its precision itself", fix=f"use --runtime {base}")
    return partial(opener, precision=precision) if precision else opener


def convert(model: Model, accepted: tuple[str, ...], plugins: Plugins) -> Model:
    """Bring a model into one of these formats by one exporter; raises RequestError where none does it."""
    if not accepted or model.format in accepted:
        return model
    for offer in plugins.offers("exporters"):
        if model.format in offer.entry.accepts and offer.entry.returns in accepted:
            exported: Model = plugins.load("exporters", offer.entry.name)(model)
            return exported
    raise RequestError(
        f"no exporter turns a {model.format} model into {' or '.join(accepted)}",
        fix="install an integration that exports this format, see `sparsify plugins list`",
    )


def fit(path: Path, runtime: str, plugins: Plugins, folder: Path) -> Path:
    """Return a file of the same model that a runtime takes: this one, or one that an exporter writes into `folder`."""
    offer, entry = find_format(path, plugins), find_runtime(runtime, plugins).entry
    if not entry.accepts or offer.entry.name in entry.accepts:
        return path
    written, form = folder / f"{entry.name}-{path.stem}.onnx", cast(ModelFormat, load_target(offer))
    if not written.exists() or written.stat().st_mtime_ns <= path.stat().st_mtime_ns:
        folder.mkdir(parents=True, exist_ok=True)
        form.save(convert((form.read or form.load)(path), entry.accepts, plugins), written)
    return written
