"""Write a use case's typed result as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import orjson

from sparsify_serve.protocol import check_finite


def write_result(name: str, result: Any) -> bytes:
    """Write a result with the model's name; raises RequestError for NaN or infinity, which JSON does not have."""
    return orjson.dumps({"model_name": name, "result": plain("result", result)}, option=orjson.OPT_SERIALIZE_NUMPY)


def plain(name: str, value: Any) -> Any:
    """Turn dataclasses into dictionaries, and see that every number in them is one that JSON can hold."""
    if isinstance(value, float | np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        check_finite(name, array)
        return array if np.ndim(value) else array.item()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(field.name, getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, inner) for inner in value]
    return value
