"""Calibration that cannot stand for what the model will see: which samples are suspicious, and what lies beyond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparsify import Context, Dataset, Model, Sample
from sparsify_onnx.coverage import COVERAGE, check_ranges, look_at_samples
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.inspection import as_picture, inspect, suspicions
from sparsify_onnx.loader import load
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.ranges import Grid

from tests.onnx import models

Array = NDArray[Any]
random = np.random.default_rng(0)


def dataset(arrays: Sequence[Array], name: str = "input") -> Dataset:
    return Dataset(tuple(f"{place:04d}" for place in range(len(arrays))), lambda key: Sample({name: arrays[int(key)]}))


def photos(count: int, seed: int = 0, side: int = 16) -> list[Array]:
    """Draw smooth pictures of different brightness, as photos are."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(count, 3, side // 4, side // 4)) + generator.normal(size=(count, 1, 1, 1))
    smooth = np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3) + 0.2 * generator.normal(size=(count, 3, side, side))
    return list(smooth.astype(np.float32))


def noise(count: int, *shape: int) -> list[Array]:
    return list(random.random((count, *shape), dtype=np.float32))


def said(calibration: Sequence[Array], selection: Sequence[Array] = ()) -> list[str]:
    return list(suspicions(inspect(dataset(calibration), 256), inspect(dataset(selection), 32)))


@pytest.mark.parametrize(
    "samples",
    [
        photos(64),
        [picture.transpose(1, 2, 0) for picture in photos(64)],
        [(picture - picture.mean()) / picture.std() for picture in photos(64)],
        noise(64, 20),
        noise(64, 16, 16, 16),
        noise(64, 1),
        list(random.integers(0, 30_000, (64, 32))),
        [np.ones(32, np.int64) * place for place in range(64)],
    ],
    ids=["NCHW", "NHWC", "standardised", "rows", "volumes", "numbers", "tokens", "constant tokens"],
)
def test_sound_samples_are_not_suspicious(samples: list[Array]) -> None:
    assert said(samples[:32], samples[32:]) == []


def enlarged(count: int) -> list[Array]:
    return [np.kron(one, np.ones((1, 4, 4), np.float32)) for one in noise(count, 3, 16, 16)]


@pytest.mark.parametrize(
    "samples",
    [noise(64, 3, 16, 16), list(random.normal(size=(64, 16, 16, 1))), noise(64, 3, 100, 90), enlarged(64)],
    ids=["uniform", "gaussian", "large", "enlarged"],
)
def test_noise_is_named(samples: list[Array]) -> None:
    (line,) = said(samples)
    assert line.startswith("calibration samples look like noise: ")
    assert "'input'" in line
    assert line.endswith("calibrate on real samples (--data)")


def test_black_images_are_named() -> None:
    lines = said([np.zeros((3, 16, 16), np.float32)] * 40, photos(32))
    assert lines == [
        "only 1 of 40 calibration samples is distinct: take the copies out of the data",
        "40 of 40 calibration samples are constant, such as black images: calibrate on samples as the model will meet "
        "them (--data)",
    ]


def test_flat_colours_are_constant_though_they_differ() -> None:
    colours = [np.broadcast_to(random.normal(size=(3, 1, 1)), (3, 16, 16)) for _ in range(40)]
    (line,) = said(colours, photos(32))
    assert line.startswith("40 of 40 calibration samples are constant")


def test_a_few_constant_samples_are_no_matter() -> None:
    assert said([*photos(40), *(np.full((3, 16, 16), place, np.float32) for place in range(5))], photos(32, 1)) == []


def test_copies_are_counted() -> None:
    assert said(photos(32) * 3) == ["only 32 of 96 calibration samples are distinct: take the copies out of the data"]
    assert said(photos(1) * 512) == ["only 1 of 256 calibration samples is distinct: take the copies out of the data"]


@pytest.mark.parametrize(("count", "few"), [(1, "1 calibration sample is"), (15, "15 calibration samples are")])
def test_few_samples_are_said(count: int, few: str) -> None:
    fix = "give 100 or more (--calibration-samples)"
    assert said(photos(count)) == [f"{few} too few for ranges to rely on: {fix}"]


@pytest.mark.parametrize(
    "change", [lambda x: 255 * x, lambda x: 0.2 * x + 0.5, lambda x: x + 3], ids=["bytes", "narrower", "shifted"]
)
def test_another_scale_is_named(change: Callable[[Array], Array]) -> None:
    (line,) = said([change(picture) for picture in photos(64)], photos(64, 1))
    assert line.startswith("calibration samples are of another scale than selection samples: 'input' has ")
    assert said([change(picture) for picture in photos(64)], photos(15, 1)) == [], "15 samples are no evidence"


