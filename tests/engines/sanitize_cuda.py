"""Small runs of every kind of GPU kernel, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is one past an allocation.
"""

import cupy
import numpy as np

import linscan
from linscan.engines.cuda import scan as engine


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for multiprocessors in (0, 10**9):
        engine._multiprocessors = lambda device, n=multiprocessors: n
        engine._plans.clear()
        for dtype in ("float32", "float16", "complex128"):
            for shape, axis in [((3, 4101), 1), ((2, 8192), 1), ((2, 300, 35), 1), ((5, 7), 1)]:
                a, b = (cupy.asarray(rng.uniform(-0.9, 0.9, shape).astype(dtype)) for _ in range(2))
                for reset in (None, b.real > 0.8):
                    for reverse in (False, True):
                        h, pullback = linscan.scan_vjp(a, b, axis=axis, reset=reset, reverse=reverse)
                        da, db, _ = pullback(h)
                        assert bool(cupy.isfinite(da + db).all())
    a, b = cupy.full((2, 9000), 2.0, np.float32), cupy.full((2, 9000), -1.0, np.float32)
    assert bool((linscan.scan(a, b, 1.0) == 1).all())  # tiles in order, states asked for
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
