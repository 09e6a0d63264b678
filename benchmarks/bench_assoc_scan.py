"""`assoc_scan` of an operator without an op of its own, products of matrices, against the loop over time in NumPy."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare


def _later_times_earlier(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    return later @ earlier


def _loop(matrices: np.ndarray) -> np.ndarray:
    products = matrices.copy()
    for t in range(1, len(products)):
        products[t] = products[t] @ products[t - 1]
    return products


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    matrices = np.linalg.qr(rng.standard_normal((1 << 15, 4, 4)))[0]  # rotations: products neither vanish nor overflow
    want = _loop(matrices)
    for algorithm, target in (("chunked", 2), ("blelloch", 5)):

        def ours(algorithm: str = algorithm) -> np.ndarray:
            return linscan.assoc_scan(_later_times_earlier, matrices, axis=0, algorithm=algorithm)

        check("assoc_scan", ours(), want, 1e-11)
        times = compare(ours, lambda: _loop(matrices), rounds=7)
        yield Row(f"`assoc_scan` {algorithm}, 4 × 4 float64, 2¹⁵ steps", "NumPy, a loop", *times, target, faster=True)
