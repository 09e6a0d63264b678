"""`ssm_kernel` and its pullback on the GPU: bound by arithmetic, so against the card's float32 rate.

Useful operations are two multiply-adds for each state and lag, Re(c z^l), and four for the pullback, which needs the
sums of g z^l and of g l z^(l-1), real and imaginary parts; the tables of powers are not counted. The rate is that of
every multiprocessor issuing 128 multiply-adds at each tick of the highest clock.
"""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed, timed_eagerly

STATES = 32
_FORWARD = [(1024, 1 << 16, 0.40), (1024, 1 << 14, None), (1024, 1 << 12, None), (1024, 1 << 10, None)]
_BACKWARD = [(1024, 1 << 16, None), (1024, 1 << 14, None)]


def rows() -> Iterator[Row]:
    product = f"SGEMM of 8192²: {_matmul() / 1e12:.1f} TFLOP/s"
    for channels, length, share in _FORWARD:
        a, c = _s4d(channels)
        _check(a[:2], c[:2], length)
        ms = timed([lambda a=a, c=c, n=length: linscan.ssm_kernel(a, c, n)])
        yield _row(f"`ssm_kernel` {channels} × {STATES} complex × {length}", 4 * a.size * length, ms, share, product)
    for channels, length, share in _BACKWARD:
        a, c = _s4d(channels)
        k, pullback = linscan.ssm_kernel_vjp(a, c, length)
        ms = timed([lambda k=k, pullback=pullback: pullback(k)])
        yield _row(f"pullback, {channels} × {STATES} complex × {length}", 8 * a.size * length, ms, share, product)


def _row(work: str, flops: int, ms: float, share: float | None, product: str) -> Row:
    limit = None if share is None else flops / (share * _rate()) * 1e3
    reached = f"{flops / ms / 1e9:.1f} TFLOP/s, {flops / ms * 1e3 / _rate():.2f} of the card's {_rate() / 1e12:.1f}"
    return Row(work, 0, ms, limit=limit, peer=f"{reached}; {product}")


def _rate() -> float:
    attributes = cupy.cuda.Device().attributes
    return attributes["MultiProcessorCount"] * 128 * 2 * attributes["ClockRate"] * 1e3


def _matmul() -> float:
    n = 8192
    x, y = (cupy.random.random((n, n), dtype=np.float32) for _ in range(2))
    out = cupy.empty_like(x)
    return 2 * n**3 / timed_eagerly(lambda: cupy.matmul(x, y, out=out), 7) * 1e3


def _s4d(channels: int) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Eigenvalues and weights of S4D-Lin with steps from 1e-3 to 1e-1."""
    rng = np.random.default_rng(0)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (channels, 1)))
    a = np.exp(dt * (-0.5 + 1j * np.pi * np.arange(STATES)))
    c = rng.standard_normal((channels, 2 * STATES)).view(complex)
    return cupy.asarray(a.astype(np.complex64)), cupy.asarray(c.astype(np.complex64))


def _check(a: cupy.ndarray, c: cupy.ndarray, length: int) -> None:
    with linscan.use_engine("reference"):
        want = linscan.ssm_kernel(a.get().astype(complex), c.get().astype(complex), length)
    check("ssm_kernel", linscan.ssm_kernel(a, c, length), want, 2e-6)
