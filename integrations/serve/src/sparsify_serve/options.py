"""Check what a server is asked to do, on the command line or in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from sparsify import RequestError, parse_duration, parse_memory

from sparsify_serve.datatypes import check_name

COMMAND_LINE = "command line"
Duration = Annotated[str, AfterValidator(lambda text: parse_duration(text) and text)]
Memory = Annotated[str, AfterValidator(lambda text: parse_memory(text) and text)]


class ModelOptions(BaseModel):
    """Say which deployment is served, under which name and how; no name means that of its use case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: Path
    name: str = ""
    runtime: str = "onnxruntime"
    threads: int = Field(0, ge=0)
    max_batch_size: int = Field(8, ge=1)
    max_delay_us: int = Field(2000, ge=0)


class ServerOptions(BaseModel):
    """Say where the server listens, what it serves, and what one request may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ModelOptions, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_body: Memory = "64MB"
    max_queue: int = Field(256, ge=1)
    read_timeout: Duration = "10s"


def make_options(given: Mapping[str, Any], source: str) -> ServerOptions:
    """Check options; raises RequestError naming the option, where it was given, and the nearest name."""
    try:
        options = ServerOptions.model_validate(given)
    except ValidationError as error:
        raise _request_error(error, source) from None
    names = [model.name for model in options.models if model.name]
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise RequestError(f"{source}: two models are called '{name}'", fix="give each a name of its own")
    return options


def _request_error(error: ValidationError, source: str) -> RequestError:
    # a misspelt name is told of before the right one that is then missing
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    *above, name = map(str, first["loc"])
    numbered = len(above) > 1 and source != COMMAND_LINE  # which gives one model
    where = f"{source}: " + (f"model {int(above[1]) + 1}: " if numbered else "")
    known = list((ModelOptions if len(above) > 1 else ServerOptions).model_fields)
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, known, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"use: {', '.join(known)}"
        return RequestError(f"{where}there is no option '{name}'", fix=fix)
    if first["type"] == "missing":
        return RequestError(f"{where}'{name}' is missing", fix=f"add '{name}'; see docs/how-to/serve.md")
    said = first["msg"].removeprefix("Value error, ")
    return RequestError(f"{where}{name}: {said}", fix=f"give another value to '{name}'; see docs/how-to/serve.md")


def read_options(path: Path) -> dict[str, Any]:
    """Read a YAML file, its deployments relative to it; raises RequestError where it is none."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path} cannot be read as YAML: {error}", fix="see docs/how-to/serve.md") from None
    if not isinstance(found, dict):
        raise RequestError(f"{path} holds no mapping", fix="begin with a line `models:`")
    models = found.get("models")
    if isinstance(models, list):
        found["models"] = [_relative(model, path.parent) for model in models]
    return found


def _relative(model: Any, folder: Path) -> Any:
    if isinstance(model, dict) and isinstance(model.get("deployment"), str):
        return {**model, "deployment": folder / model["deployment"]}
    return model
