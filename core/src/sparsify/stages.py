"""Run one stage of the pipeline: time it, record it, and say whose failure a failure is."""

from __future__ import annotations

import errno
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsify.errors import PluginError, SparsifyError, StageError
from sparsify.plugins import Plugins
from sparsify.talk import Talk


def peak_rss_mb() -> float:
    """Return this process's peak resident memory so far in MB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if sys.platform == "linux":  # getrusage's figure includes the peak of the process that started this one
        peak = 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return round(peak / 1e6, 1)


@contextmanager
def stage(name: str, plugins: Plugins, talk: Talk, records: list[dict[str, Any]]) -> Iterator[None]:
    """Time a stage; turn what escapes it into StageError (disk, memory) or PluginError (a plugin's fault).

    An exception raised by core itself passes unchanged: it is a bug of ours and deserves its traceback.
    """
    started = time.monotonic()
    talk.event("stage-started", stage=name)
    try:
        yield
    except SparsifyError:
        raise
    except OSError as error:
        raise _disk(name, error) from error
    except MemoryError as error:
        raise StageError(
            f"stage '{name}' ran out of memory", fix="set --max-memory below what is free here, such as 2GB"
        ) from error
    except Exception as error:
        talk.event("stage-failed", stage=name, traceback=traceback.format_exc())
        blame(error, plugins, f"stage '{name}'")
        raise
    seconds = round(time.monotonic() - started, 2)
    records.append({"name": name, "seconds": seconds, "peak_rss_mb": peak_rss_mb()})
    talk.event("stage-finished", **records[-1])


def _disk(name: str, error: OSError) -> StageError:
    where = error.filename or "the disk"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "free space there, or give another --output" if full else "give an --output that can be written"
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EIO) and error.filename:
        fix = f"check that {where} exists and can be read and written"
    return StageError(f"stage '{name}' failed on {where}: {error.strerror or error}", fix=fix)


def blame(error: Exception, plugins: Plugins, where: str) -> None:
    """Raise PluginError where a plugin's code was the last of ours or a plugin's to run; return where core's was."""
    owners = {row.module.split(".")[0]: row.name for row in plugins.found}
    last, trace = "sparsify", error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        last = package if package in owners else last
        trace = trace.tb_next
    if last != "sparsify":
        raise PluginError(
            f"plugin '{owners[last]}' failed in {where}: {type(error).__name__}: {error}",
            fix=f"run again with --debug for the traceback, or `sparsify plugins check {owners[last]}`",
        ) from error
