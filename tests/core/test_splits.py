"""Calibration, selection and test samples are disjoint, seeded, and drawn from where users put them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.contracts import Data
from sparsify.data import Dataset, Sample
from sparsify.errors import RequestError
from sparsify.splits import MIN_TEST, Splits, draw_splits, held_out_split


def dataset(prefix: str, count: int) -> Dataset:
    return Dataset(tuple(f"{prefix}{index}" for index in range(count)), lambda key: Sample({}))


def data(**sizes: int) -> Data:
    return Data({name: dataset(name, size) for name, size in sizes.items()}, has_targets=True)


def parts(splits: Splits) -> tuple[set[str], set[str], set[str]]:
    return set(splits.calibration.keys), set(splits.selection.keys), set(splits.test.keys)


@given(st.integers(1, 400), st.integers(1, 200), st.integers(0, 5))
def test_a_folder_without_splits_is_cut_into_disjoint_parts(count: int, calibration: int, seed: int) -> None:
    splits = draw_splits(data(all=count), None, calibration=calibration, test=None, seed=seed)
    calibrating, selecting, testing = parts(splits)
    assert len(calibrating) <= calibration
    assert calibrating
    assert not calibrating & selecting
    assert splits.verified == (int(count * 0.4) >= MIN_TEST)
    if splits.verified:
        assert not testing & (calibrating | selecting)


@given(st.integers(2, 300), st.integers(10, 300), st.integers(1, 200))
def test_all_of_the_validation_folder_is_the_test(train: int, validation: int, calibration: int) -> None:
    splits = draw_splits(data(train=train, validation=validation), None, calibration=calibration, test=None, seed=0)
    calibrating, selecting, testing = parts(splits)
    assert testing == {f"validation{index}" for index in range(validation)}
    assert not calibrating & selecting
    assert all(key.startswith("train") for key in calibrating | selecting)


def test_three_folders_select_on_validation_and_test_on_test() -> None:
    splits = draw_splits(data(train=50, validation=40, test=30), None, calibration=20, test=None, seed=0)
    calibrating, selecting, testing = parts(splits)
    assert {key[0] for key in calibrating} == {"t"}
    assert all(key.startswith("validation") for key in selecting)
    assert testing == {f"test{index}" for index in range(30)}


def test_eval_data_is_the_test_and_the_data_stays_whole_for_calibration() -> None:
    splits = draw_splits(data(all=60), data(all=25), calibration=60, test=None, seed=0)
    assert len(splits.calibration) == 60
    assert len(splits.test) == 25


def test_val_samples_caps_the_test() -> None:
    splits = draw_splits(data(train=50, validation=100), None, calibration=20, test=30, seed=0)
    assert len(splits.test) == 30


def test_the_seed_decides() -> None:
    first, again, other = (
        draw_splits(data(all=200), None, calibration=50, test=None, seed=seed).hashes() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_too_few_samples_are_never_called_verified() -> None:
    splits = draw_splits(data(train=50, validation=MIN_TEST - 1), None, calibration=20, test=None, seed=0)
    assert not splits.verified


def test_data_without_a_known_split_is_refused() -> None:
    with pytest.raises(RequestError, match="the dataset has no split that a run can use") as error:
        draw_splits(data(), data(all=20), calibration=5, test=None, seed=0)
    assert error.value.fix == "put samples into train/ and val/ folders"
    with pytest.raises(RequestError, match="the dataset has no split to measure on") as error:
        held_out_split(data(extra=3))
    assert error.value.fix == "put samples into a val/ folder"
