"""`sparsify serve`: what it prints, what it refuses before it listens, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sparsify.cli.app import main
from sparsify_plugin_kit import check_plugin
from sparsify_serve.command import announce, gather, listen

from tests.serve.serving import Told, adder, deployment, rows, told

Fail = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return deployment(adder(1.0), tmp_path / "run" / "deployment")


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Call the program; returns its exit code and the two lines of the error."""

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


@contextmanager
def running(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `sparsify serve` as a program, killed at the end if it still runs."""
    command = [sys.executable, "-m", "sparsify", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_conforms() -> None:
    assert check_plugin("serve") == ()


def test_listing_loads_nothing_heavy() -> None:
    code = "import sys, sparsify\nfrom sparsify.cli.app import main\n"
    code += "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "print(sorted({'fastapi', 'uvicorn', 'numpy', 'orjson', 'starlette'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "serve" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(folder: Path, number: signal.Signals) -> None:
    with running(folder.parent, "--name", "adder", "--threads", "1") as process:
        address = line_of(process)
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/v2/models/adder")
        with httpx.Client() as client:  # a connection that is kept alive does not keep the server alive
            assert client.post(f"{address}/infer", json=rows(1.0)).json()["outputs"][0]["data"] == [2.0]
            process.send_signal(number)
            _, talk = process.communicate(timeout=30)
        assert process.returncode == 130
        assert talk.splitlines() == [f"adder: {folder} on onnxruntime, batches of up to 8", "stopped"]


SLOW = """
@hookimpl
def runtimes():
    return [Entry("slow", "slow.runtime:open_session", "takes its time")]
"""
RUNTIME = """
import time
import numpy as np

class Session:
    facts = {}
    runs = 0

    def run(self, inputs):
        self.runs += 1
        if self.runs > 1:  # not for the first, which warms it up
            print("running", flush=True)
            time.sleep(1.5)
        return {"y": inputs["x"] + 5, "total": inputs["x"].sum(axis=1)}

    def close(self):
        print("closed", flush=True)

def open_session(path, threads):
    return Session()
"""


def test_what_is_in_flight_is_finished(folder: Path, site: Path, add_plugin: Callable[..., None]) -> None:
    add_plugin("slow", SLOW, runtime=RUNTIME)
    with running(folder, "--runtime", "slow", environment={"PYTHONPATH": str(site)}) as process:
        address, answers = line_of(process), []

        def ask() -> None:
            answers.append(httpx.post(f"{address}/infer", json=rows(1.0), timeout=60).json()["outputs"][0]["data"])

        thread = threading.Thread(target=ask)
        thread.start()
        assert line_of(process) == "running"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
        thread.join(30)
    assert (process.returncode, answers, rest) == (130, [[6.0]], "closed\n")


def test_several_models_from_yaml(folder: Path, tmp_path: Path) -> None:
    deployment(adder(2.0), tmp_path / "second")
    file = tmp_path / "models.yaml"
    file.write_text(
        "max_body: 1MB\nread_timeout: 5s\nmodels:\n"
        "  - {name: one, deployment: run, threads: 1}\n"
        "  - {name: two, deployment: second, threads: 1, max_batch_size: 1, runtime: openvino}\n"
    )
    with running(file) as process:
        one, two = line_of(process), line_of(process)
        for address, wanted in ((one, 1.0), (two, 2.0)):
            assert httpx.post(f"{address}/infer", json=rows(0.0)).json()["outputs"][0]["data"] == [wanted]
        assert httpx.get(two).json()["platform"] == "openvino_onnx"
        assert httpx.post(f"{one}/infer", content=b"x" * 1_000_001).status_code == 413
        process.terminate()
        _, talk = process.communicate(timeout=30)
    assert f"two: {tmp_path / 'second'} on openvino, no batching" in talk


YAML = {
    "modles: []": "there is no option 'modles'\nfix: did you mean 'models'?",
    "host: x": "'models' is missing\nfix: add 'models'; see docs/how-to/serve.md",
    "models: []": "models: Tuple should have at least 1 item",
    "models: [{deployment: run, thread: 2}]": "model 1: there is no option 'thread'\nfix: did you mean 'threads'?",
    "models: [{name: a}]": "model 1: 'deployment' is missing\nfix: add 'deployment'",
    "models: [{deployment: run}]\nport: many": "port: Input should be a valid integer",
    "models: [{deployment: run}]\nmax_body: lots": "max_body: 'lots' is no amount of memory; give megabytes",
    "models: [{deployment: run}]\nread_timeout: '10'": "read_timeout: '10' is no duration; give seconds",
    "models: [{deployment: run, name: a}, {deployment: run, name: a}]": "two models are called 'a'\nfix: give",
    "models: [{deployment: run, name: a/b}]": "'a/b' is no name of a model\nfix: use letters and digits",
    "- a": "holds no mapping\nfix: begin with a line `models:`",
    "a: [": "cannot be read as YAML",
}


@pytest.mark.parametrize("text", YAML)
def test_a_wrong_yaml_file_is_explained(folder: Path, tmp_path: Path, fail: Fail, text: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    code, printed = fail("serve", file)
    assert code == 2
    assert YAML[text] in printed


def test_what_is_refused_before_it_listens(folder: Path, tmp_path: Path, fail: Fail) -> None:
    file = tmp_path / "twice.yml"
    file.write_text("models: [{deployment: run}, {deployment: run}]")
    for arguments, code, problem, fix in (
        ([file], 2, "two models are called 'custom-test', after their use case", "give each a name of its own"),
        ([file, "--threads", 1], 2, "--threads has no effect with twice.yml", "write it into"),
        ([tmp_path / "none.yaml"], 2, "cannot be read as YAML", "see docs/how-to/serve.md"),
        ([tmp_path], 2, "config.json does not exist", "give the deployment folder of a finished run"),
        ([folder, "--port", 70_000], 2, "port: Input should be less than or equal to 65535", "give another value to"),
        ([folder, "--runtime", "onnxruntme"], 2, "there is no runtime 'onnxruntme'", "use 'onnxruntime'"),
        (
            [folder, "--host", "no.such.host.invalid"],
            2,
            "cannot listen on no.such.host.invalid:8000",
            "give another --port",
        ),
        (
            [folder, "--max-batch-size", 0],
            2,
            "command line: max_batch_size: Input should be greater",
            "give another value",
        ),
    ):
        found, printed = fail("serve", *arguments)
        assert (found, problem in printed, fix in printed) == (code, True, True), printed
    with listen("127.0.0.1", 0) as taken:
        code, printed = fail("serve", folder, "--port", taken.getsockname()[1])
    assert code == 2
    assert "Address already in use" in printed
    (folder / "model.onnx").write_bytes(b"none")
    code, printed = fail("serve", folder)
    assert (code, "is no ONNX model, or it is cut short (4 bytes)" in printed) == (2, True)
    (folder / "model.onnx").unlink()
    code, printed = fail("serve", folder)
    assert (code, "has no model.onnx" in printed) == (2, True)


def test_a_runtime_that_is_not_installed(folder: Path, add_plugin: Callable[..., None], fail: Fail) -> None:
    entry = 'Entry("far", "far.runtime:open_session", "not here", requires=("nosuchlib",))'
    add_plugin("far", f"@hookimpl\ndef runtimes():\n    return [{entry}]\n")
    code, printed = fail("serve", folder, "--runtime", "far")
    assert code == 4
    assert "error: 'far' of far needs nosuchlib, not installed here\nfix: pip install nosuchlib" in printed


def test_a_host_that_others_reach_is_warned_of(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from sparsify import Talk

    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        with listen(host, 0) as listener:
            announce(listener, [told(Told())], Talk())
        printed = capsys.readouterr()
        assert printed.out.endswith("/v2/models/told\n")
        assert ("the server has no authentication" in printed.err) is warned
    options = gather(folder, {}, {})
    assert (options.host, options.port, options.max_body) == ("127.0.0.1", 8000, "64MB")
