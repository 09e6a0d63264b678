"""`block_scan` and its pullback against the triad on the same bytes: matrices and vectors read, states written."""

from collections.abc import Callable, Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare, triad

CASES = [  # rows, steps, n, dtype, and what must be reached, in times of the triad
    (64, 1 << 16, 2, "float32", 1.5),
    (64, 1 << 15, 3, "float32", 1.5),
    (64, 1 << 14, 4, "float32", 1.5),
    (64, 1 << 14, 4, "float64", 1.5),
    (64, 1 << 15, 2, "complex64", 1.5),
    (64, 1 << 12, 8, "float32", 3.0),
    (1, 1 << 22, 2, "float32", 4.0),
]


def _inputs(rows: int, length: int, n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    A, b = rng.random((rows, length, n, n), np.float32) - 0.5, rng.random((rows, length, n), np.float32)
    return (A / n).astype(dtype), b.astype(dtype)


def _floor(n_bytes: int, written: int, dtype: str) -> Callable[[], None]:
    """The triad on as many bytes in all, allocating what the operation allocates."""
    arrays = [np.ones(n_bytes // 3 // np.dtype(dtype).itemsize, dtype) for _ in range(3)]

    def run() -> None:
        np.empty(written, np.uint8)
        triad(*arrays)()

    return run


def rows() -> Iterator[Row]:
    for count, length, n, dtype, target in CASES:
        A, b = _inputs(count, length, n, dtype)
        with linscan.use_engine("reference"):
            want = linscan.block_scan(A[:2, :200], b[:2, :200])
        got = linscan.block_scan(A[:2, :200], b[:2, :200])
        check("block_scan", got, want, 1e-5 if dtype in ("float32", "complex64") else 1e-13)
        floor = _floor(A.nbytes + 2 * b.nbytes, b.nbytes, dtype)
        ours, other = compare(lambda A=A, b=b: linscan.block_scan(A, b), floor)
        yield Row(f"`block_scan` {dtype}, {count} × {length} steps, n = {n}", "triad", ours, other, target)
    for count, length, n, dtype, _ in CASES[:3:2]:
        A, b = _inputs(count, length, n, dtype)
        _, pullback = linscan.block_scan_vjp(A, b)
        floor = _floor(2 * A.nbytes + 3 * b.nbytes, A.nbytes + b.nbytes, dtype)
        ours, other = compare(lambda p=pullback, b=b: p(b), floor)
        yield Row(f"`block_scan_vjp` pullback {dtype}, {count} × {length} steps, n = {n}", "triad", ours, other, 2.0)
    A, b = _inputs(64, 1 << 12, 2, "float32")

    def numpy_loop() -> None:
        h, state = np.empty_like(b), np.zeros((64, 2, 1), np.float32)
        for t in range(b.shape[1]):
            state = A[:, t] @ state + b[:, t, :, None]
            h[:, t] = state[..., 0]

    ours, other = compare(lambda: linscan.block_scan(A, b), numpy_loop)
    yield Row("`block_scan` float32, 64 × 4096 steps, n = 2", "NumPy, a loop", ours, other, 20.0, faster=True)
