"""Models held in memory open whatever their weights are used for."""

from __future__ import annotations

import numpy as np
import pytest
from sparsify_onnx.sessions import open_model

from tests.onnx import models


@pytest.mark.parametrize("optimise", [False, True])
def test_large_constants_that_nothing_reads_are_no_hindrance(optimise: bool) -> None:
    b = models.Builder(0)
    x = b.gemm("input", 40, 40, name="only")
    b.weight("unread", 40, 40)
    model = b.model(x, ("batch", 40))
    inputs = models.samples(model, 3)
    (found,) = open_model(model, threads=1, optimise=optimise).run(["logits"], inputs)
    assert np.allclose(found, models.run(model, inputs)[0], rtol=1e-5)
