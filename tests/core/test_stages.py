"""What escapes a stage becomes the documented failure: the disk's, the memory's, a plugin's, or our own bug."""

from __future__ import annotations

import errno
import types
from typing import Any

import pytest
from sparsify.errors import ExitCode, PluginError, RequestError, StageError
from sparsify.plugins import Plugin, Plugins
from sparsify.stages import stage
from sparsify.talk import Talk

PLUGINS = Plugins((Plugin("toy", "toy-plugin", "1.0", "toy_package.plugin"),), None)  # type: ignore[arg-type]


def failing(error: BaseException, package: str = "sparsify.somewhere") -> list[dict[str, Any]]:
    """Raise `error` in a stage from code that belongs to `package`."""
    module = types.ModuleType(package)
    code = compile("def fail(error):\n    raise error\n", package, "exec")
    types.FunctionType(code, module.__dict__)()
    records: list[dict[str, Any]] = []
    with stage("apply", PLUGINS, Talk(quiet=True), records):
        module.__dict__["fail"](error)
    return records


def test_a_finished_stage_is_recorded() -> None:
    records: list[dict[str, Any]] = []
    with stage("load", PLUGINS, Talk(quiet=True), records):
        pass
    assert records[0]["name"] == "load"
    assert records[0]["seconds"] >= 0
    assert records[0]["peak_rss_mb"] > 1


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space there, or give another --output"),
        (errno.EFBIG, "free space there, or give another --output"),
        (errno.EROFS, "give an --output that can be written"),
        (errno.EACCES, "check that /there exists and can be read and written"),
    ],
)
def test_disk_trouble_is_a_failed_stage(number: int, fix: str) -> None:
    with pytest.raises(StageError) as caught:
        failing(OSError(number, "trouble", "/there"))
    assert caught.value.lines() == f"error: stage 'apply' failed on /there: trouble\nfix: {fix}"
    assert caught.value.exit_code == ExitCode.STAGE == 5


def test_memory_is_a_failed_stage() -> None:
    with pytest.raises(StageError, match="stage 'apply' ran out of memory"):
        failing(MemoryError())


def test_a_plugins_exception_names_the_plugin() -> None:
    with pytest.raises(PluginError) as caught:
        failing(KeyError("x"), "toy_package.solver")
    assert caught.value.problem == "plugin 'toy' failed in stage 'apply': KeyError: 'x'"
    assert "sparsify plugins check toy" in caught.value.fix
    assert caught.value.exit_code == ExitCode.PLUGIN == 3


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        failing(KeyError("x"))


def test_a_deliberate_error_passes_unchanged() -> None:
    asked = RequestError("a", fix="b")
    with pytest.raises(RequestError) as caught:
        failing(asked, "toy_package.solver")
    assert caught.value is asked
