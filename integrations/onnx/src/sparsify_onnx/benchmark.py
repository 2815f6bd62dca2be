"""`sparsify benchmark MODEL…`: latency and throughput of models and runtimes, interleaved, on random inputs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from onnx import helper
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sparsify import (
    Candidate,
    RequestError,
    Session,
    Talk,
    TensorSpec,
    load_plugins,
    speed_words,
    time_interleaved,
    time_ratio,
)

from sparsify_onnx.graph import model_inputs
from sparsify_onnx.storage import read_proto

BLOCKS = 7
PLAIN_WIDTH = 200  # of a table that goes into a file or a pipe
Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, NDArray[Any]]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@dataclass(frozen=True)
class Contender:
    """Hold one model on one runtime, and what it takes."""

    model: Path
    runtime: str
    open: Callable[[], Session]
    inputs: tuple[TensorSpec, ...]


@app.command()
def benchmark(
    models: Annotated[list[Path], typer.Argument(help="model files, or deployment folders", metavar="MODEL...")],
    runtime: Annotated[list[str], typer.Option(help="repeatable")] = ["onnxruntime"],  # noqa: B006 - typer copies it
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="repeatable; default: the model's, or 1")] = None,
    threads: Annotated[int, typer.Option(min=0, help="threads of a session; 0 = all cores")] = 0,
    seconds: Annotated[float, typer.Option(min=0.01, help="measured time of each model and batch size")] = 1.4,
    input_shape: Annotated[list[str] | None, typer.Option(help="NAME:1,3,224,224 fixes free axes; repeatable")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time models and runtimes side by side, and compare each with the first."""
    plugins, talk = load_plugins(), Talk(quiet=as_json)
    openers = {name: plugins.load("runtimes", name) for name in runtime}
    shapes = dict(parse_shape(text) for text in input_shape or ())
    found = [
        Contender(path, name, partial(opener, path, threads), inputs)
        for path, inputs in map(read_inputs, models)
        for name, opener in openers.items()
    ]
    batches = batch_size or [natural_batch(found, shapes)]
    drawn = {batch: [random_inputs(one, shapes, batch) for one in found] for batch in batches}  # all, before any runs
    results = [row for batch in batches for row in measure(found, drawn[batch], batch, threads, seconds, talk)]
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


def read_inputs(path: Path) -> tuple[Path, tuple[TensorSpec, ...]]:
    """Find the model file, also in a deployment or run folder, and read what inputs it takes; raises RequestError."""
    places = [path / "model.onnx", path / "deployment" / "model.onnx"] if path.is_dir() else [path]
    file = next((place for place in places if place.is_file() or place == path), None)
    if file is None:
        problem = f"MODEL: {path} is a folder without model.onnx"
        raise RequestError(problem, fix="give a model file or a deployment folder")
    return file, tuple(_specs(file))


def _specs(path: Path) -> Iterator[TensorSpec]:
    for value in model_inputs(read_proto(path)):
        tensor = value.type.tensor_type
        dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
        yield TensorSpec(value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(dims))


def natural_batch(found: Sequence[Contender], shapes: Shapes) -> int:
    """Return the batch size that --input-shape or else the first model with a fixed one asks for, or 1."""
    given = [shapes[spec.name][0] for one in found for spec in one.inputs if spec.name in shapes]
    return next((batch for batch in (*given, *map(_fixed_batch, found)) if batch), 1)


def _fixed_batch(contender: Contender) -> int:
    """Return the batch size a model is bound to, or 0 where any of its inputs is free."""
    firsts = [spec.shape[0] for spec in contender.inputs if spec.shape]
    return min((first if isinstance(first, int) else 0 for first in firsts), default=0)


def random_inputs(contender: Contender, shapes: Shapes, batch: int, seed: int = 0) -> Arrays:
    """Draw normal floats, and integers of 0 and 1, which are valid ids of any vocabulary.

    Raises RequestError for a batch size or a shape that the model does not take.
    """
    model, fixed, names = contender.model, _fixed_batch(contender), [spec.name for spec in contender.inputs]
    if fixed not in (0, batch):
        problem = f"{model} has a fixed batch size of {fixed}, not {batch}"
        raise RequestError(problem, fix=f"use --batch-size {fixed}, or export the model with a free first axis")
    if unknown := sorted(shapes.keys() - names):
        problem = f"--input-shape: {model} has no input '{unknown[0]}'"
        raise RequestError(problem, fix=f"use one of: {', '.join(names)}")
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in contender.inputs:
        shape, dtype = _shape(model, spec, shapes.get(spec.name), batch), np.dtype(spec.dtype)
        drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        inputs[spec.name] = np.asarray(drawn).astype(dtype)
    return inputs


def _shape(model: Path, spec: TensorSpec, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    """Fill the free axes: the first is the batch, the others must be given."""
    said = "(" + ", ".join("?" if length is None else str(length) for length in spec.shape) + ")"
    own = [length if isinstance(length, int) else 0 for length in spec.shape]
    wanted = given or own
    if len(wanted) != len(own) or any(fixed not in (0, new) for fixed, new in zip(own, wanted, strict=True)):
        raise RequestError(
            f"--input-shape: input '{spec.name}' of {model} is {said}, not {given}",
            fix="give every axis, the batch first, and keep those that the model fixes",
        )
    shape = tuple(wanted) if not own or own[0] else (batch, *wanted[1:])
    if 0 in shape:
        example = ",".join(str(length or 128) for length in shape)
        raise RequestError(
            f"input '{spec.name}' of {model} has free axes: {said}",
            fix=f"give its shape, for example --input-shape {spec.name}:{example}",
        )
    return shape


def measure(
    found: Sequence[Contender], inputs: Sequence[Arrays], batch: int, threads: int, seconds: float, talk: Talk
) -> Iterator[dict[str, Any]]:
    """Time all contenders at one batch size; `time_ratio` compares each with the first."""
    # a model may be given twice: the candidates' names are their places
    candidates = [Candidate(str(place), one.open, inputs[place]) for place, one in enumerate(found)]
    timings = time_interleaved(
        candidates,
        {},
        batch=batch,
        threads=threads,
        blocks=BLOCKS,
        min_seconds=seconds / BLOCKS,
        progress=talk.progress,
    )
    for one, (place, timing) in zip(found, timings.items(), strict=True):
        row = {"model": str(one.model), "runtime": one.runtime, "batch": batch, "threads": threads}
        row |= {key: round(getattr(timing, key), 4) for key in ("p50_ms", "p95_ms", "throughput")}
        row |= {key: timing.facts.get(key) for key in ("precision", "int8_executed")}
        yield {**row, "time_ratio": None if place == "0" else asdict(time_ratio(timing, timings["0"]))}


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the results as a table on stdout."""
    headings = ("model", "runtime", "batch", "p50 ms", "p95 ms", "items/s", "precision", "INT8 nodes", "speed")
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in results:
        measured = [f"{row['p50_ms']:.4g}", f"{row['p95_ms']:.4g}", f"{row['throughput']:,.1f}"]
        executed = ["–" if row[key] is None else str(row[key]) for key in ("precision", "int8_executed")]
        ratio = row["time_ratio"]
        bounds = [1 / ratio["high"], 1 / ratio["low"]] if ratio else ()
        speed = speed_words(1 / ratio["value"], bounds) if ratio else "the first"
        table.add_row(*map(Text, [row["model"], row["runtime"], str(row["batch"]), *measured, *executed, speed]))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)
