"""`sparsify doctor`: what this machine and installation can do, and the fix for what they cannot."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated

import typer
from sparsify import ExitCode, Plugins, install_command, load_plugins, missing

app = typer.Typer(rich_markup_mode=None, add_completion=False)
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")
# variants that install the same import package and overwrite each other's files
CLASHING = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-training")


@dataclass(frozen=True)
class Check:
    """State one finding; `fix` is empty where all is well."""

    name: str
    found: str
    fix: str = ""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Check CPU, runtimes and packages; exit 4 where something must be mended."""
    checks = list(examine(load_plugins()))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'!!' if check.fix else 'ok'}  {check.name}: {check.found}")
            if check.fix:
                typer.echo(f"    fix: {check.fix}")
    raise typer.Exit(ExitCode.MISSING if any(check.fix for check in checks) else ExitCode.OK)


def examine(plugins: Plugins) -> Iterator[Check]:
    """Look at Python, CPU, plugins, runtimes and clashing packages."""
    yield Check("python", platform.python_version())
    yield Check("cpu", cpu_sentence(cpu_features()))
    for plugin in plugins.found:
        fix = f"pip install --force-reinstall {plugin.distribution}, or uninstall it" if plugin.error else ""
        found = f"{plugin.distribution} {plugin.version}, {plugin.error or plugin.state}"
        yield Check(f"plugin {plugin.name}", found, fix)
    runtimes = plugins.offers("runtimes")
    for offer in runtimes:
        absent = missing(offer.entry)
        found, fix = (f"needs {', '.join(absent)}", install_command(absent)) if absent else ("installed", "")
        yield Check(f"runtime {offer.entry.name}", found, fix)
    if not runtimes:
        yield Check("runtime", "none installed", "pip install sparsify-onnx")
    yield clash({row.metadata["Name"].lower() for row in distributions() if row.metadata["Name"]})


def clash(installed: set[str]) -> Check:
    """Find two variants of ONNX Runtime in one environment."""
    found = [name for name in CLASHING if name in installed]
    names = " and ".join(found)
    if len(found) < 2:
        return Check("onnxruntime variants", names or "none")
    fix = f"pip uninstall -y {' '.join(found)} && pip install {found[0]}"
    return Check("onnxruntime variants", f"{names} overwrite each other", fix)


def cpu_features() -> tuple[str, ...]:
    """List the INT8-relevant features of this CPU, as the kernel names them; empty where it does not tell."""
    path = Path("/proc/cpuinfo")
    words = path.read_text().split() if path.is_file() else []
    return tuple(name for name in FEATURES if name in words)


def cpu_sentence(features: tuple[str, ...]) -> str:
    """Say what the CPU's features mean for INT8."""
    if not features:
        return "features unknown; measure with `sparsify benchmark`"
    fast = any("vnni" in name or name in ("amx_int8", "asimddp", "i8mm") for name in features)
    verdict = "fast INT8" if fast else "no INT8 dot product: INT8 may be no faster, and may saturate on older CPUs"
    return f"{', '.join(features)} ({verdict})"
