"""`ssm_kernel` and `ssm_kernel_dplr` against NumPy's broadcast sums, and against the machine.

The peers make the whole (channels, states, length) array, so they run on a few channels and their time is scaled up.
The floor is what the work cannot do without: its multiply-adds at the rate of a large matrix product on all cores, and
writing the result, both timed in the same run.
"""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare
from linscan.engines.cpu.pool import parallel_for

CHANNELS, STATES, LENGTH = 256, 32, 1 << 16
_SLICE = 2  # channels the peer runs on


def _s4d(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and weights of S4D-Lin with steps from 1e-3 to 1e-1."""
    rng = np.random.default_rng(0)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (channels, 1)))
    a = np.exp(dt * (-0.5 + 1j * np.pi * np.arange(STATES)))
    c = rng.standard_normal((channels, 2 * STATES)).view(complex)
    return a.astype(np.complex64), c.astype(np.complex64)


def _product(flops: float) -> tuple[object, float]:
    """A large single-precision matrix product, and how many of them make `flops`."""
    n = 1024
    x, y, out = (np.full((n, n), 0.5, np.float32) for _ in range(3))
    return (lambda: np.matmul(x, y, out=out)), flops / (2 * n**3)


def _write(shape: tuple[int, ...]) -> None:
    """Fill a new array, every page of it touched for the first time, on all cores."""
    x = np.empty(shape, np.float32)
    parallel_for(lambda lo, hi: x[lo:hi].fill(1), len(x))


def _diagonal() -> Iterator[Row]:
    a, c = _s4d(CHANNELS)
    exact_a, exact_c = a[:_SLICE].astype(complex), c[:_SLICE].astype(complex)
    want = np.empty((_SLICE, LENGTH))
    for h in range(_SLICE):
        want[h] = (exact_c[h, :, None] * exact_a[h, :, None] ** np.arange(LENGTH)).sum(axis=0).real
    check("ssm_kernel", linscan.ssm_kernel(a, c, LENGTH)[:_SLICE], want, 2e-6)
    log_a, t = np.log(exact_a).astype(np.complex64), np.arange(LENGTH, dtype=np.float32)

    def peer() -> None:
        (c[:_SLICE, :, None] * np.exp(log_a[..., None] * t)).sum(axis=1).real  # noqa: B018

    matmul, count = _product(2.0 * CHANNELS * 2 * STATES * LENGTH)
    ours, slow, product, write = compare(
        lambda: linscan.ssm_kernel(a, c, LENGTH), peer, matmul, lambda: _write((CHANNELS, LENGTH)), rounds=7
    )
    work, scaled = f"`ssm_kernel` {CHANNELS} × {STATES} complex states × {LENGTH}", slow * CHANNELS / _SLICE
    yield Row(work, f"NumPy exp and sum (on {_SLICE} channels, scaled)", ours, scaled, 30, faster=True)
    yield Row(work, "its flops as one SGEMM, and writing it", ours, product * count + write, 2.0)
    k, pullback = linscan.ssm_kernel_vjp(a, c, LENGTH)
    ours, product = compare(lambda: pullback(k), matmul, rounds=7)
    yield Row(f"{work}, pullback", "its flops as one SGEMM", ours, 2 * count * product, 2.0)


def _low_rank() -> Iterator[Row]:
    channels, length = 64, 1 << 12
    Lambda, P, B, _ = (x.astype(np.complex64) for x in linscan.nplr("legs", 2 * STATES))
    dt, C = np.float32(0.01), _s4d(channels)[1]
    nodes = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    s, u = ((1 - nodes) * 2 / dt).astype(np.complex64), (1 + nodes).astype(np.complex64)

    def cauchy(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """``sum_n v_n / (s - Lambda_n u)`` over the modes and their conjugates."""
        v = (left * right)[..., None]
        return (v / (s - Lambda[:, None] * u) + v.conj() / (s - Lambda.conj()[:, None] * u)).sum(axis=-2)

    def peer(some: int = _SLICE) -> np.ndarray:
        row, column = cauchy(C[:some], P), cauchy(P.conj(), B)
        spectrum = 2 * cauchy(C[:some], B) - 2 * row * column * u / (1 + u * cauchy(P.conj(), P))
        return np.fft.irfft(spectrum, length)

    def ours() -> np.ndarray:
        return linscan.ssm_kernel_dplr(Lambda, P, None, B, C, dt, length, truncated=True)

    check("ssm_kernel_dplr", ours()[:_SLICE], peer(), 1e-4)  # as exact as the peer is in single precision
    mine, slow = compare(ours, peer, rounds=7)
    work = f"`ssm_kernel_dplr` {channels} × {STATES} pairs × {length}, C truncated"
    against = f"NumPy Cauchy sums in complex64 (on {_SLICE} channels, scaled)"
    yield Row(work, against, mine, slow * channels / _SLICE, 2, faster=True, note="in double precision")


def rows() -> Iterator[Row]:
    yield from _diagonal()
    yield from _low_rank()
