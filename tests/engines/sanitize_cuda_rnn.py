"""Small runs of the GPU kernels of `rnn_scan` and `newton_scan`, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_rnn      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan
from tests.ops.test_rnn_scan import arguments, made


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    cases = [("lstm", 13, "float32"), ("gru", 70, "float16"), ("slstm", 256, "float32"), ("para_lstm", 5, "float64")]
    for name, d, dtype in [*cases, ("elman", 200, "float64")]:
        args = [None if x is None else cupy.asarray(x) for x in arguments(rng, name, (5, 2, 9, d), dtype, lead=(2,))]
        (h, state), pullback = linscan.rnn_scan_vjp(name, *args, reset=cupy.asarray(rng.random((5, 2, 9)) < 0.2))
        assert all(bool(cupy.isfinite(x).all()) for x in pullback(h, h[..., :1, :] * 0 + state * 0) if x is not None)
    for name, length, dtype in [("para_gru", 300, "float16"), ("slstm", 70, "float64"), ("leaky", 16_400, "float32")]:
        given = arguments(rng, name, (2, length, 11), dtype, diagonal=True)
        x, R, b, w, h0 = (None if v is None else cupy.asarray(v) for v in given)
        w = None if w is None else w * np.float32(0.02)  # a long memory: corrections are needed
        reset = cupy.asarray(rng.random((2, length)) < 0.01) if name == "para_gru" else None
        (h, state, info), pullback = linscan.newton_scan_vjp(made(name, True), x, R, b, w, h0, reset=reset)
        assert bool(info.converged.all())
        assert int(info.iterations.max()) > 0 or name != "leaky"
        assert all(bool(cupy.isfinite(v).all()) for v in pullback(h) if v is not None)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
