"""A step of AdamW on the GPU: see adamw.cu."""

import numpy as np

from linscan._arrays import Array, dtype_name
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.columns import on_its_device

_THREADS = 256
_RATES = np.dtype([(name, "f8") for name in ("shrink", "rate", "first", "second", "correction", "eps")])


@on_its_device
def adamw(
    x: Array, g: Array, m: Array, v: Array, share: Array, *, rate: float, decay: float, betas, eps: float, step: int
) -> None:
    """See `linscan.engines.reference.adamw.adamw`; all are contiguous."""
    b1, b2 = betas
    rates = np.array([(1 - rate * decay, rate / (1 - b1**step), 1 - b1, 1 - b2, 1 - b2**step, eps)], _RATES)
    if x.size:
        code = kernel("adamw.cu", "adamw", dtype_name(x.dtype))
        code((-(-x.size // _THREADS),), (_THREADS,), (x, g, m, v, share, rates.view(f"V{_RATES.itemsize}"), x.size))
