"""Plugins: found through entry points, isolated from each other, named in every failure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from sparsify.errors import ExitCode, MissingLibraryError, PluginError, RequestError, SparsifyError
from sparsify.hooks import CATALOGUES, Entry, Hooks
from sparsify.plugins import Offer, Plugin, Plugins, load_plugins, load_target, missing, singular
from sparsify_plugin_kit.command import app
from typer.testing import CliRunner

TOY = Path(__file__).parent / "toy"
GOOD = """
@hookimpl
def evaluators():
    return [Entry("good-metric", target="good.metric:METRIC", summary="a metric")]
"""
Add = Callable[..., None]


def found(name: str) -> Plugin:
    (plugin,) = (plugin for plugin in load_plugins().found if plugin.name == name)
    return plugin


def listed() -> str:
    """Run `sparsify plugins list`, which must work whatever is installed."""
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0, result.output
    return result.output


def offer(target: str, **more: Any) -> Offer:
    return Offer(Entry("thing", target, "a thing", **more), Plugin("shop", "shop-dist", "2.0", "shop.plugin"))


def caught(kind: type[SparsifyError], call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(kind) as error:
        call()
    return error.value.problem, error.value.fix


# What every plugin sees


def test_a_good_plugin_is_found_with_its_distribution(add_plugin: Add) -> None:
    add_plugin("good", GOOD, metric="METRIC = 'the target'")
    plugin = found("good")
    assert (plugin.distribution, plugin.version, plugin.module) == ("good", "1.2", "good.plugin")
    assert (plugin.error, plugin.disabled) == ("", False)
    assert "good.metric" not in sys.modules, "targets are imported on first use"
    assert load_plugins().load("evaluators", "good-metric") == "the target"


def test_generators_and_named_hook_implementations_are_read(add_plugin: Add) -> None:
    add_plugin(
        "good",
        """
        @hookimpl(specname="evaluators")
        def whatever():
            yield Entry("good-metric", target="good.metric:METRIC", summary="a metric")
        """,
    )
    assert [entry.name for entry in found("good").entries["evaluators"]] == ["good-metric"]


def test_every_hook_returns_entries_or_observes() -> None:
    hooks = {name for name in vars(Hooks) if not name.startswith("_")}
    assert hooks == {*CATALOGUES, "experiment_finished"}
    assert all(vars(Hooks)[name].__doc__ for name in hooks)


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_each_catalogue_is_read(add_plugin: Add, catalogue: str) -> None:
    phase = ', phase="training"' if catalogue == "modifiers" else ""
    add_plugin(
        "good", f'@hookimpl\ndef {catalogue}():\n    return [Entry("mine", target="a.b:c", summary="it"{phase})]\n'
    )
    plugins = load_plugins()
    assert plugins.find(catalogue, "mine").plugin.name == "good"
    assert f"{singular(catalogue)} mine" in listed()


# What is wrong with a plugin: a red row that says why, and everything else works

BROKEN = {
    "raises at import": ("raise ValueError('boom')", "ValueError: boom"),
    "exits at import": ("import sys; sys.exit(9)", "SystemExit: 9"),
    "misses a library": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "does not parse": ("def def", "SyntaxError: invalid syntax"),
    "misspelt hook": (
        "@hookimpl\ndef use_case(): return []",
        "ValueError: unknown hook 'use_case', did you mean 'use_cases'?",
    ),
    "unknown hook": ("@hookimpl\ndef qwertz(): return []", "ValueError: unknown hook 'qwertz'"),
    "wrong signature": (
        "@hookimpl\ndef use_cases(config): return []",
        "PluginValidationError: Plugin 'bad:bad' for hook 'use_cases' hookimpl definition: use_cases(config) "
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "raises when asked": ("@hookimpl\ndef use_cases(): return 1 / 0", "ZeroDivisionError: division by zero"),
    "raises half-way": (
        "@hookimpl\ndef use_cases():\n    yield Entry('a', 'b:c', 'd')\n    raise KeyError('late')",
        "KeyError: 'late'",
    ),
    "returns None": (
        "@hookimpl\ndef use_cases(): pass",
        "TypeError: hook 'use_cases' returned NoneType, expected a list of sparsify.Entry",
    ),
    "returns one entry": (
        "@hookimpl\ndef use_cases(): return Entry('a', 'b:c', 'd')",
        "TypeError: hook 'use_cases' returned Entry, expected a list of sparsify.Entry",
    ),
    "returns strings": (
        "@hookimpl\ndef use_cases(): return ['a']",
        "TypeError: hook 'use_cases' returned str, expected sparsify.Entry",
    ),
    "target without attribute": (
        "@hookimpl\ndef use_cases(): return [Entry('a', 'b.c', 'd')]",
        "ValueError: entry 'a' of 'use_cases' has target 'b.c', expected 'package.module:attribute'",
    ),
    "string for a tuple": (
        "@hookimpl\ndef use_cases(): return [Entry('a', 'b:c', 'd', accepts=('npz'))]",
        "TypeError: entry 'a' of 'use_cases' has accepts 'npz', expected a tuple of strings",
    ),
    "number for a string": (
        "@hookimpl\ndef use_cases(): return [Entry('a', 'b:c', 7)]",
        "TypeError: entry 'a' of 'use_cases' has summary 7, expected a string",
    ),
    "no name": (
        "@hookimpl\ndef use_cases(): return [Entry(' ', 'b:c', 'd')]",
        "ValueError: an entry of 'use_cases' has no name",
    ),
    "modifier without phase": (
        "@hookimpl\ndef modifiers(): return [Entry('a', 'b:c', 'd')]",
        "ValueError: modifier 'a' has phase '', expected 'post-training' or 'training'",
    ),
}


@pytest.mark.parametrize(("source", "error"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_a_row_and_the_others_work(add_plugin: Add, source: str, error: str) -> None:
    add_plugin("bad", source)
    add_plugin("good", GOOD)
    assert found("bad").error.startswith(error)
    (row,) = (line for line in listed().splitlines() if line.startswith("bad "))
    assert row.split(maxsplit=4)[3] == "broken"
    assert error in row
    plugins = load_plugins()
    assert plugins.find("evaluators", "good-metric").plugin.name == "good"
    assert not plugins.manager.has_plugin("bad:bad"), "nothing of it stays registered"


def test_a_half_imported_package_gives_the_same_error_again(add_plugin: Add) -> None:
    add_plugin("bad", "from bad import first, second", first="VALUE = 1", second="raise OSError('disk')")
    assert [found("bad").error for _ in range(2)] == ["OSError: disk"] * 2


def test_a_missing_module_and_a_missing_attribute(site: Path) -> None:
    for value, error in (("no_module", "No module named 'no_module'"), ("json:no_such", "has no attribute 'no_such'")):
        (plugin,) = load_plugins([EntryPoint("bad", value, "sparsify")]).found
        assert plugin.error.endswith(error)


def test_what_a_plugin_prints_stays_off_stdout(add_plugin: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add_plugin("loud", "print('hello')\n" + GOOD)
    load_plugins()
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize("section", ["console_scripts", "sparsify"])
def test_damaged_metadata_of_any_package_stops_nothing(
    add_plugin: Add, site: Path, capsys: pytest.CaptureFixture[str], section: str
) -> None:
    add_plugin("good", GOOD)
    folder = site / "damaged-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: damaged\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{section}]\nno equals sign\n")
    assert {"core", "good"} <= {plugin.name for plugin in load_plugins().found}
    warned = "warning: entry points of damaged cannot be read: " in capsys.readouterr().err
    assert warned == (section == "sparsify"), "only a plugin of ours is worth a word"


@pytest.mark.parametrize("value", ["nick", "good", "other, good "])
def test_disabled_by_plugin_or_distribution(add_plugin: Add, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    add_plugin("good", "raise SystemExit('never imported')", point="nick")
    monkeypatch.setenv("SPARSIFY_DISABLE_PLUGINS", value)
    plugin = found("nick")
    assert (plugin.disabled, plugin.error, plugin.entries) == (True, "", {})
    (row,) = (line for line in listed().splitlines() if line.startswith("nick "))
    assert row.split()[3] == "disabled"
    _, fix = caught(RequestError, lambda: load_plugins().find("evaluators", "good-metric"))
    assert fix.endswith("; or take nick out of SPARSIFY_DISABLE_PLUGINS")


# Names


def test_a_name_offered_twice_is_an_error_only_when_it_is_used(add_plugin: Add) -> None:
    add_plugin("good", GOOD)
    add_plugin("twin", GOOD)
    assert "good-metric" in listed()
    plugins = load_plugins()
    assert plugins.find("evaluators", "accuracy").plugin.name == "core"
    assert caught(PluginError, lambda: plugins.find("evaluators", "good-metric")) == (
        "evaluator 'good-metric' is offered twice, by good (good.plugin) and twin (twin.plugin)",
        "uninstall one of them, or set SPARSIFY_DISABLE_PLUGINS=twin",
    )


def test_disabling_the_twin_mends_it(add_plugin: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add_plugin("good", GOOD)
    add_plugin("twin", GOOD)
    monkeypatch.setenv("SPARSIFY_DISABLE_PLUGINS", "twin")
    assert load_plugins().find("evaluators", "good-metric").plugin.name == "good"


def test_twins_of_one_plugin_name_are_told_apart_by_distribution(add_plugin: Add) -> None:
    add_plugin("good", GOOD, point="same")
    add_plugin("twin", GOOD, point="same")
    problem, fix = caught(PluginError, lambda: load_plugins().find("evaluators", "good-metric"))
    assert problem.endswith("by good (good.plugin) and twin (twin.plugin)")
    assert fix == "uninstall one of them, or set SPARSIFY_DISABLE_PLUGINS=twin"


def test_one_plugin_offers_a_name_twice(add_plugin: Add) -> None:
    add_plugin("good", GOOD.replace("]", ", Entry('b', 'c:d', 'e', aliases=('good-metric',))]"))
    _, fix = caught(PluginError, lambda: load_plugins().find("evaluators", "good-metric"))
    assert fix == "rename one of the two in good.plugin"


def test_modifiers_are_keyed_by_name_and_phase(add_plugin: Add) -> None:
    rows = ", ".join(
        f"Entry('M', 'good.m:{phase[:4]}', 's', phase='{phase}')" for phase in ("training", "post-training")
    )
    add_plugin("good", f"@hookimpl\ndef modifiers(): return [{rows}]")
    plugins = load_plugins()
    assert plugins.find("modifiers", "M", "training").entry.target == "good.m:trai"
    assert plugins.find("modifiers", "M", "post-training").entry.target == "good.m:post"


def test_unknown_names_suggest_near_ones_and_broken_plugins(add_plugin: Add) -> None:
    plugins = load_plugins([EntryPoint("core", "sparsify.plugin", "sparsify")])
    assert caught(RequestError, lambda: plugins.find("evaluators", "accuracie")) == (
        "there is no evaluator 'accuracie'",
        "use 'accuracy'",
    )
    assert caught(RequestError, lambda: plugins.find("evaluators", "topp1"))[1].startswith("use 'top")
    add_plugin("bad", "raise ValueError")
    plugins = load_plugins([EntryPoint("bad", "bad.plugin", "sparsify")])
    assert caught(RequestError, lambda: plugins.find("trainers", "x")) == (
        "there is no trainer 'x'",
        "install a plugin that offers one; or mend the broken plugin bad (see `sparsify plugins list`)",
    )


def test_an_editable_install_beside_a_wheel_is_one_plugin() -> None:
    point = EntryPoint("toy", "sparsify.plugin", "sparsify")
    assert len(load_plugins([point, EntryPoint("toy", "sparsify.plugin", "sparsify")]).found) == 1
    assert isinstance(load_plugins([]), Plugins)


# Targets


def test_a_library_that_is_required_and_missing() -> None:
    needing = offer("json:loads", requires=("no-such-library", "PIL", "cv2"))
    problem, fix = caught(MissingLibraryError, lambda: load_target(needing))
    assert problem == "'thing' of shop-dist needs no-such-library, cv2, not installed here"
    assert fix == "pip install no-such-library opencv-python"
    assert MissingLibraryError.exit_code == ExitCode.MISSING == 4


@pytest.mark.parametrize("name", ["pluggy", "pydantic-core", "pyyaml", "PyYAML"])
def test_libraries_are_found_under_both_their_names(name: str) -> None:
    assert missing(Entry("a", "b:c", "d", requires=(name,))) == ()


def test_a_required_library_is_looked_for_without_importing_it(site: Path) -> None:
    (site / "fragile").mkdir()
    (site / "fragile/__init__.py").write_text("raise RuntimeError('imported')")
    assert missing(Entry("a", "b:c", "d", requires=("fragile", "fragile.sub"))) == ("fragile.sub",)


def test_a_library_that_is_missing_without_notice(add_plugin: Add) -> None:
    add_plugin("shop", "", thing="import no_such_library.deep")
    assert caught(MissingLibraryError, lambda: load_target(offer("shop.thing:x"))) == (
        "'thing' of shop-dist needs no_such_library, not installed here",
        "pip install no_such_library",
    )


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("shop.absent:x", "ModuleNotFoundError: No module named 'shop.absent'"),
        ("shop.thing:absent", "AttributeError: module 'shop.thing' has no attribute 'absent'"),
        ("shop.boom:x", "ZeroDivisionError: division by zero"),
        ("shop.quits:x", "SystemExit: 1"),
    ],
)
def test_a_bad_target_is_the_plugins_fault(add_plugin: Add, target: str, error: str) -> None:
    add_plugin("shop", "", thing="", boom="1 / 0", quits="raise SystemExit(1)")
    problem, fix = caught(PluginError, lambda: load_target(offer(target)))
    assert problem == f"plugin 'shop' (shop-dist 2.0) failed to load {target}: {error}"
    assert fix == "run `sparsify plugins check shop`, or set SPARSIFY_DISABLE_PLUGINS=shop"
    assert PluginError.exit_code == ExitCode.PLUGIN == 3


# The commands `sparsify plugins list` and `info`


def test_list_as_json(add_plugin: Add) -> None:
    add_plugin("bad", "raise ValueError('boom')")
    add_plugin("good", GOOD.replace("[Entry(", "[Entry(requires=('no-such-library', 'pluggy'), name="))
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)}
    assert (rows["bad"]["state"], rows["bad"]["error"]) == ("broken", "ValueError: boom")
    (entry,) = rows["good"]["entries"]["evaluators"]
    assert (entry["target"], entry["missing"]) == ("good.metric:METRIC", ["no-such-library"])


def test_info_shows_entries_and_the_install_command(install: Callable[[Path], Any]) -> None:
    install(TOY)
    for name in ("toy", "toy-plugin"):
        text = CliRunner().invoke(app, ["info", name]).output
        assert "toy (toy-plugin 0.3.0, toy_plugin.plugin): ok" in text
        assert "command toy: greet\n    aliases  toy-greeting\n    target   toy_plugin.greeting:app\n" in text
        assert "missing  no-such-library\n    install  pip install no-such-library\n" in text


def test_info_of_an_unknown_plugin() -> None:
    result = CliRunner().invoke(app, ["info", "cores"])
    assert isinstance(result.exception, RequestError)
    assert result.exception.lines() == "error: there is no plugin 'cores'\nfix: did you mean 'core'?"
    far = CliRunner().invoke(app, ["info", "zzz"]).exception
    assert isinstance(far, RequestError)
    assert far.fix == "see `sparsify plugins list`; a plugin has to be installed"


# A third party's package, in a fresh process


def sparsify(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparsify", *words], env=env, capture_output=True, text=True, check=False
    )


def test_a_third_party_package_is_found_and_runs(install: Callable[[Path], dict[str, str]]) -> None:
    env = install(TOY)
    assert "toy-plugin" in sparsify("plugins", "list", env=env).stdout
    assert sparsify("toy", "--name", "you", env=env).stdout == "hello you\n"
    absent = sparsify("toy-absent", env=env)
    assert (absent.returncode, absent.stderr) == (
        4,
        "error: 'toy-absent' of toy-plugin needs no-such-library, not installed here\n"
        "fix: pip install no-such-library\n",
    )
    checked = sparsify("plugins", "check", "toy", env=env)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.startswith("toy: ok\ntoy: command 'toy-absent': needs no-such-library, not installed here")


def test_a_broken_third_party_package_kills_no_command(add_plugin: Add, site: Path) -> None:
    import os

    add_plugin("bad", "raise ValueError('boom')")
    env = {**os.environ, "PYTHONPATH": str(site)}
    listing = sparsify("plugins", "list", env=env)
    assert (listing.returncode, "ValueError: boom" in listing.stdout) == (0, True)
    assert sparsify("--help", env=env).returncode == 0
    checked = sparsify("plugins", "check", "bad", env=env)
    assert checked.returncode == 3
    assert checked.stdout.startswith("bad: bad.plugin: ValueError: boom (fix: ")


HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "PIL", "numpy", "scipy", "jinja2")


@pytest.mark.parametrize(
    "code",
    [
        "import sparsify",
        "import sparsify_plugin_kit.command as p; p.app(['list'], standalone_mode=False)",
        "import sparsify_plugin_kit.command as p; p.app(['info', 'npz'], standalone_mode=False)",
        "import sparsify.cli.app as a\ntry: a.main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    probe = f"{code}\nimport sys; sys.stderr.write(repr([m for m in {HEAVY} if m in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ran.stderr == "[]"
