"""The hooks a plugin may implement. Each returns data: `Entry` rows whose targets are imported on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

PROJECT = "sparsify"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Entry:
    """Offer one thing under a name; `target` is `package.module:attribute` and is not imported until it is used.

    requires: distributions or import names the target needs beyond the plugin's own dependencies, checked with
    `find_spec`, never imported. accepts, returns: model formats (modifiers, exporters), dataset loaders (use cases)
    or file suffixes (loaders). aliases, metric: use cases and evaluators only. phase: modifiers only,
    `post-training` or `training`.
    """

    name: str
    target: str
    summary: str
    requires: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    returns: str = ""
    aliases: tuple[str, ...] = ()
    metric: str = ""
    phase: str = ""


class Hooks:
    """Specify every hook. A plugin module implements any of them as a plain function marked `@hookimpl`."""

    @hookspec
    def use_cases(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer use cases; the target is a `sparsify.UseCase`, `accepts` names its dataset loaders."""

    @hookspec
    def dataset_loaders(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer dataset loaders; the target is a `sparsify.DatasetLoader`."""

    @hookspec
    def model_loaders(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer model formats; the target is a `sparsify.ModelFormat`, `accepts` lists file suffixes."""

    @hookspec
    def recipe_generators(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer recipe generators, named after the kind; the target is a `sparsify.RecipeGenerator`."""

    @hookspec
    def modifiers(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer modifiers; the target is a frozen pydantic model of its options with `apply(model, context)`.

        In the phase `training` it has `attach(loop)` instead: `sparsify_torch.Loop` and `sparsify_torch.Part` say how.
        """

    @hookspec
    def trainers(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer trainers, named after the use case; the target is a `sparsify.Trainer`."""

    @hookspec
    def exporters(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer exporters; the target is `export(model) -> Model`, from a format in `accepts` to `returns`."""

    @hookspec
    def runtimes(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer runtimes; the target is `open_session(path, threads) -> sparsify.Session`, `accepts` names formats.

        One that can be told its precision takes it as `precision=""`, for `--runtime NAME:PRECISION`. One whose idle
        threads spin takes `spin=True`: `sparsify serve` shares the cores with its clients, and gives False.
        """

    @hookspec
    def installers(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer what `sparsify doctor --install NAME` does; the target is `install(say)`, which tells what it does."""

    @hookspec
    def evaluators(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer metrics; the target is a `sparsify.Metric`."""

    @hookspec
    def commands(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer commands; the target is a `typer.Typer` application shown under the entry's name."""

    @hookspec
    def experiment_finished(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Observe a finished experiment: the run folder and what `metrics.json` holds; errors here only warn."""


CATALOGUES = tuple(name for name in vars(Hooks) if not name.startswith("_") and name != "experiment_finished")
