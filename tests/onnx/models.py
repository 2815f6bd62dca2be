"""Small models with seeded weights for every test of the ONNX integration: built by hand, run in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sparsify import Dataset, Sample

OPSET = 17
Arrays = dict[str, NDArray[Any]]


@dataclass
class Builder:
    """Collect nodes and weights; every method returns the name of the tensor it makes."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        spread = np.sqrt(2 / fan_in) if scale is None else scale
        return self.constant(name, (spread * self.random.standard_normal(shape)).astype(np.float32))

    def op(self, kind: str, *inputs: str, name: str | None = None, output: str = "", **facts: Any) -> str:
        label = f"{kind.lower()}{len(self.nodes)}" if name is None else name
        made = output or f"{kind.lower()}{len(self.nodes)}_out"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=label, **facts))
        return made

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        group: int = 1,
        bias: bool = True,
        name: str = "",
        **facts: Any,
    ) -> str:
        name = name or f"conv{len(self.nodes)}"
        held = [self.weight(f"{name}.weight", outputs, inputs // group, kernel, kernel)]
        held += [self.weight(f"{name}.bias", outputs, scale=0.1)] if bias else []
        facts = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "group": group, **facts}
        return self.op("Conv", x, *held, name=name, **facts)

    def batch_norm(self, x: str, channels: int, name: str = "") -> str:
        name = name or f"bn{len(self.nodes)}"
        rows = {
            "gamma": self.random.uniform(0.5, 1.5, channels),
            "beta": self.random.normal(0, 0.2, channels),
            "mean": self.random.normal(0, 0.2, channels),
            "variance": self.random.uniform(0.5, 2, channels),
        }
        held = [self.constant(f"{name}.{key}", row.astype(np.float32)) for key, row in rows.items()]
        return self.op("BatchNormalization", x, *held, name=name)

    def gemm(self, x: str, inputs: int, outputs: int, *, trans_b: bool = True, name: str = "", **facts: Any) -> str:
        name = name or f"gemm{len(self.nodes)}"
        shape = (outputs, inputs) if trans_b else (inputs, outputs)
        held = [self.weight(f"{name}.weight", *shape), self.weight(f"{name}.bias", outputs, scale=0.1)]
        return self.op("Gemm", x, *held, name=name, transB=int(trans_b), **facts)

    def matmul(self, x: str, inputs: int, outputs: int, *, left: bool = False, name: str = "") -> str:
        name = name or f"matmul{len(self.nodes)}"
        if left:
            return self.op("MatMul", self.weight(f"{name}.weight", outputs, inputs), x, name=name)
        return self.op("MatMul", x, self.weight(f"{name}.weight", inputs, outputs), name=name)

    def head(self, x: str, channels: int, classes: int) -> str:
        return self.gemm(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, classes, name="head")

    def model(
        self,
        result: str,
        shape: Sequence[int | str] = ("batch", 3, 8, 8),
        *,
        output: str = "logits",
        rank: int = 2,
        kind: int = TensorProto.FLOAT,
        opset: int = OPSET,
        domain: str = "",
    ) -> onnx.ModelProto:
        for node in self.nodes:
            for index, name in enumerate(node.output):
                node.output[index] = output if name == result else name
            for index, name in enumerate(node.input):
                node.input[index] = output if name == result else name
        given = helper.make_tensor_value_info("input", kind, shape)
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], *[None] * (rank - 1)])
        graph = helper.make_graph(self.nodes, "small", [given, *self.inputs], [made], self.weights)
        opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        return model


