"""`sparsify reproduce`: the same bytes from the record of a run, and every way in which they are not the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sparsify as api
import yaml
from sparsify_onnx.repetition import compare_runs

from .conftest import Call

Digits = tuple[Path, Path]


@pytest.fixture(scope="module")
def run(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize the digits once; tests must not change the run."""
    output = tmp_path_factory.mktemp("reproduce") / "run"
    api.one_shot(
        model=digits[0], data=digits[1], use_case="ic", optim_level=0.2, calibration_samples=64, val_samples=200,
        output=output, quiet=True,
    )  # fmt: skip
    return output


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copy the run twice, as if the second had repeated the first."""
    return shutil.copytree(run, tmp_path / "old"), shutil.copytree(run, tmp_path / "new")


def change(file: Path, **changes: Any) -> None:
    """Set keys of a JSON or YAML file; `a__b` is b within a."""
    text = file.read_text()
    found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    for path, value in changes.items():
        *place, last = path.split("__")
        inner = found
        for key in place:
            inner = inner[key]
        inner[last] = value
    file.write_text(json.dumps(found) if file.suffix == ".json" else yaml.safe_dump(found))


def test_a_run_is_repeated_byte_for_byte(run: Path, tmp_path: Path, sparsify: Call) -> None:
    done = sparsify("reproduce", run, "--output", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["same"] is True
    assert found["first_difference"] == ""
    assert (tmp_path / "again/deployment/model.onnx").read_bytes() == (run / "deployment/model.onnx").read_bytes()
    rows = {row["what"]: row for row in found["rows"]}
    assert rows["deployment/model.onnx"]["outcome"] == rows["recipe.yaml"]["outcome"] == "same"
    assert len(rows["deployment/model.onnx"]["recorded"]) == 64
    assert rows["accuracy, optimized"]["outcome"] == rows["accuracy, baseline"]["outcome"] == "same"
    measured = {path.name: path.read_bytes() for path in (run / "measurements").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again/measurements").iterdir()} == measured != {}
    record = yaml.safe_load((tmp_path / "again/experiment.yaml").read_text())
    assert record["request"]["output"] == str(tmp_path / "again")
    assert record["data_sha256"] == yaml.safe_load((run / "experiment.yaml").read_text())["data_sha256"]


def test_a_repetition_that_was_cut_off_goes_on(run: Path, tmp_path: Path, sparsify: Call) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for name in ("metrics.json", "deployment/model.onnx"):
        (again / name).unlink()
    complaint = sparsify("reproduce", run, "--output", again).complaint
    assert complaint == (f"--output: {again} is not empty", "add --resume to go on with it")
    done = sparsify("reproduce", run, "--output", again, "--resume", "--quiet")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "The same: model, byte for byte, and figures."
    assert "deployment/model.onnx" in done.out


def test_the_same_run_is_the_same(pair: tuple[Path, Path]) -> None:
    found = compare_runs(*pair)
    assert found.same
    assert {row.outcome for row in found.rows} == {"same"}


def test_time_is_told_but_does_not_decide(pair: tuple[Path, Path]) -> None:
    change(pair[1] / "metrics.json", speedup__onnxruntime=0.01)
    found = compare_runs(*pair)
    assert found.same
    assert [row.outcome for row in found.rows if row.what == "times faster, onnxruntime"] == ["not judged"]


def test_other_bytes_are_not_the_same(pair: tuple[Path, Path]) -> None:
    (pair[1] / "deployment/model.onnx").write_bytes(b"other")
    found = compare_runs(*pair)
    assert not found.same
    assert found.sentence == ("Not the same. Nothing that is recorded differs: versions, data and CPU are the same.")
    change(pair[0] / "experiment.yaml", request__time_budget="10m")
    assert "--time-budget: where the clock cuts the search, decisions need not repeat" in compare_runs(*pair).sentence


@pytest.mark.parametrize(
    ("file", "changes", "first"),
    [
        ("experiment.yaml", {"resolved__libraries": {"numpy": "0.1"}}, "numpy, 0.1 → "),
        ("experiment.yaml", {"resolved__plugins__sparsify-onnx": "0.0"}, "sparsify-onnx, 0.0 → "),
        ("experiment.yaml", {"data_sha256__test": "abc"}, "test samples, abc → "),
        ("experiment.yaml", {"model__sha256": "abc"}, "model, abc → "),
        ("metrics.json", {"environment__cpu": "a 6502"}, "cpu, a 6502 → "),
        ("metrics.json", {"environment__python": "2.7", "environment__cpu": "a 6502"}, "python, 2.7 → "),
    ],
)
def test_it_says_what_differs_first(pair: tuple[Path, Path], file: str, changes: dict[str, Any], first: str) -> None:
    (pair[1] / "deployment/model.onnx").write_bytes(b"other")
    change(pair[0] / file, **changes)
    assert compare_runs(*pair).sentence.startswith(f"Not the same. What differs first: {first}")


def test_versions_that_change_nothing_are_told(pair: tuple[Path, Path]) -> None:
    change(pair[0] / "metrics.json", environment__cpu="a 6502")
    found = compare_runs(*pair)
    assert found.same
    assert (found.rows[-1].what, found.rows[-1].recorded, found.rows[-1].outcome) == ("cpu", "a 6502", "differs")


@pytest.mark.parametrize(("moved", "outcome"), [(0.1, "within its interval"), (9.0, "beyond its interval")])
def test_figures_are_judged_by_their_intervals(pair: tuple[Path, Path], moved: float, outcome: str) -> None:
    metrics = json.loads((pair[0] / "metrics.json").read_text())
    change(pair[1] / "metrics.json", optimized__metrics__accuracy=metrics["optimized"]["metrics"]["accuracy"] - moved)
    found = compare_runs(*pair)
    assert found.same is (outcome == "within its interval")
    assert [row.outcome for row in found.rows if row.what == "accuracy, optimized"] == [outcome]


def test_other_files_of_the_deployment_count(pair: tuple[Path, Path]) -> None:
    (pair[1] / "deployment/preprocess.json").write_text("{}")
    found = compare_runs(*pair)
    assert not found.same
    assert [row.what for row in found.rows if row.outcome == "differs"] == ["deployment/preprocess.json"]


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, sparsify: Call) -> None:
    (tmp_path / "empty").mkdir()
    assert sparsify("reproduce", tmp_path / "none").complaint == (
        f"RUN: {tmp_path / 'none'} is no folder", "give the folder of a finished run"
    )  # fmt: skip
    problem, _ = sparsify("reproduce", tmp_path / "empty").complaint
    assert problem == f"RUN: {tmp_path / 'empty'} holds no experiment.yaml"
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    problem, fix = sparsify("reproduce", unfinished).complaint
    assert problem == f"RUN: {unfinished} holds no metrics.json"
    assert "--resume" in fix


@pytest.mark.parametrize("text", ["request: [", "other: 1", "request: 7", "- 1"])
def test_a_damaged_record_is_named(run: Path, tmp_path: Path, sparsify: Call, text: str) -> None:
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "experiment.yaml").write_text(text)
    done = sparsify("reproduce", damaged)
    assert done.code == 2
    assert done.complaint[0].startswith(f"RUN: {damaged / 'experiment.yaml'} records no request: ")
    assert done.complaint[1] == "bring the file back from a copy of the run"


def test_an_option_of_another_version_is_named(run: Path, tmp_path: Path, sparsify: Call) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    change(other / "experiment.yaml", request__optim_levle=0.5)
    problem, fix = sparsify("reproduce", other).complaint
    assert problem == f"there is no option --optim-levle ({other / 'experiment.yaml'})"
    assert fix == "did you mean --optim-level?"


@pytest.mark.parametrize("name", ["model", "data"])
def test_data_that_is_gone_is_named(run: Path, tmp_path: Path, sparsify: Call, name: str) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    change(moved / "experiment.yaml", **{f"request__{name}": "/gone"})
    done = sparsify("reproduce", moved)
    assert done.code == 2
    assert done.complaint[0] == f"RUN: --{name} of {moved} is gone: /gone"
    assert not moved.with_name("moved-again").exists()


def test_a_folder_with_something_in_it_is_left_alone(run: Path, sparsify: Call) -> None:
    assert sparsify("reproduce", run, "--output", run).complaint == (
        f"--output: {run} is not empty", "give --output a folder that is empty or new"
    )  # fmt: skip
