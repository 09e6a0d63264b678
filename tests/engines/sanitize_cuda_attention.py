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
    shape = (2, 101)
    for whole, keys, values in ((8192, 72, 128), (1, 7, 33)):
        for engine in (linear_attention, gated_attention):
            engine._WHOLE = engine._SEGMENT = whole
        q, k, v = (rng.standard_normal((*shape, n)).astype(ml_dtypes.bfloat16) for n in (keys, keys, values))
        q, k, v = (cupy.asarray(x) for x in (q[:1], k, v))
        S0 = cupy.asarray(rng.standard_normal((keys, values)).astype("float32"))
        for decays in (shape, (*shape, keys)):
            (o, S), pullback = linscan.linear_attention_vjp(q, k, v, cupy.full(decays, -0.1, "float32"), S0)
            assert all(bool(cupy.isfinite(x).all()) for x in pullback(o, S))
            if decays is not shape:
                continue
            for precision in ("exact", "tf32"):
                wide = [x.astype("float32") for x in (q, k, v)]
                (o, S), pullback = linscan.linear_attention_vjp(
                    *wide, cupy.full(decays, -0.1, "float32"), S0, precision=precision
                )
                assert all(bool(cupy.isfinite(x).all()) for x in pullback(o, S))
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
