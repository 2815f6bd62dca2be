"""Write what a training run did: log.jsonl always, and TensorBoard's events where it is installed, else a CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_logs(folder: Path, rows: Sequence[Row]) -> None:
    """Write all epochs' rows anew, atomically, so that a resumed run repeats none."""
    _replace(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if find_spec("tensorboard") is None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _replace(folder / "log.csv", text.getvalue())


def write_events(folder: Path, row: Row) -> None:
    """Add one epoch's row to TensorBoard's events, where it is installed."""
    if find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=row["epoch"]) as writer:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                writer.add_scalar(name, value, row["epoch"])


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
