"""`newton_scan` against a step loop in NumPy, and against our own loop, which does less work than any parallel form."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare


def para_gru_loop(x: np.ndarray, R: np.ndarray) -> np.ndarray:
    """A ParaGRU over (B, T, 3, d), vectorised over batch and channels."""
    h = np.zeros((len(x), x.shape[-1]), x.dtype)
    out = np.empty((*x.shape[:2], x.shape[-1]), x.dtype)
    for t in range(x.shape[1]):
        r, z = (1 / (1 + np.exp(-(x[:, t, k] + R[k] * h))) for k in (0, 1))
        h = z * np.tanh(x[:, t, 2] + R[2] * (h * r)) + (1 - z) * h
        out[:, t] = h
    return out


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for shape in [(1, 16384, 3, 4), (8, 2048, 3, 64)]:
        x = rng.standard_normal(shape).astype(np.float32)
        R = rng.uniform(-0.5, 0.5, shape[2:]).astype(np.float32)
        h, _, info = linscan.newton_scan("para_gru", x, R)
        check("newton_scan", h, para_gru_loop(x, R), 1e-5)
        if not info.converged.all():
            raise SystemExit("newton_scan: not converged")
        solve, loop, ours = compare(
            lambda x=x, R=R: linscan.newton_scan("para_gru", x, R),
            lambda x=x, R=R: para_gru_loop(x, R),
            lambda x=x, R=R: linscan.rnn_scan("para_gru", x, R),
            rounds=5,
        )
        B, T, _, d = shape
        work = f"`newton_scan` ParaGRU float32, B, T, d = ({B}, {T}, {d})"
        note = f"{int(info.iterations.max())} iterations"
        yield Row(work, "NumPy, a loop over time", solve, loop, 1.0, faster=True, note=note)
        yield Row(work.replace("newton", "rnn"), "NumPy, a loop over time", ours, loop, 3.0, faster=True)