def conv_net(seed: int = 0, batch: int | str = "batch") -> onnx.ModelProto:
    """Conv + BN + ReLU, a strided conv, global pooling, Gemm."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv("input", 3, 8, name="stem", bias=False), 8))
    x = b.op("Relu", b.batch_norm(b.conv(x, 8, 16, name="middle", strides=[2, 2]), 16))
    x = b.op("Relu", b.conv(x, 16, 16, name="deep"))
    return b.model(b.head(x, 16, 10), (batch, 3, 8, 8))


def residual_net(seed: int = 0) -> onnx.ModelProto:
    """Two residual blocks with BN, the second one with a projection."""
    b = Builder(seed)
    x = b.op("Relu", b.batch_norm(b.conv("input", 3, 8, name="stem"), 8))
    y = b.op("Relu", b.batch_norm(b.conv(x, 8, 8, name="block1.conv1"), 8))
    x = b.op("Relu", b.op("Add", b.batch_norm(b.conv(y, 8, 8, name="block1.conv2"), 8), x))
    y = b.op("Relu", b.conv(x, 8, 16, name="block2.conv1", strides=[2, 2]))
    side = b.conv(x, 8, 16, 1, name="block2.side", strides=[2, 2])
    x = b.op("Relu", b.op("Add", b.conv(y, 16, 16, name="block2.conv2"), side))
    return b.model(b.head(x, 16, 10))


def depthwise_net(seed: int = 0) -> onnx.ModelProto:
    """An inverted residual: pointwise, depthwise, grouped and pointwise convolutions with ReLU6."""
    b = Builder(seed)
    low, high = b.constant("low", np.float32(0)), b.constant("high", np.float32(6))
    x = b.op("Clip", b.conv("input", 3, 8, name="stem"), low, high)
    x = b.op("Clip", b.conv(x, 8, 16, 1, name="expand"), low, high)
    x = b.op("Clip", b.conv(x, 16, 16, name="depthwise", group=16), low, high)
    x = b.op("Relu", b.conv(x, 16, 16, name="grouped", group=4))
    x = b.conv(x, 16, 8, 1, name="project")
    return b.model(b.head(x, 8, 10))


def fire_net(seed: int = 0) -> onnx.ModelProto:
    """Two SqueezeNet fire modules around a MaxPool, joined by Concat."""
    b = Builder(seed)
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    for index, inputs in enumerate((8, 16)):
        s = b.op("Relu", b.conv(x, inputs, 4, 1, name=f"fire{index}.squeeze"))
        small = b.op("Relu", b.conv(s, 4, 8, 1, name=f"fire{index}.expand1"))
        large = b.op("Relu", b.conv(s, 4, 8, 3, name=f"fire{index}.expand3"))
        x = b.op("Concat", small, large, axis=1)
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if index == 0 else x
    x = b.op("Relu", b.conv(x, 16, 10, 1, name="classifier"))
    return b.model(b.op("Flatten", b.op("GlobalAveragePool", x)))


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Gemm both ways round, and MatMul with its weight on the right: 12 features in, 5 classes out."""
    b = Builder(seed)
    x = b.op("Relu", b.gemm("input", 12, 16, name="first"))
    x = b.op("Relu", b.gemm(x, 16, 24, trans_b=False, name="second"))
    x = b.matmul(x, 24, 16, name="third")
    x = b.op("Relu", b.op("Add", x, b.weight("third.bias", 16, scale=0.1)))
    return b.model(b.gemm(x, 16, 5, name="last"), ("batch", 12))


def left_matmul(seed: int = 0) -> onnx.ModelProto:
    """MatMul with its weight on the left between two on the right: (batch, 6, 12) in, (batch, 9, 5) out."""
    b = Builder(seed)
    x = b.op("Relu", b.matmul("input", 12, 16, name="first"))
    x = b.op("Relu", b.matmul(x, 6, 9, left=True, name="left"))
    return b.model(b.matmul(x, 16, 5, name="last"), ("batch", 6, 12), rank=3)


