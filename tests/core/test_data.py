"""Datasets stream, batch, pad, skip a few broken samples and refuse many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.data import Dataset, Sample, spool
from sparsify.errors import RequestError, UnreadableSample


def numbers(count: int, broken: set[int] = frozenset()) -> Dataset:  # type: ignore[assignment]
    def read(key: str) -> Sample:
        if int(key) in broken:
            raise UnreadableSample(f"{key} is torn", fix="replace it")
        return Sample({"x": np.array([int(key)], np.float32)}, target=int(key))

    return Dataset(tuple(map(str, range(count))), read)


@given(st.integers(1, 30), st.integers(1, 9))
def test_batches_hold_every_sample_once_in_order(count: int, size: int) -> None:
    batches = list(numbers(count).batches(size))
    assert [target for batch in batches for target in batch.targets] == list(range(count))
    assert np.concatenate([batch.inputs["x"] for batch in batches]).ravel().tolist() == list(range(count))


@given(st.integers(1, 30), st.integers(1, 9))
def test_padding_fills_the_last_batch_with_its_last_sample(count: int, size: int) -> None:
    last = list(numbers(count).batches(size, pad=True))[-1]
    assert len(last.inputs["x"]) == size
    assert set(last.inputs["x"][len(last.keys) :].ravel()) <= {float(last.targets[-1])}


def test_samples_of_other_shapes_start_a_new_batch() -> None:
    shapes = {"a": 2, "b": 2, "c": 3}
    dataset = Dataset(tuple(shapes), lambda key: Sample({"x": np.zeros(shapes[key])}))
    assert [batch.keys for batch in dataset.batches(8)] == [["a", "b"], ["c"]]


def test_a_few_unreadable_samples_are_skipped_and_named() -> None:
    dataset = numbers(40, broken={3, 7})
    assert len([key for key, _ in dataset.samples()]) == 38
    assert dataset.unreadable == {"3": "3 is torn", "7": "7 is torn"}


def test_more_than_five_per_cent_is_an_error() -> None:
    with pytest.raises(RequestError) as caught:
        list(numbers(40, broken={1, 2, 3}).samples())
    assert caught.value.lines() == (
        "error: 3 of 40 samples cannot be read, the last: 3 is torn\n"
        "fix: repair or remove the unreadable files; at most 5 % may be"
    )


def test_the_share_is_of_the_whole_dataset_not_of_a_subset() -> None:
    subset = numbers(40, broken={3}).take(["1", "2", "3"])
    assert [key for key, _ in subset.samples()] == ["1", "2"]


def test_spooled_samples_are_the_same_arrays(tmp_path: Path) -> None:
    spooled = spool(numbers(5, broken=set()), tmp_path / "spool")
    assert [float(sample.inputs["x"][0]) for _, sample in spooled.samples()] == [0, 1, 2, 3, 4]
