"""`discretize` over a batch of systems against a loop of `scipy.signal.cont2discrete`, which takes one at a time."""

from collections.abc import Iterator

import numpy as np
from scipy.signal import cont2discrete

import linscan
from benchmarks.harness import Row, check, compare


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for n, batch, method, target in [(4, 1000, "zoh", 3), (4, 1000, "bilinear", 50), (16, 256, "bilinear", 4)]:
        A, B = rng.standard_normal((batch, n, n)) - 2 * np.eye(n), rng.standard_normal((batch, n, 1))
        C, D = np.zeros((1, n)), np.zeros((1, 1))

        def one_by_one(A=A, B=B, C=C, D=D, method=method) -> np.ndarray:
            return np.stack([cont2discrete((a, b, C, D), 0.1, method)[0] for a, b in zip(A, B, strict=True)])

        check("discretize", linscan.discretize(A, B, 0.1, method)[0], one_by_one(), 1e-13)
        ours, other = compare(lambda A=A, B=B, m=method: linscan.discretize(A, B, 0.1, m), one_by_one)
        yield Row(f'`discretize` "{method}", {batch} systems of {n} states', "cont2discrete", ours, other, target, True)
    a = -0.5 + 1j * np.pi * np.arange(32)
    dt = np.exp(rng.uniform(-7, -2, (256, 1)))

    def plain() -> tuple[np.ndarray, np.ndarray]:
        a_bar = np.exp(dt * a)
        return a_bar, (a_bar - 1) / a

    check("discretize_diag", linscan.discretize_diag(a, dt)[1], plain()[1], 1e-12)
    ours, other = compare(lambda: linscan.discretize_diag(a, dt), plain, rounds=31)
    yield Row('`discretize_diag` "zoh" (256, 32) complex128', "the plain formula, which cancels", ours, other, 5)
