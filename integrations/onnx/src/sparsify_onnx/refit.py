"""Solve for the weights that a mask leaves, so that the layer's output is nearest to the dense model's."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import get_lapack_funcs

from sparsify_onnx.hessian import WIDE, Matrix, Problem
from sparsify_onnx.masks import Mask
from sparsify_onnx.symmetric import Floating

EXACT_COLUMNS = 256  # above it, conjugate gradients cost less than a factorization for each row
STEPS, SETTLED = 40, 1e-5  # of conjugate gradients, which end with a step that gains less of the error


def refit(problem: Problem, mask: Mask, start: Matrix, settled: float = SETTLED) -> Matrix:
    """Minimise the problem over the weights in `mask`, from `start`, which is zero elsewhere; never worse than it.

    settled: the share of the error at which a step of conjugate gradients gains too little for another.
    """
    wanted = problem.target @ problem.hessian
    error = problem.excess(start)
    if len(problem.hessian) <= EXACT_COLUMNS:
        found = _solve_rows(problem.hessian, wanted, mask, start)
    else:
        found = _descend(problem.hessian, wanted, mask, start, settled * error)
    return found if problem.excess(found) <= error else start


def _solve_rows(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix) -> Matrix:
    found = np.zeros_like(start)
    (posv,) = get_lapack_funcs(("posv",), (hessian,))
    for row, kept in enumerate(mask):
        places = np.flatnonzero(kept)
        if len(places):
            _, solved, problem = posv(hessian[places[:, None], places], wanted[row, places], lower=1, overwrite_a=1)
            found[row, places] = start[row, places] if problem else solved
    return found


def _descend(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix, enough: float) -> Matrix:
    """Run conjugate gradients on all rows at once, preconditioned by the diagonal; no step raises a row's error.

    ALPS leaves next to nothing to gain (0.01 % on MiniLM), SparseGPT's own weights take all the steps.
    """
    kind = np.float32 if len(hessian) > WIDE else np.float64
    found = start.copy()
    residual: Floating = ((wanted - start @ hessian) * mask).astype(kind)
    metric: Floating = hessian.astype(kind)
    diagonal = np.diag(metric)
    direction = residual / diagonal
    power = np.einsum("oi,oi->o", residual, direction)
    for _ in range(STEPS):
        image = (direction @ metric) * mask
        curvature = np.einsum("oi,oi->o", direction, image)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)
        found += length[:, None] * direction
        if float(length @ power) <= enough:
            break
        residual -= length[:, None] * image
        scaled = residual / diagonal
        fresh = np.einsum("oi,oi->o", residual, scaled)
        direction = scaled + np.divide(fresh, power, out=np.zeros_like(power), where=power > 0)[:, None] * direction
        power = fresh
    return found
