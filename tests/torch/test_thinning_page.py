"""The page about removing channels and layers runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "remove-channels-and-layers.md"


def test_the_pages_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    *blocks, timed = blocks
    assert len(blocks) == 5
    assert "thin_to_speed(" in timed  # it times models for minutes: tests of its own run it on smaller ones
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    shown = capsys.readouterr().out
    assert "3: 128 -> " in shown
    assert "goes on with 50 and 100 channels" in shown  # a quarter less seven eighths of it, at half of the cubic curve
    assert "8: stays, the module returns them" in shown
    assert "['1', '2']" in shown
