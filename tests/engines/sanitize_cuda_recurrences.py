"""Small runs of the GPU kernels of block, log-space and grid scans, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_recurrences      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

from typing import Any

import cupy
import numpy as np

import linscan

rng = np.random.default_rng(0)


def draw(shape: tuple[int, ...], dtype: str, size: float = 1.0) -> Any:
    return cupy.asarray(rng.uniform(-size, size, shape)).astype(dtype)


def main() -> None:
    cupy.cuda.set_allocator(None)
    for n, dtype in ((2, "float32"), (3, "float16"), (4, "float32"), (5, "complex128"), (11, "float64")):
        for length in (1, 70, 2100):
            A, b, h0 = draw((2, length, n, n), dtype, 0.5 / n), draw((2, length, n), dtype), draw((2, n), dtype)
            reset = cupy.asarray(rng.random((2, length)) < 0.01)
            h, pullback = linscan.block_scan_vjp(A, b, h0, reset=reset, reverse=n == 3)
            assert all(bool(cupy.isfinite(x).all()) for x in pullback(h))
    for shape, axis in (((3, 2500), 1), ((700, 35), 0)):
        for dtype in ("float16", "float64"):
            s, v, w = (draw(shape, dtype) for _ in range(3))
            outputs = *linscan.softmax_average(s, v, w, axis=axis, reset=s < 0), linscan.max_scan(w, s, axis=axis)
            assert all(bool(cupy.isfinite(x).all()) for x in outputs)
    for dtype in ("float32", "complex128"):
        tails = [(9,), (9,), (35,), (2, 2), (2,), (2,)]
        outputs, back = linscan.grid_scan_vjp(*(draw((2, 10, 11, *tail), dtype, 0.4) for tail in tails))
        assert all(bool(cupy.isfinite(x).all()) for x in (*outputs, *back(*outputs)) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
