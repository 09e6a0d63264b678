"""Small runs of the delta rule's kernels for tensor cores, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_delta      (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

import linscan
from tests.conftest import dtype_of


def finite(*arrays) -> bool:
    return all(bool(cupy.isfinite(x.astype("float32")).all()) for x in arrays if x is not None)


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    sizes = (130, 64, 72, "float16"), (70, 9, 5, "bfloat16"), (130, 80, 128, "bfloat16"), (130, 80, 72, "float32")
    for length, keys, values, dtype in sizes:
        q, k, v = (
            cupy.asarray(rng.uniform(-0.3, 0.3, (2, length, n)).astype(dtype_of(dtype))) for n in (keys, keys, values)
        )
        beta, g = (cupy.asarray(rng.uniform(*ends, (2, length)).astype("float32")) for ends in ((0, 2), (-0.2, 0)))
        (o, S), pullback = linscan.delta_rule_vjp(q, k, v, beta, g, scale=0.1, precision="tf32")
        assert finite(o, S, *pullback(o, S))
        g = cupy.asarray(rng.uniform(-0.2, 0, (2, length, keys)).astype("float32"))
        (o, S), pullback = linscan.delta_rule_vjp(q, k, v, beta, g, scale=0.1)
        assert finite(o, S, *pullback(o, S))
        (o, S), pullback = linscan.dplr_attention_vjp(q, k, v, q, k, g[..., 0], scale=0.1)
        assert finite(o, S, *pullback(o, S))
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
