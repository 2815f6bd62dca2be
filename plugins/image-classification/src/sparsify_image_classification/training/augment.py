"""Change training images at random, a batch at a time, and turn pixels into the numbers that the model takes.

All choices come from one NumPy generator, so that a resumed run makes the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, one_hot, pad

from sparsify_image_classification.preprocessing import PLAIN_RESIZE
from sparsify_image_classification.training.options import TrainOptions

PADDING = 1 / 8  # of the side: 4 px for 32 (He et al. 2015)
ASPECTS = (3 / 4, 4 / 3)
OPERATIONS = 2  # of RandAugment on each image (Cubuk et al. 2019)
GREY = (0.299, 0.587, 0.114)
Random = np.random.Generator
Floats = NDArray[np.float64]
Spread = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]


def to_numbers(pixels: Tensor, description: Mapping[str, Any]) -> Tensor:
    """Turn pixels (batch, height, width, channels) into the model's NCHW input, by the deployment's arithmetic."""
    mean, std = (torch.tensor(description[name], dtype=torch.float32, device=pixels.device) for name in ("mean", "std"))
    numbers = pixels.to(torch.float32, copy=True)
    # in place: fresh memory for each result costs more than the arithmetic
    return numbers.div_(description["divide_by"]).sub_(mean).div_(std).permute(0, 3, 1, 2)


def augment(
    pixels: Tensor, aspects: Floats, size: tuple[int, int], options: TrainOptions, random: Random, spread: Spread = map
) -> Tensor:
    """Crop, mirror and RandAugment pixels (batch, height, width, channels) of 0-255; returns some of `size`.

    spread: maps a function over images, maybe in several threads.
    """
    small = max(size) <= PLAIN_RESIZE
    if small:
        images = pixels.permute(0, 3, 1, 2)
        images = pad_and_crop(images, random) if options.crop else images
        images = mirror(images, random) if options.flip else images
        pixels, geometry = images.permute(0, 2, 3, 1), identity(len(images))
    else:
        geometry = crops(aspects, size, options.crop_scale, random) if options.crop else identity(len(pixels))
        if options.flip:
            geometry[:, 0, :] *= np.where(random.random(len(pixels)) < 0.5, -1.0, 1.0)[:, None]
    if options.randaugment:
        return _randaugmented(pixels, geometry, size, options.randaugment / 10, random)
    if small:
        return pixels
    # a GPU takes the whole batch at once; a CPU is three times as fast with integers, image by image
    return cut(pixels, geometry, size, spread) if pixels.device.type == "cpu" else _resampled(pixels, geometry, size)


def _randaugmented(pixels: Tensor, geometry: Floats, size: tuple[int, int], strength: float, random: Random) -> Tensor:
    geometry, changes = randaugment(geometry, strength, random)
    images = _resampled(pixels, geometry, size).permute(0, 3, 1, 2)
    for change in changes:
        images = change(images)
    return images.permute(0, 2, 3, 1)


def _resampled(pixels: Tensor, geometry: Floats, size: tuple[int, int]) -> Tensor:
    return sample(pixels.permute(0, 3, 1, 2).float(), geometry, size).permute(0, 2, 3, 1)


def cut(pixels: Tensor, maps: Floats, size: tuple[int, int], spread: Spread = map) -> Tensor:
    """Cut the boxes of `crops` out of uint8 pixels, to whole pixels, resize them as Pillow does, and mirror.

    maps: as for `sample`, of boxes within the image; a negative width mirrors.
    """
    sides = np.array([pixels.shape[2], pixels.shape[1]])
    halves = np.abs(maps[:, (0, 1), (0, 1)])
    low = np.clip(np.rint((1 + maps[:, :, 2] - halves) / 2 * sides), 0, sides - 1).astype(int)
    high = np.maximum(low + 1, np.rint((1 + maps[:, :, 2] + halves) / 2 * sides)).astype(int)
    cutout = torch.empty((len(pixels), *size, pixels.shape[3]), dtype=torch.uint8)

    def one(index: int) -> None:
        (left, top), (right, bottom) = low[index], high[index]
        box = pixels[index, top:bottom, left:right].permute(2, 0, 1)[None]
        made = interpolate(box, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        cutout[index] = made.flip(1) if maps[index, 0, 0] < 0 else made

    for _ in spread(one, range(len(pixels))):
        pass
    return cutout


def pad_and_crop(images: Tensor, random: Random) -> Tensor:
    """Pad with black and cut a window of the old size out of each image at random."""
    count, _, height, width = images.shape
    border = max(1, round(max(height, width) * PADDING))
    padded = pad(images, (border,) * 4)
    tops, lefts = (torch.from_numpy(random.integers(0, 2 * border + 1, count)) for _ in range(2))
    rows = (tops[:, None] + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (lefts[:, None] + torch.arange(width))[:, None, None, :].to(images.device)
    batch = torch.arange(count, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[batch, channels, rows, columns]


def mirror(images: Tensor, random: Random) -> Tensor:
    """Mirror each image with a chance of a half."""
    chosen = torch.from_numpy(random.random(len(images)) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def identity(count: int) -> Floats:
    """Return maps that leave images as they are: (count, 2, 3), from output to input coordinates in -1..1."""
    return np.tile(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (count, 1, 1))


def crops(aspects: Floats, size: tuple[int, int], smallest: float, random: Random) -> Floats:
    """Return maps that cut a box out of each image: a share of its area, an aspect of 3/4 to 4/3 as it was taken.

    The pixels at hand are squeezed into a square, so a box is measured in shares of width and height.
    """
    count = len(aspects)
    area = random.uniform(smallest, 1.0, count)
    wanted = size[1] / size[0] * np.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1]), count))
    width = np.sqrt(area * wanted / aspects)
    height = np.sqrt(area * aspects / wanted)
    width, height = np.minimum(width, 1.0), np.minimum(height, 1.0)
    maps = np.zeros((count, 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = width, height
    maps[:, 0, 2] = (1 - width) * random.uniform(-1, 1, count)
    maps[:, 1, 2] = (1 - height) * random.uniform(-1, 1, count)
    return maps


def sample(images: Tensor, maps: Floats, size: tuple[int, int]) -> Tensor:
    """Resample images through maps, bilinearly, black outside."""
    theta = torch.from_numpy(maps).to(images)
    grid = affine_grid(theta, [*images.shape[:2], *size], align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def randaugment(maps: Floats, strength: float, random: Random) -> tuple[Floats, list[Callable[[Tensor], Tensor]]]:
    """Choose two operations for each image, geometric ones as maps, the others as functions of the batch.

    strength: 0-1 of the paper's ranges: 30 degrees, shear 0.3, shift 0.3, colour factors 1 +- 0.9, 4 bits, 256.
    """
    count = len(maps)
    changes: list[Callable[[Tensor], Tensor]] = []
    for _ in range(OPERATIONS):
        chosen, sign = random.integers(0, 10, count), random.choice((-1.0, 1.0), count) * strength
        maps = compose(maps, _geometric(chosen, sign))
        changes.append(_colours(chosen, sign))
    return maps, changes


def compose(outer: Floats, inner: Floats) -> Floats:
    """Return the maps that apply `inner` first, then `outer`."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    shift = outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]
    return np.concatenate([linear, shift], axis=2)


