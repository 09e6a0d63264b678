"""`block_scan` and its pullback on the GPU: matrices, inputs and states must pass through memory once."""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed

_ROWS, _STEPS = 64, 1 << 18  # 2^24 steps in 64 rows
_FORWARD = [
    (2, "float32", 0.75),
    (4, "float32", 0.75),
    (3, "float32", None),
    (2, "float64", None),
    (8, "float32", None),
]


def rows() -> Iterator[Row]:
    for n, dtype, target in _FORWARD:
        yield from _measure(n, dtype, _STEPS if n < 8 else _STEPS // 4, target)


def _measure(n: int, dtype: str, steps: int, target: float | None) -> Iterator[Row]:
    A = cupy.random.random((_ROWS, steps, n, n), dtype=np.float64 if dtype == "float64" else np.float32)
    A -= 0.5
    A *= 1.6 / n
    b = cupy.random.random((_ROWS, steps, n), dtype=A.dtype)
    h = linscan.block_scan(A, b)
    with linscan.use_engine("reference"):
        want = linscan.block_scan(*(cupy.asnumpy(x[-1:, -800:]).astype(np.float64) for x in (A, b)))[:, 400:]
    check(f"block_scan {n} {dtype}", h[-1:, -400:], want, 1e-5)
    size, of = A.dtype.itemsize * _ROWS * steps, f"{dtype} n = {n}, {_ROWS} rows of {steps}"
    ms = timed([lambda: linscan.block_scan(A, b)], 10)
    yield Row(f"`block_scan` {of}", size * (n * n + 2 * n), ms, target)
    _, pullback = linscan.block_scan_vjp(A, b)
    ms = timed([lambda: pullback(b)], 10)
    yield Row(f"`block_scan_vjp` pullback {of}", size * (2 * n * n + 3 * n), ms)
