"""Ctrl-C and SIGTERM: exit 130 and how to go on, wherever in Python or in C the signal lands.

Each landing is the body of a third party's command, run as users run it; the signal is a real one, sent by the command
to its own process at a known instruction.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TWO_LINES = "error: interrupted\nfix: run the same command again, with --resume if it made a run folder\n"
KILL = "import os, signal; os.kill(os.getpid(), signal.{number}); len('a signal is heeded between two instructions')"
WAIT = """
import time
for _ in range(200):
    time.sleep(0.1)
"""
LANDINGS = {
    "plain code": "exec(KILL_CODE)",
    # python -m kills itself by SIGINT, exit -2, where a plain KeyboardInterrupt leaves a string: 17 of 141 tries
    "a string, as dataclasses and namedtuples are made": "exec(KILL)",
    "a method that CPython 3.11 wraps in a RuntimeError": (
        "class Slot:\n    def __set_name__(self, owner, name):\n        exec(KILL_CODE)\n"
        "class Owner:\n    slot = Slot()"
    ),
    "code that takes it for a failure of its own": (
        "try:\n    exec(KILL_CODE)\nexcept BaseException as error:\n    raise ValueError('no') from error"
    ),
    "code that drops it and ends well": "try:\n    exec(KILL_CODE)\nexcept BaseException:\n    pass",
    "code that drops it and goes on": f"try:\n    exec(KILL_CODE)\nexcept BaseException:\n    pass\n{WAIT}",
    "a destructor": f"class Mortal:\n    def __del__(self):\n        exec(KILL_CODE)\nMortal()\n{WAIT}",
    "a callback from C": (
        "import ctypes\ncalled = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)\n"
        "def back(a, b):\n    exec(KILL_CODE)\n    return 0\n"
        "pair = (ctypes.c_int * 2)()\nctypes.CDLL(None).qsort(pair, 2, 4, called(back))\n" + WAIT
    ),
}  # fmt: skip
Add = Callable[..., None]


def add_command(add_plugin: Add, body: str, number: str = "SIGINT") -> None:
    """Install a plugin whose command `land` runs `body`."""
    kill = KILL.format(number=number)
    lines = f"KILL = {kill!r}\nKILL_CODE = compile(KILL, 'kill', 'exec')\n{body}".splitlines()
    landing = "import typer\napp = typer.Typer()\n@app.command()\ndef land():\n" + "\n".join(f"    {x}" for x in lines)
    offer = '@hookimpl\ndef commands():\n    return [Entry("land", target="lander.landing:app", summary="land")]'
    add_plugin("lander", offer, landing=landing)


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-m", "sparsify", *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background starts without
    )  # fmt: skip


@pytest.mark.parametrize(
    ("landing", "number"), [*((landing, "SIGINT") for landing in LANDINGS), ("plain code", "SIGTERM")]
)
def test_a_signal_ends_the_program_wherever_it_lands(add_plugin: Add, site: Path, landing: str, number: str) -> None:
    add_command(add_plugin, LANDINGS[landing], number)
    done = run(site, "land")
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(TWO_LINES)


@pytest.mark.parametrize("landing", ["plain code", "a method that CPython 3.11 wraps in a RuntimeError"])
def test_a_signal_while_plugins_are_loaded(add_plugin: Add, site: Path, landing: str) -> None:
    """A plugin's import may raise what it likes, and is a row; but a signal is no fault of the plugin's."""
    kill = KILL.format(number="SIGINT")
    add_plugin("slow", f"KILL_CODE = compile({kill!r}, 'kill', 'exec')\n{LANDINGS[landing]}")
    done = run(site, "use-cases")
    assert (done.returncode, done.stderr) == (130, TWO_LINES)


def test_signals_that_follow_change_nothing(add_plugin: Add, site: Path) -> None:
    """`uv run` passes on a Ctrl-C that the terminal has sent already."""
    late = "import atexit\natexit.register(lambda: [os.kill(os.getpid(), n) for n in (2, 15, 2, 15)])\n"
    add_command(add_plugin, "import os\n" + late + LANDINGS["plain code"])
    done = run(site, "land")
    assert (done.returncode, done.stderr) == (130, TWO_LINES)


def test_a_background_job_goes_on_ignoring_ctrl_c(add_plugin: Add, site: Path) -> None:
    """A shell without job control starts `sparsify … &` so that the Ctrl-C for another program does not reach it."""
    add_command(add_plugin, LANDINGS["plain code"])
    script = f"PYTHONPATH={site} {sys.executable} -m sparsify land & wait $!"
    assert subprocess.run(["sh", "-c", script], capture_output=True, timeout=60).returncode == 0


def test_a_fault_without_a_signal_stays_a_fault(add_plugin: Add, site: Path) -> None:
    add_command(add_plugin, "raise ValueError('no')")
    done = run(site, "land")
    assert done.returncode == 3
    assert "interrupted" not in done.stderr
