"""Augmentation, mixing, averaging and the learning rate against references in NumPy and plain PyTorch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sparsify_image_classification.training.augment import (
    augment,
    compose,
    crops,
    cut,
    identity,
    mirror,
    mix,
    pad_and_crop,
    randaugment,
    sample,
)
from sparsify_image_classification.training.averaging import Average
from sparsify_image_classification.training.options import TrainOptions
from sparsify_image_classification.training.stepping import largest_norm, peak_rate, rate_at, share_of_rate
from sparsify_torch import ScheduledModifierManager
from torch import nn
from torch.nn.functional import cross_entropy


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(count: int = 6, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.from_numpy(random(9).uniform(0, 255, (count, channels, side, side)).astype(np.float32))


def test_pad_and_crop_is_a_window_of_the_padded_image() -> None:
    given = images()
    found = pad_and_crop(given, random())
    drawn = random()
    tops, lefts = drawn.integers(0, 9, 6), drawn.integers(0, 9, 6)
    padded = np.pad(given.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for row, top, left, whole in zip(found.numpy(), tops, lefts, padded, strict=True):
        assert np.array_equal(row, whole[:, top : top + 32, left : left + 32])


def test_mirror_turns_half_of_the_images() -> None:
    given = images(400, 1, 4)
    found = mirror(given, random())
    turned = [torch.equal(row, own.flip(2)) for row, own in zip(found, given, strict=True)]
    kept = [torch.equal(row, own) for row, own in zip(found, given, strict=True)]
    assert all(one or other for one, other in zip(turned, kept, strict=True))
    assert 150 < sum(turned) < 250


def test_sampling_through_the_identity_changes_nothing() -> None:
    given = images()
    torch.testing.assert_close(sample(given, identity(6), (32, 32)), given, atol=1e-2, rtol=0)


def test_a_crop_of_a_squeezed_image_has_the_aspect_that_was_asked() -> None:
    aspects = np.repeat([0.5, 1.0, 2.0], 500)
    maps = crops(aspects, (224, 224), 0.25, random())
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    assert np.all((width <= 1) & (height <= 1))
    assert np.all(np.abs(maps[:, 0, 2]) <= 1 - width + 1e-12)
    free = (width < 1) & (height < 1)
    shape = (width * aspects / height)[free]
    assert np.all((shape > 3 / 4 - 1e-9) & (shape < 4 / 3 + 1e-9))
    assert np.all((width * height)[free] > 0.25 - 1e-9)


def test_cutting_is_cropping_and_resizing_with_pillow() -> None:
    """To one grey level; Pillow is what torchvision's RandomResizedCrop calls."""
    pixels = images(20, 3, 96).permute(0, 2, 3, 1).to(torch.uint8)
    maps = crops(np.ones(20), (64, 64), 0.25, random())
    maps[::2, 0, :] *= -1
    with ThreadPoolExecutor(2) as pool:
        found = cut(pixels, maps, (64, 64), pool.map).numpy()
    for image, (across, down), made in zip(pixels.numpy(), maps, found, strict=True):
        left, right, top, bottom = (
            round((1 + line[2] + sign * abs(line[index])) / 2 * 96)
            for index, line in enumerate((across, down))
            for sign in (-1, 1)
        )
        wanted = Image.fromarray(image).crop((left, top, right, bottom)).resize((64, 64), Image.Resampling.BILINEAR)
        wanted = ImageOps.mirror(wanted) if across[0] < 0 else wanted
        assert np.abs(np.asarray(wanted).astype(int) - made.astype(int)).max() <= 1


def test_cutting_and_resampling_show_the_same_part() -> None:
    """What a CPU and a GPU do differs in how pixels are weighed, not in what is seen."""
    ramp = torch.arange(96.0)
    pixels = torch.stack([ramp[None, :].expand(96, 96), ramp[:, None].expand(96, 96), ramp.expand(96, 96)], 2)
    pixels = pixels.to(torch.uint8).expand(20, 96, 96, 3)
    maps = crops(np.ones(20), (64, 64), 0.25, random())
    maps[::2, 0, :] *= -1
    integers, floats = cut(pixels, maps, (64, 64)).float(), sample(pixels.permute(0, 3, 1, 2).float(), maps, (64, 64))
    inner = (slice(None), slice(4, 60), slice(4, 60))  # outside `sample` is black
    torch.testing.assert_close(integers[inner], floats.permute(0, 2, 3, 1)[inner], atol=1.5, rtol=0)


