"""Share the cores among the thread pools that a solver wakes in turn: NumPy's BLAS, SciPy's, and ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def solver_threads(threads: int) -> Iterator[None]:
    """Bound NumPy's BLAS by `threads`, 0 for as many as it has, and leave SciPy's own copy one, for a `with` block.

    A pool that has done its share spins for a while, and takes the cores from the next one: on two cores Cholesky on
    one thread, between products on two, is 1.2 to 1.6 times as fast as both on two.
    """
    pools = ThreadpoolController()
    scipy = [pool.filepath for pool in pools.lib_controllers if "scipy.libs" in pool.filepath]
    with pools.limit(limits=threads or None), pools.select(filepath=scipy).limit(limits=1):
        yield
