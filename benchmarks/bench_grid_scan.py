"""`grid_scan` against antidiagonals of array operations in NumPy, and against the triad on the bytes it must move.

The triad is a floor that only small states come near: a cell of K by V states has 8 K V multiply-adds for the few
numbers that are read and written.
"""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare, triad


def _inputs(shape: tuple[int, int, int, int, int], dtype: str) -> list[np.ndarray]:
    heads, width, height, keys, values = shape
    rng = np.random.default_rng(0)
    tails = [(keys,), (keys,), (values,), (2, 2), (2,), (2,)]
    arrays = [rng.standard_normal((heads, width, height, *tail)).astype(dtype) for tail in tails]
    alpha = rng.random((heads, width, height, 1))
    arrays[3] = np.concatenate([alpha, alpha, 1 - alpha, 1 - alpha], -1).reshape(arrays[3].shape).astype(dtype)
    return arrays


def _diagonals(q, k, v, transition, source, mark):
    """All heads and all cells of an antidiagonal at once, states kept along one front."""
    heads, width, height, keys = q.shape
    r, d = (np.zeros((heads, n, keys, v.shape[-1]), q.dtype) for n in (height, width))
    o = np.empty_like(v)
    for n in range(width + height - 1):
        x = np.arange(max(0, n - height + 1), min(width, n + 1))
        y = n - x
        left, up, t = r[:, y], d[:, x], transition[:, x, y, :, :, None, None]
        m, s = mark[:, x, y, :, None, None], source[:, x, y, :, None, None]
        o[:, x, y] = (q[:, x, y, None] @ (m[:, :, 0] * left + m[:, :, 1] * up))[:, :, 0]
        pair = k[:, x, y, :, None] * v[:, x, y, None]
        r[:, y] = t[:, :, 0, 0] * left + t[:, :, 0, 1] * up + s[:, :, 0] * pair
        d[:, x] = t[:, :, 1, 0] * left + t[:, :, 1, 1] * up + s[:, :, 1] * pair
    return o


def rows() -> Iterator[Row]:
    wide, narrow = (8, 64, 64, 32, 64), (8, 256, 256, 1, 64)
    for shape, dtype in [(wide, "float32"), (wide, "float64"), (narrow, "float32")]:
        arrays, small = _inputs(shape, dtype), _inputs((2, 9, 7, *shape[3:]), dtype)
        bound = 1e-13 if dtype == "float64" else 1e-5
        check("grid_scan", linscan.grid_scan(*small)[0], _diagonals(*small), bound)
        run = lambda a=arrays: linscan.grid_scan(*a)  # noqa: E731
        ours, theirs = compare(run, lambda a=arrays: _diagonals(*a), rounds=5)
        yield Row(f"`grid_scan` {dtype} {shape}", "antidiagonals in NumPy", ours, theirs, 10.0, faster=True)
    n = (sum(x.size for x in arrays) + arrays[2].size) // 3  # of the narrow states, the last of the three
    ours, floor = compare(run, triad(*(np.zeros(n, np.float32) for _ in range(3))))
    yield Row(f"`grid_scan` {dtype} {shape}", "triad on its bytes", ours, floor, 4.0)
    arrays = _inputs(wide, "float32")
    outputs, pullback = linscan.grid_scan_vjp(*arrays)
    ours, forward = compare(lambda: pullback(*outputs), lambda: linscan.grid_scan(*arrays), rounds=5)
    yield Row(f"`grid_scan_vjp` pullback float32 {wide}", "forward", ours, forward, 6.0)
