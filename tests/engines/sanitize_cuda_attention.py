"""Small runs of linear attention's GPU kernels, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_attention      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import ml_dtypes
import numpy as np

import linscan
from linscan.engines.cuda import gated_attention, linear_attention


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for whole in (8192, 1):
        for engine in (linear_attention, gated_attention):
            engine._WHOLE = engine._SEGMENT = whole
        for dtype, keys, values in ((ml_dtypes.bfloat16, 72, 128), ("float16", 7, 33)):
            shape = (2, 101)
            q, k = (cupy.asarray(rng.standard_normal((*shape, keys)).astype(dtype)) for _ in range(2))
            v = cupy.asarray(rng.standard_normal((*shape, values)).astype(dtype))
            S0 = cupy.asarray(rng.standard_normal((keys, values)).astype("float32"))
            for g in (None, cupy.full(shape, -0.1, "float32"), cupy.full((*shape, keys), -0.1, "float32")):
                (o, S), pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
                assert all(bool(cupy.isfinite(x).all()) for x in pullback(o, S) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