def test_large_images_are_cut_to_the_input() -> None:
    pixels = (images(4, 3, 128).permute(0, 2, 3, 1)).to(torch.uint8)
    found = augment(pixels, np.ones(4), (112, 112), TrainOptions(randaugment=9), random())
    assert found.shape == (4, 112, 112, 3)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 255
    plain = augment(pixels, np.ones(4), (128, 128), TrainOptions(crop=False, flip=False), random())
    assert torch.equal(plain, pixels)


def test_maps_compose() -> None:
    first, second = random().normal(size=(3, 2, 3)), random(1).normal(size=(3, 2, 3))
    point = np.array([0.3, -0.7, 1.0])
    inner = np.concatenate([second @ point, np.ones((3, 1))], axis=1)
    np.testing.assert_allclose(compose(first, second) @ point, np.einsum("bij,bj->bi", first, inner))


@pytest.mark.parametrize("strength", [0.1, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_keeps_pixels_in_range(strength: float, channels: int) -> None:
    given = images(64, channels, 16)
    maps, changes = randaugment(identity(64), strength, random())
    found = sample(given, maps, (16, 16))
    for change in changes:
        found = change(found)
    assert found.shape == given.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 255
    assert not torch.equal(found, given)


def test_mixup_is_the_weighted_mean_of_two_images() -> None:
    given, targets = images(), torch.arange(6) % 3
    found, shares = mix(given, targets, 3, TrainOptions(mixup=0.4), random())
    own = random().beta(0.4, 0.4)
    expected = own * given.numpy() + (1 - own) * np.roll(given.numpy(), 1, 0)
    classes = np.eye(3)[targets.numpy()]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(shares.numpy(), own * classes + (1 - own) * np.roll(classes, 1, 0), atol=1e-6)


def test_cutmix_shares_are_the_area_that_is_left() -> None:
    given = torch.arange(6.0)[:, None, None, None].expand(6, 1, 20, 30).clone()
    for seed in range(30):
        found, shares = mix(given, torch.arange(6), 6, TrainOptions(cutmix=1.0), random(seed))
        own = (found == given).float().mean((1, 2, 3))
        torch.testing.assert_close(shares.diagonal(), own)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))


