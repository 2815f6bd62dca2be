"""Try recipes on the selection samples, and keep the best so far on disk: what a rescue works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from sparsify.applying import apply, digest
from sparsify.contracts import Arrays, Context, Model, Progress, RecipeGenerator, Session, silent
from sparsify.data import Dataset
from sparsify.errors import MissingLibraryError
from sparsify.evaluation import Pair, evaluate_pair
from sparsify.formats import convert, fit, load_runtime
from sparsify.intervals import Z
from sparsify.levels import parse_budget, parse_duration
from sparsify.outcome import drop_of, sparsity_of
from sparsify.recipe import Recipe
from sparsify.remembering import Remembering
from sparsify.resolve import Loaded, Plan
from sparsify.talk import Talk
from sparsify.timing import Candidate, Timing, gzip_size, time_interleaved

SIDES = ("baseline", "optimized")
QUICK_BLOCKS, QUICK_S = 3, 0.1  # of timing: enough to see what leaving a layer in float costs


@dataclass
class Search:
    """Apply recipes, and measure what they come to on the selection samples.

    store writes a model into the deployment folder. rungs: what was tried, as metrics.json shows it. known: models that
    recipes which begin alike go on from.
    """

    plan: Plan
    loaded: Loaded
    context: Context
    talk: Talk
    store: Callable[[Model], Path]
    started: float
    rungs: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Model] = field(default_factory=dict)

    def expired(self, next_seconds: float) -> bool:
        """Say whether something that takes so long would pass --time-budget."""
        given = self.plan.experiment.time_budget
        return given is not None and monotonic() - self.started + next_seconds > parse_duration(given)

    def apply(self, recipe: Recipe) -> Model:
        """Apply a recipe to the model as it came."""
        return apply(self.plan, self.loaded, recipe, self.context, self.talk, self.known)

    def facts(self) -> Mapping[str, Any]:
        """Tell what the deciding runtime knows of the model as it came."""
        with remember_baseline(self.plan, self.loaded) as session:
            return session.facts

    def time(
        self, path: Path, runtimes: Sequence[str], blocks: int = QUICK_BLOCKS, seconds: float = QUICK_S
    ) -> dict[str, dict[str, Timing]]:
        """Time a file, as `optimized`, and the `baseline` by runtime, all in turns, at batch 1 or the model's own."""
        batch, inputs = self._batch()
        candidates = [candidate for runtime in runtimes for candidate in self._candidates(path, runtime)]
        timings = time_interleaved(
            candidates,
            inputs,
            batch=batch,
            threads=self.plan.experiment.threads,
            blocks=blocks,
            min_seconds=seconds,
            progress=self.talk.progress,
        )
        return {runtime: {side: timings[f"{runtime} {side}"] for side in SIDES} for runtime in runtimes}

    def runs(self, path: Path, runtime: str) -> bool:
        """Say whether a runtime that nobody asked for runs a file and the model as it came; notes why it does not."""
        _, inputs = self._batch()
        try:
            for candidate in self._candidates(path, runtime):
                with closing(candidate.open()) as session:
                    session.run(inputs)
        except MissingLibraryError:
            return False
        except Exception as error:  # noqa: BLE001 - the run has its result without it
            self.talk.note(f"{runtime} is installed, and not timed: {error}")
            return False
        return True

    def _batch(self) -> tuple[int, Arrays]:
        batch = self.loaded.batch_size if self.loaded.fixed_batch else 1
        return batch, next(iter(self.loaded.splits.test.batches(batch, pad=True))).inputs

    def _candidates(self, path: Path, runtime: str) -> Iterator[Candidate]:
        plan, opener = self.plan, load_runtime(runtime, self.plan.plugins)
        for side, file in zip(SIDES, (plan.model_path, path), strict=True):
            fitted = fit(file, runtime, plan.plugins, plan.folder.state)
            yield Candidate(f"{runtime} {side}", partial(opener, fitted, plan.experiment.threads))

    def measure(self, recipe: Recipe, model: Model) -> dict[str, float]:
        """Measure a recipe's model beside the original on the selection samples.

        points: of the deciding metric that are lost, with their standard error, `noise`; budget: in points; kl: mean
        divergence in nats, −1 where outputs have no classes; ms: p50; compressed_bytes; sparsity. Measured
        once: --resume and `reproduce` take the figures from the run folder.
        """
        name = f"attempt-{digest(recipe.steps)}"
        if (held := self.context.kept.load(name)) is None:
            self.context.kept.save(name, held := self._measure(model))
        return {figure: float(value) for figure, value in held.items()}

    def _measure(self, model: Model) -> dict[str, Any]:
        import numpy as np

        plan, loaded, path = self.plan, self.loaded, self.plan.folder.state / "attempt.onnx"
        plan.model_format.save(convert(model, ("onnx",), plan.plugins), path)
        pair = evaluate_beside_baseline(plan, loaded, path, loaded.splits.selection, self.talk.progress)
        name, score, _, points = drop_of(loaded.metrics, pair)
        budget = parse_budget(plan.experiment.max_drop, agreement=name == "agreement").resolved(score)
        runtime, kl = plan.experiment.runtime[0], pair.agreement["kl"]
        figures = {
            "points": points,
            "noise": (pair.drop_interval[1] - pair.drop_interval[0]) / (2 * Z),
            "budget": np.inf if budget is None else budget,
            "kl": -1.0 if kl is None else kl,
            "ms": self.time(path, [runtime])[runtime]["optimized"].p50_ms,
            "compressed_bytes": gzip_size(*plan.model_format.files(path)),
            "sparsity": sparsity_of(plan.model_format.describe(model)),
        }
        return {figure: np.array(value) for figure, value in figures.items()}


