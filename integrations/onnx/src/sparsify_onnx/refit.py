"""Solve for the weights that a mask leaves, so that the layer's output is nearest to the dense model's."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import get_lapack_funcs

from sparsify_onnx.hessian import WIDE, Matrix, Problem
from sparsify_onnx.masks import Mask
from sparsify_onnx.symmetric import Floating

EXACT_COLUMNS = 1024  # above it, conjugate gradients cost less than a factorization for each row
STEPS = 40


def refit(problem: Problem, mask: Mask, start: Matrix) -> Matrix:
    """Minimise the problem over the weights in `mask`, from `start`, which is zero elsewhere; never worse than it."""
    wanted = problem.target @ problem.hessian
    solve = _solve_rows if len(problem.hessian) <= EXACT_COLUMNS else _descend
    found = solve(problem.hessian, wanted, mask, start)
    return found if problem.excess(found) <= problem.excess(start) else start


def _solve_rows(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix) -> Matrix:
    found = np.zeros_like(start)
    (posv,) = get_lapack_funcs(("posv",), (hessian,))
    for row, kept in enumerate(mask):
        places = np.flatnonzero(kept)
        if len(places):
            _, solved, problem = posv(hessian[places[:, None], places], wanted[row, places], lower=1, overwrite_a=1)
            found[row, places] = start[row, places] if problem else solved
    return found


def _descend(hessian: Matrix, wanted: Matrix, mask: Mask, start: Matrix) -> Matrix:
    """Run conjugate gradients on all rows at once, preconditioned by the diagonal; no step raises a row's error."""
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
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)[:, None]
        found += length * direction
        residual -= length * image
        scaled = residual / diagonal
        fresh = np.einsum("oi,oi->o", residual, scaled)
        direction = scaled + np.divide(fresh, power, out=np.zeros_like(power), where=power > 0)[:, None] * direction
        power = fresh
    return found
