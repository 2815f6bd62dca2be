"""`sparsify eval DEPLOYMENT --data …`: the metrics of a deployment folder on a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.errors import RequestError
from sparsify.plugins import Plugins, load_plugins

app = typer.Typer(rich_markup_mode=None)


@app.command()
def evaluate_deployment(
    deployment: Annotated[Path, typer.Argument(help="a deployment folder, or the run folder around it")],
    data: Annotated[str, typer.Option(help="the dataset")],
    eval_metric: Annotated[str | None, typer.Option(help="a metric, or package.module:function")] = None,
    class_list: Annotated[str | None, typer.Option(help="one folder name a line; default: the labels")] = None,
    runtime: Annotated[str, typer.Option(help="the runtime")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=0, help="0 = all cores")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure a deployment folder on a dataset, with the preprocessing it ships."""
    from sparsify.talk import Talk

    values = measure(deployment, data, eval_metric, class_list, runtime, threads, load_plugins(), Talk(quiet=as_json))
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    typer.echo(f"{values['samples']} samples, {values['use_case']}")
    for name, value in values["metrics"].items():
        low, high = values["intervals"][name]
        typer.echo(f"{name:12} {value:7.2f}   95 % interval {low:.2f} to {high:.2f}")


def measure(
    deployment: Path,
    data_path: str,
    eval_metric: str | None,
    class_list: str | None,
    runtime: str,
    threads: int,
    plugins: Plugins,
    talk: Any,
) -> dict[str, Any]:
    """Load a deployment and a dataset, run one through the other; raises RequestError where they do not fit."""
    from sparsify.contracts import DataRequest, TensorSpec
    from sparsify.evaluation import evaluate
    from sparsify.pipeline import BATCH
    from sparsify.resolve import existing, find_loader, find_metrics
    from sparsify.splits import held_out_split
    from sparsify.use_cases import resolve_use_case

    folder = deployment if (deployment / "config.json").is_file() else deployment / "deployment"
    config = _read(folder / "config.json")
    choice = resolve_use_case(config["use_case"], plugins, "one-shot")
    preprocess = _read(folder / "preprocess.json") if (folder / "preprocess.json").is_file() else None
    specs = {
        side: tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in config[side])
        for side in ("inputs", "outputs")
    }
    path = existing(data_path, "--data")
    request = DataRequest(
        path=path,
        inputs=specs["inputs"],
        outputs=specs["outputs"],
        preprocess=preprocess,
        class_list=Path(class_list) if class_list else None,
        labels=tuple(config["labels"]),
    )
    found = find_loader(choice, path, plugins)[1].load(request)
    use_case = plugins.load("use_cases", choice.offer.entry.name)
    metrics = find_metrics(use_case, eval_metric, plugins)
    if not found.has_targets:
        raise RequestError(f"--data: {path} has no labels to measure against", fix="give labelled data")
    fixed = specs["inputs"][0].shape[0] if specs["inputs"][0].shape else None
    session = plugins.load("runtimes", runtime)(folder / "model.onnx", threads)
    try:
        result = evaluate(
            session, held_out_split(found), metrics,
            batch_size=fixed if isinstance(fixed, int) else BATCH,
            pad=isinstance(fixed, int), progress=talk.progress,
        )  # fmt: skip
    finally:
        session.close()
    return {
        "use_case": config["use_case"],
        "samples": result.samples,
        "metrics": result.values,
        "intervals": {name: list(pair) for name, pair in result.intervals.items()},
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist", fix="give the deployment folder of a finished run") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is no JSON: {error}", fix="restore the file from the run") from None
