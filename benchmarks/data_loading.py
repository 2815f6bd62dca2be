#!/usr/bin/env python3
"""Time how fast training images are fed, beside torchvision's ImageFolder and DataLoader, in turns; print JSON.

    python benchmarks/data_loading.py DATA --size 32 [--batch 128] [--epochs 5]

DATA holds train/class/image. Both sides read the same files and change them alike: up to 64 px a crop after padding and
a mirror, above it a crop of random size and shape, resized, and a mirror; then numbers by ImageNet's mean and std.
First the CPU time that an image takes in a second epoch, in one thread, which other work on the machine hardly changes.
Then images a second, each side with the count of workers at which it is fastest, one epoch of each in turn; the first
one, which reads the files, is told apart. It needs torchvision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sparsify import DataRequest, TensorSpec, Training, make_experiment
from sparsify_image_classification.imagefolder import load
from sparsify_image_classification.preprocessing import PLAIN_RESIZE
from sparsify_image_classification.training.feeding import Feed, Place, make_feed
from sparsify_image_classification.training.options import TrainOptions
from sparsify_image_classification.training.samples import Chosen
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST = 0.25  # share of the area that is cropped at least
WORKERS = (1, 2, 3)
COUNTED = 10  # batches whose CPU time is taken
Epoch = Callable[[int], Iterator[Any]]


def their_loader(data: Path, size: int, batch: int, workers: int) -> DataLoader[Any]:
    """Make torchvision's loader, with workers that stay."""
    cut = (
        [transforms.RandomCrop(size, padding=size // 8)]
        if size <= PLAIN_RESIZE
        else [transforms.RandomResizedCrop(size, scale=(SMALLEST, 1.0))]
    )
    steps = [*cut, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = ImageFolder(str(data / "train"), transforms.Compose(steps))
    return DataLoader(images, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def our_feed(data: Path, size: int, batch: int, workers: int, folder: Path) -> Feed:
    """Make the trainer's feed over all training images."""
    shape = TensorSpec("input", "float32", ("batch", 3, size, size))
    found = load(DataRequest(data, (shape,), (TensorSpec("logits", "float32", ("batch", 10)),)))
    asked = make_experiment(
        {"kind": "training-aware", "use_case": "image-classification", "model": "none", "data": str(data)}
    )
    options = TrainOptions(batch_size=batch, workers=workers, crop_scale=SMALLEST)
    train = found.splits["train"]
    chosen = Chosen(train, train.take(train.keys[:1]))
    return make_feed(
        chosen, Training(asked, found, folder), options, len(found.labels), Place(0, 1, torch.device("cpu"))
    )


def our_epoch(feed: Feed) -> Epoch:
    """Return what yields an epoch's batches."""
    return lambda epoch: (images for step in range(feed.steps) for images in feed.batches(epoch, step, feed.at_once))


def rate(epoch: Iterator[Any]) -> float:
    """Return images a second."""
    began = time.perf_counter()
    images = sum(len(batch) for batch, _ in epoch)
    return images / (time.perf_counter() - began)


def cpu_ms(batches: Iterator[Any], again: Iterator[Any]) -> float:
    """Return the CPU time of an image in milliseconds, after as many batches to warm up."""
    for _ in islice(batches, COUNTED):
        pass
    began, images = time.process_time(), 0
    for batch, _ in islice(again, COUNTED):
        images += len(batch)
    return 1000 * (time.process_time() - began) / images


def compare_cpu(data: Path, size: int, batch: int, folder: Path) -> dict[str, float]:
    """Return CPU milliseconds an image of both sides, each in one process and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loader, ours = their_loader(data, size, batch, 0), our_epoch(our_feed(data, size, batch, 1, folder))
    found = {"torchvision": cpu_ms(iter(loader), iter(loader)), "sparsify": cpu_ms(ours(0), ours(0))}
    torch.set_num_threads(threads)
    return {side: round(value, 4) for side, value in found.items()}


def fastest(make: Callable[[int], Epoch]) -> tuple[int, Epoch]:
    """Return the workers that give the most images a second in a second epoch, and the side made with them."""
    found = {}
    for workers in WORKERS:
        epoch = make(workers)
        rate(epoch(0))
        found[workers] = rate(epoch(1))
    best = max(found, key=found.__getitem__)
    print(json.dumps({"workers": {count: round(value) for count, value in found.items()}}), flush=True)
    return best, make(best)


def main() -> None:
    """Time both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cpu = compare_cpu(asked.data, asked.size, asked.batch, Path(folder))
        print(json.dumps({"cpu_ms_an_image": cpu}), flush=True)

        def ours(workers: int) -> Epoch:
            return our_epoch(our_feed(asked.data, asked.size, asked.batch, workers, Path(folder)))

        def theirs(workers: int) -> Epoch:
            loader = their_loader(asked.data, asked.size, asked.batch, workers)
            return lambda epoch: iter(loader)

        (their_workers, their_side), (our_workers, our_side) = fastest(theirs), fastest(ours)
        rows = [(rate(their_side(epoch)), rate(our_side(epoch))) for epoch in range(asked.epochs)]
    first, later = rows[0], rows[1:]
    medians = [statistics.median(row[side] for row in later) for side in (0, 1)]
    result = {
        "size": asked.size,
        "cpu_ms_an_image": cpu,
        "torchvision": {"workers": their_workers, "first": first[0], "later": medians[0]},
        "sparsify": {"workers": our_workers, "first": first[1], "later": medians[1]},
        "ratio": statistics.median(own / other for other, own in later),
        "lowest": min(own / other for other, own in later),
    }
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
