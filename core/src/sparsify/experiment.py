"""The request: every option of `run` once, for the command line, `--config` files and Python alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

# pydantic is heavy; this module is loaded by `run` only
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError  # noqa: TID253

from sparsify.errors import RequestError
from sparsify.levels import parse_budget, parse_duration, parse_level, parse_memory, parse_structure

Kind = Literal["one-shot", "training-aware", "sparse-transfer"]
Allocation = Literal["parameters", "macs", "time", "uniform"]
Count = Annotated[int, Field(gt=0)]
Speedup = Annotated[float, Field(gt=1, allow_inf_nan=False)]


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from None


Level = Annotated[float, BeforeValidator(parse_level)]
Budget = Annotated[str, BeforeValidator(lambda value: parse_budget(value, agreement=False).given)]
# these two stay as they were given
Duration = Annotated[str, AfterValidator(lambda text: parse_duration(text) and text)]
Memory = Annotated[str, AfterValidator(lambda text: parse_memory(text) and text)]
Structure = Annotated[str, AfterValidator(parse_structure)]
Json = Annotated[dict[str, Any], BeforeValidator(_json)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class Experiment(BaseModel):
    """Hold what a user asked for. Paths are kept as given; `pipeline.resolve` checks them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(description="one-shot, training-aware or sparse-transfer")
    use_case: str = Field(description="task name or alias (`sparsify use-cases`), or custom:NAME")
    model: str = Field(description="the trained model: an ONNX file")
    data: str = Field(description="the dataset: a folder of images by class, or of NPZ files")
    optim_level: Level = Field(0.5, description="0 baseline, below 0.3 INT8, from 0.3 pruned 40-80 % and INT8")
    output: str | None = Field(None, description="the run folder itself; must be empty, or hold a run to resume")
    working_dir: str = Field(".", description="the folder under which a run folder is made")
    weights: str | None = Field(None, description="a checkpoint for the model that --model names (resnet50)")
    teacher: str | None = Field(None, description="training: the model to learn from; self (the default) or disable")
    train_kwargs: Json | None = Field(None, description="training: JSON of what the use case's trainer takes")
    train_samples: Count | None = Field(None, description="training: use at most this many training samples")
    recipe: str | None = Field(None, description="a recipe file that replaces the generated one")
    recipe_args: Json | None = Field(None, description="JSON that overrides the recipe's variables")
    eval_metric: str | None = Field(None, description="the deciding metric: a name, or package.module:function")
    val_samples: Count | None = Field(None, description="use at most this many test samples")
    calibration_samples: Count = Field(512, description="samples that calibration may use")
    max_drop: Budget | None = Field(None, description="budget: points (1.0), share (1%), or none; default 2.0 points")
    allocation: Allocation = Field("parameters", description="what the sparsity is a share of as it is spread by layer")
    time_budget: Duration | None = Field(None, description="cut the search for a better recipe after 90s, 10m, 1h")
    max_memory: Memory | None = Field(None, description="the most memory the process may take: 800MB, 4GB, 2GiB")
    target_speedup: Speedup | None = Field(None, description="how many times as fast as float it has to be")
    runtime: Names = Field(("onnxruntime",), description="repeatable; the first one decides")
    threads: int = Field(0, ge=0, description="threads of a runtime session and of training; 0 = all cores")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    sparsity: Structure = Field("unstructured", description="unstructured, structured, N:M (2:4) or RxC (1x4)")
    preprocess: str | None = Field(None, description="name or JSON file of the preprocessing")
    eval_data: str | None = Field(None, description="a dataset of its own for the final test")
    class_list: str | None = Field(None, description="one folder name a line, line i = class i")


def make_experiment(options: Mapping[str, Any], source: str = "command line") -> Experiment:
    """Validate options given by any road; hyphens and underscores are equal. Raises RequestError."""
    try:
        return Experiment(**{name.replace("-", "_"): value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise _request_error(error, source) from None


def _request_error(error: ValidationError, source: str) -> RequestError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    option = "--" + name.replace("_", "-")
    if first["type"] == "missing":
        return RequestError(f"{option} is missing ({source})", fix=f"add {option}: {_describe(name)}")
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, Experiment.model_fields, n=1)
        fix = f"did you mean --{near[0].replace('_', '-')}?" if near else "see `sparsify run one-shot --help`"
        return RequestError(f"there is no option {option} ({source})", fix=fix)
    return RequestError(
        f"{option}: {first['msg'].removeprefix('Value error, ')} ({source})", fix=f"{option} takes {_describe(name)}"
    )


def _describe(name: str) -> str:
    field = Experiment.model_fields.get(name)
    return (field.description or name) if field else "what `sparsify run one-shot --help` says"


def read_config(path: Path) -> dict[str, Any]:
    """Read the options in an experiment.yaml, one written by hand or that of an earlier run; raises RequestError."""
    import yaml

    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"--config: {path} does not exist", fix="give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"--config: {path} cannot be read as YAML: {error}", fix="give a YAML mapping") from None
    if not isinstance(text, dict):
        raise RequestError(f"--config: {path} holds no mapping", fix="write lines such as `model: net.onnx`")
    return dict(text.get("request", text))
