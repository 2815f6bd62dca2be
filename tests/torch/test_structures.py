"""Masks against brute force: exact counts, every mask type, layouts of every kind of weight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify_torch.structures import Structure, choose_masks, parse_mask_type
from sparsify_torch.weights import select_weights
from torch import nn

sizes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9))


def matrix(shape, seed, ties=False):
    found = np.random.default_rng(seed).standard_normal(shape)
    return torch.tensor(np.round(found) if ties else found)


@given(shape=sizes, sparsity=st.floats(0, 1), seed=st.integers(0, 99), ties=st.booleans())
def test_single_weights_are_exact(shape, sparsity, seed, ties) -> None:
    scores = matrix(shape, seed, ties)
    kept = choose_masks([scores], sparsity, Structure())[0]
    zeros = round(sparsity * scores.numel())
    assert int((~kept).sum()) == zeros
    order = np.argsort(scores.flatten().numpy(), kind="stable")
    expected = np.ones(scores.numel(), bool)
    expected[order[:zeros]] = False
    assert np.array_equal(kept.flatten().numpy(), expected)


@given(shapes=st.lists(sizes, min_size=1, max_size=3), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_global_is_one_layer_end_to_end(shapes, sparsity, seed) -> None:
    scores = [matrix(shape, seed + index) for index, shape in enumerate(shapes)]
    kept = choose_masks(scores, sparsity, Structure())
    joined = choose_masks([torch.cat([one.flatten() for one in scores]).view(1, 1, -1)], sparsity, Structure())[0]
    assert torch.equal(torch.cat([one.flatten() for one in kept]), joined.flatten())


@given(
    shape=sizes, rows=st.integers(1, 3), columns=st.integers(1, 4), sparsity=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_blocks_go_whole_and_lowest_first(shape, rows, columns, sparsity, seed) -> None:
    scores = matrix(shape, seed)
    kept = choose_masks([scores], sparsity, Structure(rows, columns))[0].numpy()
    outputs, positions, inputs = shape
    blocks = []
    for top, position, left in itertools.product(range(0, outputs, rows), range(positions), range(0, inputs, columns)):
        place = np.s_[top : top + rows, position, left : left + columns]
        assert kept[place].all() or not kept[place].any()
        blocks.append((float(scores.numpy()[place].mean()), bool(kept[place].all()), kept[place].size))
    blocks.sort(key=lambda block: block[0])
    assert [one for _, one, _ in blocks] == sorted(one for _, one, _ in blocks)
    if rows * columns > 1:
        assert abs(int((~kept).sum()) - round(sparsity * scores.numel())) <= rows * columns / 2
    else:
        assert int((~kept).sum()) == round(sparsity * scores.numel())


@given(shape=sizes, m=st.integers(2, 5), seed=st.integers(0, 99), data=st.data())
def test_n_of_m_at_its_own_share(shape, m, seed, data) -> None:
    n = data.draw(st.integers(1, m - 1))
    scores = matrix(shape, seed).abs()
    kept = choose_masks([scores], 1 - n / m, Structure(1, m, n))[0]
    for output, position, left in itertools.product(range(shape[0]), range(shape[1]), range(0, shape[2], m)):
        row, mask = scores[output, position, left : left + m], kept[output, position, left : left + m]
        assert int(mask.sum()) == min(n, len(row))
        assert set(row[mask].tolist()) == set(sorted(row.tolist(), reverse=True)[:n])


@given(seed=st.integers(0, 99), sparsity=st.floats(0, 0.5))
def test_n_of_m_on_the_way_is_exact_and_within_its_pattern(seed, sparsity) -> None:
    scores = matrix((4, 2, 8), seed).abs()
    structure = Structure(1, 4, 2)
    kept, final = choose_masks([scores], sparsity, structure)[0], choose_masks([scores], 0.5, structure)[0]
    assert int((~kept).sum()) == round(sparsity * scores.numel())
    assert not (final & ~kept).any()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("unstructured", Structure()),
        ("block4", Structure(1, 4)),
        ("tensorrt", Structure(1, 4, 2)),
        ("2:4", Structure(1, 4, 2)),
        ([1, 4], Structure(1, 4)),
        ((4, 1), Structure(4, 1)),
        ([1, 1], Structure()),
        ("16x1", Structure(16, 1)),
    ],
)
def test_mask_types(given, expected) -> None:
    assert parse_mask_type(given) == expected


@pytest.mark.parametrize("given", ["4:4", "0:4", "filter", "channel", "block", [0, 4], [1], [1, 2, 3], "2:4:8"])
def test_wrong_mask_types(given) -> None:
    with pytest.raises(ValueError, match=r"none of unstructured|needs 0 < N"):
        parse_mask_type(given)


class Conv1D(nn.Module):  # named as GPT's
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        return x @ self.weight


LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1": lambda: nn.Conv1d(6, 4, 3),
    "conv2": lambda: nn.Conv2d(6, 4, (3, 2)),
    "conv3": lambda: nn.Conv3d(6, 4, 2),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "transposed_grouped": lambda: nn.ConvTranspose2d(6, 4, (2, 3), groups=2),
    "gpt": Conv1D,
}


@pytest.mark.parametrize("name", LAYERS)
def test_layouts_run_over_outputs_and_inputs(name) -> None:
    """A row of the matrix moves exactly one output, a column exactly one input of its group."""
    layer = LAYERS[name]()
    (weight,) = select_weights(layer, ["__ALL__"], "Test")
    laid = weight.to_matrix(weight.parameter.detach())
    assert torch.equal(weight.from_matrix(laid), weight.parameter)
    assert laid.shape[0] == 4
    groups = getattr(layer, "groups", 1)
    assert laid.shape[2] == 6 // groups
    spatial = {"linear": 0, "gpt": 0, "conv1": 1, "conv3": 3}.get(name, 2)
    row, column = 3, 2
    only = torch.zeros_like(laid)
    only[row, :, column] = 1.0
    with torch.no_grad():
        weight.parameter.copy_(weight.from_matrix(only))
        if getattr(layer, "bias", None) is not None:
            layer.bias.zero_()
        for channel in range(6):
            inputs = torch.zeros(1, 6, *[5] * spatial)
            inputs[:, channel] = 1.0
            moved = layer(inputs)[0].abs().reshape(4, -1).sum(1) > 0
            expected = channel == column + (row // (4 // groups)) * (6 // groups)
            assert moved.tolist() == [False, False, False, expected]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50))
def test_the_choice_does_not_depend_on_the_batch_of_equal_scores(seed) -> None:
    scores = matrix((5, 1, 40), seed, ties=True)
    first, second = (choose_masks([scores.clone()], 0.37, Structure())[0] for _ in range(2))
    assert torch.equal(first, second)
