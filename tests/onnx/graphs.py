"""Miniatures of what must not be rounded: detection heads, attention with masks, normalisations written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx.models import Builder

SIDE, CLASSES, BINS = 16, 5, 8
ANCHORS = 3


def silu(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


def backbone(b: Builder) -> list[tuple[str, int, int]]:
    """Give two feature maps with their channels and sides."""
    x = silu(b, b.conv("input", 3, 8, name="stem", strides=[2, 2]))
    x = silu(b, b.conv(x, 8, 12, name="body1"))
    y = silu(b, b.conv(x, 12, 16, name="body2", strides=[2, 2]))
    return [(x, 12, SIDE // 2), (y, 16, SIDE // 4)]


def ints(b: Builder, name: str, *values: int) -> str:
    return b.constant(name, np.array(values, dtype=np.int64))


def floats(b: Builder, name: str, array: object) -> str:
    return b.constant(name, np.asarray(array, dtype=np.float32))


def grid(side: int) -> np.ndarray:
    """Give the centres of a map's places as 2 × places."""
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return np.stack([x.reshape(-1), y.reshape(-1)]).astype(np.float32) + 0.5


def laid_flat(b: Builder, maps: list[str], channels: int, name: str) -> str:
    flat = [b.op("Reshape", x, ints(b, f"{name}{i}.shape", 0, channels, -1)) for i, x in enumerate(maps)]
    return b.op("Concat", *flat, axis=2)


