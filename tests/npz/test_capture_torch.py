"""Recording a real PyTorch module's inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sparsify_npz import capture, read_archive

torch = pytest.importorskip("torch", reason="torch is no dependency of the NPZ plugin's tests")


def read(folder: Path) -> list[dict[str, np.ndarray]]:
    return [read_archive(file) for file in sorted(folder.iterdir())]


def test_a_real_module_and_loader(tmp_path: Path) -> None:
    images, labels = torch.randn(5, 3, 4, 4), torch.arange(5)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=2)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model[1].eval()
    before = model[1].running_mean.clone()
    assert capture(model, loader, tmp_path / "a", ["input"]) == 5
    for index, sample in enumerate(read(tmp_path / "a")):
        np.testing.assert_array_equal(sample["input"], images[index].numpy())
        assert sample["label"] == index
    assert torch.equal(model[1].running_mean, before)
    assert [model.training, model[1].training] == [True, False]
    brain = images.to(torch.bfloat16).requires_grad_()
    assert capture(model.to(torch.bfloat16), [brain], tmp_path / "b", ["input"]) == 5
    np.testing.assert_array_equal(read(tmp_path / "b")[0]["input"], brain[0].detach().float().numpy())
