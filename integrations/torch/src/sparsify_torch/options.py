"""The field types that options of modifiers share: epochs, frequencies, names, sparsities, mask types.

Options are frozen pydantic models; numbers written as text ("1e-7", as YAML 1.1 reads it) are taken as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from sparsify_torch.structures import parse_mask_type

FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _epoch(value: float) -> float:
    if value < 0 and value != -1:
        raise ValueError("give an epoch of at least 0, or -1 for no bound")
    return value


def _frequency(value: float) -> float:
    if value <= 0 and value != -1:
        raise ValueError("give epochs between two updates, above 0, or -1 for every step")
    return value


def _every_step(value: float) -> float:
    if value != -1:
        raise ValueError("this modifier acts at every step; only -1 is possible")
    return value


def _as_tuple(value: Any) -> Any:
    """Read one name or number, which recipes may write without a list, as a tuple of it."""
    return (value,) if isinstance(value, str | int | float) else value


def _patterns(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if name.startswith("re:"):
            try:
                re.compile(name[3:])
            except re.error as error:
                raise ValueError(f"'{name}' is no regular expression: {error}") from error
    return names


def _lists(value: Any) -> Any:
    """Read single names in a mapping of sparsities as tuples of them."""
    return {key: _as_tuple(names) for key, names in value.items()} if isinstance(value, Mapping) else value


def _share(value: Any) -> Any:
    for one in value if isinstance(value, Mapping) else [value]:
        if not isinstance(one, str) and not 0 <= one <= 1:
            raise ValueError(f"{one:g} is no sparsity; give a share of the weights, 0 to 1")
    return value


def _mask_type(value: str | tuple[int, int]) -> str | tuple[int, int]:
    parse_mask_type(value)
    return value


def _enabled(value: bool) -> bool:
    if not value:
        raise ValueError("only true is possible: weights that nothing holds at zero would train away from it")
    return value


Epoch = Annotated[float, AfterValidator(_epoch)]
Ending = Annotated[float, Field(ge=0)]
Frequency = Annotated[float, AfterValidator(_frequency)]
EveryStep = Annotated[float, AfterValidator(_every_step)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_patterns)]
SomeNames = Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple), AfterValidator(_patterns)]
Groups = Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)]
Share = Annotated[float, Field(ge=0, le=1)]
First = Annotated[float | Literal["__FROM_PARAM__"], AfterValidator(_share)]
Shares = Annotated[float | Mapping[float, tuple[str, ...]], BeforeValidator(_lists), AfterValidator(_share)]
MaskType = Annotated[str | tuple[int, int], AfterValidator(_mask_type)]
AlwaysTrue = Annotated[bool, AfterValidator(_enabled)]
