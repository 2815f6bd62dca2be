"""Hear SIGTERM and SIGINT without dropping the step at hand, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Hold the signal that was heard; a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal."""
        if self.number:
            self.act()
        self.number = number

    def act(self) -> None:
        """Do what the signal would have done, had it not been held back."""
        handler = self.before.get(self.number)
        if callable(handler):
            handler(self.number, None)
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[Stop]:
    """Hold signals back for a `with` block; only the main thread hears any."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            stop.before[number] = before
            signal.signal(number, stop.hear)
    try:
        yield stop
    finally:
        for number, before in stop.before.items():
            signal.signal(number, before)
