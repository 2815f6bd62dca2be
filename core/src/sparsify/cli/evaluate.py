"""`sparsify eval DEPLOYMENT --data …`: the metrics of a deployment folder on a dataset."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.contracts import DataRequest, TensorSpec
from sparsify.errors import RequestError
from sparsify.evaluation import evaluate
from sparsify.pipeline import BATCH, fixed_batch
from sparsify.plugins import load_plugins, load_target
from sparsify.resolve import existing, find_loader, find_metrics
from sparsify.splits import held_out_split
from sparsify.talk import Talk
from sparsify.use_cases import resolve_use_case

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
    folder = deployment if (deployment / "config.json").is_file() else deployment / "deployment"
    config = _read(folder / "config.json")
    choice = resolve_use_case(config["use_case"], plugins, "one-shot")
    request = _request(folder, config, existing(data, "--data"), class_list)
    found = find_loader(choice, request.path, plugins)[1].load(request)
    metrics = find_metrics(load_target(choice.offer), eval_metric, plugins)
    if not found.has_targets:
        raise RequestError(f"--data: {request.path} has no labels to measure against", fix="give labelled data")
    batch = fixed_batch(request.inputs) or BATCH
    with closing(plugins.load("runtimes", runtime)(folder / "model.onnx", threads)) as session:
        progress = Talk(quiet=as_json).progress
        result = evaluate(session, held_out_split(found), metrics, batch_size=batch, pad=True, progress=progress)
    if as_json:
        shown = {"metrics": result.values, "intervals": result.intervals}
        typer.echo(json.dumps({"use_case": config["use_case"], "samples": result.samples, **shown}, indent=2))
        return
    typer.echo(f"{result.samples} samples, {config['use_case']}")
    for name, value in result.values.items():
        low, high = result.intervals[name]
        typer.echo(f"{name:12} {value:7.2f}   95 % interval {low:.2f} to {high:.2f}")


def _request(folder: Path, config: dict[str, Any], data: Path, class_list: Path | None) -> DataRequest:
    """Ask for data as the deployment takes it."""
    inputs, outputs = (
        tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in config[side])
        for side in ("inputs", "outputs")
    )
    preprocess = _read(folder / "preprocess.json") if (folder / "preprocess.json").is_file() else None
    return DataRequest(data, inputs, outputs, preprocess, class_list, labels=tuple(config["labels"]))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist", fix="give the deployment folder of a finished run") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is no JSON: {error}", fix="restore the file from the run") from None
