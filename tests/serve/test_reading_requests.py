"""Requests of any shape, without a server: each is read as what it says, or refused as the client's mistake."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify import Deployment, RequestError, TensorSpec
from sparsify_serve.protocol import read_request, write_response

from tests.serve.test_protocol import values

SPECS = (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("n", "int8", ("batch", None)))
HELD = Deployment(Path("nowhere"), "custom", (), SPECS, SPECS, None)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
WORDS = st.sampled_from(["x", "n", "FP32", "INT8", "BYTES", "UINT8", "binary_data_size", "binary_data"])
SHAPES = st.lists(st.integers(-1, 3) | st.integers(), max_size=4)
PARAMETERS = st.dictionaries(WORDS | st.just("binary_data_output"), st.integers(0, 20) | ANYTHING, max_size=2)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": WORDS | ANYTHING,
        "datatype": WORDS | ANYTHING,
        "shape": SHAPES | ANYTHING,
        "data": st.lists(st.floats(-2, 2) | st.integers(-200, 200), max_size=6) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSOR, max_size=3) | ANYTHING,
        "outputs": st.lists(TENSOR, max_size=2) | ANYTHING,
        "id": ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)


@settings(max_examples=600, deadline=None)
@given(document=REQUEST | ANYTHING, tail=st.binary(max_size=20), header=st.none() | st.integers(-5, 400))
def test_any_json_is_read_or_refused(document: Any, tail: bytes, header: int | None) -> None:
    head = json.dumps(document).encode()
    for length in (header, len(head)):
        with suppress(RequestError):
            found = read_request(memoryview(head + tail), length, HELD)
            assert {name: array.dtype.name for name, array in found.inputs.items()} == {"x": "float32", "n": "int8"}


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 4), odd=st.booleans(), binary=st.booleans())
def test_what_is_written_can_be_read_again(rows: int, length: int, odd: bool, binary: bool) -> None:
    """Binary tensors, the first of odd length too, come back bit for bit: a response is a request with other names."""
    arrays = {"n": np.full((rows, length), -3, np.int8), "x": values("FP32", rows)[:, :2].copy()}
    order = ["n", "x"] if odd else ["x", "n"]
    inputs = [
        {"name": name, "shape": arrays[name].shape, "datatype": {"x": "FP32", "n": "INT8"}[name],
         "parameters": {"binary_data_size": arrays[name].nbytes}}
        for name in order
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary}}).encode()
    body = memoryview(head + b"".join(arrays[name].tobytes() for name in order))
    found = read_request(body, len(head), HELD)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.inputs[name], array)
        assert found.inputs[name].flags.aligned
    content, end = write_response("m", found, found.inputs)
    answer = json.loads(content[:end])
    again = json.dumps({"inputs": answer["outputs"]}).encode()
    read = read_request(memoryview(again + (content[end:] if end else b"")), len(again), HELD)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.inputs[name], array)
