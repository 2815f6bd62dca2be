from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from sparsify import Context, Model, RequestError, StageError
from sparsify_onnx import FORMAT, lower, weight_layers
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import open_session
from sparsify_torch import qat
from sparsify_torch.export_graph import clean_copy
from sparsify_torch.export_onnx import export, export_model
from sparsify_torch.layers import find_blocks
from sparsify_torch.thinning import thin
from torch import Tensor, nn

from tests.onnx.models import dataset
from tests.torch.qat_nets import Encoder, ResNet20, Swish, Toy
from tests.torch.thinnable import IMAGES, Blocks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RESNET20 = SHARED / "models" / "resnet20_cifar10jpg.pth"


def shapes_of_four_kinds(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw bars and blobs with noise: four classes that a small network learns in seconds."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=generator)
    images = 0.4 * torch.randn(samples, 1, 16, 16, generator=generator)
    for image, label in zip(images, labels, strict=True):
        place = int(torch.randint(2, 12, (1,), generator=generator))
        if label == 0:
            image[0, place : place + 2] += 1
        elif label == 1:
            image[0, :, place : place + 2] += 1
        elif label == 2:
            image[0, place : place + 4, place : place + 4] += 1
        else:
            image[0] += 0.3
    return images, labels


def learn(module: nn.Module, steps: int, rate: float) -> None:
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)
    module.train()
    for step in range(steps):
        images, labels = shapes_of_four_kinds(64, step)
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Return a toy that was trained in float and then quantized, with some negative factors in its batch norms."""
    torch.manual_seed(0)
    module = Toy()
    with torch.no_grad():
        module.norm.weight[::3] *= -1
        module.stem[1].weight[1] *= -1
    learn(module, 80, 0.05)
    qat.begin(module, qat.QuantizationOptions(), shapes_of_four_kinds(64, 1000)[0])
    qat.calibrate(module, [shapes_of_four_kinds(64, 1001)[0]])
    learn(module, 30, 0.01)
    qat.finish(module)
    return module.eval()


@pytest.fixture(scope="module")
def written(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(trained, shapes_of_four_kinds(4, 5)[0], path)
    return path


def run(model: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]], names: list[str]) -> list[NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[NDArray[np.generic]] = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(names, feeds)
    return found


def rounded_by(module: nn.Module, images: Tensor) -> dict[int, list[Tensor]]:
    """Collect what the module's fake quantization gives, by grid."""
    module = copy.deepcopy(module)
    state, found = qat.quantization_of(module), dict[int, list[Tensor]]()
    original = state._activation

    def spy(values: Tensor, grid: int) -> Tensor:
        rounded = original(values, grid)
        found.setdefault(grid, []).append(rounded.clone())  # residuals are added in place
        return rounded

    state._activation = spy  # type: ignore[method-assign]
    with torch.no_grad():
        module(images)
    return found


def layer_steps(path: Path, module: nn.Module, images: Tensor) -> dict[str, int]:
    """Feed each layer of the file the integers of the module, and say by tensor how far its own lie from them.

    Each QuantizeLinear is cut: what followed it reads the module's integers, and its own are compared with those.
    """
    model = onnx.load(path)
    held = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    name = model.graph.input[0].name
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    integers = run(whole, {name: images.numpy()}, [node.output[0] for node in nodes])
    state, values = qat.quantization_of(module), rounded_by(module, images)
    feeds: dict[str, NDArray[np.generic]] = {name: images.numpy()}
    cut = {node.output[0]: f"{node.output[0]}_fed" for node in nodes}
    for node, found in zip(nodes, integers, strict=True):
        scale, zero_point = held[node.input[1]], held[node.input[2]]
        grids = [index for index in values if state.scale[index].item() == scale.item()]
        same = [value for index in grids for value in values[index] if value.shape == found.shape]
        if not same:  # a moved tensor, which the module does not round again
            feeds[cut[node.output[0]]] = found
            continue
        as_integers = [np.rint(value.numpy() / scale).astype(np.int64) + int(zero_point) for value in same]
        nearest = min(as_integers, key=lambda value: np.abs(value - found.astype(np.int64)).mean())
        feeds[cut[node.output[0]]] = nearest.astype(np.uint8)
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            node.input[:] = [cut.get(item, item) for item in node.input]
    for node, found in zip(nodes, integers, strict=True):
        fed = cut[node.output[0]]
        model.graph.input.append(onnx.helper.make_tensor_value_info(fed, onnx.TensorProto.UINT8, found.shape))
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    again = run(model, feeds, [node.output[0] for node in nodes])
    return {
        node.input[0]: int(np.abs(value.astype(np.int64) - feeds[cut[node.output[0]]].astype(np.int64)).max())
        for node, value in zip(nodes, again, strict=True)
    }