def head_v8(seed: int = 0) -> onnx.ModelProto:
    """YOLOv8: box sides as distributions over bins, whose mean a Conv with fixed weights takes; sigmoid scores."""
    b = Builder(seed)
    maps = backbone(b)
    sides = [silu(b, b.conv(x, c, 16, name=f"box{i}")) for i, (x, c, _) in enumerate(maps)]
    kinds = [silu(b, b.conv(x, c, 16, name=f"class{i}")) for i, (x, c, _) in enumerate(maps)]
    sides = [b.conv(x, 16, 4 * BINS, 1, name=f"last_box{i}") for i, x in enumerate(sides)]
    kinds = [b.conv(x, 16, CLASSES, 1, name=f"last_class{i}") for i, x in enumerate(kinds)]
    box, kind = laid_flat(b, sides, 4 * BINS, "box"), laid_flat(b, kinds, CLASSES, "class")
    bins = b.op("Reshape", box, ints(b, "bins", 0, 4, BINS, -1))
    bins = b.op("Softmax", b.op("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
    steps = floats(b, "steps", np.arange(BINS).reshape(1, BINS, 1, 1))
    mean = b.op("Conv", bins, steps, name="mean_of_bins", kernel_shape=[1, 1])
    mean = b.op("Reshape", mean, ints(b, "four", 0, 4, -1))
    near, far = (b.op("Slice", mean, ints(b, f"b{i}", i), ints(b, f"e{i}", i + 2), ints(b, f"a{i}", 1)) for i in (0, 2))
    places = floats(b, "places", np.concatenate([grid(side) for *_, side in maps], axis=1)[None])
    strides = floats(b, "strides", np.concatenate([np.full(s * s, SIDE / s) for *_, s in maps]).reshape(1, 1, -1))
    low, high = b.op("Sub", places, near), b.op("Add", places, far)
    centre = b.op("Div", b.op("Add", low, high), floats(b, "two", 2.0))
    boxes = b.op("Mul", b.op("Concat", centre, b.op("Sub", high, low), axis=1), strides)
    x = b.op("Concat", boxes, b.op("Sigmoid", kind, name="scores"), axis=1, name="boxes_and_scores")
    return b.model(x, ("batch", 3, SIDE, SIDE), rank=3)


def head_v5(seed: int = 0) -> onnx.ModelProto:
    """YOLOv5: one Conv a scale; xy, wh and scores are cut from its sigmoid, decoded with anchors, and joined again."""
    b = Builder(seed)
    width, parts, heads = 5 + CLASSES, ints(b, "parts", 2, 2, 1 + CLASSES), []
    for i, (x, channels, side) in enumerate(backbone(b)):
        x = b.conv(x, channels, ANCHORS * width, 1, name=f"detect{i}")
        x = b.op("Reshape", x, ints(b, f"split{i}", 0, ANCHORS, width, side, side))
        x = b.op("Sigmoid", b.op("Transpose", x, perm=[0, 1, 3, 4, 2]))
        cut = [f"cut{i}.{part}" for part in ("xy", "wh", "rest")]
        b.nodes.append(helper.make_node("Split", [x, parts], cut, f"cut{i}", axis=4))
        xy = b.op("Add", b.op("Mul", cut[0], "two"), floats(b, f"grid{i}", grid(side).T.reshape(side, side, 2) - 1))
        xy = b.op("Mul", xy, floats(b, f"stride{i}", SIDE / side))
        wh = b.op("Pow", b.op("Mul", cut[1], "two"), "two")
        wh = b.op("Mul", wh, floats(b, f"anchors{i}", b.random.uniform(2, 9, (1, ANCHORS, 1, 1, 2))))
        x = b.op("Concat", xy, wh, cut[2], axis=4, name=f"join{i}")
        heads.append(b.op("Reshape", x, ints(b, f"flat{i}", 0, -1, width)))
    floats(b, "two", 2.0)
    return b.model(b.op("Concat", *heads, axis=1, name="scales"), ("batch", 3, SIDE, SIDE), rank=3)


def head_exp(seed: int = 0) -> onnx.ModelProto:
    """YOLOX: raw boxes beside sigmoid scores, joined before sizes are exponentials; a 4 × 4 matrix gives corners."""
    b = Builder(seed)
    heads = []
    for i, (x, channels, _) in enumerate(backbone(b)):
        box, kind = b.conv(x, channels, 4, 1, name=f"box{i}"), b.conv(x, channels, CLASSES, 1, name=f"class{i}")
        x = b.op("Concat", box, b.op("Sigmoid", kind), axis=1)
        heads.append(b.op("Reshape", x, ints(b, f"flat{i}", 0, 4 + CLASSES, -1)))
    x = b.op("Transpose", b.op("Concat", *heads, axis=2), perm=[0, 2, 1])
    b.nodes.append(helper.make_node("Split", [x, ints(b, "parts", 2, 2, CLASSES)], ["xy", "wh", "s"], "cut", axis=2))
    wh = b.op("Mul", b.op("Exp", "wh"), floats(b, "size", 4.0))
    corners = [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
    boxes = b.op("MatMul", b.op("Concat", "xy", wh, axis=2), floats(b, "corners", corners), name="to_corners")
    return b.model(b.op("Concat", boxes, "s", axis=2), ("batch", 3, SIDE, SIDE), rank=3)


def head_nms(seed: int = 0) -> onnx.ModelProto:
    """Give the indices that NonMaxSuppression keeps of boxes and scores, which nothing else joins."""
    b = Builder(seed)
    x, channels, _ = backbone(b)[1]
    box, kind = b.conv(x, channels, 4, 1, name="box"), b.conv(x, channels, CLASSES, 1, name="class")
    boxes = b.op("Transpose", b.op("Reshape", box, ints(b, "four", 0, 4, -1)), perm=[0, 2, 1])
    scores = b.op("Sigmoid", b.op("Reshape", kind, ints(b, "kinds", 0, CLASSES, -1)), name="scores")
    limits = [b.constant("most", np.array([20], dtype=np.int64)), *(floats(b, n, [0.4]) for n in ("overlap", "least"))]
    x = b.op("NonMaxSuppression", boxes, scores, *limits, name="suppress")
    return b.model(b.op("Cast", x, to=TensorProto.FLOAT), ("batch", 3, SIDE, SIDE), rank=2)


def two_stages(seed: int = 0) -> onnx.ModelProto:
    """Propose boxes, cut their features out, and classify those: layers follow the decoding, but not its values."""
    b = Builder(seed)
    x, channels, side = backbone(b)[1]
    delta = b.conv(x, channels, 4, 1, name="propose")
    delta = b.op("Transpose", b.op("Reshape", delta, ints(b, "rows", 4, -1)), perm=[1, 0])
    b.nodes.append(helper.make_node("Split", [delta, ints(b, "parts", 2, 2)], ["xy", "wh"], "cut", axis=1))
    xy = b.op("Add", "xy", floats(b, "grid", grid(side).T), name="move")
    wh = b.op("Exp", "wh", name="grow")
    boxes = b.op("Concat", xy, b.op("Add", xy, wh), axis=1, name="proposals")
    x = silu(b, b.conv(x, channels, 16, name="features"))
    x = b.op(
        "RoiAlign", x, boxes, b.constant("of", np.zeros(side * side, dtype=np.int64)), output_height=2, output_width=2
    )
    x = b.op("Relu", b.gemm(b.op("Flatten", x), 64, 16, name="judge"))
    return b.model(b.gemm(x, 16, CLASSES, name="decide"), (1, 3, SIDE, SIDE))


def conv_attention(seed: int = 0, mask: float = -1e9) -> onnx.ModelProto:
    """Attention between convolutions, whose integers would reach scores, mask and positions if nothing stopped them."""
    b = Builder(seed)
    places = 16
    x = b.op("Add", b.conv("input", 3, 8, name="stem"), b.weight("positions", 1, 8, 4, 4), name="place")
    x = b.op("Relu", b.conv(x, 8, 8, name="body"))
    q, k, v = (b.op("Reshape", b.conv(x, 8, 8, 1, name=n), ints(b, f"{n}.flat", 0, 8, -1)) for n in "qkv")
    scores = b.op("MatMul", b.op("Transpose", q, perm=[0, 2, 1]), k, name="compare")
    scores = b.op("Mul", scores, floats(b, "root", 8**-0.5), name="scale")
    far = np.where(np.tril(np.ones((places, places))) > 0, 0, mask)
    weights = b.op("Softmax", b.op("Add", scores, floats(b, "far", far[None]), name="hide"), axis=-1, name="soften")
    y = b.op("MatMul", v, b.op("Transpose", weights, perm=[0, 2, 1]), name="mix")
    x = b.op("Add", x, b.conv(b.op("Reshape", y, ints(b, "map", 0, 8, 4, 4)), 8, 8, 1, name="project"), name="residual")
    gate = b.op("Softmax", b.conv(b.op("Relu", x), 8, 8, 1, name="gate"), axis=1, name="choose")
    x = b.conv(b.op("Add", x, b.op("Mul", gate, x, name="weigh")), 8, 8, name="after")
    return b.model(b.head(b.op("Relu", x), 8, 4), ("batch", 3, 4, 4))


def masked_encoder(seed: int = 0, least: float = float(np.finfo(np.float32).min)) -> onnx.ModelProto:
    """Ids and a mask in: embeddings of words and positions, one attention layer, logits from the first token."""
    b, width, length, words = Builder(seed), 16, 6, 50
    x = b.op("Gather", b.weight("words", words, width, scale=1.0), "input", name="look_up")
    order = b.op("Slice", ints(b, "order", *range(12)), ints(b, "zero", 0), ints(b, "end", length), name="count")
    x = b.op(
        "Add", x, b.op("Gather", b.weight("places", 12, width, scale=0.3), order, name="look_up_place"), name="embed"
    )
    x = b.op("LayerNormalization", x, floats(b, "ones", np.ones(width)), name="norm", axis=-1)
    q, k, v = (b.op("Add", b.matmul(x, width, width, name=n), b.weight(f"{n}.bias", width)) for n in "qkv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]), name="compare")
    scores = b.op("Div", scores, floats(b, "root", np.sqrt(width)), name="scale")
    seen = b.op("Cast", b.op("Unsqueeze", "mask", ints(b, "middle", 1)), to=TensorProto.FLOAT, name="mask_as_float")
    hidden = b.op("Mul", b.op("Sub", floats(b, "one", 1.0), seen), floats(b, "least", least), name="far")
    weights = b.op("Softmax", b.op("Add", scores, hidden, name="hide"), axis=-1, name="soften")
    x = b.op("Add", x, b.matmul(b.op("MatMul", weights, v, name="mix"), width, width, name="project"))
    x = b.op("Relu", b.matmul(x, width, 2 * width, name="up"))
    x = b.op("Flatten", b.op("Gather", b.matmul(x, 2 * width, width, name="down"), ints(b, "first", 0), axis=1))
    b.inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ("batch", length)))
    return b.model(b.gemm(x, width, 3, name="head"), ("batch", length), kind=TensorProto.INT64)


def conv_norms(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with normalisations between them, written out: layer norm, root mean square, unit length."""
    b = Builder(seed)
    axes, two = [1], floats(b, "two", 2.0)
    small = floats(b, "small", 1e-5)
    x = b.conv("input", 3, 8, name="stem")
    mean = b.op("ReduceMean", x, axes=axes, name="ln_mean")
    away = b.op("Sub", x, mean, name="ln_away")
    spread = b.op("ReduceMean", b.op("Pow", away, two, name="ln_square"), axes=axes, name="ln_variance")
    root = b.op("Sqrt", b.op("Add", spread, small, name="ln_small"), name="ln_root")
    x = b.op("Div", away, root, name="ln_quotient")
    x = b.op("Mul", x, b.weight("ln.scale", 1, 8, 1, 1, scale=1.0), name="ln_scale")
    x = b.op("Add", x, b.weight("ln.shift", 1, 8, 1, 1, scale=0.1), name="ln_shift")
    x = b.conv(b.op("Relu", x), 8, 8, name="one")
    mean = b.op("ReduceMean", b.op("Mul", x, x, name="rms_square"), axes=axes, name="rms_mean")
    root = b.op("Sqrt", b.op("Add", mean, small, name="rms_small"), name="rms_root")
    x = b.op("Mul", x, b.op("Reciprocal", root, name="rms_inverse"), name="rms_apply")
    x = b.conv(x, 8, 8, name="two_")
    length = b.op("ReduceL2", x, axes=axes, name="l2_length")
    x = b.op("Div", x, b.op("Max", length, small, name="l2_least"), name="l2_apply")
    return b.model(b.head(b.op("Relu", b.conv(x, 8, 8, name="three")), 8, 4))


HEADS: dict[str, Callable[[int], onnx.ModelProto]] = {"v8": head_v8, "v5": head_v5, "exp": head_exp}
ALL: dict[str, Callable[[int], onnx.ModelProto]] = {
    **HEADS,
    "nms": head_nms,
    "two_stages": two_stages,
    "conv_attention": conv_attention,
    "masked_encoder": masked_encoder,
    "conv_norms": conv_norms,
}
