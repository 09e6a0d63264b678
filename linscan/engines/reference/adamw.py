"""One step of AdamW on a long array of real parameters, in place."""

from typing import Any

from linscan._arrays import Array, namespace


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
    """See `linscan.train.optimisers.AdamW`: x moves, and so do its moments m and v; `share` () multiplies g."""
    b1, b2 = betas
    g = (g * share).astype(g.dtype, copy=False)
    m += (1 - b1) * (g - m)
    v += (1 - b2) * (g * g - v)
    root = namespace(x).sqrt(v / (1 - b2**step)) + eps
    if decay:
        x *= 1 - rate * decay
    x -= rate / (1 - b1**step) * m / root
