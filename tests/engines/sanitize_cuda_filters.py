"""Small runs of the filters' GPU kernels, for compute-sanitizer python -m tests.engines.sanitize_cuda_filters.

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for dtype in ("float32", "complex128"):
        for shape, axis in [((3, 259), 1), ((35, 515), 1), ((2, 517, 35), 1), ((5, 7), 1)]:
            x = cupy.asarray(rng.standard_normal(shape).astype(dtype))
            b, a = (cupy.asarray(np.array(v, dtype)) for v in ([1.0, 0.5, 0.2], [1.0, -0.5, 0.3]))
            y, zf = linscan.lfilter(b, a, x, axis=axis, zi=0)
            sos = cupy.asarray(np.array([[1.0, 0.5, 0.2, 1.0, -0.5, 0.3]] * 3, dtype))
            cascaded, _ = linscan.sosfilt(sos, x, axis=axis, zi=0)
            slopes = cupy.asarray(rng.uniform(-0.3, 0.3, (*shape, 3)).astype(dtype))
            followed = linscan.allpole(slopes, x, axis=axis)
            assert all(bool(cupy.isfinite(v).all()) for v in (y, zf, cascaded, followed))
    for n in (3, 20):
        A, B = (cupy.asarray(rng.uniform(-1, 1, size) / n) for size in ((n, n), (n, 2)))
        _, y, x = linscan.dlsim((A, B, B.T, None, 1.0), cupy.asarray(rng.standard_normal((3, 517, 2))))
        assert bool(cupy.isfinite(y).all() & cupy.isfinite(x).all())
    wild = linscan.lfilter(*(cupy.asarray(np.array(v)) for v in ([1.0], [1.0, -1.1])), cupy.ones((2, 600)))
    assert bool(cupy.isfinite(wild).all())  # in order, over several chunks
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
