"""Small runs of `local_attention`'s GPU kernels, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_local_attention   (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for dtype, width, value in (("float16", 64, 40), ("float16", 13, 7), ("float32", 33, 7), ("float64", 20, 5)):
        q, k = (cupy.asarray(rng.standard_normal((2, 100, width))).astype(dtype) for _ in range(2))
        v, g = cupy.asarray(rng.standard_normal((2, 100, value))).astype(dtype), -cupy.ones((2, 100), dtype)
        reset = cupy.asarray(rng.random(100) < 0.1)
        for causal, window in ((True, 70), (False, 9)):
            o, pullback = linscan.local_attention_vjp(q, k, v, window, g, causal=causal, reset=reset)
            assert all(bool(cupy.isfinite(x).all()) for x in pullback(o) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
