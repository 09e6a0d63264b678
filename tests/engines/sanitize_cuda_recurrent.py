"""Small runs of the matrix states' step-by-step kernels, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_recurrent      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan
from tests.ops.test_delta_rule import delta_problem, dplr_problem


def on_gpu(*arrays):
    return [x if x is None else cupy.asarray(x) for x in arrays]


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    cases = ("float32", 12, 20, "vector"), ("complex64", 12, 20, None)
    for dtype, key, value, kind in cases:
        q, k, v, beta, g, S0 = on_gpu(*delta_problem(rng, 67, key, value, dtype, kind))
        a, b = on_gpu(*dplr_problem(rng, 67, key, value, dtype, kind)[3:5])
        for vjp, args in (
            (linscan.linear_attention_vjp, (q, k, v, g, S0)),
            (linscan.delta_rule_vjp, (q, k, v, beta, g, S0)),
            (linscan.dplr_attention_vjp, (q, k, v, a, b, g, S0)),
        ):
            (o, S), pullback = vjp(*args)
            assert all(bool(cupy.isfinite(x).all()) for x in pullback(o, S) if x is not None)
        gate = None if g is None else g[:, 0]
        linscan.linear_attention_step(q[:, 0], k[:, 0], v[:, 0], S0, gate)
        linscan.delta_rule_step(q[:, 0], k[:, 0], v[:, 0], beta[:, 0], S0, gate)
        linscan.dplr_attention_step(q[:, 0], k[:, 0], v[:, 0], a[:, 0], b[:, 0], S0, gate)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
