"""`sparsify benchmark MODEL…`: latency and throughput of models and runtimes, interleaved, on random inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    from sparsify.timing import Timing

Shape = tuple[int | str | None, ...]
SECONDS = 1.4  # of each model, runtime and batch size, in seven blocks

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
    runtime: Annotated[list[str] | None, typer.Option(help="repeatable [default: onnxruntime]")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="repeatable [default: the model's own, or 1]", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="threads of a session; 0 = all cores")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="measured time of each model and batch size")] = SECONDS,
    input_shape: Annotated[
        list[str] | None, typer.Option(help="NAME:1,3,224,224 fixes an input's free axes; repeatable")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time models and runtimes side by side, and compare each with the first."""
    from sparsify.stages import stage
    from sparsify.talk import Talk

    plugins, talk = load_plugins(), Talk(quiet=as_json)
    shapes = dict(parse_shape(text) for text in input_shape or ())
    with stage("benchmark", plugins, talk, []):
        found = contenders(models, runtime or ["onnxruntime"], threads, plugins)
        check_names(shapes, found)
        batches = batch_size or [natural_batch(found, shapes)]
        results = [row for batch in batches for row in measure(found, shapes, batch, threads, seconds, talk)]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "results": results}, indent=2))
    else:
        show(results)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name:1,3,224,224`; the name may hold colons. Raises RequestError."""
    name, colon, axes = text.rpartition(":")
    try:
        shape = tuple(int(axis) for axis in axes.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not (colon and name and shape and all(axis > 0 for axis in shape)):
        raise RequestError(f"--input-shape {text} is no shape", fix="write for example --input-shape input:1,3,224,224")
    return name, shape


def contenders(models: Sequence[str], runtimes: Sequence[str], threads: int, plugins: Plugins) -> list[Contender]:
    """Pair every model with every runtime, and read what inputs each takes; raises RequestError."""
    from sparsify.resolve import existing, require

    paths = [_model_file(existing(model, "MODEL")) for model in models]
    for name in runtimes:
        require(plugins.find("runtimes", name))
    found = []
    for path in paths:
        for name in runtimes:
            opener = partial(plugins.load("runtimes", name), path, threads)
            found.append(Contender(path, name, opener, _inputs(path, opener, plugins)))
    return found


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for inside in (path / "model.onnx", path / "deployment" / "model.onnx"):
        if inside.is_file():
            return inside
    raise RequestError(f"MODEL: {path} is a folder without model.onnx", fix="give a model file or a deployment folder")


def _inputs(path: Path, opener: Callable[[], Session], plugins: Plugins) -> tuple[TensorSpec, ...]:
    """Ask the session, which opens quantized files too, else the model format."""
    session = opener()
    try:
        told: tuple[TensorSpec, ...] = tuple(session.facts.get("inputs") or ())
    finally:
        session.close()
    if told:
        return told
    from sparsify.resolve import find_format

    model_format = find_format(path, plugins)
    return model_format.describe(model_format.load(path)).inputs


def check_names(shapes: Mapping[str, tuple[int, ...]], found: Sequence[Contender]) -> None:
    """Refuse shapes of inputs that no model has, or of another rank."""
    ranks = {spec.name: len(spec.shape) for contender in found for spec in contender.inputs}
    for name, shape in shapes.items():
        if name not in ranks:
            raise RequestError(
                f"--input-shape: there is no input '{name}'", fix=f"use one of: {', '.join(sorted(ranks))}"
            )
        if len(shape) != ranks[name]:
            raise RequestError(
                f"--input-shape: input '{name}' has {ranks[name]} axes, {len(shape)} given",
                fix=f"give {ranks[name]} numbers, the batch first",
            )


def natural_batch(found: Sequence[Contender], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the batch size that --input-shape or the models fix, or 1; raises RequestError where they differ."""
    given = {shapes[spec.name][0] for one in found for spec in one.inputs if spec.name in shapes and spec.shape}
    fixed = given or {batch for one in found if (batch := _fixed_batch(one)) is not None}
    if len(fixed) > 1:
        raise RequestError(
            f"the models differ in their batch size: {', '.join(map(str, sorted(fixed)))}",
            fix="time them in one command for each batch size, or export them with a free first axis",
        )
    return fixed.pop() if fixed else 1


def _fixed_batch(contender: Contender) -> int | None:
    """Return the batch size a model is bound to, or None where any of its inputs is free."""
    firsts = [spec.shape[0] for spec in contender.inputs if spec.shape]
    bound = [first for first in firsts if isinstance(first, int)]
    return bound[0] if bound and len(bound) == len(firsts) else None


def random_inputs(contender: Contender, shapes: Mapping[str, tuple[int, ...]], batch: int, seed: int = 0) -> Arrays:
    """Draw normal floats, and integers of 0 and 1, which are valid ids of any vocabulary.

    Raises RequestError for a batch size or a shape that the model does not take.
    """
    import numpy as np

    fixed = _fixed_batch(contender)
    if fixed is not None and fixed != batch:
        raise RequestError(
            f"{contender.model} has a fixed batch size of {fixed}, not {batch}",
            fix=f"use --batch-size {fixed}, or export the model with a free first axis",
        )
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in contender.inputs:
        shape = _concrete(contender, spec, shapes.get(spec.name), batch)
        dtype = np.dtype(spec.dtype)
        floating = dtype.kind == "f"
        values = generator.standard_normal(shape) if floating else generator.integers(0, 2, shape)
        inputs[spec.name] = np.asarray(values).astype(dtype)
    return inputs


def _concrete(contender: Contender, spec: TensorSpec, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    free = [axis for axis, length in enumerate(spec.shape) if not isinstance(length, int)]
    if given and any(axis not in free and given[axis] != length for axis, length in enumerate(spec.shape)):
        raise RequestError(
            f"--input-shape: input '{spec.name}' of {contender.model} is {_said(spec.shape)}, not {_said(given)}",
            fix="keep the axes that the model fixes",
        )
    shape = [given[axis] if given and axis in free else length for axis, length in enumerate(spec.shape)]
    if 0 in free:
        shape[0] = batch
    if not all(isinstance(length, int) for length in shape):
        example = ",".join(str(length) if isinstance(length, int) else "128" for length in shape)
        raise RequestError(
            f"input '{spec.name}' of {contender.model} has free axes: {_said(spec.shape)}",
            fix=f"give its shape, for example --input-shape {spec.name}:{example}",
        )
    return tuple(int(length) for length in shape if length is not None)


def _said(shape: Shape) -> str:
    return "(" + ", ".join("?" if length is None else str(length) for length in shape) + ")"


def measure(
    found: Sequence[Contender],
    shapes: Mapping[str, tuple[int, ...]],
    batch: int,
    threads: int,
    seconds: float,
    talk: Talk,
) -> list[dict[str, Any]]:
    """Time all contenders at one batch size; each result is compared with the first."""
    from sparsify.timing import BLOCKS, Candidate, time_interleaved

    candidates = [
        Candidate(str(index), contender.open, random_inputs(contender, shapes, batch))
        for index, contender in enumerate(found)
    ]
    timings = list(
        time_interleaved(
            candidates, {}, batch=batch, threads=threads, min_seconds=seconds / BLOCKS, progress=talk.progress
        ).values()
    )
    return [_result(contender, timing, timings[0]) for contender, timing in zip(found, timings, strict=True)]


def _result(contender: Contender, timing: Timing, first: Timing) -> dict[str, Any]:
    from sparsify.timing import time_ratio

    ratio = None if timing is first else time_ratio(timing, first)
    return {
        "model": str(contender.model),
        "runtime": contender.runtime,
        "batch": timing.batch,
        "threads": timing.threads,
        "p50_ms": round(timing.p50_ms, 4),
        "p95_ms": round(timing.p95_ms, 4),
        "throughput": round(timing.throughput, 2),
        "precision": timing.facts.get("precision"),
        "int8_executed": timing.facts.get("int8_executed"),
        "time_ratio": ratio and {"value": ratio.value, "low": ratio.low, "high": ratio.high},
    }


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the results as a table on stdout; what all of them share stands above it."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sparsify.report_figures import threads

    cells = [_cells(row, {str(one["model"]) for one in results}) for row in results]
    shared = [name for name in ("runtime", "batch") if len({line[name] for line in cells}) == 1]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in cells[0]:
        if heading not in shared:
            table.add_column(heading, overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell) for name, cell in line.items() if name not in shared))
    # a pipe has no width of its own, and a wrapped table is hard to read by a program
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(Text(", ".join([*(f"{name} {cells[0][name]}" for name in shared), threads(results[0]["threads"])])))
    console.print(table)


def _cells(row: Mapping[str, Any], models: set[str]) -> dict[str, str]:
    from sparsify.report_figures import DASH, milliseconds, number

    distinct = len({Path(model).name for model in models}) == len(models)
    return {
        "model": Path(row["model"]).name if distinct else str(row["model"]),
        "runtime": str(row["runtime"]),
        "batch": number(row["batch"], "d"),
        "p50": milliseconds(row["p50_ms"]),
        "p95": milliseconds(row["p95_ms"]),
        "items/s": number(row["throughput"], ",.1f"),
        "precision": str(row["precision"] or DASH),
        "INT8 nodes": number(row["int8_executed"], "d"),
        "against the first": _against(row["time_ratio"]),
    }


def _against(ratio: Mapping[str, float] | None) -> str:
    """Say a time ratio as a speed, where 1 lies inside the interval as the same."""
    from sparsify.report_figures import DASH, span, times

    if ratio is None:
        return DASH
    bounds = span([1 / ratio["high"], 1 / ratio["low"]])
    same = ratio["low"] <= 1 <= ratio["high"]
    said = "no difference" if same else times(1 / ratio["value"], "faster", "slower")
    return f"{said} ({bounds}×)"
