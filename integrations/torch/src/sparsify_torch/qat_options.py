"""Say in a recipe's words how a model is quantized while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sparsify import RequestError
from torch import nn

LEGACY = frozenset(  # of LegacyQuantizationModifier; what placement decides by itself is dropped with a note before
    {
        *("activation_bits", "weight_bits", "exclude_module_types"),
        *("activation_qconfig_kwargs", "weight_qconfig_kwargs", "tensorrt"),
    }
)
ARGUMENTS = frozenset({"num_bits", "symmetric", "strategy", "kwargs"})


class QuantizationOptions(BaseModel):
    """Hold the fields of QuantizationModifier, under both dialects' names and LegacyQuantizationModifier's.

    scheme: `default` and `deepsparse` are uint8 asymmetric activations and int8 symmetric weights, one scale an output
    channel. scheme_overrides: by module path or class, null leaves it float. ignore: module paths, class names, or
    `re:` patterns. reduce_range: weights in -64..64, for x86 CPUs without VNNI. strict: a name that matches nothing is
    an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_epoch: float = -1
    end_epoch: float = -1
    scheme: Literal["default", "deepsparse"] | dict[str, Any] | None = None
    scheme_overrides: dict[str, Any] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    disable_quantization_observer_epoch: float | None = None
    freeze_bn_stats_epoch: float | None = None
    model_fuse_fn_name: str | None = None
    model_fuse_fn_kwargs: dict[str, Any] | None = None
    num_calibration_steps: int | None = Field(default=None, ge=0)
    strict: bool = True
    reduce_range: bool = False
    submodules: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _translated(cls, fields: Any) -> Any:
        return from_legacy(fields) if isinstance(fields, Mapping) and not LEGACY.isdisjoint(fields) else fields

    @field_validator("ignore", "submodules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("scheme_overrides", mode="before")
    @classmethod
    def _overrides(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for name, scheme in value.items():
                if scheme is not None:
                    _refuse_scheme(scheme, f"scheme_overrides: '{name}'")
        return value or {}

    @field_validator("scheme", mode="before")
    @classmethod
    def _scheme(cls, value: Any) -> Any:
        _refuse_scheme(value, "scheme")
        return value

    @field_validator("model_fuse_fn_name")
    @classmethod
    def _fuse(cls, value: str | None) -> str | None:
        if value not in (None, "conv_bn_relus", "no_fuse", "fuse_module"):
            raise RequestError(
                f"model_fuse_fn_name: '{value}' would call a method of the model, which nothing needs here",
                fix="remove model_fuse_fn_name: batch norms are folded by the exporter",
            )
        return value

    def ignored(self, module: nn.Module) -> tuple[str, ...]:
        """List the modules that stay float, as patterns; those outside `submodules` included."""
        paths = [path for path, _ in module.named_modules() if path]
        outside: list[str] = []
        if self.submodules:
            for name in self.submodules:
                _require(name, paths)
            outside = [path for path in paths if not any(_related(path, name) for name in self.submodules)]
        floats = [name for name, scheme in self.scheme_overrides.items() if _is_float(scheme)]
        return (*self.ignore, *floats, *outside)


def from_legacy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Translate LegacyQuantizationModifier's fields.

    Raises RequestError for what cannot run here: other widths than 8 bits, TensorRT's grids, observers of one's own.
    """
    kept = {name: value for name, value in fields.items() if name not in LEGACY}
    for name in ("activation_bits", "weight_bits"):
        if fields.get(name, 8) != 8:
            raise RequestError(f"{name}: {fields[name]} bits cannot be simulated", fix=f"remove {name}, or set it to 8")
    for name in ("activation_qconfig_kwargs", "weight_qconfig_kwargs", "tensorrt"):
        if fields.get(name):
            raise RequestError(
                f"{name}: {fields[name]} cannot run here: grids are uint8 asymmetric for activations, int8 symmetric "
                "per channel for weights",
                fix=f"remove {name} from QuantizationModifier",
            )
    if fields.get("exclude_module_types"):
        kept["ignore"] = (*_listed(fields.get("ignore")), *_listed(fields["exclude_module_types"]))
        kept["strict"] = False  # SparseML accepted classes that the model has not
    return kept


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value or ()


def _refuse_scheme(scheme: Any, where: str) -> None:
    if scheme == "tensorrt":
        raise RequestError(
            f"{where}: 'tensorrt' has symmetric int8 activations, which are not written here",
            fix="remove the field, or write `scheme: default`",
        )
    if not isinstance(scheme, Mapping):
        return
    for part, symmetric, strategy in (("input_activations", False, "tensor"), ("weights", True, "channel")):
        found = scheme.get(part) or {}
        unknown = sorted(set(found) - ARGUMENTS)
        if unknown:
            raise RequestError(
                f"{where}: {part} has the unknown key '{unknown[0]}'", fix=f"use {', '.join(sorted(ARGUMENTS))}"
            )
        wrong = [
            f"{key}: {found[key]}"
            for key, value in (("num_bits", 8), ("symmetric", symmetric), ("strategy", strategy))
            if key in found and found[key] != value and (part, key) != ("weights", "strategy")
        ]
        if wrong or found.get("kwargs"):
            raise RequestError(
                f"{where}: {part} with {', '.join(wrong) or 'kwargs'} cannot run here",
                fix="use 8 bits, asymmetric per tensor for input_activations and symmetric for weights",
            )


def _is_float(scheme: Any) -> bool:
    return scheme is None or not any(scheme.get(part) for part in ("input_activations", "weights"))


def _related(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.")


def _require(name: str, paths: Sequence[str]) -> None:
    if name not in paths:
        from difflib import get_close_matches

        near = get_close_matches(name, paths, n=3, cutoff=0.3) or paths[:3]
        raise RequestError(f"submodules: the model has no module '{name}'", fix=f"use {', '.join(near)}")
