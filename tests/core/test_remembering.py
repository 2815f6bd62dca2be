"""The baseline's outputs: those of running it, for every batch, opened and run no more often than needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sparsify.remembering import Outputs, Remembering, digest

Array = np.ndarray[Any, Any]


class Doubling:
    """Double the input; count runs, and how often it was opened and closed."""

    facts: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.opened = self.closed = self.runs = 0

    def open(self) -> Doubling:
        self.opened += 1
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        return {"y": 2 * inputs["x"]}

    def close(self) -> None:
        self.closed += 1


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(st.lists(arrays(np.float32, SHAPES, elements={"min_value": -8, "max_value": 8})))
def test_a_batch_is_run_once_and_its_outputs_are_those_of_running_it(batches: list[Array]) -> None:
    model, outputs = Doubling(), Outputs()
    for _ in range(2):
        session = Remembering(model.open, outputs)
        for batch in batches:
            np.testing.assert_array_equal(session.run({"x": batch})["y"], 2 * batch)
        session.close()
    assert model.runs == len({(batch.shape, batch.tobytes()) for batch in batches})
    assert model.opened == model.closed == min(1, len(batches))  # the second time it need not be opened


def test_what_does_not_fit_is_run_again() -> None:
    model, batch = Doubling(), np.ones((4, 8), np.float32)
    session = Remembering(model.open, Outputs(room=batch.nbytes))
    for _ in range(3):
        session.run({"x": batch})  # fits
        session.run({"x": 3 * batch})  # no room is left
    assert (model.runs, model.opened) == (1 + 3, 1)
    assert session.outputs.room == 0


def test_names_types_and_shapes_tell_batches_apart() -> None:
    ones = np.ones((2, 2), np.float32)
    feeds = [{"x": ones}, {"y": ones}, {"x": ones, "y": ones}, {"x": ones.reshape(4)}, {"x": ones.view(np.int32)}]
    assert len({digest(feed) for feed in feeds}) == len(feeds)
    assert digest({"x": ones[:, :1]}) == digest({"x": ones[:, :1].copy()})  # strides do not count
    assert digest({"x": ones, "y": 2 * ones}) == digest({"y": 2 * ones, "x": ones})
