"""Every deliberate failure: what was wrong, the edit or command that mends it, and the exit code.

SparsifyError
├── RequestError        2  the request is impossible as written
│   └── UnreadableSample   one sample is broken; datasets skip up to 5 % of these
├── PluginError         3  a plugin failed
├── MissingLibraryError 4  a library is not installed
└── StageError          5  a stage failed on this input
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Name the process exit codes of DESIGN §5."""

    OK = 0
    BUG = 1
    REQUEST = 2
    PLUGIN = 3
    MISSING = 4
    STAGE = 5
    MISSED = 6
    INTERRUPTED = 130


class Stopped(SystemExit):
    """End a command that runs until it is told to stop: exit 130, and nothing more to say."""


class SparsifyError(Exception):
    """State one problem in one line, with the edit or command that mends it."""

    exit_code: ClassVar[ExitCode] = ExitCode.STAGE

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(problem)
        self.problem = " ".join(problem.split())
        self.fix = " ".join(fix.split())

    def lines(self) -> str:
        """Render the `error:` and `fix:` lines."""
        return f"error: {self.problem}\nfix: {self.fix}"


class RequestError(SparsifyError):
    """Refuse a request that is impossible as written: name, option, file, recipe, data."""

    exit_code = ExitCode.REQUEST


class UnreadableSample(RequestError):
    """Report one broken sample; `Dataset.batches` skips it and counts it."""


class PluginError(SparsifyError):
    """Report a plugin that failed to import, to register or to run."""

    exit_code = ExitCode.PLUGIN


class MissingLibraryError(SparsifyError):
    """Report a library that is not installed, with the install command as the fix."""

    exit_code = ExitCode.MISSING


class StageError(SparsifyError):
    """Report a stage that failed: which, on what, why."""

    exit_code = ExitCode.STAGE
