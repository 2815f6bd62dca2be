"""Run the program and send it a signal at a given moment; SIGKILL is like a lost power supply.

    python -m tests.cross.dying SIGKILL 'MOMENT > MOMENT' ARGUMENTS

A moment is the start of a line that the program says, or the label of a progress bar that moves on; where several are
given, each is waited for after the one before. Without any the program runs to its end. Timing is replaced by a figure
that depends on the file alone: what two runs measure differs, and this is about what they compute.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsify import Search
from sparsify.__main__ import main
from sparsify.talk import Talk
from sparsify.timing import Timing


class Fate:
    """Wait for one moment after another, and send this process a signal at the last."""

    def __init__(self, number: int, moments: str) -> None:
        self.number = number
        self.moments = [moment.strip() for moment in moments.split(">") if moment.strip()]

    def meet(self, text: str) -> None:
        if self.moments and text.strip().startswith(self.moments[0]):
            del self.moments[0]
            if not self.moments:
                os.kill(os.getpid(), self.number)


def size_as_time(
    search: Search, artefact: Path, runtimes: Sequence[str], *_: Any
) -> Mapping[str, Mapping[str, Timing]]:
    paths = {"baseline": search.plan.model_path, "optimized": artefact}
    spent = {name: path.stat().st_size / 1e5 for name, path in paths.items()}
    timings = {
        name: Timing(1, 1, took, took, 1 / took, (took, took), {"precision": None, "int8_executed": None})
        for name, took in spent.items()
    }
    return dict.fromkeys(runtimes, timings)


def run(fate: Fate) -> None:
    say, event = Talk.say, Talk.event

    def meet_and(heard: Callable[..., None]) -> Callable[..., None]:
        def hear(talk: Talk, text: str, /, **facts: Any) -> None:
            heard(talk, text, **facts)
            fate.meet(f"{text} {facts['stage']}" if "stage" in facts else text)

        return hear

    @contextmanager
    def progress(talk: Talk, label: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: fate.meet(label)

    Talk.say, Talk.event, Talk.progress = meet_and(say), meet_and(event), progress  # type: ignore[assignment, method-assign]
    Search.time = size_as_time  # type: ignore[method-assign, assignment]
    main()


if __name__ == "__main__":
    fated = Fate(signal.Signals[sys.argv[1]], sys.argv[2])
    del sys.argv[1:3]
    run(fated)
