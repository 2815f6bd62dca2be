"""Factor, solve and invert positive definite matrices in the memory they lie in: those of wide layers are the peak.

NumPy's `inv`, `solve` and `cholesky` each hold two to four copies of their argument; LAPACK itself needs none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import get_lapack_funcs

BLOCK = 512  # columns handled together where a whole matrix would be a copy
Floating = NDArray[np.floating[Any]]  # float32 or float64; square ones in C order


def factor(matrix: Floating) -> Floating | None:
    """Overwrite H with its lower Cholesky factor, and return it, or None where H is not positive definite."""
    (potrf,) = get_lapack_funcs(("potrf",), (matrix,))
    lower, problem = potrf(matrix.T, lower=1, overwrite_a=1, clean=1)  # H is symmetric: its transpose is Fortran's H
    return None if problem or not np.isfinite(lower[-1, -1]) else np.asarray(lower)


def solve(lower: Floating, rows: Floating) -> Floating:
    """Return rows · H⁻¹ from the factor of H."""
    (potrs,) = get_lapack_funcs(("potrs",), (lower,))
    return np.asarray(potrs(lower, rows.T, lower=1)[0].T)


def invert(matrix: Floating) -> Floating:
    """Overwrite H with H⁻¹; where H is not positive definite it is destroyed, and LinAlgError is raised."""
    lower = factor(matrix)
    if lower is None:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    (potri,) = get_lapack_funcs(("potri",), (lower,))
    inverse = potri(lower, lower=1, overwrite_c=1)[0]
    for start in range(0, len(inverse), BLOCK):
        part = slice(start, start + BLOCK)
        corner = np.tril(inverse[part, part])
        inverse[part, part] = corner + np.tril(corner, -1).T
        inverse[part, start + BLOCK :] = inverse[start + BLOCK :, part].T
    return np.asarray(inverse.T)


def inverse_factor(reversed_matrix: Floating) -> Floating | None:
    """Return the upper Cholesky factor of H⁻¹, given H with rows and columns in reverse order, which is overwritten.

    With H = V Vᵀ for an upper V, which is Cholesky's factor of H read backwards, it is V⁻¹: no H⁻¹ is formed.
    """
    lower = factor(reversed_matrix)
    if lower is None:
        return None
    (trtri,) = get_lapack_funcs(("trtri",), (lower,))
    return np.asarray(trtri(lower, lower=1, overwrite_c=1)[0][::-1, ::-1])


def add_gram(total: Floating, rows: Floating) -> None:
    """Add rowsᵀ · rows to a symmetric matrix, a stretch of columns at a time."""
    step = max(BLOCK, len(total) if len(total) <= 2 * BLOCK else 0)
    for start in range(0, len(total), step):
        stop = min(start + step, len(total))
        part = rows[:, start:stop].T @ rows[:, :stop]
        total[start:stop, :stop] += part
        total[:start, start:stop] += part[:, :start].T
