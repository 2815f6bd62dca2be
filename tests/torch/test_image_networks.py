"""What --model and --weights may name, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparsify import MissingLibraryError, RequestError
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.training.networks import load
from sparsify_image_classification.training.weights import read_weights
from torch import nn

from tests.torch.image_training import experiment, tiny

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))[1]


class Unpicklable:
    """Stands for what a pickle may run."""


def text(num_classes: int = 10) -> str:
    return "no module"


def pair(num_classes: int = 10) -> nn.Module:
    class Pair(nn.Module):
        def forward(self, x: Any) -> Any:
            return x, x

    return Pair()


def test_a_factory_takes_the_classes_of_the_data(digits: Path) -> None:
    model = load(experiment(digits))
    (example,) = model.facts["example_inputs"]
    assert model.format == "torch"
    assert example.shape == (2, 1, 8, 8)
    assert model.value(example).shape == (2, 10)
    assert (model.facts["input_names"], model.facts["output_names"]) == (("input",), ("logits",))
    assert not model.value.training


def test_weights_are_loaded_from_under_the_names_that_checkpoints_give_them(digits: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = tiny()
    held = {"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}, "epoch": 3}
    torch.save(held, tmp_path / "weights.pt")
    model = load(experiment(digits, weights=str(tmp_path / "weights.pt")))
    assert (model.facts["classes"], model.facts["untrained"]) == (10, False)
    assert torch.equal(model.value.head[1].weight, module.head[1].weight)


def test_an_old_checkpoint_names_its_architecture(digits: Path, tmp_path: Path) -> None:
    state = load(experiment(digits, model="cifar_resnet20", train_kwargs={"image_size": 32})).value.state_dict()
    torch.save({"arch_key": "cifar_resnet20", "state_dict": state, "epoch": 9}, tmp_path / "old.pth")
    model = load(experiment(digits, model=str(tmp_path / "old.pth"), train_kwargs={"image_size": 32}))
    assert model.facts["architecture"] == "cifar_resnet20"
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(RequestError, match="not the name of their architecture") as caught:
        load(experiment(digits, model=str(tmp_path / "bare.pth")))
    assert "--weights" in caught.value.fix


@pytest.mark.parametrize(
    ("model", "said", "fix"),
    [
        ("cifar_resnet2", "there is no model 'cifar_resnet2'", "cifar_resnet20"),
        ("tests.torch.test_image_networks:absent", "cannot be imported", "package.module:factory"),
        ("no.such.module:make", "cannot be imported", "package.module:factory"),
        ("tests.torch.test_image_networks:text", "gives str, not a torch.nn.Module", "num_classes"),
        ("tests.torch.test_image_networks:pair", "gives tuple, a classifier gives", "logits alone"),
        ("missing.pth", "missing.pth is no file", "state dict"),
    ],
)
def test_names_that_do_not_work_are_refused(model: str, said: str, fix: str, digits: Path) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        load(experiment(digits, model=model))
    assert fix in caught.value.fix


def test_a_size_that_the_model_does_not_take_is_refused(digits: Path) -> None:
    with pytest.raises(RequestError, match="does not take images of") as caught:
        load(experiment(digits, train_kwargs={"image_size": 9 * 9}))
    assert "image_size" in caught.value.fix


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_timm_is_named_where_it_is_missing(digits: Path) -> None:
    with pytest.raises(MissingLibraryError, match="timm") as caught:
        load(experiment(digits, model="timm:resnet10t"))
    assert caught.value.fix == "pip install timm"


def test_torchvision_models_by_name(digits: Path) -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import with the torch tested here: {error}")
    model = load(experiment(digits, model="squeezenet1_1", train_kwargs={"image_size": 64}))
    assert model.value(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    with pytest.raises(RequestError) as caught:
        load(experiment(digits, model="resnet5"))
    assert "resnet50" in caught.value.fix


def test_extra_classifiers_are_left_out_and_their_weights_passed_over(digits: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    whole = models.get_model("googlenet", weights=None, num_classes=10, init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    asked = experiment(digits, model="googlenet", weights=str(tmp_path / "whole.pt"), train_kwargs={"image_size": 64})
    model = load(asked).value
    assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    assert torch.equal(model.fc.weight, whole.fc.weight)
    assert model.transform_input, "as torchvision sets it beside its own weights"


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_torchvision_is_named_where_it_is_missing(digits: Path) -> None:
    with pytest.raises(MissingLibraryError, match="torchvision"):
        load(experiment(digits, model="mobilenet_v2"))


def test_a_pickle_that_runs_code_is_refused_with_the_way_to_convert_it(digits: Path, tmp_path: Path) -> None:
    torch.save({"model": Unpicklable()}, tmp_path / "whole.pt")
    with pytest.raises(RequestError, match="holds more than tensors") as caught:
        load(experiment(digits, weights=str(tmp_path / "whole.pt")))
    assert "weights_only=False" in caught.value.fix
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100])
    with pytest.raises(RequestError, match=r"cut\.pt"):
        load(experiment(digits, weights=str(tmp_path / "cut.pt")))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(RequestError, match="holds no weights by name"):
        load(experiment(digits, weights=str(tmp_path / "list.pt")))


def test_weights_of_another_model_are_refused_with_the_nearest_names(digits: Path, tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["features.0.wait"] = state.pop("features.0.weight")
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(RequestError, match=r"'features.0.weight' is missing \(the nearest is 'features.0.wait'\)"):
        load(experiment(digits, weights=str(tmp_path / "odd.pt")))


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(tiny(4).state_dict(), tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors", "--weights").classes == 4


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_the_shared_weights_fit_and_give_what_their_onnx_gives(digits: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = SHARED / "resnet20_cifar10jpg.pth"
    module = load(
        experiment(digits, model="cifar_resnet20", weights=str(weights), train_kwargs={"image_size": 32})
    ).value
    x = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(SHARED / "resnet20_cifar10jpg.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": x})
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)
