"""What --sparsity structured and --target-speedup choose: by name, reproducibly, and verified end to end."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sparsify import Description, RequestError, make_experiment
from sparsify.cli.app import main
from sparsify_image_classification.demo import write_demo
from sparsify_torch import speed
from sparsify_torch.channels import macs
from sparsify_torch.coupling import couple
from sparsify_torch.mixing import thin_to_share, thin_to_speed
from sparsify_torch.recipe import macs_left, write
from sparsify_torch.structured_recipe import chosen_steps, share_of
from sparsify_torch.thinning import cost_of
from torch import nn

from tests.torch.thinnable import IMAGES, Blocks, settled

NOTHING = Description((), (), (), 0, 0, 0)
NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.two, self.last = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)

    def forward(self, x):
        return (x + self.last(self.two(self.norm(self.one(x)).relu()))).relu()


def net():
    stem = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, Block(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
"""


class Kept:
    """Keep arrays in memory, as a run folder does on disk."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        return self.held.get(name)

    def save(self, name: str, arrays: Any) -> None:
        self.held[name] = dict(arrays)


def net() -> nn.Module:
    torch.manual_seed(0)
    return settled(Blocks())


def asked(**given: Any) -> Any:
    fixed = {"kind": "training-aware", "use_case": "image-classification", "model": "m", "data": "d"}
    return make_experiment({**fixed, "sparsity": "structured", **given})


def test_a_level_is_a_share_of_the_multiplications() -> None:
    assert [macs_left(level) for level in (0.3, 0.5, 1.0)] == [0.6, 0.5, 0.25]
    steps = {step.name: step.options for step in write(asked(train_kwargs={"epochs": 10}), NOTHING).steps}
    pruned = steps["StructuredPruningModifier"]
    assert (pruned["of"], pruned["final_sparsity"], pruned["end_epoch"]) == ("macs", 0.5, 1.0)
    assert pruned["end_epoch"] < steps["QuantizationModifier"]["start_epoch"]
    assert "StructuredPruningModifier" not in [step.name for step in write(asked(optim_level=0.2), NOTHING).steps]


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_mix_leaves_at_most_its_share(share: float) -> None:
    module = net()
    whole, dense = cost_of(couple(module, IMAGES), macs), copy.deepcopy(module)
    report = thin_to_share(module, IMAGES, target=share)
    assert cost_of(couple(module, IMAGES), macs) <= share * whole
    again = thin_to_share(dense, IMAGES, target=share)
    assert again.structure == report.structure
    with pytest.raises(RequestError, match="leaves 0% of the MACs or less"):
        thin_to_share(net(), IMAGES, target=0.001)


@given(st.integers(2, 4096).flatmap(lambda wide: st.tuples(st.just(wide), st.integers(1, wide - 1))))
def test_a_share_means_the_channels_that_were_chosen(widths: tuple[int, int]) -> None:
    wide, narrow = widths
    share = share_of(wide, narrow)
    assert math.floor(share * wide + 1e-6) == wide - narrow
    assert len(repr(share)) <= 8


def test_gradients_choose_channels_only_where_nothing_normalizes() -> None:
    convolutions = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)]
    plain = nn.Sequential(*convolutions)
    plain(*IMAGES)
    for module, score in ((plain, "taylor"), (net(), None)):
        found = thin_to_share(copy.deepcopy(module).eval(), IMAGES, target=0.7)
        steps = [step for step in chosen_steps(10.0, found, module) if step.name == "StructuredPruningModifier"]
        assert steps
        assert {step.options.get("score") for step in steps} == {score}


def test_what_was_measured_once_decides_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cost_of(couple(net(), IMAGES), macs)
    measured: list[float] = []

    def timed(model: Any, threads: int, runs: int) -> float:
        return math.prod(model.graph.initializer[0].dims) / 1e6

    def measure(thinner: nn.Module) -> float:
        measured.append(0.9 * whole / cost_of(couple(thinner, IMAGES), macs))
        return measured[-1]

    monkeypatch.setattr(speed, "_kernel_ms", timed)
    kept = Kept()
    first = thin_to_speed(net(), IMAGES, speedup=1.3, measure=measure, kept=kept)
    assert first.speedup == measured[-1] >= 1.3
    assert "operator-times" in kept.held
    assert any(name.startswith("speedup-") for name in kept.held)

    def never(*_: Any) -> float:
        raise AssertionError("nothing is measured again")

    monkeypatch.setattr(speed, "_kernel_ms", never)
    second = thin_to_speed(net(), IMAGES, speedup=1.3, measure=never, kept=kept)
    assert second.thinned.structure == first.thinned.structure
    assert second.weighed == first.weighed


def test_what_is_there_already_is_not_asked_of_channels() -> None:
    with pytest.raises(RequestError, match=r"1\.60 x is there already"):
        thin_to_speed(net(), IMAGES, speedup=1.5, already=1.6)


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "residual_network.py").write_text(dedent(NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    _, data = write_demo(tmp_path / "demo")
    fixed = ["run", "training-aware", "--use-case", "image-classification", "--model", "residual_network:net"]
    kwargs = '{"epochs": 3, "image_size": 8, "batch_size": 32, "lr": 0.1}'
    fixed += ["--train-kwargs", kwargs, "--teacher", "disable", "--max-drop", "none", "--threads", "1", "--json"]
    return [*fixed, "--data", str(data), "--output", str(tmp_path / "run")]


def finished(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, 6)  # so small a model may be no faster
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def steps_of(run: Path) -> dict[str, Any]:
    class Tags(yaml.SafeLoader):
        pass

    Tags.add_multi_constructor("!", lambda loader, tag, node: {tag: loader.construct_mapping(node, deep=True)})
    document = yaml.load((run / "recipe.yaml").read_text(), Tags)
    stages = [value for value in document.values() if isinstance(value, dict)]
    return {
        name: options
        for stage in stages
        for group in stage.values()
        if isinstance(group, list)
        for one in group
        for name, options in one.items()
    }


def test_blocks_and_channels_go_and_the_report_says_so(
    request_: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # a quarter of the multiplications is out of reach of channels alone, in multiples of 16
    metrics = finished([*request_, "--sparsity", "structured", "--optim-level", "1"], capsys)
    steps = steps_of(tmp_path / "run")
    assert metrics["optimized"]["macs"] <= 0.25 * metrics["baseline"]["macs"]
    left = [layer for layer in metrics["layers"] if layer["shape_after"] is not None]
    assert metrics["optimized"]["quantized"] == {"int8": len(left), "of": len(left)}
    gone = [layer for layer in metrics["layers"] if layer["shape_after"] is None]
    taken = steps["LayerPruningModifier"]["layers"]
    assert taken
    assert {layer["name"].rpartition(".")[0] for layer in gone} == set(taken)
    assert all(layer["sqnr_db"] is None and layer["precision"] is None for layer in gone)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "taken out" in report
    assert "multiplications a sample" in report
    assert metrics["optimized"]["metrics"]["accuracy"] > metrics["baseline"]["metrics"]["accuracy"] - 15

    with pytest.raises(SystemExit) as ended:
        main(["reproduce", str(tmp_path / "run"), "--output", str(tmp_path / "again"), "--quiet"])
    assert ended.value.code == 0, capsys.readouterr().out
    models = [(tmp_path / run / "deployment" / "model.onnx").read_bytes() for run in ("run", "again")]
    assert models[0] == models[1]


def test_a_speed_out_of_reach_is_refused_and_leaves_what_was_trained(
    request_: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*request_, "--target-speedup", "500"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "error: 500.00 x as fast cannot be reached: no mix" in told
    assert "fix: ask for less\n" in told
    assert "onnxruntime makes nothing of zeros" in told
    assert (tmp_path / "run" / "training_artifacts" / "dense" / "best.pt").is_file()
    assert f"what was trained stays in {tmp_path / 'run' / 'training_artifacts'}" in told


def test_level_0_has_no_speed(request_: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*request_, "--target-speedup", "2", "--optim-level", "0"])
    assert ended.value.code == 2
    assert "--target-speedup has no effect at --optim-level 0" in capsys.readouterr().err


def test_nn_module_is_left_alone_by_a_trial() -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RequestError):
        thin_to_share(module, IMAGES, target=0.001)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