def agreement(path: Path, module: nn.Module, images: Tensor) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = module(images).numpy()
    return float((logits.argmax(1) == wanted.argmax(1)).mean())


def test_each_layer_agrees_within_a_step(trained: nn.Module, written: Path) -> None:
    steps = layer_steps(written, trained, shapes_of_four_kinds(64, 2000)[0])
    assert len(steps) >= 9
    assert max(steps.values()) <= 1, steps


def test_the_whole_agrees(trained: nn.Module, written: Path) -> None:
    images, labels = shapes_of_four_kinds(1000, 3000)
    assert agreement(written, trained, images) >= 0.995
    with torch.no_grad():
        assert (trained(images).argmax(1) == labels).float().mean() > 0.9


def test_weights_are_the_integers_of_training(trained: nn.Module, written: Path) -> None:
    model = onnx.load(written)
    state = qat.quantization_of(trained)
    stored = [
        numpy_helper.to_array(item) for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8
    ]
    for item in state.plan.weights:
        weight = dict(trained.named_modules())[item.site.path].weight.detach()
        scales = state.weight_scale[item.start : item.start + item.channels]
        wanted = (weight.flatten(1) / scales[:, None]).round().abs().numpy()
        assert any(
            array.size == wanted.size and np.array_equal(np.abs(array).reshape(wanted.shape), wanted)
            for array in stored
            if array.ndim > 1
        ), item.site.path


def test_the_file_holds_nothing_of_training(written: Path) -> None:
    model = onnx.load(written)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"BatchNormalization", "Dropout", "FakeQuantize", "Identity"} & kinds.keys()
    text = written.read_bytes()
    for word in (b"/tmp", b"site-packages", str(Path.home()).encode(), b"fake_quant", b"stack_trace", b".py"):
        assert word not in text, word
    assert not list(written.parent.glob("*.data"))


def test_as_many_layers_run_in_int8_as_after_one_shot(trained: nn.Module, written: Path, tmp_path: Path) -> None:
    floats = export(clean_copy(trained, qat.CHILD), shapes_of_four_kinds(4, 1)[0])
    options = QuantizationModifier(equalize=False, bias_correction=False)
    once = options.apply(floats, Context(dataset(floats.value, 32)))
    path = tmp_path / "once.onnx"
    path.write_bytes(once.value.SerializeToString())
    counts = [open_session(file, 1).facts["int8_executed"] for file in (written, path)]
    assert counts[0] == counts[1] == 7


def test_the_batch_axis_is_free(written: Path) -> None:
    session = ort.InferenceSession(written, providers=["CPUExecutionProvider"])
    for samples in (1, 3):
        images = shapes_of_four_kinds(samples, 0)[0].numpy()
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (samples, 4)


def test_older_opsets_hold_the_same(trained: nn.Module, written: Path) -> None:
    images = shapes_of_four_kinds(8, 0)[0].numpy()
    model = onnx.load(written)
    name = model.graph.input[0].name
    (before,) = run(model, {name: images}, [model.graph.output[0].name])
    lowered = lower(model, 17)
    lowered.ir_version = 8
    (after,) = run(lowered, {name: images}, [lowered.graph.output[0].name])
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_module_is_left_alone(trained: nn.Module) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items() if isinstance(value, Tensor)}
    export(trained, shapes_of_four_kinds(1, 0)[0])
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items() if name in before)
    assert not trained.training


def test_the_same_module_gives_the_same_bytes(trained: nn.Module, written: Path, tmp_path: Path) -> None:
    export(trained, shapes_of_four_kinds(4, 5)[0], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()


def test_names_of_inputs_and_outputs_are_those_asked_for(trained: nn.Module) -> None:
    model = export(trained, shapes_of_four_kinds(1, 0)[0], input_names=["input"], output_names=["logits"]).value
    assert ([item.name for item in model.graph.input], [item.name for item in model.graph.output]) == (
        ["input"],
        ["logits"],
    )


def test_reduced_weights_stay_within_64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Toy()
    qat.begin(module, qat.QuantizationOptions(reduce_range=True), shapes_of_four_kinds(16, 0)[0])
    model = export(module.eval(), shapes_of_four_kinds(2, 0)[0]).value
    weights = [numpy_helper.to_array(item) for item in model.graph.initializer if item.data_type == 3]
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) == 64


