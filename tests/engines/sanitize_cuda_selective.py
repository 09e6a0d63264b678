"""Small runs of the selective scan's GPU kernels, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_selective      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan
from linscan.engines.cuda import selective_scan as engine


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for whole, chunk in ((8192, 2048), (64, 32)):
        engine._WHOLE, engine._CHUNK = whole, chunk
        for dtype, states, channels in (("float32", 16, 70), ("float16", 5, 3), ("complex128", 40, 5)):
            shape, vectors = (2, 101, channels), (2, 101, states)
            u, dt, z = (cupy.asarray(rng.uniform(0.1, 0.5, shape)) for _ in range(3))
            B, C = (cupy.asarray(rng.uniform(-1, 1, vectors)).astype(dtype) for _ in range(2))
            A = cupy.asarray(-rng.uniform(0.5, 4, (channels, states))).astype(B.dtype if B.dtype.kind == "c" else "f4")
            reset = cupy.asarray(rng.random((2, 101)) < 0.1)
            dt, z = (x.astype(B.real.dtype) for x in (dt, z))
            (y, h), pullback = linscan.selective_scan_vjp(u.astype(dtype), dt, A, B, C, A[:, 0].copy(), z, reset=reset)
            assert all(bool(cupy.isfinite(x).all()) for x in pullback(y, h) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
