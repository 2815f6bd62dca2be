"""Solve for the weights that a mask leaves, so that the layer's output is nearest to the dense model's."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from sparsify_onnx.hessian import Matrix, Problem
from sparsify_onnx.masks import Mask

EXACT_COLUMNS = 2048  # above it, conjugate gradients cost less than a Cholesky factor a row
STEPS = 60


def refit(problem: Problem, mask: Mask, start: Matrix) -> Matrix:
    """Minimise the problem over the weights in `mask`, from `start`, which is zero elsewhere; never worse than it."""
    wanted = problem.target @ problem.hessian
    solve = _factor_rows if len(problem.hessian) <= EXACT_COLUMNS else _descend
    found = solve(problem.hessian, wanted, mask, start)
    return found if problem.excess(found) <= problem.excess(start) else start


def _factor_rows(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix) -> Matrix:
    found = np.zeros_like(start)
    for row, kept in enumerate(mask):
        places = np.flatnonzero(kept)
        if len(places):
            factor = scipy.linalg.cho_factor(hessian[np.ix_(places, places)], overwrite_a=True, check_finite=False)
            found[row, places] = scipy.linalg.cho_solve(factor, wanted[row, places], check_finite=False)
    return found


def _descend(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix) -> Matrix:
    """Run conjugate gradients on all rows at once, preconditioned by the diagonal; each step lowers every row's error."""
    diagonal = np.diag(hessian)
    found = start.copy()
    residual = (wanted - found @ hessian) * mask
    direction = residual / diagonal
    power = np.einsum("oi,oi->o", residual, direction)
    for _ in range(STEPS):
        image = (direction @ hessian) * mask
        curvature = np.einsum("oi,oi->o", direction, image)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)[:, None]
        found += length * direction
        residual -= length * image
        scaled = residual / diagonal
        fresh = np.einsum("oi,oi->o", residual, scaled)
        direction = scaled + np.divide(fresh, power, out=np.zeros_like(power), where=power > 0)[:, None] * direction
        power = fresh
    return found
