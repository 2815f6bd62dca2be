"""Every option is validated once, by whatever road it came; errors name the option and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sparsify.errors import RequestError
from sparsify.experiment import Experiment, make_experiment, read_config

ASKED: dict[str, Any] = {"kind": "one-shot", "use_case": "ic", "model": "m.onnx", "data": "d"}


def refused(**options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        make_experiment({**ASKED, **options})
    return caught.value


def test_defaults_are_those_of_the_documentation() -> None:
    experiment = make_experiment(ASKED)
    assert (experiment.optim_level, experiment.seed, experiment.runtime) == (0.5, 0, ("onnxruntime",))
    assert (experiment.sparsity, experiment.max_drop, experiment.calibration_samples) == ("unstructured", None, 512)


def test_an_experiment_survives_its_own_yaml(tmp_path: Path) -> None:
    import yaml

    experiment = make_experiment({**ASKED, "max_drop": "1%", "recipe_args": '{"a": 1}', "runtime": ["onnxruntime"]})
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"request": experiment.model_dump(mode="json")}))
    assert make_experiment(read_config(path)) == experiment


def test_hyphens_and_underscores_are_equal() -> None:
    assert make_experiment({**ASKED, "optim-level": 40}).optim_level == 0.4


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_experiment(ASKED).seed = 3  # type: ignore[misc]


def test_every_option_is_described() -> None:
    assert all(field.description for field in Experiment.model_fields.values())


@pytest.mark.parametrize("level", ["1.5", "-1", "abc"])
def test_bad_levels(level: str) -> None:
    error = refused(optim_level=level)
    assert "is no level; give 0 to 1, or a whole number from 2 to 100 as per cent" in error.problem
    assert error.fix.startswith("--optim-level takes 0 baseline")


def test_a_missing_option_is_named() -> None:
    with pytest.raises(RequestError) as caught:
        make_experiment({"kind": "one-shot", "use_case": "ic", "data": "d"})
    assert caught.value.lines() == (
        "error: --model is missing (command line)\nfix: add --model: the trained model: an ONNX file"
    )


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    assert refused(calibration_sample=3).fix == "did you mean --calibration-samples?"
    assert refused(zzz=3).fix == "see `sparsify run one-shot --help`"


def test_the_other_errors_name_option_and_form() -> None:
    assert "--max-drop: 'much' is no budget" in refused(max_drop="much").problem
    assert "--recipe-args: is no JSON: " in refused(recipe_args="{a").problem
    assert "--sparsity: 'x' is no sparsity pattern" in refused(sparsity="x").problem
    assert "--calibration-samples: Input should be greater than 0" in refused(calibration_samples=0).problem
    assert "--threads" in refused(threads=-1).problem


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("- a\n", "holds no mapping"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/object:os.system {}", "cannot be read"),
    ],
)
def test_bad_config_files(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(RequestError, match=why):
        read_config(path)


def test_a_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_config(tmp_path / "none.yaml")
