"""A model without weights of its own for the data's classes is trained dense first, and that is the baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import RequestError
from sparsify.cli.app import main
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.training.heads import find_head
from sparsify_image_classification.training.networks import load
from sparsify_image_classification.training.trainer import TRAINER
from sparsify_torch.distillation import DistillationModifier
from torch import Tensor, nn

from tests.torch.image_training import experiment, pruning, start, tiny
from tests.torch.image_training import fit as train

FACTORY = "tests.torch.test_image_heads"


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))[1]


@pytest.fixture
def of_seven(tmp_path: Path) -> Path:
    """Weights of the tiny network for seven classes; the digits have ten."""
    torch.manual_seed(5)
    torch.save(tiny(7).state_dict(), tmp_path / "seven.pt")
    return tmp_path / "seven.pt"


class Squeezed(nn.Module):
    """Ends as SqueezeNet does: a 1 x 1 convolution gives the classes, their mean is the output."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(10, num_classes, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


class Extended(nn.Module):
    """Its classes are given by no layer: the last one is followed by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return torch.cat([x, torch.ones(len(x), 1)], 1)


class Fixed(nn.Module):
    """Gives seven classes whatever its layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, :7] if self.body[2].out_features >= 7 else self.body(x)


def squeezed(num_classes: int = 10) -> nn.Module:
    return Squeezed(num_classes)


def extended() -> nn.Module:
    return Extended()


def fixed() -> nn.Module:
    return Fixed()


def trained_elsewhere(num_classes: int = 10) -> nn.Module:
    """Stands for a factory that reads its weights from somewhere."""
    module = tiny(num_classes)
    generator = torch.Generator().manual_seed(3)
    module.load_state_dict(
        {name: torch.rand(value.shape, generator=generator) for name, value in module.state_dict().items()}
    )
    return module


def seven_elsewhere() -> nn.Module:
    return trained_elsewhere(7)


def differing(first: nn.Module, second: nn.Module) -> list[str]:
    other = second.state_dict()
    return [name for name, value in first.state_dict().items() if not torch.equal(value, other[name])]


def test_weights_of_other_classes_keep_all_but_the_last_layer(digits: Path, of_seven: Path) -> None:
    model = load(experiment(digits, weights=str(of_seven)))
    given = tiny(7)
    given.load_state_dict(torch.load(of_seven, weights_only=True))
    assert differing(given, model.value) == ["head.1.weight", "head.1.bias"]
    assert model.value.head[1].out_features == 10
    assert (model.facts["classes"], model.facts["untrained"]) == (10, True)
    (note,) = [line for line in model.facts["notes"] if "fresh" in line]
    assert note.startswith("the weights are of 7 classes, the data has 10: layer 'head.1' is a fresh one")
    assert "--class-list" in note


def test_the_fresh_layer_is_the_same_in_every_run(digits: Path, of_seven: Path) -> None:
    first, again = (load(experiment(digits, weights=str(of_seven))).value.head[1].weight for _ in range(2))
    assert torch.equal(first, again)


def test_a_last_convolution_is_replaced_as_a_linear_layer_is(digits: Path, tmp_path: Path) -> None:
    torch.save(squeezed(25).state_dict(), tmp_path / "weights.pt")
    model = load(experiment(digits, model=f"{FACTORY}:squeezed", weights=str(tmp_path / "weights.pt")))
    assert model.value.classifier[1].out_channels == 10
    assert model.value(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_the_head_is_what_runs_last_not_what_is_as_wide() -> None:
    assert find_head(squeezed(10), torch.zeros(1, 1, 8, 8)) == "classifier.1"  # features.0 is 10 wide, too
    assert find_head(extended(), torch.zeros(1, 1, 8, 8)) == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [(f"{FACTORY}:extended", "no layer gives its outputs"), (f"{FACTORY}:fixed", "whatever its layer 'body.2' gives")],
)
def test_a_model_whose_classes_cannot_be_changed_is_refused(
    model: str, said: str, digits: Path, tmp_path: Path
) -> None:
    module = extended() if "extended" in model else fixed()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(RequestError, match=said) as caught:
        load(experiment(digits, model=model, weights=str(tmp_path / "weights.pt")))
    assert caught.value.fix == "name a factory that takes num_classes"


def test_what_misses_besides_the_head_is_still_an_error(digits: Path, of_seven: Path) -> None:
    state = torch.load(of_seven, weights_only=True)
    del state["features.3.weight"]
    torch.save(state, of_seven)
    with pytest.raises(RequestError, match=r"'features\.3\.weight' is missing"):
        load(experiment(digits, weights=str(of_seven)))


