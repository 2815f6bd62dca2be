"""`sparsify deploy`: repositories that their servers' own schema and runtimes can read."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sparsify.cli.app import main
from sparsify_onnx.runtime import open_session
from sparsify_openvino.runtime import open_session as open_in_openvino
from sparsify_serve.repository import cannot_write
from sparsify_serve.triton import quoted

from tests.onnx import models
from tests.serve.serving import adder, deployment, echo

Call = Callable[..., tuple[int, str, str]]
LABELS = [f"class {index}" for index in range(10)]
TOKEN = re.compile(r'\s*(?:([A-Za-z_]\w*)|(-?\d+)|"((?:[^"\\]|\\.)*)"|([\[\]{}:,]))')
MODEL_CONFIG = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "dynamic_batching",
    "instance_group",
}


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["deploy", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return deployment(models.conv_net(), tmp_path / "deployment", "image-classification", LABELS)


def parse(text: str) -> dict[str, Any]:
    """Read protobuf's text format strictly: fields, lists of values or messages; a field twice is a list too."""
    tokens, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        assert match, text[place:]
        tokens.append(match)
        place = match.end()
    found, rest = _message([*tokens], end=False)
    assert rest == []
    return found


def _message(tokens: list[re.Match[str]], *, end: bool) -> tuple[dict[str, Any], list[re.Match[str]]]:
    found: dict[str, Any] = {}
    while tokens and tokens[0][4] != "}":
        name, tokens = tokens[0][1], tokens[1:]
        assert name
        if tokens[0][4] == ":":
            tokens = tokens[1:]
        value, tokens = _value(tokens)
        found[name] = found[name] + value if name in found else value
    if end:
        assert tokens[0][4] == "}"
        tokens = tokens[1:]
    return found, tokens


def _value(tokens: list[re.Match[str]]) -> tuple[Any, list[re.Match[str]]]:
    first, tokens = tokens[0], tokens[1:]
    if first[4] == "{":
        return _message(tokens, end=True)
    if first[4] == "[":
        values = []
        while tokens[0][4] != "]":
            value, tokens = _value(tokens)
            values.append(value)
            if tokens[0][4] == ",":
                tokens = tokens[1:]
        return values, tokens[1:]
    assert not first[4]
    if first[2]:
        return int(first[2]), tokens
    return first[1] or re.sub(r"\\(.)", r"\1", first[3]), tokens


def runs_as_before(copied: Path, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    inputs = models.samples(model, 3)
    wanted = models.run(folder / "model.onnx", inputs)
    for opened in (open_session(copied, 1), open_in_openvino(copied, 1)):
        for array, own in zip(opened.run(inputs).values(), wanted, strict=True):
            assert abs(array - own).max() <= 0.02 * abs(own).max()
        opened.close()


def test_triton(folder: Path, tmp_path: Path, deploy: Call) -> None:
    repository = tmp_path / "models"
    code, out, err = deploy("--format", "triton", folder, repository, "--name", "net")
    assert (code, out) == (0, f"{repository / 'net'}\n")
    assert err.splitlines() == ["wrote version 1", f"start the server: tritonserver --model-repository={repository}"]
    found = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert found == {"net/config.pbtxt", "net/labels.txt", "net/1/model.onnx"}
    config = parse((repository / "net" / "config.pbtxt").read_text())
    assert set(config) == MODEL_CONFIG
    assert (config["name"], config["platform"], config["backend"]) == ("net", "onnxruntime_onnx", "onnxruntime")
    assert (config["max_batch_size"], config["dynamic_batching"]) == (8, {"max_queue_delay_microseconds": 2000})
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
    label = {"label_filename": "labels.txt"}
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1], **label}]
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert (repository / "net" / "labels.txt").read_text().splitlines() == LABELS
    runs_as_before(repository / "net" / "1" / "model.onnx", folder)


def test_triton_without_a_free_batch_and_with_every_type(tmp_path: Path, deploy: Call) -> None:
    fixed = deployment(models.conv_net(batch=4), tmp_path / "fixed")
    code, out, _ = deploy("--format", "triton", fixed, tmp_path / "models")
    config = parse((Path(out.strip()) / "config.pbtxt").read_text())
    assert (code, config["name"], config["max_batch_size"]) == (0, "custom-test", 0)
    assert config["input"][0]["dims"] == [4, 3, 8, 8]
    assert "dynamic_batching" not in config
    _, out, _ = deploy(
        "--format", "triton", deployment(echo(), tmp_path / "echo"), tmp_path / "models", "--name", "echo"
    )
    config = parse((Path(out.strip()) / "config.pbtxt").read_text())
    assert {row["name"]: row["data_type"] for row in config["input"]}["in_UINT16"] == "TYPE_UINT16"
    assert all(row["name"].removeprefix("out_") == row["data_type"].removeprefix("TYPE_") for row in config["output"])
    arguments = [deployment(adder(), tmp_path / "adder"), tmp_path / "models", "--name", "adder", "--max-batch-size", 1]
    _, out, _ = deploy("--format", "triton", *arguments)
    config = parse((Path(out.strip()) / "config.pbtxt").read_text())
    assert config["output"][1] == {"name": "total", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}
    assert "dynamic_batching" not in config
    odd = 'a "b" \\ c'
    assert parse("name: " + quoted(odd)) == {"name": odd}


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_versions_grow_and_nothing_is_overwritten(folder: Path, tmp_path: Path, deploy: Call, server: str) -> None:
    arguments = ["--format", server, folder, tmp_path / "models", "--name", "net"]
    assert deploy(*arguments)[0] == 0
    first = (tmp_path / "models/net/1/model.onnx").read_bytes()
    code, _, err = deploy(*arguments)
    assert (code, err.splitlines()[0]) == (0, "version 1 of 'net' is this model already")
    deployment(models.conv_net(seed=1), folder, "image-classification", LABELS)
    (tmp_path / "models/net/7").mkdir()
    code, _, err = deploy(*arguments)
    assert code == 0
    assert err.splitlines()[0] == "wrote version 8: the repository holds other models named 'net', which stay"
    assert (tmp_path / "models/net/1/model.onnx").read_bytes() == first
    runs_as_before(tmp_path / "models/net/8/model.onnx", folder)
    assert not [path for path in (tmp_path / "models").rglob("*") if "partial" in path.name]


