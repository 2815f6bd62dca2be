"""Make and find the environment that DeepSparse runs in.

Its pins (Python ≤ 3.11, numpy < 2, onnx < 1.15) fit no other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsify import MissingLibraryError, RequestError, StageError

VERSION = "1.8.0"  # the last: 1.9.0 is an empty shell
PACKAGES = (f"deepsparse=={VERSION}", "numpy<2", "onnx<1.15")
PYTHON = "3.11"
READY = "ready"  # written last, so that a killed installation is begun again
INSTALL = "sparsify doctor --install deepsparse"


def home() -> Path:
    """Return the folder of the environment, below the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsify" / f"deepsparse-{VERSION}"


def python() -> Path:
    """Return the environment's interpreter; raises MissingLibraryError where it was not made yet."""
    if not (home() / READY).is_file():
        raise MissingLibraryError(f"DeepSparse {VERSION} has no environment on this machine", fix=INSTALL)
    return home() / "bin" / "python"


def install(say: Callable[[str], None]) -> None:
    """Make the environment with uv, or else with venv and pip, and try it; does nothing where it is ready.

    Raises RequestError on systems that DeepSparse has no build for, MissingLibraryError without a Python that it takes,
    StageError where a command fails.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        problem = f"DeepSparse {VERSION} has no build for {platform.system()} on {platform.machine()}"
        raise RequestError(problem, fix="use --runtime onnxruntime, or --runtime openvino")
    if (home() / READY).is_file():
        say(f"ready: {home()}")
        return
    shutil.rmtree(home(), ignore_errors=True)
    interpreter = str(home() / "bin" / "python")
    for command in _commands(interpreter):
        say(" ".join(command))
        _run(command)
    _run([interpreter, "-c", "import deepsparse, numpy, onnx"])
    (home() / READY).write_text("\n".join(PACKAGES) + "\n", encoding="utf-8")
    say(f"ready: {home()}")


def _commands(interpreter: str) -> Sequence[Sequence[str]]:
    uv = shutil.which("uv")
    if uv:
        return (
            [uv, "venv", "--quiet", "--python", PYTHON, str(home())],
            [uv, "pip", "install", "--quiet", "--python", interpreter, *PACKAGES],
        )
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which(f"python{PYTHON}")
    if base is None:
        problem = f"DeepSparse {VERSION} needs Python {PYTHON}, not installed here"
        raise MissingLibraryError(problem, fix=f"pip install uv, which brings it along, then {INSTALL}")
    return ([base, "-m", "venv", str(home())], [interpreter, "-m", "pip", "install", "--quiet", *PACKAGES])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if result.returncode:
        told = " ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        raise StageError(
            f"`{' '.join(command)}` ended with {result.returncode}: {told}",
            fix=f"mend what it says (network, disk space), then {INSTALL}",
        )
