"""Train in several processes, as torchrun or Accelerate starts them: the first one leads, and all fail as one."""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from sparsify import MissingLibraryError, PluginError, RequestError, SparsifyError, StageError

PATIENCE = timedelta(days=1)  # the others wait for as long as the first one measures, exports and verifies
FAILURE = "sparsify/failure"
KINDS = {kind.__name__: kind for kind in (RequestError, PluginError, MissingLibraryError, StageError)}
GONE = ("gloo", "NCCL")  # in what the backends say of a process that is gone; they raise a plain RuntimeError
CPU = torch.device("cpu")


def meet() -> Any:
    """Return an Accelerator, once the processes that were started together have joined, if there are several."""
    from accelerate import Accelerator

    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Accelerator()
    gpu = torch.cuda.is_available()
    if not dist.is_initialized():
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
        atexit.register(part)
    return Accelerator(cpu=not gpu)  # which joins processes without a GPU only where it is told so


def part() -> None:
    """Hang up on the other processes, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(value: Any = None) -> Any:
    """Return in every process what the first one gives; the others wait for it, however long that takes."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=CPU)
    return box[0]


def agreed(number: int) -> int:
    """Return the largest number that any process gives: all call it at the same step, and know the same then."""
    if not dist.is_initialized():
        return number
    box = torch.tensor([number])
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def gathered(value: Any) -> list[Any]:
    """Return what every process gives, by rank."""
    if not dist.is_initialized():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def wait_for_the_end() -> None:
    """Stay until the first process has gone: a launcher ends all as soon as one leaves with an exit code above 0."""
    with suppress(RuntimeError):
        share()


def heed_signals_while_waiting() -> None:
    """Let SIGTERM end this process: a wait for another one hears no handler of Python's."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def failing_as_one() -> Iterator[None]:
    """Raise in every process what went wrong in one of them; the connections are closed then, so that none waits."""
    if not dist.is_initialized():
        yield
        return
    store: Any = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
    try:
        yield
    except Exception as error:
        gone = isinstance(error, RuntimeError) and any(word in str(error) for word in GONE)
        told = _told(store) if gone else None
        if told is None:
            store.set(FAILURE, json.dumps(_said(error)))
        part()
        if told is None:
            raise
        raise told from error


def _told(store: Any) -> SparsifyError:
    """Read what another process has said before it hung up."""
    with suppress(RuntimeError):  # the store may be gone, too
        if store.check([FAILURE]):
            kind, problem, fix = json.loads(store.get(FAILURE))
            return KINDS[kind](problem, fix=fix)
    fix = "see what ended it: memory, a signal, its machine; then run the same command with --resume"
    return StageError("training: another process of this run is gone", fix=fix)


def _said(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, SparsifyError):
        return next(name for name, kind in KINDS.items() if isinstance(error, kind)), error.problem, error.fix
    fix = "run again with --debug for the traceback"
    return "PluginError", f"training failed in one of several processes: {type(error).__name__}: {error}", fix