def _geometric(chosen: NDArray[np.int64], sign: Floats) -> Floats:
    maps = identity(len(chosen))
    turn = np.where(chosen == 1, sign * math.radians(30), 0.0)
    maps[:, 0, 0], maps[:, 0, 1] = np.cos(turn), -np.sin(turn)
    maps[:, 1, 0], maps[:, 1, 1] = np.sin(turn), np.cos(turn)
    maps[:, 0, 1] += np.where(chosen == 2, sign * 0.3, 0.0)
    maps[:, 1, 0] += np.where(chosen == 3, sign * 0.3, 0.0)
    maps[:, 0, 2] += np.where(chosen == 4, sign * 0.6, 0.0)  # coordinates run over a length of 2
    maps[:, 1, 2] += np.where(chosen == 5, sign * 0.6, 0.0)
    return maps


def _colours(chosen: NDArray[np.int64], sign: Floats) -> Callable[[Tensor], Tensor]:
    """Return what brightens (6), contrasts (7), colours (8) or posterises (9) the images that it was chosen for."""

    def change(images: Tensor) -> Tensor:
        which = torch.from_numpy(chosen).to(images.device)[:, None, None, None]
        factor = torch.from_numpy(1 + 0.9 * sign).to(images)[:, None, None, None]
        grey = _grey(images)
        images = torch.where(which == 6, images * factor, images)
        centre = grey.mean((2, 3), keepdim=True)
        images = torch.where(which == 7, centre + (images - centre) * factor, images)
        images = torch.where(which == 8, grey + (images - grey) * factor, images)
        step = torch.from_numpy(2.0 ** np.round(4 * np.abs(sign))).to(images)[:, None, None, None]
        images = torch.where(which == 9, torch.floor(images / step) * step, images)
        return images.clamp(0, 255)

    return change


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(GREY).to(images)[None, :, None, None]).sum(1, keepdim=True)


def mix(images: Tensor, targets: Tensor, classes: int, options: TrainOptions, random: Random) -> tuple[Tensor, Tensor]:
    """Mix each image (batch, channels, height, width) with the one before it; returns images and shares of classes.

    Mixup (Zhang et al. 2017) averages, CutMix (Yun et al. 2019) pastes a box; where both are on, a coin decides.
    """
    shares = one_hot(targets, classes).float()
    use_cut = options.cutmix > 0 and (options.mixup == 0 or random.random() < 0.5)
    alpha = options.cutmix if use_cut else options.mixup
    own = float(random.beta(alpha, alpha))
    if use_cut:
        images, own = paste(images, own, random)
    else:
        images = own * images + (1 - own) * images.roll(1, 0)
    return images, own * shares + (1 - own) * shares.roll(1, 0)


def paste(images: Tensor, own: float, random: Random) -> tuple[Tensor, float]:
    """Paste a box of the image before into each; returns the share that is an image's own after clipping the box."""
    height, width = images.shape[2:]
    tall, wide = round(height * math.sqrt(1 - own)), round(width * math.sqrt(1 - own))
    y, x = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(0, y - tall // 2), min(height, y - tall // 2 + tall)
    left, right = max(0, x - wide // 2), min(width, x - wide // 2 + wide)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