def test_a_factory_that_brings_its_weights_is_no_untrained_model(digits: Path) -> None:
    own = load(experiment(digits, model=f"{FACTORY}:trained_elsewhere"))
    assert own.facts["untrained"] is False
    assert not [note for note in own.facts["notes"] if "random" in note]
    assert load(experiment(digits)).facts["untrained"] is True
    narrow = load(experiment(digits, model=f"{FACTORY}:seven_elsewhere"))
    assert narrow.facts["untrained"] is True  # a new head
    assert narrow.value.head[1].out_features == 10


def test_without_dense_epochs_nothing_is_distilled_from_random_weights(digits: Path, tmp_path: Path) -> None:
    modifiers = [*pruning(2), DistillationModifier(hardness=1.0)]
    given: dict[str, Any] = {"train_samples": 200, "train_kwargs": {"dense_epochs": 0}}
    model, training, notes = start(digits, tmp_path / "default", **given)
    assert TRAINER.train(model, (), training) is model
    default = TRAINER.train(model, modifiers, training)
    assert any(note.startswith("nothing is distilled") for note in notes)
    disabled = train(digits, tmp_path / "disabled", modifiers, teacher="disable", **given)
    assert all(
        torch.equal(value, disabled.value.state_dict()[name]) for name, value in default.value.state_dict().items()
    )
    named = train(digits, tmp_path / "named", modifiers, teacher="self", **given)  # as asked for
    assert any(
        not torch.equal(value, named.value.state_dict()[name]) for name, value in default.value.state_dict().items()
    )


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", "training-aware", "--use-case", "image-classification", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_dense_model_is_trained_first_and_is_the_baseline(
    digits: Path, of_seven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The baseline is no random head: it knows the digits, and the pruned model is measured against that."""
    folder, kwargs = tmp_path / "run", {"epochs": 4, "image_size": 8, "batch_size": 32, "flip": False, "crop": False}
    fixed_words = ["--model", "tests.torch.image_training:tiny", "--data", str(digits), "--weights", str(of_seven)]
    words = [*fixed_words, "--output", str(folder), "--max-drop", "none", "--threads", "1", "--json"]
    assert run(*words, "--train-kwargs", json.dumps({**kwargs, "dense_epochs": 3})) in (0, 6)
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["baseline"]["metrics"]["accuracy"] > 90
    assert metrics["optimized"]["metrics"]["accuracy"] > 80
    assert metrics["optimized"]["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert "the dense model is trained first, 3 epochs: the baseline, and the teacher" in metrics["notes"]
    dense = folder / "training_artifacts" / "dense"
    assert len((dense / "log.jsonl").read_text().splitlines()) == 3
    trained = load(experiment(digits, weights=str(dense / "best.pt")))  # the dense control can be given again
    assert trained.facts["untrained"] is False


def test_level_0_trains_the_dense_model_alone(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--model",
        "tests.torch.image_training:tiny",
        "--data",
        str(digits),
        "--optim-level",
        "0",
        "--threads",
        "1",
    ]
    kwargs = {"epochs": 2, "image_size": 8, "batch_size": 32, "flip": False, "crop": False}
    words += ["--optim-level", "0", "--output", str(tmp_path / "run"), "--json"]
    assert run(*words, "--train-kwargs", json.dumps(kwargs)) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["verdict"] == "baseline"
    assert metrics["optimized"]["metrics"]["accuracy"] > 80
    assert (tmp_path / "run" / "training_artifacts" / "dense" / "best.pt").is_file()


def test_one_shot_takes_a_network_by_name_and_its_weights(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(digits, tmp_path / "trained", train_kwargs={"epochs": 3})
    fixed_words = ["run", "one-shot", "--use-case", "image-classification", "--data", str(digits), "--threads", "1"]
    words = [*fixed_words, "--model", f"{FACTORY}:of_digits", "--weights", str(tmp_path / "trained" / "best.pt")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output", str(tmp_path / "run"), "--optim-level", "0.2", "--max-drop", "none", "--json"])
    assert ended.value.code in (0, 6)
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["kind"] == "one-shot"
    assert metrics["baseline"]["metrics"]["accuracy"] > 90
    assert metrics["optimized"]["quantized"]["of"] == 3
    torch.save(of_digits(7).state_dict(), tmp_path / "seven.pt")  # nothing is trained here: classes have to agree
    with pytest.raises(SystemExit) as ended:
        main([*words[:-1], str(tmp_path / "seven.pt"), "--output", str(tmp_path / "seven")])
    assert ended.value.code == 2
    assert "the data have 10 classes, the model's output 'logits' has 7" in capsys.readouterr().err


class OfDigits(nn.Module):
    """Takes images of any size to the 8 px of the digits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        inner = tiny(num_classes)
        self.features, self.head = inner.features, inner.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(nn.functional.adaptive_avg_pool2d(x, 8)).flatten(1))


def of_digits(num_classes: int = 10) -> nn.Module:
    return OfDigits(num_classes)
