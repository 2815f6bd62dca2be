"""`sparsify eval DEPLOYMENT --data …`: the metrics of a deployment folder on a dataset."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from sparsify import (
    BATCH,
    DataRequest,
    RequestError,
    Talk,
    evaluate,
    existing,
    find_loader,
    find_metrics,
    fit,
    fixed_batch,
    held_out_split,
    load_plugins,
    load_runtime,
    load_target,
    read_deployment,
    resolve_use_case,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def evaluate_deployment(
    deployment: Annotated[Path, typer.Argument(help="a deployment folder, or the run folder around it")],
    data: Annotated[str, typer.Option(help="the dataset")],
    eval_metric: Annotated[str | None, typer.Option(help="a metric, or package.module:function")] = None,
    class_list: Annotated[Path | None, typer.Option(help="one folder name a line; default: the labels")] = None,
    runtime: Annotated[str, typer.Option(help="the runtime")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=0, help="0 = all cores")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure a deployment folder on a dataset, with the preprocessing it ships."""
    plugins = load_plugins()
    held = read_deployment(deployment)
    choice = resolve_use_case(held.use_case, plugins, "one-shot")
    path = existing(data, "--data")
    request = DataRequest(path, held.inputs, held.outputs, held.preprocess, class_list, labels=held.labels)
    found = find_loader(choice, request.path, plugins)[1].load(request)
    metrics = find_metrics(load_target(choice.offer), eval_metric, plugins)
    if not found.has_targets:
        raise RequestError(f"--data: {request.path} has no labels to measure against", fix="give labelled data")
    batch = fixed_batch(request.inputs) or BATCH
    opener = load_runtime(runtime, plugins)
    with (
        TemporaryDirectory(prefix="sparsify-") as made,
        closing(opener(fit(held.model, runtime, plugins, Path(made)), threads)) as session,
    ):
        progress = Talk(quiet=as_json).progress
        result = evaluate(session, held_out_split(found), metrics, batch_size=batch, pad=True, progress=progress)
    if as_json:
        shown = {"metrics": result.values, "intervals": result.intervals}
        typer.echo(json.dumps({"use_case": held.use_case, "samples": result.samples, **shown}, indent=2))
        return
    typer.echo(f"{result.samples} samples, {held.use_case}")
    for name, value in result.values.items():
        low, high = result.intervals[name]
        typer.echo(f"{name:12} {value:7.2f}   95 % interval {low:.2f} to {high:.2f}")
