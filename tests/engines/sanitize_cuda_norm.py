"""Small runs of the GPU kernels around a model's scans (norms, gates, AdamW, …), to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.engines.sanitize_cuda_norm           (and --tool racecheck)

Memory comes straight from the driver, not from CuPy's pool: an access past an array's end is past an allocation.
"""

import cupy
import numpy as np

from linscan.models import S5, Block, Stack, Training
from linscan.train.optimisers import AdamW
from linscan.train.packed import Packed
from linscan.train.storage import flatten, nested


def main() -> None:
    cupy.cuda.set_allocator(None)
    rng, optimiser = np.random.default_rng(0), AdamW(0.1)
    blocks = ("batch", "half_glu2", 132), ("batch", "half_glu2", 64), ("layer", "half_glu1", 5), ("rms", "glu", 8)
    for norm, gate, channels in blocks:
        model = Stack(
            (Block(S5(channels, 8, bidirectional=True), norm, gate=gate),) * 2, 5, 3, tokens=True, pool="mean"
        )
        params = {name: cupy.asarray(x) for name, x in flatten(model.init(rng)).items()}
        packed = Packed(params, optimiser.kind)
        tokens = cupy.asarray(rng.integers(0, 5, (3, 301)))
        training = Training(rng)
        (y, _), back = model.apply_vjp(nested(packed.arrays), tokens, training=training)
        training.update()
        grads = packed.gather(flatten(back(y)[0]))
        optimiser.update(packed.rows, grads, optimiser.start(packed.rows), 1, 1.0)
        assert all(bool(cupy.isfinite(x).all()) for x in packed.rows.values())
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
