from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sparsify import MissingLibraryError, RequestError
from sparsify_torch import export_loader
from torch import nn

from tests.torch.qat_nets import ResNet20


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for torchvision, with one architecture."""

    class Tiny(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    models: Any = ModuleType("torchvision.models")
    models.list_models = lambda: ["tiny18"]
    models.get_model = lambda name, weights, num_classes: Tiny(num_classes)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(export_loader, "find_spec", lambda name: object())


def weights(classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "fc.weight": torch.randn(classes, 4),
        "fc.bias": torch.randn(classes),
    }


@pytest.mark.usefixtures("torchvision")
def test_a_checkpoint_with_an_architecture_becomes_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    held = {f"module.{name}": value for name, value in weights().items()}  # as DataParallel saved them
    torch.save({"arch_key": "tiny18", "state_dict": held, "image_size": 32}, path)
    model = export_loader.FORMAT.load(path)
    assert (model.format, model.facts["path"]) == ("onnx", str(path))
    assert model.facts["notes"][0] == "exported from model.pth: tiny18, opset 18"
    description = export_loader.FORMAT.describe(model)
    assert description.inputs[0].shape == ("batch", 3, 32, 32)
    assert description.outputs[0].shape == ("batch", 7)
    export_loader.FORMAT.save(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()
    assert list(export_loader.FORMAT.files(path)) == [path]


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/code/__torch__.py", b"")


def program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


class Hidden:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("this ran",)


REFUSED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a module": (lambda path: torch.save(ResNet20(), path), "Python objects besides tensors", "model.state_dict()"),
    "a trap": (lambda path: torch.save({"state_dict": Hidden()}, path), "Python objects besides tensors", "export("),
    "torchscript": (torchscript, "is TorchScript, which runs code", "load the original module"),
    "a program": (program, "is an exported program, which runs code", "if you trust its origin"),
    "weights alone": (lambda path: torch.save(weights(), path), "without the name of an architecture", "export("),
    "no weights": (lambda path: torch.save({"epoch": 3}, path), "holds no weights", "export("),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor", "export("),
    "cut short": (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "cut short", "copy it again"),
    "empty": (lambda path: path.write_bytes(b""), "cut short", "copy it again"),
    "missing": (lambda path: None, "does not exist", "give the path"),
    "a folder": (lambda path: path.mkdir(), "is a folder", "give the path"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*TreeSpec:FutureWarning")
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, said, fix = REFUSED[name]
    path = tmp_path / ("model.pt2" if name == "a program" else "model.pth")
    write(path)
    with pytest.raises(RequestError) as caught:
        export_loader.load(path)
    assert said in str(caught.value)
    assert fix in caught.value.fix
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("tiny19", weights(), "torchvision has no architecture 'tiny19'"),
        ("tiny18", {"conv.weight": torch.zeros(4, 3, 3, 3)}, "do not fit the architecture 'tiny18'"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    name: str, held: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    torch.save({"arch_key": name, "state_dict": held}, tmp_path / "model.pth")
    with pytest.raises(RequestError, match=said):
        export_loader.load(tmp_path / "model.pth")


def test_without_torchvision_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_loader, "find_spec", lambda name: None)
    torch.save({"arch_key": "resnet18", "state_dict": weights()}, tmp_path / "model.pth")
    with pytest.raises(MissingLibraryError) as caught:
        export_loader.load(tmp_path / "model.pth")
    assert caught.value.fix == "pip install torchvision"