def foresee(search: Search, recipe: Recipe) -> Recipe:
    """Let a recipe's generator say what cannot pay, and measure what the recipe needs to know of the model.

    Raises RequestError for what cannot be reached.
    """
    generator: RecipeGenerator = search.plan.plugins.load("recipe_generators", search.plan.experiment.kind)
    return generator.foresee(search, recipe) if generator.foresee else recipe


def compress(search: Search, recipe: Recipe) -> tuple[Recipe, Model]:
    """Apply a recipe, and let its generator mend it where it misses the budget on the selection samples.

    A recipe of the user's own is applied as it is, and without a budget or selection samples there is nothing to mend.
    """
    plan, asked = search.plan, search.plan.experiment
    bounded = parse_budget(asked.max_drop, agreement=False).points is not None
    mendable = not plan.recipe and bounded and recipe.steps and len(search.loaded.splits.selection)
    generator: RecipeGenerator = plan.plugins.load("recipe_generators", asked.kind)
    return generator.rescue(search, recipe) if generator.rescue and mendable else (recipe, search.apply(recipe))


def score(plan: Plan, loaded: Loaded, samples: Dataset, model: Model) -> dict[str, float]:
    """Return the points that a model loses on some samples, and its divergence in nats where outputs have classes."""
    path = plan.folder.state / "scored.onnx"
    plan.model_format.save(model, path)
    pair = evaluate_beside_baseline(plan, loaded, path, samples)
    points, kl = drop_of(loaded.metrics, pair)[3], pair.agreement["kl"]
    return {"points": points} | ({} if kl is None else {"kl": kl})


def evaluate_beside_baseline(
    plan: Plan, loaded: Loaded, path: Path, samples: Dataset, progress: Progress = silent
) -> Pair:
    """Measure a file beside the baseline on the deciding runtime."""
    with remember_baseline(plan, loaded) as before, open_deciding(plan, path) as after:
        return evaluate_pair(
            before, after, samples, loaded.metrics,
            batch_size=loaded.batch_size, pad=loaded.fixed_batch, progress=progress,
        )  # fmt: skip


def remember_baseline(plan: Plan, loaded: Loaded) -> closing[Remembering]:
    """Offer the model as it came, for a `with` block; batches that it has met are not run again."""
    return closing(Remembering(partial(_open, plan, plan.model_path), loaded.before))


def open_deciding(plan: Plan, path: Path) -> closing[Session]:
    """Open a model on the runtime that decides, for a `with` block."""
    return closing(_open(plan, path))


def _open(plan: Plan, path: Path) -> Session:
    runtime, plugins = plan.experiment.runtime[0], plan.plugins
    return load_runtime(runtime, plugins)(fit(path, runtime, plugins, plan.folder.state), plan.experiment.threads)
