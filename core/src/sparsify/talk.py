"""Talk to the user on stderr and to the run's log: lines, warnings, progress that appears after two seconds."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 2.0  # a step shorter than this shows no progress
PLAIN_EVERY_S = 10.0


def leads() -> bool:
    """Say whether this process speaks: of those that torchrun has started together, only the first one does."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


class Talk:
    """Write to stderr (unless quiet) and to the log files."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.logs: Path | None = None
        self.notes: list[str] = []
        self.started = time.monotonic()

    def attach(self, logs: Path) -> None:
        """Write everything to run.log and events.jsonl in this folder from now on."""
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs

    def say(self, line: str, *, always: bool = False) -> None:
        """Tell one line; `always` even when quiet."""
        if self.logs is not None:
            with (self.logs / "run.log").open("a", encoding="utf-8") as file:
                file.write(f"{time.monotonic() - self.started:9.2f} {line}\n")
        if always or not self.quiet:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - stderr is the talk

    def note(self, line: str) -> None:
        """Tell one line, once, and keep it for the report."""
        if line not in self.notes:  # recipes that are tried one after the other have much in common
            self.notes.append(line)
            self.say(f"  {line}")

    def warn(self, line: str) -> None:
        """Tell one line even when quiet."""
        self.say(f"warning: {line}", always=True)

    def event(self, event: str, /, **facts: Any) -> None:
        """Record one machine-readable event."""
        if self.logs is not None:
            row = {"event": event, "at_s": round(time.monotonic() - self.started, 3), **facts}
            with (self.logs / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        """Yield `advance`; a bar on a terminal, a line every ten seconds elsewhere, nothing before two seconds."""
        if self.quiet:
            yield lambda: None
        elif sys.stderr.isatty():
            yield from _bar(label, total)
        else:
            yield _plain(label, total)


def _plain(label: str, total: int) -> Any:
    started = told = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - started > PATIENCE_S and (now - told > PLAIN_EVERY_S or done == total):
            told = now
            print(f"  {label}: {done}/{total}", file=sys.stderr, flush=True)  # noqa: T201

    return advance


def _bar(label: str, total: int) -> Iterator[Any]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=RichConsole(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    started = time.monotonic()

    def advance() -> None:
        if not bar.live.is_started and time.monotonic() - started > PATIENCE_S:
            bar.start()
        bar.advance(task)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
