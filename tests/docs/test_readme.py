"""The README's first command makes an environment and ends with the main job done, from a clean checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_command_does_all_the_set_up(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout to copy")
    for name in listed.stdout.rstrip("\0").split("\0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    found = re.search(r"<!-- demo-command -->\n```bash\n(.+)\n```", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    done = subprocess.run(["bash", "-euc", found[1]], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Within budget" in done.stdout
    assert list(tmp_path.glob("sparsify-demo/one-shot_*/deployment/model.onnx"))
