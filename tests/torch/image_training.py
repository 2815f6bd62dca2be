"""A tiny network, digits, and one run of the trainer for the tests of image classification training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsify import DataRequest, Model, TensorSpec, Training, make_experiment
from sparsify_image_classification.imagefolder import load as load_folder
from sparsify_image_classification.training.trainer import TRAINER
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.gradual_pruning import GMPruningModifier
from sparsify_torch.structured_pruning import StructuredPruningModifier
from torch import Tensor, nn

WEIGHT = "features.3.weight"


class Tiny(nn.Module):
    """Two convolutions with norms, dropout, and a linear layer, for grey images."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(512, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def tiny(num_classes: int = 10) -> Tiny:
    return Tiny(num_classes)


def experiment(data: Path, **given: Any) -> Any:
    kwargs = {"image_size": 8, "batch_size": 32, "flip": False, "crop": False, **given.pop("train_kwargs", {})}
    fields = {"kind": "training-aware", "use_case": "image-classification", "data": str(data), "train_kwargs": kwargs}
    return make_experiment({"model": "tests.torch.image_training:tiny", **fields, **given})


def data_of(path: Path) -> Any:
    shape = TensorSpec("input", "float32", ("batch", 1, 8, 8))
    return load_folder(DataRequest(path, (shape,), (TensorSpec("logits", "float32", ("batch", 10)),)))


def start(data: Path, folder: Path, **given: Any) -> tuple[Model, Training, list[str]]:
    """Load the model and make what a trainer works with; gives the notes, too."""
    notes: list[str] = []
    resume = given.pop("resume", False)
    asked = experiment(data, **given)
    model = TRAINER.load(asked)
    return model, Training(asked, data_of(data), folder, resume, note=notes.append), notes


def fit(data: Path, folder: Path, modifiers: Any = (), **given: Any) -> Model:
    model, training, _ = start(data, folder, **given)
    return TRAINER.train(model, modifiers, training)


def thinning() -> list[Any]:
    """Half of the filters of one layer go in four steps over two epochs of three."""
    return [
        EpochRangeModifier(start_epoch=0, end_epoch=3),
        StructuredPruningModifier(
            init_sparsity=0.0,
            final_sparsity=0.5,
            start_epoch=0,
            end_epoch=2,
            update_frequency=0.5,
            params=(WEIGHT,),
            multiple=4,
        ),
    ]


def pruning(epochs: int = 3, sparsity: float = 0.75) -> list[Any]:
    return [
        EpochRangeModifier(start_epoch=0, end_epoch=epochs),
        GMPruningModifier(
            init_sparsity=0.05,
            final_sparsity=sparsity,
            start_epoch=0,
            end_epoch=epochs * 0.6,
            update_frequency=0.1,
            params=(WEIGHT,),
        ),
    ]
