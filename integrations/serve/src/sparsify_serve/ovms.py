"""Write what OpenVINO Model Server needs beside the models: config.json, which lists them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsify import RequestError

from sparsify_serve.repository import write_text

LIST = "model_config_list"


def prepare(folder: Path, name: str) -> Callable[[], list[str]]:
    """Read the list of models; returns what adds this one to it. Raises RequestError for a list that cannot be read.

    Other models, and what was added to this one's entry, stay as they are.
    """
    path = folder / "config.json"
    found = _read(path)
    row = {"name": name, "base_path": name}  # relative to config.json, so that the folder can be mounted anywhere
    same = [one["config"] for one in found[LIST] if one["config"].get("name") == name]
    if same and (folder / str(same[0].get("base_path"))).resolve() != (folder / name).resolve():
        problem = f"{path} has another model '{name}', in {same[0].get('base_path')}"
        raise RequestError(problem, fix="give another --name, or remove its entry")

    def finish() -> list[str]:
        if not same:
            write_text(path, json.dumps({**found, LIST: [*found[LIST], {"config": row}]}, indent=2) + "\n")
        return []

    return finish


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {LIST: []}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is no JSON: {error}", fix="mend or remove it") from None
    rows = found.setdefault(LIST, []) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("config"), dict) for row in rows
    ):
        raise RequestError(f"{path} has no list of models", fix=f'write "{LIST}": [], or remove the file')
    return dict(found)
