"""One step of AdamW on the CPU: parameters, gradient and moments are read once."""

from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.rows import flat, for_tiles
from linscan.engines.reference import adamw as reference


@jit
def _move(x, g, m, v, numbers):
    mode = flush_subnormals()
    share, new1, new2, whole, eps, kept, rate = numbers
    for i in range(len(x)):
        slope = g[i] * share
        m[i] += new1 * (slope - m[i])
        v[i] += new2 * (slope * slope - v[i])
        x[i] = x[i] * kept - rate * m[i] / (np.sqrt(v[i] / whole) + eps)
    restore_subnormals(mode)


def adamw(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    share: Array,
    *,
    rate: float,
    decay: float,
    betas: Any,
    eps: float,
    step: int,
) -> None:
    """See `linscan.engines.reference.adamw`."""
    moved = [a.reshape(-1) for a in (x, m, v)]
    if x.dtype.itemsize == 2 or not all(a.flags.c_contiguous for a in (x, m, v)):  # 16-bit moments round step by step
        reference.adamw(x, g, m, v, share, rate=rate, decay=decay, betas=betas, eps=eps, step=step)
        return
    b1, b2 = betas
    number, slopes = x.dtype.type, flat(g, x.dtype)
    terms = share, 1 - b1, 1 - b2, 1 - b2**step, eps, 1 - rate * decay, rate / (1 - b1**step)
    numbers = tuple(number(a) for a in terms)

    def body(_: int, part: slice) -> None:
        _move(moved[0][part], slopes[part], moved[1][part], moved[2][part], numbers)

    for_tiles(body, len(slopes))
