"""`sparsify benchmark MODEL…`: latency and throughput of models and runtimes, interleaved, on random inputs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sparsify import (
    Candidate,
    Plugins,
    Session,
    Talk,
    environment,
    find_runtime,
    fit,
    installed_runtimes,
    load_plugins,
    load_runtime,
    speed_words,
    time_interleaved,
    time_ratio,
)

from sparsify_onnx.cpu import cpu_features
from sparsify_onnx.random_inputs import Arrays, Contender, natural_batch, parse_shape, random_inputs, read_inputs
from sparsify_onnx.runtime import physical_cores
from sparsify_onnx.streams import open_streams

BLOCKS = 7
ALL = "all"
PLAIN_WIDTH = 200  # of a table that goes into a file or a pipe
PERCENTILES = (25, 50, 75, 90, 95, 99)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def benchmark(
    models: Annotated[list[Path], typer.Argument(help="model files, or deployment folders", metavar="MODEL...")],
    runtime: Annotated[list[str], typer.Option("--runtime", "-e", help="repeatable; all = every one installed")] = [  # noqa: B006 - typer copies it
        "onnxruntime"
    ],
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", "-b", min=1, help="repeatable; default: the model's, or 1")
    ] = None,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="batches at once; repeatable; default 1")] = None,
    threads: Annotated[int, typer.Option(min=0, help="threads, of all streams together; 0 = all cores")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", "-t", min=0.01, help="measured time of each row")] = 1.4,
    input_shape: Annotated[list[str] | None, typer.Option(help="NAME:1,3,224,224 fixes free axes; repeatable")] = None,
    pin: Annotated[bool, typer.Option(help="keep to one logical CPU of each physical core")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    export_path: Annotated[Path | None, typer.Option("--export-path", "-x", help="write the JSON to a file")] = None,
) -> None:
    """Time models and runtimes side by side, and compare each with the first, and with the first on its runtime."""
    plugins, talk = load_plugins(), Talk(quiet=as_json)
    shapes = dict(parse_shape(text) for text in input_shape or ())
    with TemporaryDirectory(prefix="sparsify-") as folder, pinned(threads if pin else None) as cores:
        names = named_runtimes(runtime, plugins)
        for name in names:
            talk.note(f"runtime {name}: {find_runtime(name, plugins).entry.summary}")
        found = list(contenders(models, names, plugins, Path(folder)))
        batches = batch_size or [natural_batch(found, shapes)]
        drawn = {batch: [random_inputs(one, shapes, batch) for one in found] for batch in batches}  # before any runs
        timed = partial(measure, found, threads=threads or cores, seconds=seconds, talk=talk)
        rows = [row for batch, count in product(batches, streams or [1]) for row in timed(drawn[batch], batch, count)]
    known = {**environment(), "cpu_features": cpu_features(), "pinned_cores": cores if pin else None}
    text = json.dumps({"schema": 1, "environment": known, "results": rows}, indent=2)
    if export_path is not None:
        export_path.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        show(rows)


def named_runtimes(names: Sequence[str], plugins: Plugins) -> tuple[str, ...]:
    """Resolve `all` to every runtime whose libraries are installed."""
    installed = installed_runtimes(plugins)
    return tuple(dict.fromkeys(one for name in names for one in (installed if name == ALL else [name])))


def contenders(models: Sequence[Path], runtimes: Sequence[str], plugins: Plugins, folder: Path) -> Iterator[Contender]:
    """Pair every model with every runtime, in a form that the runtime takes."""
    for place, (path, inputs) in enumerate(map(read_inputs, models)):
        for name in runtimes:
            opener, fitted = load_runtime(name, plugins), fit(path, name, plugins, folder / str(place))
            yield Contender(path, name, partial(opener, fitted), inputs)


@contextmanager
def pinned(threads: int | None) -> Iterator[int]:
    """Keep this process to a logical CPU of each of so many physical cores, 0 for all; yields how many those are.

    None leaves it where it may run.
    """
    cores = physical_cores()
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield len(cores)
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[: threads or None])
    try:
        yield len(cores[: threads or None])
    finally:
        os.sched_setaffinity(0, before)


def measure(
    found: Sequence[Contender],
    inputs: Sequence[Arrays],
    batch: int,
    streams: int,
    *,
    threads: int,
    seconds: float,
    talk: Talk,
) -> Iterator[dict[str, Any]]:
    """Time all contenders at one batch size and one number of streams."""
    openers: list[Callable[[], Session]] = [partial(open_streams, one.open, streams, threads) for one in found]
    # a model may be given twice: the candidates' names are their places
    candidates = [Candidate(str(place), openers[place], inputs[place]) for place in range(len(found))]
    timings = time_interleaved(
        candidates,
        {},
        batch=batch * streams,
        threads=threads,
        blocks=BLOCKS,
        min_seconds=seconds / BLOCKS,
        progress=talk.progress,
    )
    first_of = {one.runtime: place for place, one in reversed(list(enumerate(found)))}
    for place, (one, timing) in enumerate(zip(found, timings.values(), strict=True)):
        row = {"model": str(one.model), "runtime": one.runtime, "batch": batch, "streams": streams, "threads": threads}
        row |= {key: round(getattr(timing, key), 4) for key in ("p50_ms", "p95_ms", "throughput")}
        row |= {"input_shapes": {name: list(array.shape) for name, array in inputs[place].items()}}
        row |= {"distribution_ms": distribution(timing.runs_ms)}
        row |= {key: timing.facts.get(key) for key in ("version", "precision", "int8_executed", "supported")}
        ratios = {"time_ratio": 0, "time_ratio_own": first_of[one.runtime]}
        yield row | {
            key: None if place == first else asdict(time_ratio(timing, timings[str(first)]))
            for key, first in ratios.items()
        }


def distribution(runs: Sequence[float]) -> dict[str, float]:
    """Summarize the milliseconds of all runs: count, mean, standard deviation and percentiles (nearest rank)."""
    ranks = {f"p{share}": runs[math.ceil(share / 100 * len(runs)) - 1] for share in PERCENTILES}
    found = {"iterations": len(runs), "seconds": sum(runs) / 1000, "mean": fmean(runs), "std": pstdev(runs), **ranks}
    return {name: round(value, 4) for name, value in found.items()}


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the results as a table on stdout."""
    several = any(row["streams"] > 1 for row in results)
    other = any(row["time_ratio_own"] != row["time_ratio"] for row in results)
    headings = ["model", "runtime", "batch", *(["streams"] if several else []), "p50 ms", "p95 ms", "items/s"]
    headings += ["precision", "INT8 nodes", "speed", *(["on its runtime"] if other else [])]
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in results:
        counts = [str(row["batch"]), *([str(row["streams"])] if several else [])]
        measured = [f"{row['p50_ms']:.4g}", f"{row['p95_ms']:.4g}", f"{row['throughput']:,.1f}"]
        executed = ["–" if row[key] is None else str(row[key]) for key in ("precision", "int8_executed")]
        speeds = [speed(row["time_ratio"]), *([speed(row["time_ratio_own"])] if other else [])]
        table.add_row(*map(Text, [row["model"], row["runtime"], *counts, *measured, *executed, *speeds]))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def speed(ratio: Mapping[str, float] | None) -> str:
    """Say a ratio of times in words."""
    return speed_words(1 / ratio["value"], [1 / ratio["high"], 1 / ratio["low"]]) if ratio else "the first"
