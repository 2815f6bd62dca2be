"""Run the code of docs/how-to/quantize-while-training.md."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tests.torch.qat_nets import Toy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "quantize-while-training.md"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Toy()
    loader = [(torch.randn(8, 1, 16, 16), torch.randint(4, (8,))) for _ in range(9)]
    (code,) = re.findall(r"```text\n(from .*?)```", PAGE.read_text(), re.DOTALL)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    exec(code, {"model": model, "loader": loader, "optimizer": optimizer, "loss": nn.CrossEntropyLoss()})
    written = onnx.load(tmp_path / "deployment" / "model.onnx")
    assert [item.name for item in (*written.graph.input, *written.graph.output)] == ["input", "logits"]
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) >= 7
