"""Solvers bound the thread pools of their libraries while they run, and leave them as they were."""

from __future__ import annotations

import numpy as np  # noqa: F401 - loads its BLAS
import pytest
import scipy.linalg.lapack  # noqa: F401
from sparsify_onnx.threads import solver_threads
from threadpoolctl import threadpool_info, threadpool_limits


def pools() -> dict[bool, int]:
    """Return the threads of SciPy's BLAS (True) and of NumPy's."""
    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return {"scipy.libs" in pool["filepath"]: pool["num_threads"] for pool in found}


@pytest.mark.skipif(len(pools()) < 2, reason="NumPy and SciPy share one BLAS here")
def test_scipy_gets_one_thread_and_numpy_what_was_asked_for() -> None:
    with threadpool_limits(2):
        before = pools()
        with solver_threads(1):
            assert pools() == {True: 1, False: 1}
        with solver_threads(2):
            assert pools() == {True: 1, False: 2}
        with solver_threads(0):
            assert pools() == {True: 1, False: before[False]}
        assert pools() == before
