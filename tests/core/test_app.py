"""The program: names, two-line errors, exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from sparsify import Entry, MissingLibraryError, Plugin, RequestError, Session, StageError, find_runtime, load_plugins

HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "PIL", "numpy", "scipy", "pydantic", "rich", "jinja2")


def sparsify(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "sparsify", *arguments], {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def loaded_by(statement: str) -> set[str]:
    """Return which heavy libraries a fresh process has loaded after a statement."""
    script = f"import sys\ntry:\n    {statement}\nexcept SystemExit:\n    pass\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split()) & set(HEAVY)


def test_import_and_help_load_no_heavy_library() -> None:
    assert loaded_by("import sparsify") == set()
    assert loaded_by("from sparsify.cli.app import main; main(['--help'])") == set()
    assert loaded_by("from sparsify.cli.app import main; main(['plugins', 'list', '--json'])") <= {"rich", "pydantic"}


def test_help_lists_every_plugins_commands() -> None:
    done = sparsify("--help")
    assert done.returncode == 0
    names = "analyze benchmark demo deploy doctor eval plugins recipe run serve use-cases"
    for command in names.split():
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "fix"),
    [
        (("rnu",), "there is no command 'rnu'", "did you mean `sparsify run`?"),
        (("zzz",), "there is no command 'zzz'", "see `sparsify --help`"),
        (("run", "one-shot", "--optim-levl", "1"), "No such option: --optim-levl", "did you mean --optim-level?"),
        (("run", "one-shot", "--data"), "Option '--data' requires an argument", "see `sparsify --help`"),
        (("run", "one-shot", "--data", "d"), "--use-case is missing (command line)", "add --use-case: task name"),
        (("run", "two-shot"), "No such command 'two-shot'", "see `sparsify run --help`"),
    ],
)
def test_a_mistyped_command_line_is_two_lines_and_exit_2(arguments: tuple[str, ...], error: str, fix: str) -> None:
    done = sparsify(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {error}")
    assert lines[1].startswith(f"fix: {fix}")
    assert done.stdout == ""


def test_the_kind_that_does_not_exist_yet_says_so() -> None:
    done = sparsify("run", "sparse-transfer", "--use-case", "ic", "--model", "m.onnx", "--data", "d")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: sparse-transfer does not exist yet in this version",
        "fix: use `sparsify run one-shot`",
    ]


@pytest.mark.parametrize(
    ("kind", "option", "value", "other"),
    [
        ("one-shot", "--teacher", "disable", "training-aware"),
        ("one-shot", "--train-kwargs", "{}", "training-aware"),
        ("one-shot", "--train-samples", "9", "training-aware"),
        ("training-aware", "--time-budget", "1h", "one-shot"),
        ("training-aware", "--max-memory", "4GB", "one-shot"),
    ],
)
def test_an_option_without_effect_is_an_error(kind: str, option: str, value: str, other: str) -> None:
    done = sparsify("run", kind, "--use-case", "ic", "--model", "m.onnx", "--data", "d", option, value)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {option} has no effect in {kind}",
        f"fix: leave {option} out, or use `sparsify run {other}`",
    ]


def test_of_several_processes_only_the_first_runs_what_trains_nothing(tmp_path: Path) -> None:
    request = [
        "run",
        "one-shot",
        "--use-case",
        "ic",
        "--model",
        "m.onnx",
        "--data",
        "d",
        "--output",
        str(tmp_path / "run"),
    ]
    second = sparsify(*request, RANK="1", WORLD_SIZE="2")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert not (tmp_path / "run").exists()
    for alone in ({"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "1"}):
        assert sparsify(*request, **alone).stderr.startswith("error: --model: m.onnx does not exist")


def test_underscores_and_hyphens_are_equal() -> None:
    done = sparsify("run", "one_shot", "--use_case", "ic", "--model", "none.onnx", "--data", "d")
    assert done.stderr.splitlines()[0] == "error: --model: none.onnx does not exist"


def test_debug_shows_the_traceback() -> None:
    done = sparsify("run", "one-shot", "--use-case", "ic", "--model", "none.onnx", "--data", "d", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode == 2


def test_use_cases_lists_aliases_metric_and_plugin() -> None:
    listed = {row["name"]: row for row in json.loads(sparsify("use-cases", "--json").stdout)}
    assert listed["image-classification"]["installed"]
    assert "ic" in listed["image-classification"]["aliases"]
    assert listed["question-answering"] == {
        "name": "question-answering",
        "aliases": ["qa", "nlp-question-answering"],
        "metric": "f1",
        "plugin": "sparsify-plugin-nlp",
        "installed": False,
    }


def test_doctor_finds_nothing_wrong_here() -> None:
    done = sparsify("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert all(set(check) == {"name", "found", "fix"} for check in checks.values())
    fixes = {name: check["fix"] for name, check in checks.items() if check["fix"]}
    # what has no environment here yet is named with the command that makes one, and nothing else is amiss
    assert fixes in ({}, {"runtime deepsparse": "sparsify doctor --install deepsparse"})
    assert done.returncode == (4 if fixes else 0)
    found = checks["runtime onnxruntime"]["found"]
    assert found.endswith("runs float models in float32, INT8 models in int8")
    assert found.startswith(version("onnxruntime"))
    assert checks["runtime openvino"]["found"].endswith("INT8 models in int8")
    assert sparsify("check_environment", "--json").stdout == done.stdout


def refuse(path: Path, threads: int) -> Session:
    raise StageError(f"it cannot open {path.name}", fix="install another")


def test_doctor_tries_each_runtime_rather_than_believe_its_name() -> None:
    from sparsify_onnx.doctor import try_runtime

    plugins = load_plugins()
    odd = Plugin("odd", "odd", "1", "odd", entries={"runtimes": (Entry("odd", f"{__name__}:refuse", "refuses"),)})
    check = try_runtime("odd", replace(plugins, found=(*plugins.found, odd)))
    assert (check.name, check.found) == ("runtime odd", "it cannot open float.onnx")
    assert check.fix == "install another"


def test_a_runtime_that_may_be_installed_is_named_with_its_package() -> None:
    plugins = load_plugins()
    others = replace(plugins, found=tuple(row for row in plugins.found if row.distribution != "sparsify-openvino"))
    with pytest.raises(
        MissingLibraryError, match="runtime 'openvino' needs sparsify-openvino, not installed"
    ) as caught:
        find_runtime("openvino", others)
    assert caught.value.fix == "pip install sparsify-openvino"
    with pytest.raises(RequestError, match="there is no runtime 'openvno'") as unknown:
        find_runtime("openvno", plugins)
    assert unknown.value.fix.startswith("use 'openvino'")
    switched_off = replace(
        others, found=(*others.found, Plugin("openvino", "sparsify-openvino", "1", "x", disabled=True))
    )
    with pytest.raises(RequestError, match="there is no runtime 'openvino'") as off:
        find_runtime("openvino", switched_off)
    assert "take openvino out of SPARSIFY_DISABLE_PLUGINS" in off.value.fix


def test_doctor_names_clashing_packages() -> None:
    from sparsify_onnx.doctor import clash

    found = clash({"onnxruntime", "onnxruntime-gpu", "numpy"})
    assert found.found == "onnxruntime and onnxruntime-gpu overwrite each other"
    assert found.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
    assert clash({"onnxruntime"}).fix == ""


def test_cpu_without_dot_product_is_told() -> None:
    from sparsify_onnx.cpu import cpu_sentence

    assert "fast INT8" in cpu_sentence(("avx2", "avx512_vnni"))
    assert "no INT8 dot product" in cpu_sentence(("avx2",))
    assert "unknown" in cpu_sentence(())
