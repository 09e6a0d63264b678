"""Small runs of the delta rule's kernels for tensor cores, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_delta      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for length, keys, values, decays in ((130, 64, 72, True), (70, 9, 5, False), (130, 136, 128, True)):
        q, k, v = (
            cupy.asarray(rng.uniform(-0.3, 0.3, (2, length, n)), np.float32).astype("float16")
            for n in (keys, keys, values)
        )
        beta = cupy.asarray(rng.uniform(0, 2, (2, length)), np.float32)
        g = cupy.asarray(-rng.uniform(0, 0.2, (2, length)), np.float32) if decays else None
        (o, S), pullback = linscan.delta_rule_vjp(q, k, v, beta, g, scale=0.1)
        assert all(bool(cupy.isfinite(x).all()) for x in (o, S, *pullback(o, S)) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