def test_the_worst_channel_is_named() -> None:
    wrong = photos(64)
    for picture in wrong:
        picture[2] += 50
    (line,) = said(wrong, photos(64, 1))
    assert "'input' has 50 ± " in line


def test_one_input_that_varies_is_enough() -> None:
    both = Dataset(
        tuple(map(str, range(32))),
        lambda key: Sample({"scale": np.ones(4, np.float32), "x": noise(1, 9)[0], "mask": np.ones(9, np.int64)}),
    )
    assert list(suspicions(inspect(both, 256), inspect(both, 32))) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 20), st.integers(0, 99))
def test_moments_are_those_of_all_values(count: int, seed: int) -> None:
    arrays = list(np.random.default_rng(seed).normal(3, 5, (count, 3, 9, 11)).astype(np.float32))
    moments = inspect(dataset(arrays), 256).moments["input"]
    np.testing.assert_allclose(moments.mean, np.mean(arrays, axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(moments.deviation, np.std(arrays, axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(moments.means, np.mean(arrays, axis=(1, 2, 3)), rtol=1e-5)


def test_at_most_so_many_samples_are_read() -> None:
    read: list[str] = []
    arrays = noise(1000, 4)

    def reader(key: str) -> Sample:
        read.append(key)
        return Sample({"x": arrays[int(key)]})

    inspect(Dataset(tuple(f"{place:04d}" for place in range(1000)), reader), 256)
    assert 128 < len(read) <= 256
    assert max(read) > "0900", "they are spread over all"


@pytest.mark.parametrize(
    ("shape", "first"), [((3, 8, 8), 3), ((8, 8, 3), 3), ((1, 9, 20), 1), ((4, 4, 9), 0), ((3, 7, 7), 0), ((64,), 0)]
)
def test_what_is_a_picture(shape: tuple[int, ...], first: int) -> None:
    found = as_picture(np.zeros(shape, np.float32))
    assert (0 if found is None else len(found)) == first


def loaded(tmp_path: Path) -> Model:
    return load(models.save(models.conv_net(), tmp_path))


def context(calibration: Sequence[Array], selection: Sequence[Array] | None = None, **more: Any) -> Context:
    return Context(dataset(calibration), None if selection is None else dataset(selection), threads=1, **more)


def test_shares_are_those_of_the_values(tmp_path: Path) -> None:
    model, samples = loaded(tmp_path), photos(32, side=8)
    seen, grids = {"input": (-1.0, 0.5)}, {"input": Grid(np.float32(0.01), np.uint8(100))}
    shares, lines = check_ranges(model.value, seen, grids, context(photos(4), samples), model.facts["shapes"])
    values = np.array(samples)
    assert shares["unseen_range"] == pytest.approx(((values < -1) | (values > 0.5)).mean())
    assert shares["saturation"] == pytest.approx(((values < -1.005) | (values > 1.555)).mean())
    (line,) = lines
    assert line.startswith(f"{100 * float(shares['unseen_range'] or 0):.2g} % of the activations on selection samples")
    assert "most in 'input'" in line


def test_grids_that_cut_off_much_are_said(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    given = context(photos(4), photos(32, side=8))
    grids = {"input": Grid(np.float32(0.001), np.uint8(128))}
    _, lines = check_ranges(model.value, {"input": (-99.0, 99.0)}, grids, given, model.facts["shapes"])
    (line,) = lines
    assert line.startswith("INT8 grids cut off ")
    assert line.endswith("choose wider ranges (QuantizationModifier, ranges: minmax)")


def test_ranges_that_fit_are_no_matter_of_words(tmp_path: Path) -> None:
    notes: list[str] = []
    given = context(photos(64, side=8), photos(32, 1, side=8), note=notes.append)
    coverage = QuantizationModifier().apply(loaded(tmp_path), given).facts[COVERAGE]
    assert coverage["notes"] == []
    assert 0 <= coverage["unseen_range"] < 0.001
    assert coverage["unseen_range"] <= coverage["saturation"] + 1e-3 < 0.01


def test_without_selection_samples_shares_are_unknown(tmp_path: Path) -> None:
    coverage = QuantizationModifier().apply(loaded(tmp_path), context(photos(64, side=8))).facts[COVERAGE]
    assert coverage == {"unseen_range": None, "saturation": None, "notes": []}


def test_calibration_elsewhere_is_said_with_its_share(tmp_path: Path) -> None:
    notes: list[str] = []
    given = context([0.1 * one for one in photos(64, side=8)], photos(32, 1, side=8), note=notes.append)
    coverage = QuantizationModifier().apply(loaded(tmp_path), given).facts[COVERAGE]
    scale, beyond = coverage["notes"]
    assert scale.startswith("calibration samples are of another scale")
    assert "beyond the ranges that calibration saw" in beyond
    assert coverage["unseen_range"] > 0.1
    assert [line for line in notes if line in coverage["notes"]] == [scale, beyond]


def test_samples_are_looked_at_once_a_recipe(tmp_path: Path) -> None:
    notes: list[str] = []
    given = context(noise(32, 3, 8, 8), noise(32, 3, 8, 8), note=notes.append)
    model = loaded(tmp_path)
    for modifier in (EqualizationModifier(), SparseGPTModifier(sparsity=0.5), QuantizationModifier()):
        model = modifier.apply(model, given)
    assert sum("look like noise" in line for line in notes) == 1
    assert model.facts[COVERAGE]["notes"] == [line for line in notes if "look like noise" in line]
    assert look_at_samples(model, given) is model


class Shelf(dict[str, Any]):
    """Keep finished pieces in memory."""

    def load(self, name: str) -> Any:
        return self.get(name)

    def save(self, name: str, arrays: Any) -> None:
        self[name] = dict(arrays)


def test_a_resumed_quantization_tells_the_same(tmp_path: Path) -> None:
    given = context(photos(20, side=8), [3 * one for one in photos(32, 1, side=8)], checkpoint=Shelf())
    first, second = (QuantizationModifier().apply(loaded(tmp_path), given) for _ in range(2))
    assert first.facts[COVERAGE] == second.facts[COVERAGE]
    assert first.facts[COVERAGE]["unseen_range"] > 0
    assert first.value == second.value


ODD: dict[str, Sequence[Array]] = {
    "one sample": photos(1, side=8),
    "one sample, 64 times": photos(1, side=8) * 64,
    "black": [np.zeros((3, 8, 8), np.float32)] * 32,
    "one channel is dead": [one * np.array([1, 0, 1], np.float32)[:, None, None] for one in photos(32, side=8)],
    "one colour": [np.full((3, 8, 8), 0.7, np.float32)] * 32,
}


@pytest.mark.parametrize("samples", ODD.values(), ids=ODD)
def test_odd_samples_still_give_a_model_that_runs(tmp_path: Path, samples: Sequence[Array]) -> None:
    """Hessians are singular, activations are zero: that is said, and no weight becomes NaN."""
    notes: list[str] = []
    given = context(samples, photos(32, 1, side=8), note=notes.append)
    model = loaded(tmp_path)
    for modifier in (
        EqualizationModifier(),
        SparseGPTModifier(sparsity=0.5, round_weights=True),
        QuantizationModifier(learned_rounding=True),
    ):
        model = modifier.apply(model, given)
    session = ort.InferenceSession(model.value.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": np.stack(photos(8, 2, side=8))})
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0
    assert model.facts[COVERAGE]["notes"] != []
    assert set(model.facts[COVERAGE]["notes"]) <= set(notes)


def test_activations_that_are_all_zero_are_said(tmp_path: Path) -> None:
    given = context([np.zeros((3, 8, 8), np.float32)] * 32, photos(32, side=8))
    lines = QuantizationModifier().apply(loaded(tmp_path), given).facts[COVERAGE]["notes"]
    (line,) = [line for line in lines if "are zero on every calibration sample" in line]
    assert line.startswith("1 of ")
    assert "the first 'input'" in line


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data with real photos is not here")
def test_real_photos_are_not_suspicious() -> None:
    from PIL import Image

    def read(path: Path) -> Array:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((64, 64)), np.float32).transpose(2, 0, 1) / 255

    files = sorted((SHARED / "imagenette-small" / "train").rglob("*.*"))[::10]
    photographs = [read(file) for file in files]
    assert said(photographs[::2], photographs[1::2]) == []
    shuffled = [random.permuted(one.reshape(3, -1), axis=1).reshape(one.shape) for one in photographs]
    assert any("look like noise" in line for line in said(shuffled[::2], photographs[1::2]))
