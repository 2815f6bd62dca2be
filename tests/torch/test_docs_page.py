"""The code of docs/how-to/train-with-recipes.md runs as it is written there."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import sparsify_torch
import torch
from pydantic import BaseModel, ConfigDict
from sparsify_torch import ScheduledModifierManager
from torch import nn

from tests.torch.loops import batches, net, sgd, sparsity

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train-with-recipes.md"
BLOCKS = re.findall(r"```(\w+)[^\n]*\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
CODE = [text for kind, text in BLOCKS if kind == "text"]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(YAML[0], encoding="utf-8")
    model = net()
    return {
        "torch": torch,
        "copy": copy,
        "sparsify_torch": sparsify_torch,
        "BaseModel": BaseModel,
        "ConfigDict": ConfigDict,
        "ScheduledModifierManager": ScheduledModifierManager,
        "manager": ScheduledModifierManager.from_yaml("recipe.yaml"),
        "model": model,
        "optimizer": sgd(model),
        "loader": batches(3),
        "loss_function": nn.functional.cross_entropy,
    }


def test_the_plain_loop(names: dict[str, Any]) -> None:
    exec(CODE[0], names)
    assert sparsity(names["model"].features[2].weight) == pytest.approx(0.8, abs=0.01)
    assert sparsity(names["model"].features[0].weight) == 0


def test_stop_and_go_on(names: dict[str, Any]) -> None:
    (saving,) = [text for text in CODE if "torch.save" in text]
    (loading,) = [text for text in CODE if "torch.load" in text]
    plain, names["manager"] = names["optimizer"], ScheduledModifierManager.from_yaml("recipe.yaml")
    names["optimizer"] = names["manager"].modify(names["model"], plain, steps_per_epoch=3)
    for _ in range(7):
        names["optimizer"].emulated_step()
    exec(saving, names)
    names |= {"optimizer": plain, "manager": ScheduledModifierManager.from_yaml("recipe.yaml")}
    exec(loading, names)
    assert names["manager"].state_dict()["steps"] == 7
    assert set(names["manager"].masks) == {"features.2.weight", "features.5.weight"}


@pytest.mark.parametrize(
    "index", [i for i, text in enumerate(CODE) if i and "torch.save" not in text and "last.pt" not in text]
)
def test_every_other_block(index: int, names: dict[str, Any]) -> None:
    exec(CODE[index], names)
    if "ClampModifier" in CODE[index]:
        optimizer = names["manager"].modify(names["model"], names["optimizer"], steps_per_epoch=3)
        with torch.no_grad():
            names["model"].head.weight.fill_(7.0)
        optimizer.emulated_step()
        assert float(names["model"].head.weight.detach().max()) == 0.5
