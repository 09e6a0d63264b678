"""`scan` and its pullback against the triad on the same bytes, the floor of whatever reads and writes as much."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare, triad


def _inputs(shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    real = np.float32 if kind.itemsize == 4 or kind.char == "F" else np.float64
    a, b = (rng.random(shape, dtype=real) for _ in range(2))
    if kind.kind == "c":
        a, b = a * np.exp(1j * b).astype(kind), b + 1j * a
    return [x.astype(kind, copy=False) for x in (a, b)] + [np.zeros(shape, kind)]


def _check(shape: tuple[int, ...], axis: int, dtype: str) -> None:
    small = tuple(min(n, 300) for n in shape)
    a, b, _ = _inputs(small, dtype)
    with linscan.use_engine("reference"):
        want = linscan.scan(a, b, axis=axis)
    check("scan", linscan.scan(a, b, axis=axis), want, 1e-5 if dtype in ("float32", "complex64") else 1e-13)


def rows() -> Iterator[Row]:
    cases = [
        ((16384, 4096), -1, "float32", 1.2),
        ((8192, 4096), -1, "float64", 1.2),
        ((8192, 4096), -1, "complex64", 1.3),
        ((4, 32768, 512), -2, "float32", 1.3),
        ((4, 32768, 256), -2, "float64", 1.3),
        ((4, 32768, 256), -2, "complex64", 1.3),
        ((1 << 26,), -1, "float32", 1.9),
    ]
    for shape, axis, dtype, target in cases:
        _check(shape, axis, dtype)
        a, b, h = _inputs(shape, dtype)
        ours, floor = compare(lambda a=a, b=b, h=h, x=axis: linscan.scan(a, b, axis=x, out=h), triad(a, b, h))
        yield Row(f"`scan` {dtype} {shape}, axis {axis}", "triad", ours, floor, target)
    for shape, axis in [((8192, 4096), -1), ((4, 16384, 512), -2)]:
        a, b, h = _inputs(shape, "float32")
        _, pullback = linscan.scan_vjp(a, b, axis=axis)

        def floor(a: np.ndarray = a, b: np.ndarray = b, h: np.ndarray = h) -> None:
            triad(a, b, h, np.empty_like(a), np.empty_like(a))()

        ours, other = compare(lambda p=pullback, b=b: p(b), floor)
        against = "triad, 3 read 2 written, both allocating"
        yield Row(f"`scan_vjp` pullback float32 {shape}, axis {axis}", against, ours, other, 1.4)
    a, b, h = (x[:64, :512].copy() for x in _inputs((64, 512), "float32"))

    def numpy_step() -> None:
        for _ in range(200):
            new = a * h
            new = new + b

    def our_step() -> None:
        for _ in range(200):
            linscan.scan_step(a, b, h)

    ours, floor = compare(our_step, numpy_step, rounds=31)
    yield Row("`scan_step` (64, 512) float32", "two NumPy lines", ours / 200, floor / 200, 1.0)
