"""Time what a run made as the program does, but not for long: nothing in these tests asks how fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsify.timing import Timing, time_interleaved


def briefly(*candidates: Any, **options: Any) -> Mapping[str, Timing]:
    return time_interleaved(*candidates, **{**options, "blocks": 3, "min_seconds": 0.02})
