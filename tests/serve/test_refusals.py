"""Whatever a client sends is answered with 4xx and a reason, and costs other clients nothing."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.serving import adder, deployment, every, serving_folder

HEADER = "Inference-Header-Content-Length"
GOOD = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = deployment(adder(), tmp_path_factory.mktemp("adder") / "adder")
    with serving_folder(folder, name="adder", limits={"max_body": 4_000_000}) as address:
        yield address


def tensor(**changed: Any) -> dict[str, Any]:
    row = {**GOOD, **changed}
    return {"inputs": [{key: value for key, value in row.items() if value is not ...}]}


BINARY = {"data": ..., "parameters": {"binary_data_size": 8}}
REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "the request is no JSON: unexpected end of data"),
    "nothing": (b"", "the request is no JSON"),
    "no UTF-8": (b'{"inputs": "\xff"}', "the request is no JSON"),
    "NaN": (b'{"inputs": [NaN]}', "the request is no JSON"),
    "deep": (b"[" * 100_000, "the request is no JSON"),
    "a list": ([], "the request is no JSON object; fix: send an object with 'inputs'"),
    "no inputs": ({}, "'inputs' is missing; fix: send \"inputs\": [{\"name\": …}]"),
    "inputs that are text": ({"inputs": "x"}, "'inputs' is no list of objects with a name"),
    "an input without a name": ({"inputs": [{}]}, "'inputs' is no list of objects with a name"),
    "no input": ({"inputs": []}, "input 'x' is missing; fix: give all of: x"),
    "an unknown input": (tensor(name="z"), "the model has no input 'z'; fix: use: x"),
    "an input twice": ({"inputs": [GOOD, GOOD]}, "input 'x' is given twice; fix: give each input once"),
    "no datatype": (tensor(datatype=...), "input 'x' has no known 'datatype', the model takes FP32"),
    "a datatype that is none": (tensor(datatype=["FP32"]), "input 'x' has no known 'datatype', the model takes FP32"),
    "another datatype": (tensor(datatype="INT64"), "input 'x' is INT64, the model takes FP32; fix: send \"datatype\""),
    "BYTES": (tensor(datatype="BYTES"), "input 'x' is BYTES, which is not served; fix: send numbers, as FP32"),
    "no shape": (tensor(shape=...), "input 'x' has no 'shape' of positive whole numbers; fix: send for"),
    "a negative shape": (tensor(shape=[-1, 2]), "input 'x' has no 'shape' of positive whole numbers"),
    "an empty axis": (tensor(shape=[0, 2]), "input 'x' has no 'shape' of positive whole numbers"),
    "a shape of floats": (tensor(shape=[1.0, 2]), "input 'x' has no 'shape' of positive whole numbers"),
    "a shape of truths": (tensor(shape=[True, 2]), "input 'x' has no 'shape' of positive whole numbers"),
    "an absurd shape": (tensor(shape=[2**62, 2**62]), "input 'x' has 'data' that does not fill its shape"),
    "another rank": (tensor(shape=[2]), "input 'x' has shape [2], the model takes [batch, length]"),
    "too few values": (tensor(data=[1.0]), "input 'x' has 'data' that does not fill its shape [1, 2]; fix: send 2"),
    "no data": (tensor(data=...), "input 'x' has no 'data'; fix: send \"data\": […], or the bytes with"),
    "data that are text": (tensor(data="12"), "input 'x' has no list as 'data'"),
    "numbers as text": (tensor(data=["1", "2"]), "input 'x' has 'data' that is not all FP32; fix: send numbers alone"),
    "null": (tensor(data=[None, 1.0]), "input 'x' has 'data' that is not all FP32"),
    "truths": (tensor(data=[True, 1.0]), "input 'x' has 'data' that is not all FP32"),
    "ragged data": (tensor(data=[[1.0], [2.0]]), "input 'x' has 'data' that does not fill its shape"),
    "data nested otherwise": (tensor(data=[[[1.0, 2.0]]]), "input 'x' has 'data' that does not fill its shape"),
    "beyond FP32": (tensor(data=[1e300, 1.0]), "input 'x' holds a number beyond FP32; fix: scale it, or send bytes"),
    "parameters": (tensor(parameters=[]), "input 'x' has 'parameters' that are no object; fix: send \"param"),
    "shared memory": (tensor(parameters={"shared_memory_region": "r"}), "input 'x' asks for 'shared_memory_reg"),
    "binary without bytes": (tensor(**BINARY), "input 'x' has 8 bytes, only 0 of them follow the JSON part"),
    "binary and data": (tensor(parameters=BINARY["parameters"]), "input 'x' has both 'data' and 'binary_data_size'"),
    "another size": (tensor(data=..., parameters={"binary_data_size": 9}), "input 'x' has binary_data_size 9, FP32 [1"),
    "a negative size": (tensor(data=..., parameters={"binary_data_size": -8}), "input 'x' has binary_data_size -8"),
    "a size of text": (tensor(data=..., parameters={"binary_data_size": "8"}), "input 'x' has binary_data_size '8"),
    "an id that is none": ({**tensor(), "id": 7}, "'id' is no text; fix: send for example \"id\": \"42\""),
    "an unknown output": ({**tensor(), "outputs": [{"name": "z"}]}, "the model has no output 'z'; fix: use: y, total"),
    "an output twice": ({**tensor(), "outputs": [{"name": "y"}] * 2}, "an output is asked for twice"),
    "outputs that are none": ({**tensor(), "outputs": {}}, "'outputs' is no list of objects with a name"),
    "classes": ({**tensor(), "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "output 'y' asks for"),
    "a flag": ({**tensor(), "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "output 'y' has a 'bin"),
    "another flag": ({**tensor(), "parameters": {"binary_data_output": "y"}}, "the request has a 'binary_data_outp"),
    "parameters of the request": ({**tensor(), "parameters": 1}, "the request has 'parameters' that are no object"),
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as made:
        yield made


@pytest.mark.parametrize("case", REFUSED)
def test_each_refusal_says_why(model: str, client: httpx.Client, case: str) -> None:
    body, reason = REFUSED[case]
    found = client.post(f"{model}/infer", content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found.status_code == 400, found.text
    assert found.json()["error"].startswith(reason)
    assert "; fix: " in found.json()["error"]


@pytest.mark.parametrize(
    ("header", "tail", "reason"),
    [
        ("9999", b"", "Inference-Header-Content-Length is 9999, the body has "),
        ("-1", b"", "Inference-Header-Content-Length is '-1', no length; fix: give the bytes of the JSON part"),
        ("ten", b"", "Inference-Header-Content-Length is 'ten', no length"),
        ("9" * 30, b"", "Inference-Header-Content-Length is '99999"),
        ("0", b"", "the request is no JSON"),
        (None, b"12345", "5 bytes follow the inputs; fix: let the sizes in 'binary_data_size' sum to the bytes after"),
    ],
)
def test_a_header_length_that_does_not_fit(model: str, header: str | None, tail: bytes, reason: str) -> None:
    head = json.dumps(tensor()).encode()
    found = httpx.post(f"{model}/infer", content=head + tail, headers={HEADER: header or str(len(head))})
    assert (found.status_code, found.json()["error"][: len(reason)]) == (400, reason)


def test_numbers_of_narrow_types(tmp_path: Path) -> None:
    from tests.serve.serving import echo
    from tests.serve.test_protocol import json_inputs

    with serving_folder(deployment(echo(), tmp_path / "echo")) as address:
        for kind, data, reason in (
            ("UINT8", [0, 1, 256], "input 'in_UINT8' holds 256, beyond 0 to 255; fix: send numbers within the range"),
            ("INT8", [0, 1, -129], "input 'in_INT8' holds -129, beyond -128 to 127"),
            ("UINT64", [0, 1, -1], "input 'in_UINT64' holds -1, beyond 0 to"),
            ("INT64", [0, 1.0, 2], "input 'in_INT64' has 'data' that is not all INT64; fix: send whole numbers alone"),
            ("BOOL", [0, 1, 1], "input 'in_BOOL' has 'data' that is not all BOOL; fix: send true and false alone"),
            ("FP16", [0, 1, 70_000], "input 'in_FP16' holds a number beyond FP16"),
        ):
            found = httpx.post(f"{address}/infer", json={"inputs": json_inputs(1, **{kind: {"data": data}})})
            assert (found.status_code, found.json()["error"][: len(reason)]) == (400, reason)
        rows = json_inputs(1)
        rows[0] = {**rows[0], "parameters": {"binary_data_size": 3}}
        del rows[0]["data"]
        head = json.dumps({"inputs": rows}).encode()
        found = httpx.post(f"{address}/infer", content=head + b"\0\1\2", headers={HEADER: str(len(head))})
        assert found.json()["error"].startswith("input 'in_BOOL' holds bytes that are no BOOL")
        rows = json_inputs(1, INT8={"shape": [2, 3], "data": [0] * 6})
        found = httpx.post(f"{address}/infer", json={"inputs": rows})
        assert found.json()["error"] == "the inputs have 1 and 2 rows; fix: give every input the same number of rows"


def test_addresses_methods_and_encodings(model: str) -> None:
    base = model.partition("/v2/")[0]
    for method, path, status, reason in (
        ("GET", "/nowhere", 404, "there is no address /nowhere; fix: see docs/how-to/serve.md"),
        ("GET", "/v2/models/none", 404, "there is no model 'none'; fix: use: adder"),
        ("POST", "/v2/models/none/infer", 404, "there is no model 'none'"),
        ("GET", "/v2/models/adder/versions/2", 404, "model 'adder' has no version '2'; fix: use version 1, or none"),
        ("POST", "/v2/models/adder/versions/2/infer", 404, "model 'adder' has no version '2'"),
        ("GET", "/v2/models/adder/infer", 405, "GET is no method of this address; fix: use POST"),
        ("DELETE", "/v2/models/adder", 405, "DELETE is no method of this address; fix: use "),
    ):
        found = httpx.request(method, f"{base}{path}")
        assert (found.status_code, found.json()["error"][: len(reason)]) == (status, reason)
    found = httpx.post(f"{model}/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert found.status_code == 415
    assert found.json()["error"] == "the body is encoded as gzip; fix: send it without Content-Encoding"


def mutated(random_: random.Random) -> tuple[bytes, dict[str, str]]:
    """Spoil a good request in one way that makes it bad for certain."""
    head = json.dumps({"inputs": [{**GOOD, "data": None, "parameters": {"binary_data_size": 8}}]})
    head = head.replace('"data": null, ', "")
    body, length = head.encode() + b"\0" * 8, len(head)
    junk = random_.choice(
        [None, -1, 0, 1e9, "q", [], {}, [[]], [None], True, 2**63, 2**70, -(2**70), "\ud800", "é" * 99]
    )
    match random_.randrange(8):
        case 0:
            return body[: random_.randrange(len(body))], {HEADER: str(length)}
        case 1:
            return body, {HEADER: str(random_.choice([length - 1, length + 1, length + 9, 0, 2**40]))}
        case 2:
            return body + bytes(random_.randrange(256) for _ in range(random_.randrange(1, 50))), {HEADER: str(length)}
        case 3:
            key = random_.choice(["shape", "datatype", "data", "name"])
            return json.dumps(tensor(**{key: junk})).encode(), {}
        case 4:
            spoilt = bytearray(json.dumps(tensor()).encode())
            spoilt[random_.choice([0, 2, 10, len(spoilt) - 1])] = random_.choice(b"\0\xff\x80")
            return bytes(spoilt), {}
        case 5:
            return json.dumps({"inputs": junk}).encode(), {}
        case 6:
            return json.dumps(tensor(data=[1.0, junk])).encode(), {}
        case _:
            return bytes(random_.randrange(256) for _ in range(random_.randrange(300))), {}


def is_good(body: bytes) -> bool:
    """Say whether chance made a request that is right after all."""
    return body in (json.dumps(tensor(data=[1.0, number])).encode() for number in (0, 1e9, 2**63, 2**70, -(2**70), -1))


def test_a_thousand_malformed_requests_cost_nobody_anything(model: str) -> None:
    answered = dict.fromkeys(range(4), 0)

    def bad_and_good(index: int) -> None:
        random_ = random.Random(index)
        with httpx.Client() as client:
            for step in range(250):
                body, headers = mutated(random_)
                while is_good(body):
                    body, headers = mutated(random_)
                found = client.post(f"{model}/infer", content=body, headers=headers)
                assert 400 <= found.status_code < 500, (found.status_code, body, headers)
                assert found.json()["error"]
                answered[index] += 1
                value = float(1000 * index + step)
                good = client.post(f"{model}/infer", json=tensor(data=[value, 1.0])).json()
                assert good["outputs"][0]["data"] == [value, 1.0]
                assert good["outputs"][1]["data"] == [value + 1.0]

    every(4, bad_and_good)
    assert sum(answered.values()) == 1000


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /v2/models/adder/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/adder/infer HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\n",
        b"POST /v2/models/adder/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_ends_its_own_connection_alone(model: str, sent: bytes) -> None:
    host, port = model.removeprefix("http://").partition("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(sent)
        assert wire.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert httpx.post(f"{model}/infer", json=tensor()).status_code == 200
