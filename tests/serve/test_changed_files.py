"""Files that change under a running server: good ones are taken up, bad ones are told of, and nobody notices."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import onnx
import pytest
import sparsify_serve.serving
from sparsify import StageError, load_plugins, load_runtime
from sparsify_serve.loading import load

from tests.serve.serving import adder, deployment, rows, serving_folder
from tests.serve.test_batching import eventually, metric

Ask = Callable[[], float]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify_serve.serving, "CHECK_S", 0.0)


@pytest.fixture(params=["one file", "external data"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "served", 1.0, external=request.param == "external data")


def write(folder: Path, amount: float, *, external: bool) -> Path:
    extra = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    return deployment(adder(amount), folder, **extra)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with serving_folder(folder, name="adder") as found:
        yield found


@pytest.fixture
def ask(address: str) -> Iterator[Ask]:
    """Return what is added to 0."""
    with httpx.Client() as client:

        def one() -> float:
            found = client.post(f"{address}/infer", json=rows(0.0))
            assert found.status_code == 200, found.text
            return float(found.json()["outputs"][0]["data"][0])

        yield one


def replace(folder: Path, amount: float) -> None:
    """Copy another model over the one in use, in place as `cp` does."""
    external = (folder / "weights.bin").exists()
    other = write(folder.with_name(f"other-{amount}"), amount, external=external)
    for file in other.iterdir():
        shutil.copyfile(file, folder / file.name)


def test_a_new_model_is_taken_up_without_an_error(folder: Path, address: str, ask: Ask) -> None:
    assert ask() == 1.0
    stop, seen = threading.Event(), []

    def keep_asking() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                found = client.post(f"{address}/infer", json=rows(0.0))
                seen.append((found.status_code, found.json()["outputs"][0]["data"]))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    eventually(lambda: len(seen) > 3)
    replace(folder, 2.0)
    eventually(lambda: ask() == 2.0)
    stop.set()
    thread.join(20)
    assert {status for status, _ in seen} == {200}
    assert {data[0] for _, data in seen} <= {1.0, 2.0}
    assert (
        'sparsify_model_loads_total{model="adder",outcome="loaded"}'
        in httpx.get(address.partition("/v2")[0] + "/metrics").text
    )


def test_a_half_copied_model_is_told_of_and_the_old_one_served(
    folder: Path, address: str, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    model = folder / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    eventually(lambda: ask() == 1.0 and metric(address, "sparsify_model_stale") == 1)
    for _ in range(5):
        assert ask() == 1.0
    told = httpx.get(f"{address}/ready")
    assert told.status_code == 200
    assert "is no ONNX model, or it is cut short" in told.json()["problem"]
    printed = capfd.readouterr().err.splitlines()
    (line,) = [line for line in printed if "cut short" in line]  # once, not at each look
    assert line.startswith("warning: adder: its files changed and do not load, the old ones are served: ")
    replace(folder, 3.0)
    eventually(lambda: ask() == 3.0)
    assert metric(address, "sparsify_model_stale") == 0
    assert httpx.get(f"{address}/ready").json() == {"name": "adder", "ready": True}


def test_an_edited_configuration(folder: Path, address: str, ask: Ask) -> None:
    path = folder / "config.json"
    good = path.read_text()
    for spoil, reason in (
        (lambda config: config.pop("labels"), "'labels' is missing or no list"),
        (lambda config: config["outputs"][0].update(name="z"), "output 'z' is not what the model gives"),
        (lambda config: config["inputs"][0].update(dtype="object"), "tensor 'x' is object, which cannot be served"),
    ):
        config = json.loads(good)
        spoil(config)
        path.write_text(json.dumps(config))
        eventually(lambda reason=reason: reason in httpx.get(f"{address}/ready").json().get("problem", ""))  # type: ignore[misc]
        assert ask() == 1.0
    path.unlink()
    eventually(lambda: "does not exist" in httpx.get(f"{address}/ready").json().get("problem", ""))
    assert ask() == 1.0
    path.write_text(good)
    eventually(lambda: "problem" not in httpx.get(f"{address}/ready").json())
    assert ask() == 1.0


def test_external_data_that_come_after_their_model(folder: Path, address: str, ask: Ask) -> None:
    other = write(folder.with_name("other"), 2.0, external=True)
    (other / "weights.bin").rename(other / "later.bin")
    model = onnx.load(other / "model.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "later.bin" if entry.key == "location" else entry.value
    onnx.save(model, folder / "model.onnx")
    eventually(lambda: "later.bin' is missing" in httpx.get(f"{address}/ready").json().get("problem", ""))
    assert ask() == 1.0
    shutil.copy(other / "later.bin", folder)
    eventually(lambda: ask() == 2.0)


def test_a_deleted_folder_is_served_on(folder: Path, address: str, ask: Ask) -> None:
    shutil.rmtree(folder)
    eventually(lambda: "problem" in httpx.get(f"{address}/ready").json())
    assert ask() == 1.0


def test_the_old_session_is_closed(tmp_path: Path) -> None:
    plugins = load_plugins()
    opened = load_runtime("onnxruntime", plugins)
    closed = []

    def opening(path: Path, threads: int):  # type: ignore[no-untyped-def]
        session = opened(path, threads)
        close = session.close
        session.close = lambda: (close(), closed.append(path))  # type: ignore[method-assign,func-returns-value]
        return session

    loaded = load(write(tmp_path / "it", 1.0, external=False), opening, 1, plugins)
    assert closed == []
    del loaded
    assert len(closed) == 1


def test_external_data_are_mapped_from_a_copy(tmp_path: Path) -> None:
    """The runtime maps the file: a session opened on the folder itself would see what is written there later."""
    folder = write(tmp_path / "it", 1.0, external=True)
    plugins = load_plugins()
    loaded = load(folder, load_runtime("onnxruntime", plugins), 1, plugins)
    with (folder / "weights.bin").open("r+b") as file:
        file.write(b"\xff" * 16)
        os.ftruncate(file.fileno(), 0)  # reading a mapping of it would now end the process
    import numpy as np

    assert loaded.session.run({"x": np.zeros((1, 1), np.float32)})["y"][0, 0] == 1.0


def test_no_space_for_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "it", 1.0, external=True)
    plugins = load_plugins()

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StageError, match=r"model.onnx cannot be copied to .*: No space left on device") as caught:
        load(folder, load_runtime("onnxruntime", plugins), 1, plugins)
    assert caught.value.fix == "set TMPDIR to a folder with space for its external data"


def test_files_that_change_while_they_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "it", 1.0, external=False)
    plugins = load_plugins()
    opened = load_runtime("onnxruntime", plugins)

    def opening(path: Path, threads: int):  # type: ignore[no-untyped-def]
        session = opened(path, threads)
        os.utime(folder / "config.json", (1, 1))
        return session

    with pytest.raises(Exception, match="changed while it was read") as caught:
        load(folder, opening, 1, plugins)
    assert caught.value.fix == "wait until the copy is complete"
