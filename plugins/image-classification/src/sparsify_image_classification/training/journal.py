"""Write what a training run did: log.jsonl, and TensorBoard's events where it is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_logs(folder: Path, rows: Sequence[Row]) -> None:
    """Write all epochs' rows anew, atomically, so that a resumed run repeats none."""
    path = folder / "log.jsonl"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def write_events(folder: Path, row: Row) -> None:
    """Add one epoch's row to TensorBoard's events; a resumed run takes the place of what it repeats."""
    if find_spec("tensorboard") is None:  # comes with the extra `train`
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=row["epoch"]) as writer:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                writer.add_scalar(name, value, row["epoch"])
