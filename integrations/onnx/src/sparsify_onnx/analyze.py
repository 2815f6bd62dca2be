"""`sparsify analyze`: what a model consists of, layer by layer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sparsify import Layer, Model, gzip_size

from sparsify_onnx.describe import describe
from sparsify_onnx.loader import opset_of, read
from sparsify_onnx.shapes import measure_shapes
from sparsify_onnx.storage import model_files

app = typer.Typer(rich_markup_mode=None, add_completion=False)
PLAIN_WIDTH = 160  # of a table that goes into a file or a pipe


@app.command()
def analyze(
    model: Annotated[Path, typer.Argument(help="an .onnx file, float or quantized", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show parameters, MACs, sparsity and precision of every layer, and the size of the file."""
    found = examine(model)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        show(found)


def examine(path: Path) -> dict[str, Any]:
    """Read everything there is to say about a model; MACs are null where the shapes cannot be learned."""
    value = read(path)
    opset = opset_of(value, path)
    shapes = measure_shapes(value)
    description = describe(Model("onnx", value, {"shapes": shapes.tensors}))
    files = model_files(path)
    eligible = [layer for layer in description.layers if layer.eligible]
    return {
        "schema": 1,
        "model": str(path),
        "opset": opset,
        "bytes": sum(file.stat().st_size for file in files),
        "compressed_bytes": gzip_size(*files),
        "parameters": description.parameters,
        "zeros": description.zeros,
        "sparsity_file": _share(description.zeros, description.parameters),
        "sparsity": _share(sum(_zeros(layer) for layer in eligible), sum(layer.parameters for layer in eligible)),
        "macs": sum(layer.macs for layer in description.layers) or None,
        "sample": {name: list(shape) for name, shape in shapes.inputs.items()},
        "computing": description.computing,
        "inputs": [asdict(spec) for spec in description.inputs],
        "outputs": [asdict(spec) for spec in description.outputs],
        "layers": [{**asdict(layer), "macs": layer.macs or None} for layer in description.layers],
    }


def _zeros(layer: Layer) -> int:
    return round(layer.sparsity * layer.parameters)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def show(found: Mapping[str, Any]) -> None:
    """Print the layers as a table, and the totals below it."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    table = Table("layer", "operator", "shape", "parameters", "MACs", "sparsity", "precision", "pruned by default")
    for layer in found["layers"]:
        table.add_row(
            layer["name"],
            layer["op"],
            "×".join(map(str, layer["shape"])),
            f"{layer['parameters']:,}",
            "?" if layer["macs"] is None else f"{layer['macs']:,}",
            f"{100 * layer['sparsity']:.1f} %",
            layer["precision"],
            "yes" if layer["eligible"] else f"no: {layer['reason']}",
        )
    console.print(table)
    for line in totals(found):
        console.print(line, markup=False, highlight=False)


def totals(found: Mapping[str, Any]) -> list[str]:
    """Say the totals in lines."""
    sample = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in found["sample"].items())
    macs = f"{found['macs']:,} MACs for {sample}" if found["macs"] else "MACs unknown: no sample could be run"
    return [
        f"{found['parameters']:,} parameters, {100 * found['sparsity_file']:.1f} % of them zero "
        f"({100 * found['sparsity']:.1f} % in the layers that pruning may touch)",
        f"{macs}; {found['computing']} computing nodes",
        f"{found['bytes']:,} bytes, {found['compressed_bytes']:,} compressed (gzip -9); opset {found['opset']}",
    ]
