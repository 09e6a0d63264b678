"""`grid_scan` and its pullback on the GPU, beside antidiagonals of array operations in CuPy.

What it must do is arithmetic on states: eight multiply-adds for every number of a state at every cell.
"""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, random, timed, timed_eagerly

_SHAPES = [(64, 32, 32, 64, 64), (4, 64, 64, 64, 64)]  # grids, X, Y, K, V


def rows() -> Iterator[Row]:
    for grids, width, height, keys, values in _SHAPES:
        tails = [(keys,), (keys,), (values,), (2, 2), (2,), (2,)]
        args = [random((grids, width, height, *tail), np.float32) - np.float32(0.5) for tail in tails]
        args[3] += np.float32(0.5)
        args[3] /= args[3].sum(-2, keepdims=True)  # what comes in is shared out
        with linscan.use_engine("reference"):
            want = linscan.grid_scan(*(cupy.asnumpy(x[-1:]).astype(np.float64) for x in args))
        outputs, pullback = linscan.grid_scan_vjp(*args)
        for got, exact in zip(outputs, want, strict=True):
            check("grid_scan", got[-1:], exact, 1e-5)
        of = f"float32, {grids} grids of {width} by {height}, states of {keys} by {values}"
        with linscan.use_engine("reference"):
            peer = timed_eagerly(lambda args=args: linscan.grid_scan(*args), 3)
        yield Row(
            f"`grid_scan` {of}", 0, timed([lambda args=args: linscan.grid_scan(*args)], 10), peer=f"CuPy {peer:.3g} ms"
        )
        yield Row(f"`grid_scan_vjp` pullback {of}", 0, timed([lambda p=pullback, g=outputs: p(*g)], 10))
