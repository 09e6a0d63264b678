"""`selective_scan` and its pullback on the GPU, of the sizes Mamba's own kernel was measured on.

Bytes are those of u, dt and y, of u, dt, dy, du and ddt for the pullback, beside which B and C are small. The floor is
another: T D N exponentials, twice in the pullback, of which a multiprocessor makes 16 at each tick.
"""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed

STATES = 16
# (batch, T, D), dtype, and the most milliseconds for the scan and its pullback
_SIZES = [
    ((8, 4096, 2048), "float32", 2.0, 5.0),
    ((8, 4096, 2048), "float16", 1.1, 4.2),
    ((1, 65536, 2048), "float32", 3.0, 7.0),
    ((1, 65536, 2048), "float16", 1.6, 6.0),
    ((1, 4096, 2048), "float32", None, None),
]


def rows() -> Iterator[Row]:
    _check()
    for shape, dtype, forward, backward in _SIZES:
        args = _arguments(shape, dtype)
        size = args[0].nbytes
        floor = shape[0] * shape[1] * shape[2] * STATES / (_exponentials() * 1e-3)
        work = f"{shape}, N = {STATES}, {dtype}"
        ms = timed([lambda args=args: linscan.selective_scan(*args, dt_softplus=True)])
        yield Row(f"`selective_scan` {work}", 3 * size, ms, limit=forward, peer=f"exponentials alone {floor:.2g} ms")
        (y, _), pullback = linscan.selective_scan_vjp(*args, dt_softplus=True)
        ms = timed([lambda y=y, pullback=pullback: pullback(y)])
        yield Row(f"pullback, {work}", 5 * size, ms, limit=backward, peer=f"exponentials alone {2 * floor:.2g} ms")


def _exponentials() -> float:
    """A second's, of the whole card."""
    attributes = cupy.cuda.Device().attributes
    return attributes["MultiProcessorCount"] * 16 * attributes["ClockRate"] * 1e3


def _arguments(shape: tuple[int, int, int], dtype: str) -> tuple[cupy.ndarray, ...]:
    rng = np.random.default_rng(0)
    batch, length, channels = shape
    u, dt = (cupy.random.standard_normal(shape, dtype=np.float32).astype(dtype) for _ in range(2))
    A = -np.tile(np.arange(1, STATES + 1, dtype=np.float32), (channels, 1))
    B, C = (rng.standard_normal((batch, length, STATES)).astype(dtype) for _ in range(2))
    return u, dt - 3, *(cupy.asarray(x) for x in (A, B, C))


def _check() -> None:
    args = _arguments((1, 300, 64), "float32")
    with linscan.use_engine("reference"):
        want = linscan.selective_scan(*(x.get().astype(float) for x in args), dt_softplus=True)[0]
    check("selective_scan", linscan.selective_scan(*args, dt_softplus=True)[0], want, 2e-6)