def test_external_data_goes_along(tmp_path: Path, deploy: Call) -> None:
    extra = {"save_as_external_data": True, "location": "data/weights.bin", "size_threshold": 0}
    (tmp_path / "net" / "data").mkdir(parents=True)
    folder = deployment(models.conv_net(), tmp_path / "net", **extra)
    link = tmp_path / "linked"
    link.mkdir()
    for name in ("model.onnx", "config.json"):
        (link / name).symlink_to(folder / name)
    for source in (folder, link):
        for server in ("triton", "ovms"):
            home = tmp_path / f"{source.name}-{server}"
            assert deploy("--format", server, source, home, "--name", "net")[0] == 0
            assert (home / "net/1/data/weights.bin").is_file()
            runs_as_before(home / "net/1/model.onnx", folder)


def test_ovms(folder: Path, tmp_path: Path, deploy: Call) -> None:
    home = tmp_path / "models"
    home.mkdir()
    other = {"config": {"name": "other", "base_path": "/models/other", "nireq": 2}}
    (home / "config.json").write_text(json.dumps({"model_config_list": [other], "monitoring": {"metrics": {}}}))
    code, out, err = deploy("--format", "ovms", folder, home, "--name", "net")
    assert (code, out) == (0, f"{home / 'net'}\n")
    assert err.splitlines()[-1] == f"start the server: ovms --config_path {home / 'config.json'} --rest_port 8000"
    wanted = [other, {"config": {"name": "net", "base_path": "net"}}]
    assert json.loads((home / "config.json").read_text()) == {
        "model_config_list": wanted,
        "monitoring": {"metrics": {}},
    }
    wanted[1]["config"]["nireq"] = 4  # a user's own
    (home / "config.json").write_text(json.dumps({"model_config_list": wanted}))
    deployment(models.conv_net(seed=1), folder, "image-classification", LABELS)
    assert deploy("--format", "ovms", folder, home, "--name", "net")[0] == 0
    assert json.loads((home / "config.json").read_text())["model_config_list"] == wanted
    assert {path.name for path in (home / "net").iterdir()} == {"1", "2"}


def test_an_edited_config_stays(folder: Path, tmp_path: Path, deploy: Call) -> None:
    arguments = ["--format", "triton", folder, tmp_path / "models", "--name", "net"]
    deploy(*arguments)
    config = tmp_path / "models/net/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3"))
    code, _, err = deploy(*arguments)
    assert (code, f"kept {config}, which was edited" in err) == (0, True)
    assert "count: 3" in config.read_text()


def test_refusals(folder: Path, tmp_path: Path, deploy: Call) -> None:
    home = tmp_path / "models"
    deploy("--format", "triton", folder, home, "--name", "net")
    deployment(models.mlp(), tmp_path / "mlp")
    (tmp_path / "file").write_text("")
    deployment(models.conv_net(), tmp_path / "cats", "image-classification", ["cat", *LABELS[1:]])
    (tmp_path / "binary" / "net").mkdir(parents=True)
    (tmp_path / "binary" / "net" / "config.pbtxt").write_bytes(b"\xff\xfe")
    for name, text in (("broken", "{"), ("listless", '{"model_config_list": 1}'), ("taken", json.dumps(
        {"model_config_list": [{"config": {"name": "net", "base_path": "/elsewhere"}}]}
    ))):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    for arguments, problem, fix in (
        (["--format", "torchserve", folder, home], "--format: there is no 'torchserve'", "use one of: triton, ovms"),
        (["--format", "triton", tmp_path / "mlp", home, "--name", "net"], "describes another model", "another --name"),
        (["--format", "triton", tmp_path / "cats", home, "--name", "net"], "lists other classes", "another --name"),
        (["--format", "triton", folder, tmp_path / "binary", "--name", "net"], "cannot be read", "remove it"),
        (["--format", "triton", folder, home, "--name", "../up"], "'../up' is no name of a model", "use letters"),
        (["--format", "triton", tmp_path / "nowhere", home], "config.json does not exist", "give the deployment"),
        (["--format", "triton", folder, tmp_path / "file"], "cannot be written", "give a folder that can be written"),
        (["--format", "ovms", folder, tmp_path / "broken"], "config.json is no JSON", "mend or remove it"),
        (["--format", "ovms", folder, tmp_path / "listless"], "has no list of models", "or remove the file"),
        (["--format", "ovms", folder, tmp_path / "taken", "--name", "net"], "model 'net', in /elsewhere", "--name"),
    ):  # fmt: skip
        code, out, err = deploy(*arguments)
        assert (code, out) == (2, "")
        assert (problem in err, fix in err) == (True, True), err
    full = cannot_write(home, OSError(errno.ENOSPC, "No space left on device"))
    assert full.exit_code == 5
    assert full.lines() == f"error: {home} cannot be written: No space left on device\n" + (
        "fix: free space there, or give another folder"
    )
    assert sorted(os.listdir(home)) == ["net"]
    assert np.array_equal(sorted(os.listdir(home / "net")), ["1", "config.pbtxt", "labels.txt"])