@pytest.mark.parametrize(("make", "layers"), [(Swish, 4), (Encoder, 8)])
def test_other_architectures_agree_layer_by_layer(make: Callable[[], nn.Module], layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make()
    images = shapes_of_four_kinds(64, 0)[0]
    learn(module, 30, 0.02)
    qat.begin(module, qat.QuantizationOptions(), images)
    learn(module, 5, 0.01)
    qat.finish(module)
    path = tmp_path / "model.onnx"
    export(module.eval(), images, path)
    assert len(qat.quantization_of(module).plan.weights) == layers
    assert not qat.quantization_of(module).plan.notes
    steps = layer_steps(path, module, images)
    assert max(steps.values()) <= 1, steps
    assert agreement(path, module, shapes_of_four_kinds(400, 1)[0]) >= 0.99
    assert open_session(path, 1).facts["int8_executed"] == layers


def test_a_float_module_is_exported_as_it_is(tmp_path: Path) -> None:
    module = Toy().eval()
    images = shapes_of_four_kinds(8, 0)[0]
    model = export(module, images, tmp_path / "model.onnx")
    assert model.format == "onnx"
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = module(images).numpy()
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0], wanted, atol=1e-5)


def test_keyword_inputs_are_taken(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(a) + b))

    module = Two().eval()
    example = {"a": torch.randn(3, 4), "b": torch.randn(3, 8)}
    qat.begin(module, qat.QuantizationOptions(), example)
    model = export(module, example, tmp_path / "m.onnx")
    assert {item.name for item in model.value.graph.input} == {"a", "b"}
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = module(**example).numpy()
    found = session.run(None, {name: value.numpy() for name, value in example.items()})[0]
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_module_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RequestError, match="torch cannot export Branching"):
        export(Branching(), torch.randn(2, 3))


def test_a_module_changed_since_is_refused(trained: nn.Module) -> None:
    module = copy.deepcopy(trained)
    module.skip = nn.Sequential()
    with pytest.raises(StageError, match="places to round have changed since quantization began"):
        export(module, shapes_of_four_kinds(2, 0)[0])


def test_a_torch_model_is_exported_for_one_shot() -> None:
    module = Toy().eval()
    model = Model("torch", module, {"example_inputs": shapes_of_four_kinds(2, 0)[0], "path": "model.pt"})
    exported = export_model(model)
    assert (exported.format, exported.facts["path"]) == ("onnx", "model.pt")
    assert "example_inputs" not in exported.facts
    with pytest.raises(RequestError, match="says nothing of its inputs"):
        export_model(Model("torch", module))


@pytest.mark.skipif(not RESNET20.is_file(), reason=f"{RESNET20} is missing")
def test_resnet20_agrees_layer_by_layer_and_as_a_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ResNet20()
    module.load_state_dict(torch.load(RESNET20, weights_only=True))
    images = torch.randn(256, 3, 32, 32)
    qat.begin(module, qat.QuantizationOptions(), images[:64])
    qat.calibrate(module, [images[:64]])
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), 1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(module(images[:32]), torch.arange(32) % 10).backward()
        optimizer.step()
    qat.finish(module)
    module.eval()
    export(module, images, tmp_path / "model.onnx")
    steps = layer_steps(tmp_path / "model.onnx", module, images[:16])
    assert max(steps.values()) <= 1, steps
    assert agreement(tmp_path / "model.onnx", module, images) >= 0.99  # of noise, where classes are close
    assert open_session(tmp_path / "model.onnx", 1).facts["int8_executed"] == 20


def test_layers_keep_their_names_where_others_are_gone() -> None:
    """Two exports of one network are compared layer by layer, the second without a block and with fewer channels."""
    torch.manual_seed(0)
    dense = Blocks().eval()
    reference = export(dense, IMAGES[0])
    thinner = copy.deepcopy(dense)
    (block,) = (block for block in find_blocks(thinner, IMAGES) if block.path == "body.2")
    thin(thinner, IMAGES, target=0.6, multiple=8, blocks=[block], ignore=["stem"])
    candidate = export(thinner, IMAGES[0])
    names = [layer.name for layer in weight_layers(reference.value)]
    assert names[:3] == ["stem", "body.0.one", "body.0.two"]
    gone = {"body.2.one", "body.2.two"}
    assert {layer.name for layer in weight_layers(candidate.value)} == set(names) - gone
    wide, narrow = (
        {one: module.get_submodule(one).weight.shape[0] for one in names if one not in gone}
        for module in (dense, thinner)
    )
    found = FORMAT.compare(reference, candidate, dataset(reference.value, 4), 2, None)
    assert set(found) == {one for one in wide if wide[one] == narrow[one]}
    assert found["stem"]["sqnr_db"] > 100
