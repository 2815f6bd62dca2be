"""`sparsify benchmark MODEL…`: latency and throughput of models and runtimes, interleaved, on random inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsify.contracts import Session, TensorSpec
from sparsify.errors import RequestError
from sparsify.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from sparsify.contracts import Arrays
    from sparsify.talk import Talk


app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class Contender:
    """Hold one model on one runtime, and what it takes."""

    model: Path
    runtime: str
    open: Callable[[], Session]
    inputs: tuple[TensorSpec, ...]


@app.command()
def benchmark(
    models: Annotated[list[str], typer.Argument(help="model files, or deployment folders", metavar="MODEL...")],
    runtime: Annotated[list[str], typer.Option(help="repeatable")] = ["onnxruntime"],  # noqa: B006 - typer copies it
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="repeatable; default: the model's, or 1")] = None,
    threads: Annotated[int, typer.Option(min=0, help="threads of a session; 0 = all cores")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="measured time of each model and batch size")] = 1.4,
    input_shape: Annotated[list[str] | None, typer.Option(help="NAME:1,3,224,224 fixes free axes; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time models and runtimes side by side, and compare each with the first."""
    from sparsify.stages import stage
    from sparsify.talk import Talk

    plugins, talk = load_plugins(), Talk(quiet=as_json)
    shapes = dict(parse_shape(text) for text in input_shape or ())
    with stage("benchmark", plugins, talk, []):
        found = contenders(models, runtime, threads, plugins)
        batches = batch_size or [natural_batch(found, shapes)]
        inputs = {batch: [random_inputs(one, shapes, batch) for one in found] for batch in batches}
        results = [row for batch in batches for row in measure(found, inputs[batch], batch, threads, seconds, talk)]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "results": results}, indent=2))
    else:
        show(results)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name:1,3,224,224`; the name may hold colons. Raises RequestError."""
    found = re.fullmatch(r"(.+):([1-9]\d*(?:,[1-9]\d*)*)", text)
    if not found:
        raise RequestError(f"--input-shape {text} is no shape", fix="write for example --input-shape input:1,3,224,224")
    return found[1], tuple(map(int, found[2].split(",")))


def contenders(models: Sequence[str], runtimes: Sequence[str], threads: int, plugins: Plugins) -> list[Contender]:
    """Pair every model with every runtime, and read what inputs each takes; raises SparsifyError."""
    from sparsify.resolve import existing

    openers = {name: plugins.load("runtimes", name) for name in runtimes}
    found = []
    for path in (_model_file(existing(model, "MODEL")) for model in models):
        for name in runtimes:
            opener = partial(openers[name], path, threads)
            found.append(Contender(path, name, opener, _inputs(path, opener, plugins)))
    return found


def _model_file(path: Path) -> Path:
    inside = [path / "model.onnx", path / "deployment" / "model.onnx"] if path.is_dir() else [path]
    for file in inside:
        if file.is_file():
            return file
    raise RequestError(f"MODEL: {path} is a folder without model.onnx", fix="give a model file or a deployment folder")


def _inputs(path: Path, opener: Callable[[], Session], plugins: Plugins) -> tuple[TensorSpec, ...]:
    """Ask the session, which opens quantized files too, else the model format."""
    from sparsify.resolve import find_format

    session = opener()
    try:
        told = tuple(session.facts.get("inputs", ()))
    finally:
        session.close()
    if told:
        return told
    model_format = find_format(path, plugins)
    return model_format.describe(model_format.load(path)).inputs


def natural_batch(found: Sequence[Contender], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the batch size that --input-shape or else the first model with a fixed one asks for, or 1."""
    given = [shapes[spec.name][0] for one in found for spec in one.inputs if spec.name in shapes]
    fixed = [batch for one in found if (batch := _fixed_batch(one)) is not None]
    return (given or fixed or [1])[0]


def _fixed_batch(contender: Contender) -> int | None:
    """Return the batch size a model is bound to, or None where any of its inputs is free."""
    firsts = [spec.shape[0] for spec in contender.inputs if spec.shape]
    fixed = [first for first in firsts if isinstance(first, int)]
    return fixed[0] if fixed and len(fixed) == len(firsts) else None


def random_inputs(contender: Contender, shapes: Mapping[str, tuple[int, ...]], batch: int, seed: int = 0) -> Arrays:
    """Draw normal floats, and integers of 0 and 1, which are valid ids of any vocabulary.

    Raises RequestError for a batch size or a shape that the model does not take.
    """
    import numpy as np

    fixed, names = _fixed_batch(contender), [spec.name for spec in contender.inputs]
    if fixed not in (None, batch):
        raise RequestError(
            f"{contender.model} has a fixed batch size of {fixed}, not {batch}",
            fix=f"use --batch-size {fixed}, or export the model with a free first axis",
        )
    if unknown := sorted(shapes.keys() - names):
        raise RequestError(
            f"--input-shape: {contender.model} has no input '{unknown[0]}'", fix=f"use one of: {', '.join(names)}"
        )
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in contender.inputs:
        shape, dtype = _shape(contender.model, spec, shapes.get(spec.name), batch), np.dtype(spec.dtype)
        drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        inputs[spec.name] = np.asarray(drawn).astype(dtype)
    return inputs


def _shape(model: Path, spec: TensorSpec, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    """Fill the free axes: the first is the batch, the others must be given."""
    said = "(" + ", ".join("?" if length is None else str(length) for length in spec.shape) + ")"
    wanted = given or (batch, *(0 for _ in spec.shape[1:]))
    pairs = list(zip(spec.shape, wanted, strict=False))
    if given and (len(given) != len(spec.shape) or any(isinstance(own, int) and own != new for own, new in pairs)):
        raise RequestError(
            f"--input-shape: input '{spec.name}' of {model} is {said}, not {given}",
            fix="give every axis, the batch first, and keep those that the model fixes",
        )
    shape = tuple(own if isinstance(own, int) else new for own, new in pairs)
    if 0 in shape:
        example = ",".join(str(length or 128) for length in shape)
        raise RequestError(
            f"input '{spec.name}' of {model} has free axes: {said}",
            fix=f"give its shape, for example --input-shape {spec.name}:{example}",
        )
    free_batch = bool(spec.shape) and not isinstance(spec.shape[0], int)
    return (batch, *shape[1:]) if free_batch else shape


def measure(
    found: Sequence[Contender], inputs: Sequence[Arrays], batch: int, threads: int, seconds: float, talk: Talk
) -> list[dict[str, Any]]:
    """Time all contenders at one batch size; `time_ratio` compares each with the first."""
    from sparsify.timing import BLOCKS, Candidate, time_interleaved, time_ratio

    candidates = [Candidate(str(index), one.open, inputs[index]) for index, one in enumerate(found)]
    per_block = seconds / BLOCKS
    timings = time_interleaved(
        candidates, {}, batch=batch, threads=threads, min_seconds=per_block, progress=talk.progress
    )
    results = []
    for contender, (name, timing) in zip(found, timings.items(), strict=True):
        row = {"model": str(contender.model), "runtime": contender.runtime, "batch": batch, "threads": threads}
        row |= {key: round(getattr(timing, key), 4) for key in ("p50_ms", "p95_ms", "throughput")}
        row |= {key: timing.facts.get(key) for key in ("precision", "int8_executed")}
        results.append({**row, "time_ratio": None if name == "0" else asdict(time_ratio(timing, timings["0"]))})
    return results


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the results as a table on stdout."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sparsify.report_figures import DASH, milliseconds, number

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("model", "runtime", "batch", "p50", "p95", "items/s", "precision", "INT8 nodes", "speed"):
        table.add_column(heading, overflow="fold")
    for row in results:
        measured = [milliseconds(row["p50_ms"]), milliseconds(row["p95_ms"]), number(row["throughput"], ",.1f")]
        executed = [str(row["precision"] or DASH), number(row["int8_executed"], "d")]
        cells = [row["model"], row["runtime"], str(row["batch"]), *measured, *executed, _speed(row["time_ratio"])]
        table.add_row(*map(Text, cells))
    # a pipe has no width of its own, and a wrapped table is hard to search
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)


def _speed(ratio: Mapping[str, float] | None) -> str:
    """Say a time ratio to the first; where 1 lies inside the interval there is no difference to tell."""
    from sparsify.report_figures import span, times

    if ratio is None:
        return "the first"
    same = ratio["low"] <= 1 <= ratio["high"]
    said = "no difference" if same else times(1 / ratio["value"], "faster", "slower")
    return f"{said} ({span([1 / ratio['high'], 1 / ratio['low']])}×)"
