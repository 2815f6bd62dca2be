"""The Open Inference Protocol: metadata, JSON and binary tensors of every type, with NVIDIA's own client too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.onnx import models
from tests.serve.serving import KINDS, adder, deployment, echo, serving_folder

DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}
HEADER = "Inference-Header-Content-Length"


def values(kind: str, rows: int = 2) -> np.ndarray:
    """Draw values of a type that reach to its ends."""
    dtype = np.dtype(DTYPES.get(kind, kind.lower()))
    if dtype.kind == "b":
        return np.arange(3 * rows).reshape(rows, 3) % 2 == 0
    if dtype.kind == "f":
        return np.random.default_rng(3).standard_normal((rows, 3)).astype(dtype)
    ends = np.iinfo(dtype)
    return np.array([[ends.min, 1, ends.max]] * rows, dtype)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_folder(deployment(echo(), tmp_path_factory.mktemp("echo") / "all"), name="echo") as address:
        yield address


@pytest.fixture(scope="module")
def client(model: str) -> Iterator[Any]:
    import tritonclient.http

    made = tritonclient.http.InferenceServerClient(model.removeprefix("http://").partition("/")[0])
    yield made
    made.close()


def json_inputs(rows: int = 2, **changed: dict[str, Any]) -> list[dict[str, Any]]:
    made = []
    for kind in KINDS:
        array = values(kind, rows)
        row = {"name": f"in_{kind}", "shape": list(array.shape), "datatype": kind, "data": array.ravel().tolist()}
        made.append({**row, **changed.get(kind, {})})
    return made


def test_metadata_and_health(model: str, client: Any) -> None:
    base = model.partition("/v2/")[0]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("echo", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("echo")
    assert (found["name"], found["versions"], found["platform"]) == ("echo", ["1"], "onnxruntime_onnx")
    assert found["inputs"] == [{"name": f"in_{kind}", "datatype": kind, "shape": [-1, 3]} for kind in KINDS]
    assert found["outputs"] == [{"name": f"out_{kind}", "datatype": kind, "shape": [-1, 3]} for kind in KINDS]
    assert client.get_model_metadata("echo", "1") == found
    assert httpx.get(f"{base}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{model}/ready").json() == {"name": "echo", "ready": True}


def test_json_of_every_type(model: str) -> None:
    for url in (f"{model}/infer", f"{model}/versions/1/infer"):
        found = httpx.post(url, json={"inputs": json_inputs(), "id": "mine"})
        assert found.status_code == 200, found.text
        answer = found.json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("echo", "1", "mine")
        assert HEADER not in found.headers
        for row, kind in zip(answer["outputs"], KINDS, strict=True):
            array = values(kind)
            assert {**row, "data": 0} == {"name": f"out_{kind}", "datatype": kind, "shape": [2, 3], "data": 0}
            np.testing.assert_array_equal(np.array(row["data"], array.dtype), array.ravel())


def test_nested_data_and_chosen_outputs(model: str) -> None:
    nested = {kind: {"data": values(kind).tolist()} for kind in KINDS}
    body = {"inputs": json_inputs(**nested), "outputs": [{"name": "out_INT8"}, {"name": "out_BOOL"}]}
    answer = httpx.post(f"{model}/infer", json=body).json()
    assert "id" not in answer
    assert [row["name"] for row in answer["outputs"]] == ["out_INT8", "out_BOOL"]
    assert answer["outputs"][0]["data"] == values("INT8").ravel().tolist()
    assert len(httpx.post(f"{model}/infer", json={**body, "outputs": []}).json()["outputs"]) == len(KINDS)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_nvidias_client(client: Any, binary_in: bool, binary_out: bool) -> None:
    import tritonclient.http

    inputs, outputs = [], []
    for kind in KINDS:
        given = tritonclient.http.InferInput(f"in_{kind}", [2, 3], kind)
        given.set_data_from_numpy(values(kind), binary_data=binary_in or kind == "FP16")  # its JSON knows no FP16
        inputs.append(given)
        outputs.append(tritonclient.http.InferRequestedOutput(f"out_{kind}", binary_data=binary_out))
    found = client.infer("echo", inputs, outputs=outputs, request_id="7")
    for kind in KINDS:
        array = found.as_numpy(f"out_{kind}")
        assert array.dtype == values(kind).dtype
        np.testing.assert_array_equal(array, values(kind))
    assert found.get_response()["id"] == "7"
    every = client.infer("echo", inputs)  # no outputs named: all of them, in binary
    np.testing.assert_array_equal(every.as_numpy("out_FP64"), values("FP64"))


def binary_body(inputs: list[tuple[str, np.ndarray]], **more: Any) -> tuple[bytes, dict[str, str]]:
    names = {str(values(kind).dtype): kind for kind in KINDS}
    rows = [
        {"name": name, "shape": array.shape, "datatype": names[str(array.dtype)],
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs
    ]  # fmt: skip
    head = json.dumps({"inputs": rows, **more}).encode()
    return head + b"".join(array.tobytes() for _, array in inputs), {HEADER: str(len(head))}


def test_binary_in_any_order_mixed_with_json_and_chunked(model: str) -> None:
    kinds = list(reversed(KINDS))  # BOOL's odd bytes shift what follows out of alignment
    kinds = ["BOOL", *[kind for kind in kinds if kind != "BOOL"]]
    asked = [{"name": "out_FP64", "parameters": {"binary_data": False}}, {"name": "out_INT16"}]
    body, headers = binary_body(
        [(f"in_{kind}", values(kind, 1)) for kind in kinds], outputs=asked, parameters={"binary_data_output": True}
    )
    for content in (body, iter([body[:10], body[10:300], body[300:]])):
        found = httpx.post(f"{model}/infer", content=content, headers=headers)
        assert found.status_code == 200, found.text
        length = int(found.headers[HEADER])
        first, second = json.loads(found.content[:length])["outputs"]
        assert first["data"] == values("FP64", 1).ravel().tolist()
        assert second["parameters"] == {"binary_data_size": 6}
        np.testing.assert_array_equal(np.frombuffer(found.content[length:], "<i2"), values("INT16", 1)[0])


def test_several_outputs_and_free_axes_equal_the_session(tmp_path: Path) -> None:
    folder = deployment(adder(1.5), tmp_path / "adder")
    with serving_folder(folder) as address, httpx.Client() as client:
        assert address.endswith("/v2/models/custom-test")
        for length in (1, 4, 9):
            x = np.random.default_rng(length).standard_normal((3, length)).astype(np.float32)
            row = {"name": "x", "shape": [3, length], "datatype": "FP32", "data": x.tolist()}
            found = client.post(f"{address}/infer", json={"inputs": [row]}).json()["outputs"]
            assert [one["shape"] for one in found] == [[3, length], [3]]
            wanted = models.run(folder / "model.onnx", {"x": x})
            for one, array in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(np.array(one["data"], np.float32), array.ravel())


def test_nan_is_refused_in_json_and_sent_in_binary(model: str) -> None:
    inputs = [(f"in_{kind}", values(kind, 1)) for kind in KINDS]
    inputs = [(name, np.full_like(array, np.nan) if name == "in_FP32" else array) for name, array in inputs]
    body, headers = binary_body(inputs)
    found = httpx.post(f"{model}/infer", content=body, headers=headers)
    assert found.status_code == 400
    assert found.json()["error"] == (
        "output 'out_FP32' holds NaN or infinity, which JSON cannot say; fix: ask for it with "
        '"parameters": {"binary_data": true}'
    )
    body, headers = binary_body(inputs, parameters={"binary_data_output": True})
    found = httpx.post(f"{model}/infer", content=body, headers=headers)
    assert found.status_code == 200
    assert np.isnan(np.frombuffer(found.content[-36:-24], "<f4")).all()  # before FP64's 24 bytes


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    with serving_folder(deployment(models.conv_net(batch=4), tmp_path / "four")) as address:
        for rows, status in ((4, 200), (1, 400)):
            row = {"name": "input", "shape": [rows, 3, 8, 8], "datatype": "FP32", "data": [0.5] * (rows * 192)}
            found = httpx.post(f"{address}/infer", json={"inputs": [row]})
            assert found.status_code == status
        assert found.json()["error"].startswith("input 'input' has shape [1, 3, 8, 8], the model takes [4, 3, 8, 8]")
