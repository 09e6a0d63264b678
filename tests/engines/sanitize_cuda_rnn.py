"""Small runs of `rnn_scan`'s GPU kernels, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_rnn      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan
from tests.ops.test_rnn_scan import arguments


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    cases = [("lstm", 13, "float32"), ("gru", 70, "float16"), ("slstm", 256, "float32"), ("para_lstm", 5, "float64")]
    for name, d, dtype in [*cases, ("elman", 200, "float64")]:
        args = [None if x is None else cupy.asarray(x) for x in arguments(rng, name, (5, 2, 9, d), dtype, lead=(2,))]
        (h, state), pullback = linscan.rnn_scan_vjp(name, *args, reset=cupy.asarray(rng.random((5, 2, 9)) < 0.2))
        assert all(bool(cupy.isfinite(x).all()) for x in pullback(h, h[..., :1, :] * 0 + state * 0) if x is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
