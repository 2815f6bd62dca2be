"""`sparsify doctor`: what this machine and installation can do, and the fix for what they cannot."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import typer
from sparsify import (
    ExitCode,
    Plugins,
    SparsifyError,
    find_runtime,
    fit,
    install_command,
    load_plugins,
    load_runtime,
    missing,
)

from sparsify_onnx.cpu import cpu_features, cpu_sentence

app = typer.Typer(rich_markup_mode=None, add_completion=False)
# variants that install the same import package and overwrite each other's files
CLASHING = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-training")


@dataclass(frozen=True)
class Check:
    """State one finding; `fix` is empty where all is well."""

    name: str
    found: str
    fix: str = ""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    install: Annotated[str | None, typer.Option(help="make the environment that a runtime needs")] = None,
) -> None:
    """Check CPU, runtimes and packages; exit 4 where something must be mended."""
    plugins = load_plugins()
    if install is not None:
        install_runtime(install, plugins)
    checks = list(examine(plugins))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'!!' if check.fix else 'ok'}  {check.name}: {check.found}")
            if check.fix:
                typer.echo(f"    fix: {check.fix}")
    raise typer.Exit(ExitCode.MISSING if any(check.fix for check in checks) else ExitCode.OK)


def install_runtime(name: str, plugins: Plugins) -> None:
    """Run a runtime's installer, where it has one; raises MissingLibraryError where its package has to come first."""
    find_runtime(name, plugins)
    if name in {offer.entry.name for offer in plugins.offers("installers")}:
        plugins.load("installers", name)(lambda line: typer.echo(line, err=True))


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
        absent, name = missing(offer.entry), f"runtime {offer.entry.name}"
        if absent:
            yield Check(name, f"needs {', '.join(absent)}", install_command(absent))
        else:
            yield try_runtime(offer.entry.name, plugins)
    if not runtimes:
        yield Check("runtime", "none installed", "pip install sparsify-onnx")
    yield clash({row.metadata["Name"].lower() for row in distributions() if row.metadata["Name"]})


def try_runtime(name: str, plugins: Plugins) -> Check:
    """Open a small model in float and in INT8, and tell what the runtime makes of each."""
    from sparsify_onnx.probe import write_probes

    try:
        with tempfile.TemporaryDirectory(prefix="sparsify-") as folder:
            facts = []
            for path in write_probes(Path(folder)):
                with closing(load_runtime(name, plugins)(fit(path, name, plugins, Path(folder)), 1)) as session:
                    facts.append(dict(session.facts))
    except SparsifyError as error:
        return Check(f"runtime {name}", error.problem, error.fix)
    plain, int8 = map(_makes, facts)
    version = facts[0].get("version", "installed")
    return Check(f"runtime {name}", f"{version}, runs float models in {plain}, INT8 models in {int8}")


def _makes(facts: Mapping[str, Any]) -> str:
    """Say in what a session runs: its precision, or the share of operators that its own kernels run."""
    share = f"kernels of its own for {100 * facts['supported']:.0f} %" if "supported" in facts else "what it hides"
    return str(facts.get("precision") or share)


def clash(installed: set[str]) -> Check:
    """Find two variants of ONNX Runtime in one environment."""
    found = [name for name in CLASHING if name in installed]
    names = " and ".join(found)
    if len(found) < 2:
        return Check("onnxruntime variants", names or "none")
    fix = f"pip uninstall -y {' '.join(found)} && pip install {found[0]}"
    return Check("onnxruntime variants", f"{names} overwrite each other", fix)