def attention(seed: int = 0, width: int = 16, heads: int = 2, length: int | str = 6) -> onnx.ModelProto:
    """Give one pre-norm transformer block and a classifier on the mean token: (batch, length, width) in."""
    b = Builder(seed)
    split = b.constant("split", np.array([0, 0, heads, width // heads], dtype=np.int64))
    merge = b.constant("merge", np.array([0, 0, width], dtype=np.int64))
    root = b.constant("root", np.float32(np.sqrt(width // heads)))

    def norm(x: str, name: str) -> str:
        gamma = b.constant(f"{name}.gamma", np.ones(width, dtype=np.float32))
        return b.op("LayerNormalization", x, gamma, b.weight(f"{name}.beta", width, scale=0.1), name=name, axis=-1)

    def linear(x: str, inputs: int, outputs: int, name: str) -> str:
        return b.op("Add", b.matmul(x, inputs, outputs, name=name), b.weight(f"{name}.bias", outputs, scale=0.1))

    x = linear("input", width, width, "embed")
    y = norm(x, "norm1")
    q, k, v = (b.op("Reshape", linear(y, width, width, name), split) for name in ("query", "key", "value"))
    q, v = (b.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = b.op("Div", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1]), name="scores"), root)
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v, name="mix")
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), merge)
    x = b.op("Add", x, linear(y, width, width, "project"))
    y = b.op("Relu", linear(norm(x, "norm2"), width, 2 * width, "up"))
    x = b.op("Add", x, linear(y, 2 * width, width, "down"))
    x = b.op("ReduceMean", x, axes=[1], keepdims=0)
    return b.model(b.gemm(x, width, 5, name="head"), ("batch", length, width))


def upsampler(seed: int = 0) -> onnx.ModelProto:
    """Give transposed convolutions, plain, grouped and depthwise, between convolutions."""
    b = Builder(seed)

    def grow(x: str, inputs: int, outputs: int, name: str, group: int = 1, **facts: Any) -> str:
        held = b.weight(f"{name}.weight", inputs, outputs // group, 3, 3, scale=(inputs / group * 2) ** -0.5)
        return b.op(
            "ConvTranspose", x, held, b.weight(f"{name}.bias", outputs, scale=0.1), name=name, group=group, **facts
        )

    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    x = b.op("Relu", grow(x, 8, 12, "widen", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]))
    x = b.op("Relu", b.conv(x, 12, 8, name="middle"))
    x = b.op("Relu", grow(x, 8, 8, "grow", group=2, strides=[2, 1], pads=[1] * 4))
    x = grow(x, 8, 8, "deepen", group=8, pads=[1] * 4)
    return b.model(b.head(b.op("Relu", b.conv(x, 8, 8, name="deep")), 8, 10))


FAMILY = {
    "conv_net": conv_net,
    "residual_net": residual_net,
    "depthwise_net": depthwise_net,
    "fire_net": fire_net,
    "mlp": mlp,
    "left_matmul": left_matmul,
    "attention": attention,
    "upsampler": upsampler,
}


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model and return its path."""
    path = folder / name
    onnx.save(model, path)
    return path


def samples(model: onnx.ModelProto, count: int, seed: int = 0) -> Arrays:
    """Draw a batch of normal noise for the model's one input."""
    dims = [dim.dim_value or 6 for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    noise = np.random.default_rng(seed).standard_normal((count, *dims)).astype(np.float32)
    return {model.graph.input[0].name: noise}


def dataset(model: onnx.ModelProto, count: int = 16, seed: int = 0) -> Dataset:
    """Serve `samples` one by one."""
    batch = samples(model, count, seed)

    def read(key: str) -> Sample:
        return Sample({name: array[int(key)] for name, array in batch.items()})

    return Dataset(tuple(str(index) for index in range(count)), read)


def run(model: onnx.ModelProto | Path, inputs: Arrays, outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
    """Run a model in ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(outputs, inputs)
    return found


def mlp_at(opset: int) -> onnx.ModelProto:
    """Give `mlp` with another opset; its operators have not changed since 9."""
    model = mlp()
    model.opset_import[0].version = opset
    return model