def test_label_smoothing_is_the_mixture_with_the_uniform() -> None:
    """What the loop asks of cross_entropy, of class ids and of shares alike."""
    logits = random().normal(size=(5, 4))
    targets = np.array([0, 1, 2, 3, 0])
    wanted = 0.9 * np.eye(4)[targets] + 0.1 / 4
    expected = -(wanted * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
    for given in (torch.from_numpy(targets), torch.from_numpy(np.eye(4)[targets])):
        assert float(cross_entropy(torch.from_numpy(logits), given, label_smoothing=0.1)) == pytest.approx(expected)


def test_the_average_is_that_of_numpy_and_zero_where_pruned() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, reference = Average(0.8), None
    for step in range(12):
        with torch.no_grad():
            module[0].weight.copy_(torch.from_numpy(random(step).normal(size=(2, 3))))
        module(torch.randn(4, 3))
        average.update(module)
        decay = min(0.8, (1 + step) / (10 + step))
        weight = module[0].weight.detach().numpy().copy()
        reference = weight if reference is None else decay * reference + (1 - decay) * weight
    kept = torch.tensor([[True, False, True], [False, True, True]])
    own = module[0].weight.detach().clone()
    with average.inside(module, {"0.weight": kept}):
        np.testing.assert_allclose(module[0].weight.detach().numpy(), reference * kept.numpy(), rtol=1e-5, atol=1e-7)
    assert torch.equal(module[0].weight, own)
    assert int(average.tensors["1.num_batches_tracked"]) == 12


def test_the_average_follows_a_changed_structure() -> None:
    average = Average(0.9)
    average.update(nn.Linear(4, 4))
    other: Any = nn.Linear(3, 4, bias=False)
    average.update(other)
    assert average.tensors.keys() == {"weight"}
    assert torch.equal(average.tensors["weight"], other.weight)


def test_what_changed_since_the_last_step_is_the_modules_own() -> None:
    """A part that is narrower now, and one that came new, as fake quantization does between two epochs."""
    average, own, other = Average(0.9), nn.Linear(4, 4), nn.Linear(4, 4)
    average.update(nn.Sequential(own, nn.Linear(4, 4)))
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 4), other)
    narrow, new = module[1].weight.detach().clone(), other.weight.detach().clone()
    with average.inside(module, {"1.weight": torch.ones(4, 3, dtype=torch.bool)}):
        assert torch.equal(module[0].weight, own.weight)
        assert torch.equal(module[1].weight, narrow)
        assert torch.equal(module[2].weight, new)
        module.add_module("later", nn.Linear(1, 1))
    assert {"later.weight", "later.bias"} <= module.state_dict().keys()
    assert torch.equal(module[1].weight, narrow)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [rate_at(0.1, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 11)
    assert max(rates) == pytest.approx(0.1) == rates[10]
    assert all(one > other for one, other in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.05 * (1 + np.cos(np.pi * 89 / 90)))
    assert rate_at(0.1, 20, 100, 90) == pytest.approx(0.1)  # warm-up is a fifth of the training at most


@pytest.mark.parametrize(
    ("layers", "clip_grad", "most"),
    [
        ([nn.Conv2d(3, 4, 3), nn.ReLU()], None, 1.0),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], None, 0.0),
        ([nn.Linear(3, 4), nn.LayerNorm(4)], None, 0.0),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], 0.5, 0.5),
        ([nn.Conv2d(3, 4, 3)], 0, 0.0),
    ],
)
def test_gradients_are_clipped_where_no_norm_holds_them(layers: Any, clip_grad: Any, most: float) -> None:
    assert largest_norm(nn.Sequential(*layers), TrainOptions(clip_grad=clip_grad)) == most


def pruned(final: str, params: str = "__ALL_PRUNABLE__", name: str = "MagnitudePruning") -> str:
    epochs = "start_epoch: 0, end_epoch: 2, update_frequency: 0.5"
    return f"- !{name}Modifier {{params: {params}, init_sparsity: 0.05, final_sparsity: {final}, {epochs}}}"


@pytest.mark.parametrize(
    ("step", "untrained", "share"),
    [
        ("- !QuantizationModifier {start_epoch: 1}", False, 0.6),
        ("- !QuantizationModifier {start_epoch: 1}", True, 1),
        (pruned("0.8"), False, 0.6),
        (pruned("0.9"), False, 1),
        (pruned("{0.7: [a, b, c], 0.9: [d]}", "[]"), False, 0.6),
        (pruned("{0.7: [a], 0.9: [b, c, d]}", "[]"), False, 1),
        (pruned("0.5", name="StructuredPruning"), False, 0.6),
        (pruned("0.9", name="StructuredPruning"), False, 1),
        ("- !LayerPruningModifier {layers: [a]}", False, 0.6),
        ("- !ConstantPruningModifier {params: [a]}", False, 0.6),
    ],
)
def test_trained_weights_that_mostly_stay_are_trained_at_lower_rates(
    step: str, untrained: bool, share: float, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"modifiers:\n{step}\n")
    manager = ScheduledModifierManager.from_yaml(tmp_path / "recipe.yaml")
    assert share_of_rate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), manager, untrained) == share
    assert share_of_rate(nn.Linear(2, 2), manager, untrained) == 1  # clipped instead
    assert peak_rate(TrainOptions(), 256, share) == pytest.approx(0.1 * share)
    assert peak_rate(TrainOptions(lr=0.3), 256, share) == 0.3
