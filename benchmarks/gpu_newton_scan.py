"""`newton_scan` and its pullback on the GPU, beside the loops: ours, which keeps all in registers, and one of CuPy.

The loop of CuPy calls is the reference engine. Our own loop reads x once, which is the least there is; Newton's
method reads it for the first guess and once for each correction.
"""

from collections.abc import Iterator

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed, timed_eagerly

# (batch, T, d), and how many times faster than our own loop over time it must be
_SIZES = [((8, 8192, 256), 20.0), ((1, 65536, 64), None), ((64, 1024, 256), None)]


def rows() -> Iterator[Row]:
    for shape, target in _SIZES:
        x, R = _arguments(shape)
        h, _, info = linscan.newton_scan("para_gru", x, R)
        want, _ = linscan.rnn_scan("para_gru", x.astype(np.float64), R.astype(np.float64))
        error = float(abs(h - want).max())
        if error > 1e-5 or not bool(info.converged.all()):
            raise SystemExit(f"newton_scan: error {error:.3g}, allowed 1e-5")
        check("newton_scan", h, cupy.asnumpy(want), 1e-6)
        with linscan.use_engine("reference"):
            some = x[:, :64]
            slow = timed_eagerly(lambda some=some, R=R: linscan.rnn_scan("para_gru", some, R), 5) * shape[1] / 64
        loop = timed([lambda x=x, R=R: linscan.rnn_scan("para_gru", x, R)], 5)
        ms = timed([lambda x=x, R=R: linscan.newton_scan("para_gru", x, R)], 10)
        eager = timed_eagerly(lambda x=x, R=R: linscan.newton_scan("para_gru", x, R), 10)
        beside = (
            f"{int(info.iterations.max())} corrections, error {error:.1e}; our loop {loop:.4g} ms, {loop / ms:.1f}x"
        )
        beside += f"; a loop of CuPy calls {slow:.4g} ms, {slow / ms:.0f}x; with the host's part {eager:.3g} ms"
        limit = None if target is None else loop / target
        yield Row(f"`newton_scan` ParaGRU {shape}, float32", 0, ms, limit=limit, peer=beside)
        (h, _, _), pullback = linscan.newton_scan_vjp("para_gru", x, R)
        ms = timed([lambda h=h, pullback=pullback: pullback(h)], 10)
        _, pullback = linscan.rnn_scan_vjp("para_gru", x, R)
        loop = timed([lambda h=h, pullback=pullback: pullback(h)], 5)
        yield Row(f"pullback, {shape}", 0, ms, peer=f"our loop {loop:.4g} ms, {loop / ms:.1f}x")


def _arguments(shape: tuple[int, int, int]) -> tuple[cupy.ndarray, ...]:
    batch, length, d = shape
    x = cupy.random.standard_normal((batch, length, 3, d), dtype=np.float32)
    return x, cupy.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (3, d)).astype(np.float32))
