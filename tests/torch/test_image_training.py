"""Image classification trained on real digits: it learns, prunes exactly, resumes bit for bit, and refuses the rest."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparsify import RequestError, StageError, draw_splits, load_plugins
from sparsify_image_classification import reading
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.pixels import preprocess
from sparsify_image_classification.training import loop, samples, stepping
from sparsify_image_classification.training.trainer import TRAINER
from sparsify_torch.distillation import DistillationModifier
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.quantization import QuantizationModifier
from torch import nn

from tests.torch.image_training import WEIGHT, data_of, experiment, fit, pruning, start, thinning


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Any:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    yield
    del os.environ["ACCELERATE_USE_CPU"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))[1]


@pytest.fixture(scope="module")
def unsplit(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation digits as one folder without splits."""
    folder = tmp_path_factory.mktemp("one") / "digits"
    folder.symlink_to(digits / "val")
    return folder


def accuracy(module: nn.Module, digits: Path) -> float:
    data = data_of(digits)
    (batch,) = data.splits["validation"].batches(2000)
    with torch.no_grad():
        found = module(torch.from_numpy(batch.inputs["input"])).argmax(1).numpy()
    return 100 * float((found == np.array(batch.targets)).mean())


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_plugin_offers_the_trainer() -> None:
    assert load_plugins().load("trainers", "image-classification") is TRAINER


def test_it_learns_and_leaves_the_dense_module_alone(digits: Path, tmp_path: Path) -> None:
    model, training, notes = start(digits, tmp_path, train_kwargs={"epochs": 3})
    before = {name: value.clone() for name, value in model.value.state_dict().items()}
    trained = TRAINER.train(model, (), training)
    assert accuracy(trained.value, digits) > 90
    assert all(torch.equal(before[name], value) for name, value in model.value.state_dict().items())
    assert not trained.value.training
    assert any("best of 3 epochs" in note for note in notes)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["accuracy"] > 90
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.pt", "last.pt"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_recipe_reaches_its_sparsity_exactly(ema: float, digits: Path, tmp_path: Path) -> None:
    trained = fit(digits, tmp_path, pruning(), train_kwargs={"ema": ema})
    weight = dict(trained.value.named_parameters())[WEIGHT]
    assert int((weight == 0).sum()) == round(0.75 * weight.numel())
    assert accuracy(trained.value, digits) > 80
    assert ["GMPruningModifier/progress" in row for row in trained.facts["history"]] == [True, True, False]
    assert trained.facts["best"]["epoch"] >= 1  # only epochs that are as sparse as the result


EXTRAS = {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1, "crop": True, "flip": True, "randaugment": 5}


