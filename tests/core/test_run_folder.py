"""The run folder is never written over, every file is old or new, and a run resumes only as it was asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sparsify.errors import RequestError
from sparsify.experiment import Experiment, make_experiment
from sparsify.pipeline import refusing
from sparsify.run_folder import (
    DiskCheckpoint,
    RunFolder,
    check_resumable,
    plan_folder,
    write_atomic,
    write_json,
    write_yaml,
)
from sparsify.talk import Talk


def experiment(**options: object) -> Experiment:
    return make_experiment({"kind": "one-shot", "use_case": "ic", "model": "m.onnx", "data": "d", **options})


def test_the_folder_is_named_after_kind_use_case_and_time(tmp_path: Path) -> None:
    folder = plan_folder(experiment(working_dir=str(tmp_path)), "image-classification", resume=False)
    assert folder.path.parent == tmp_path
    assert folder.path.name.startswith("one-shot_image-classification_20")
    assert not folder.path.exists()


def test_output_is_the_run_folder_itself(tmp_path: Path) -> None:
    assert plan_folder(experiment(output=str(tmp_path)), "x", resume=False).path == tmp_path


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError) as caught:
        plan_folder(experiment(output=str(tmp_path)), "x", resume=False)
    assert caught.value.lines() == f"error: --output: {tmp_path} is not empty\nfix: give an empty or a new folder"


def test_a_folder_with_a_run_offers_resume(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("request: {}")
    with pytest.raises(RequestError, match="is not empty") as caught:
        plan_folder(experiment(output=str(tmp_path)), "x", resume=False)
    assert caught.value.fix == "add --resume to go on with it, or give another folder"
    assert plan_folder(experiment(output=str(tmp_path)), "x", resume=True).path == tmp_path


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no run"):
        plan_folder(experiment(output=str(tmp_path)), "x", resume=True)
    with pytest.raises(RequestError, match="no run one-shot_x_"):
        plan_folder(experiment(working_dir=str(tmp_path)), "x", resume=True)


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        plan_folder(experiment(output=str(tmp_path / "file")), "x", resume=False)


def test_resume_finds_the_latest_run(tmp_path: Path) -> None:
    for stamp in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        (tmp_path / f"one-shot_x_{stamp}").mkdir()
        (tmp_path / f"one-shot_x_{stamp}" / "experiment.yaml").write_text("request: {}")
    found = plan_folder(experiment(working_dir=str(tmp_path)), "x", resume=True)
    assert found.path.name == "one-shot_x_2026-01-02_00-00-00"


def test_resume_refuses_other_options(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_yaml(folder.experiment, {"request": {"seed": 0, "model": "a", "output": None}})
    check_resumable(folder, {"seed": 0, "model": "a", "output": "elsewhere"})
    with pytest.raises(RequestError, match=r"was run with seed = 0, not 1"):
        check_resumable(folder, {"seed": 1, "model": "a"})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(target, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_atomic(target, None)  # type: ignore[arg-type]
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [target]


def test_checkpoints_return_the_same_arrays_whatever_the_layer_is_called(tmp_path: Path) -> None:
    store = DiskCheckpoint(tmp_path)
    names = ["/layer1/conv", "-layer1-conv", "../../etc/passwd", "a" * 300, "ä"]
    for index, name in enumerate(names):
        assert store.load(name) is None
        store.save(name, {"w": np.full(3, index)})
    for index, name in enumerate(names):
        loaded = store.load(name)
        assert loaded is not None
        assert loaded["w"].tolist() == [index] * 3
    assert len(list(tmp_path.iterdir())) == len(names)


@pytest.mark.parametrize("trained", [False, True])
def test_a_refused_request_leaves_nothing_but_what_was_trained(trained: bool, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.training.mkdir(parents=True)
    plan: Any = SimpleNamespace(folder=folder, model_path=folder.training / "dense.onnx", resume=False)
    plan.model_path.touch()
    if trained:
        (folder.training / "best.pt").touch()
    with pytest.raises(RequestError), refusing(plan, Talk(), keep=False):
        raise RequestError("no", fix="yes")
    assert folder.path.exists() is trained
