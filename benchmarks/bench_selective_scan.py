"""`selective_scan` against a loop over time in NumPy, and against the exponentials in it alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare


def _inputs(shape: tuple[int, int, int, int], dtype: str) -> dict[str, Any]:
    batch, length, channels, states = shape
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    return {
        "u": normal(batch, length, channels),
        "dt": rng.uniform(-6, -1, (batch, length, channels)).astype(dtype),  # 0.0025 to 0.3 after softplus
        "A": -np.repeat(np.arange(1, states + 1, dtype=dtype)[None], channels, axis=0),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "dt_bias": normal(channels) / 10,
    }


def _loop(u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any) -> np.ndarray:
    """The equations in NumPy, every step on all rows, channels and states at once."""
    v = dt + dt_bias
    delta = np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v)))
    x = delta * u
    h, y = np.zeros((len(u), *A.shape), u.dtype), np.empty_like(u)
    for t in range(u.shape[1]):
        h *= np.exp(delta[:, t, :, None] * A)
        h += x[:, t, :, None] * B[:, t, None, :]
        y[:, t] = (h @ C[:, t, :, None])[..., 0]
    return (y + D * u) * (z / (1 + np.exp(-z)))


def _exponentials(count: int, dtype: str) -> None:
    x = np.full(1 << 13, -0.5, dtype)
    y = np.empty_like(x)
    for _ in range(count >> 13):
        np.exp(x, out=y)


def rows() -> Iterator[Row]:
    shape = 2, 2048, 256, 16
    small = _inputs((2, 300, 40, 5), "float32")
    check("selective_scan", linscan.selective_scan(**small, dt_softplus=True)[0], _loop(**small), 1e-5)
    for dtype, target in (("float32", 15), ("float64", 6)):
        args = _inputs(shape, dtype)
        ours, one, peer, floor = compare(
            lambda a=args: linscan.selective_scan(**a, dt_softplus=True),
            lambda a=args: linscan.selective_scan(**a, dt_softplus=True, workers=1),
            lambda a=args: _loop(**a),
            lambda d=dtype: _exponentials(int(np.prod(shape)), d),
        )
        work = f"`selective_scan` {dtype} {shape}, softplus and gate"
        yield Row(work, "NumPy, a loop over time", ours, peer, target, faster=True)
        yield Row(f"{work}, one thread", "its exponentials alone, np.exp in the cache", one, floor, 2)
        (y, h), pullback = linscan.selective_scan_vjp(**args, dt_softplus=True)
        back, forth = compare(
            lambda p=pullback, y=y, h=h: p(y, h),
            lambda a=args: linscan.selective_scan(**a, dt_softplus=True),
        )
        yield Row(f"`selective_scan_vjp` pullback {dtype} {shape}", "`selective_scan`", back, forth, 4)