@pytest.mark.parametrize("step", [3, 36, 67])
def test_a_killed_run_resumes_bit_for_bit(step: int, digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    given = {"train_kwargs": {**EXTRAS, "grad_accumulation": 2, "optimizer": "adamw"}, "train_samples": 800}
    modifiers = [*pruning(6), DistillationModifier(hardness=0.5)]
    whole = fit(digits, tmp_path / "whole", modifiers, **given)
    taken = stepping.take_step
    count = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken(*arguments)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        signal_as_core(lambda: fit(digits, tmp_path / "cut", modifiers, **given))
    monkeypatch.setattr(loop, "take_step", taken)
    torch.manual_seed(99)
    resumed = fit(digits, tmp_path / "cut", modifiers, resume=True, **given)
    assert same(whole.value, resumed.value)
    assert [row["accuracy"] for row in whole.facts["history"]] == [row["accuracy"] for row in resumed.facts["history"]]
    again = fit(digits, tmp_path / "cut", modifiers, resume=True, **given)  # what is finished trains no more
    assert same(whole.value, again.value)


@pytest.mark.parametrize("step", [10, 45, 90])
def test_a_run_that_takes_channels_out_resumes_bit_for_bit(
    step: int, digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Averaged weights, best checkpoint and momentum follow the module, which is smaller at every half epoch."""
    given = {"train_kwargs": {"ema": 0.9}}
    modifiers = [*thinning(), DistillationModifier(hardness=0.5)]
    whole = fit(digits, tmp_path / "whole", modifiers, **given)
    assert whole.value.features[3].out_channels == 16
    assert accuracy(whole.value, digits) > 80
    taken, count = stepping.take_step, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken(*arguments)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        signal_as_core(lambda: fit(digits, tmp_path / "cut", modifiers, **given))
    monkeypatch.setattr(loop, "take_step", taken)
    resumed = fit(digits, tmp_path / "cut", modifiers, resume=True, **given)
    assert same(whole.value, resumed.value)
    assert [row["accuracy"] for row in whole.facts["history"]] == [row["accuracy"] for row in resumed.facts["history"]]
    again = fit(digits, tmp_path / "cut", modifiers, resume=True, **given)
    assert same(whole.value, again.value)


def test_quantization_that_begins_between_two_epochs_goes_with_averaged_weights(digits: Path, tmp_path: Path) -> None:
    """It begins with the next call, and that is one of validation, which sees the average."""
    modifiers = [EpochRangeModifier(start_epoch=0, end_epoch=3), QuantizationModifier(start_epoch=2.0)]
    found = fit(digits, tmp_path, modifiers, train_kwargs={"ema": 0.9})
    assert accuracy(found.value, digits) > 80
    assert any("fake_quantization" in name for name in found.value.state_dict())


def signal_as_core(act: Any) -> None:
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        act()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_test_sample_is_ever_read(unsplit: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked = experiment(unsplit)
    data = data_of(unsplit)
    test = draw_splits(data, None, calibration=asked.calibration_samples, test=asked.val_samples, seed=asked.seed).test
    read: set[str] = set()
    opened = reading.opened

    def watched(path: Path) -> Any:
        read.add(path.relative_to(unsplit).as_posix())
        return opened(path)

    monkeypatch.setattr(reading, "opened", watched)
    fit(unsplit, tmp_path, train_kwargs={"epochs": 2})
    assert len(test) > 200
    assert read
    assert read.isdisjoint(test.keys)
    chosen = samples.choose(data, asked)
    assert set(chosen.train.keys).isdisjoint(chosen.validation.keys)
    assert len(chosen.train) + len(chosen.validation) + len(test) == len(data.splits["all"])


def test_images_of_the_evaluation_data_are_not_trained_on(unsplit: Path) -> None:
    chosen = samples.choose(data_of(unsplit), experiment(unsplit, eval_data=str(unsplit / "3")))
    assert not [key for key in chosen.train.keys if key.startswith("3/")]
    assert [key for key in chosen.train.keys if key.startswith("4/")]


def test_a_split_of_its_own_validates(digits: Path, tmp_path: Path) -> None:
    """With train/, val/ and test/ the validation images are those of val/, and all of train/ is trained on."""
    for name, source in (("train", "train"), ("val", "val"), ("test", "val")):
        (tmp_path / name).symlink_to(digits / source)
    data = data_of(tmp_path)
    chosen = samples.choose(data, experiment(tmp_path))
    assert {key.split("/")[0] for key in chosen.validation.keys} == {"val"}
    assert chosen.train.keys == data.splits["train"].keys


def test_few_training_images_are_shared_out_nevertheless(digits: Path) -> None:
    """Where calibration takes every training image, validation takes a tenth of them all the same."""
    chosen = samples.choose(data_of(digits), experiment(digits, calibration_samples=5000))
    assert (len(chosen.train), len(chosen.validation)) == (1076, 119)
    assert set(chosen.train.keys).isdisjoint(chosen.validation.keys)


def test_the_second_epoch_opens_no_file(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    opened, count = reading.opened, 0

    def counted(path: Path) -> Any:
        nonlocal count
        count += 1
        return opened(path)

    monkeypatch.setattr(reading, "opened", counted)
    model, training, notes = start(digits, tmp_path, train_kwargs={"epochs": 3, "cache_mb": 0}, train_samples=320)
    TRAINER.train(model, (), training)
    assert count == 320 + 119  # training and validation images once
    assert any("kept in" in note for note in notes)
    assert not list(tmp_path.glob("pixels-*"))


def test_validation_sees_what_a_deployment_sees(digits: Path) -> None:
    data = data_of(digits)
    split = data.splits["validation"]
    images = samples.Images(split, samples.evaluation_steps(data.preprocess), None, 1)
    pixels, targets = images.rows(np.arange(5))
    from sparsify_image_classification.training.augment import to_numbers

    numbers = to_numbers(torch.from_numpy(pixels), data.preprocess).numpy()
    for key, row, target in zip(split.keys, numbers, targets, strict=False):
        with reading.opened(digits / key) as image:
            assert np.array_equal(row, preprocess(data.preprocess, image))
        assert target == split.read(key).target


def test_memory_that_runs_out_halves_what_runs_at_once(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model, training, notes = start(digits, tmp_path, train_kwargs={"epochs": 1, "channels_last": False})
    forward = type(model.value).forward

    def small(self: Any, x: Any) -> Any:
        if self.training and len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(type(model.value), "forward", small)
    TRAINER.train(model, (), training)
    assert [note for note in notes if "memory" in note][-1].startswith("memory is exhausted: 8 images at once")
    monkeypatch.setattr(type(model.value), "forward", lambda self, x: small(self, x.repeat(11, 1, 1, 1)))
    with pytest.raises(StageError, match="memory is exhausted by one image"):
        TRAINER.train(model, (), replace(training, folder=tmp_path / "other"))


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    taken = stepping.take_step

    def poisoned(run: Any, epoch: int, step: int) -> Any:
        if (epoch, step) == (2, 3):
            with torch.no_grad():
                run.module.features[3].weight.fill_(torch.inf)
        return taken(run, epoch, step)

    monkeypatch.setattr(loop, "take_step", poisoned)
    with pytest.raises(StageError, match=r"step 69 .*layer 'features\.3'"):
        fit(digits, tmp_path, pruning(4))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["module"].values())


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(
    digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    taken = stepping.take_step

    def poisoned(run: Any, epoch: int, step: int) -> Any:
        loss = taken(run, epoch, step)
        if (epoch, step) == (1, run.feed.steps - 1):
            with torch.no_grad():
                run.module.head[1].bias.fill_(torch.nan)
        return loss

    monkeypatch.setattr(loop, "take_step", poisoned)
    with pytest.raises(StageError, match=r"weights of 'head\.1\.bias' are not finite .* holds the last good ones"):
        fit(digits, tmp_path, pruning(4))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1


def test_a_full_disk_is_told_and_the_old_checkpoint_kept(digits: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StageError, match="No space left on device") as caught:
        fit(digits, tmp_path, train_kwargs={"epochs": 1})
    assert "--resume" in caught.value.fix
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_kwargs": {"lr": 0.3}}, "another lr"),
        ({"seed": 4}, "another s"),
        ({"train_samples": 100}, "another samples"),
        ({"model": "tests.torch.test_image_training:other"}, "another model"),
        ({"modifiers": pruning(2, 0.5)}, "another recipe"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changed: Any, said: str, digits: Path, tmp_path: Path) -> None:
    fit(digits, tmp_path, pruning(2), train_samples=200)
    given = {"train_samples": 200, **changed}
    with pytest.raises(RequestError, match=said):
        fit(digits, tmp_path, given.pop("modifiers", pruning(2)), resume=True, **given)


def other(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))


def test_a_broken_checkpoint_is_refused(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RequestError, match="is no checkpoint"):
        fit(digits, tmp_path, pruning(2), resume=True)


@pytest.mark.parametrize(
    ("kwargs", "said", "fix"),
    [
        ({"batchsize": 8}, "there is no 'batchsize'", "batch_size"),
        ({"lr": -1}, "lr: .* greater than 0", "learning rate"),
        ({"optimizer": "lamb"}, "optimizer", "sgd"),
        ({"epochs": 1}, "the recipe runs to epoch 3", "epochs"),
    ],
)
def test_options_that_do_not_work_are_refused(kwargs: Any, said: str, fix: str, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        fit(digits, tmp_path, pruning(), train_kwargs=kwargs)
    assert fix in caught.value.fix


def test_half_precision_and_clipping_learn_too(digits: Path, tmp_path: Path) -> None:
    trained = fit(digits, tmp_path, train_kwargs={"epochs": 3, "amp": True, "clip_grad": 1.0})
    assert accuracy(trained.value, digits) > 80


def test_patience_stops_early(digits: Path, tmp_path: Path) -> None:
    trained = fit(digits, tmp_path, train_kwargs={"epochs": 40, "patience": 2, "lr": 1e-9}, train_samples=64)
    assert len(trained.facts["history"]) == trained.facts["best"]["epoch"] + 3


def test_too_few_images_are_refused(digits: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for image in sorted((digits / "val" / name).iterdir())[:4]:
            (tmp_path / "few" / name / image.name).write_bytes(image.read_bytes())
    with pytest.raises(RequestError, match="leaves 0 images to train on"):
        fit(tmp_path / "few", tmp_path / "run")


def test_unreadable_images_are_stood_in_for_and_counted(digits: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(digits, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "train").rglob("*.png"))
    for image in broken[::40]:
        image.write_bytes(b"broken")
    model, training, notes = start(tmp_path / "data", tmp_path / "run", train_kwargs={"epochs": 1})
    TRAINER.train(model, (), training)
    assert any("unreadable images" in note for note in notes)
    for image in broken[::9]:
        image.write_bytes(b"broken")
    with pytest.raises(RequestError, match="cannot be read"):
        fit(tmp_path / "data", tmp_path / "run2", train_kwargs={"epochs": 1})


def test_a_teacher_is_the_dense_module_a_file_or_none(digits: Path, tmp_path: Path) -> None:
    modifiers = [*pruning(2), DistillationModifier(hardness=1.0)]
    given = {"train_samples": 200}
    torch.save(start(digits, tmp_path, **given)[0].value.state_dict(), tmp_path / "same.pt")
    dense = fit(digits, tmp_path / "dense", modifiers, teacher="self", **given)
    named = fit(digits, tmp_path / "named", modifiers, teacher=str(tmp_path / "same.pt"), **given)
    none = fit(digits, tmp_path / "none", modifiers, teacher="disable", **given)
    assert same(dense.value, named.value)
    assert not same(dense.value, none.value)
    torch.save(other(7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(RequestError, match="has 7 classes, the model has 10"):
        fit(digits, tmp_path / "seven", modifiers, teacher=str(tmp_path / "seven.pt"), **given)
    with pytest.raises(RequestError, match="has no effect"):
        fit(digits, tmp_path / "vain", pruning(2), teacher="self", **given)
