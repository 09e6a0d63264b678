"""Small runs of every kernel of the convolutions, to be watched by compute-sanitizer.

compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_conv      (and --tool racecheck)
"""

import cupy
import numpy as np

import linscan


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)

    def random(*shape: int, dtype: str = "float32") -> cupy.ndarray:
        return cupy.asarray(rng.standard_normal(shape).astype(dtype))

    for dtype in ("float32", "float16", "complex64"):
        for shape, axis in [((3, 4101), 1), ((2, 300, 8), 1), ((2, 301, 5), 1)]:
            w = random(*([1] * (len(shape) - 2)), *(shape[:axis] + shape[axis + 1 :])[-1:], 4, dtype=dtype)
            y, pullback = linscan.short_conv_vjp(random(*shape, dtype=dtype), w, axis=axis)
            assert all(bool(cupy.isfinite(x).all()) for x in (y, *pullback(y)[:2]))
    for length in (400, 900, 2000, 4000, 8000, 16_000, 20_000, 70_000):
        for axis in (-1, 0):
            u, k = (random(*((length, 3) if axis == 0 else (3, length))) for _ in range(2))
            y, pullback = linscan.fft_conv_vjp(u, k, axis=axis)
            assert all(bool(cupy.isfinite(x).all()) for x in (y, *pullback(y)[:2]))
    for dtype in ("float32", "complex64"):
        u, k = random(2, 3, 20, 33, dtype=dtype), random(1, 3, 9, 40, dtype=dtype)
        for mode in ("causal", ("bidirectional", "circular")):
            y, pullback = linscan.fft_conv_nd_vjp(u, k, mode=mode)
            assert all(bool(cupy.isfinite(x).all()) for x in (y, *pullback(y)))
        u[0, 0, 3, 4:9] = cupy.nan
        assert bool(cupy.isnan(linscan.fft_conv_nd(u, k)).any())
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
