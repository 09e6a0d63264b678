"""The delta rule on tensor cores: float32 arrays, one decay a step or none; see single_delta.cu.

Only what a chunk computes is made there: the pullback is that of recurrent.py, from what it would have kept.
"""

import math

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda import recurrent
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.head_layout import packed, placed
from linscan.engines.cuda.single_sizes import THREADS, shared, takes, tile

_STEPS = 64  # as in the device code


def fits(q: Array, v: Array, g: Array | None, w: Array | None, lead: tuple[int, ...]) -> bool:
    """Whether the tensor cores take it; the number of heads has no say in it, for bits depend on it."""
    some = min(math.prod(lead), *q.shape[-2:], v.shape[-1]) > 0
    return some and w is None and (g is None or g.shape[-1] == 1) and takes(q, q.shape[-1], v.shape[-1])


def delta_rule(q, k, v, beta, g, S0, *, scale: float, keep: bool) -> tuple[Array, Array, recurrent.Kept | None]:
    """See `linscan.ops.delta_rule`; k as it came, g (…, T, 1) or None, S0 with all leading axes."""
    lead, first = S0.shape[:-2], S0
    (length, keys), values = q.shape[-2:], v.shape[-1]
    (q, k, v, g, beta, S0), layout = placed(lead, length, (q, k, v, g, beta[..., None], S0), 1)
    o, S = cupy.empty((*lead, length, values), np.float32), cupy.empty((*lead, keys, values), np.float32)
    read = cupy.empty(o.shape, np.float32) if keep else None
    states = cupy.empty((*lead, -(-length // _STEPS), keys, values), np.float32) if keep and g is not None else None
    wide, width = tile(keys, values)
    macros = (
        ("KEYS", wide),
        ("SLICE", width),
        ("DECAYS", int(g is not None)),
        ("PACKED", int(all(map(packed, (q, k, v))))),
    )
    code, memory = kernel("single_delta.cu", "run", "float32", *macros), shared(wide, width)
    if code.max_dynamic_shared_size_bytes < memory:
        code.max_dynamic_shared_size_bytes = memory
    arguments = layout, q, k, v, g, beta, S0, o, S, read, states, keys, values, np.float32(scale)
    code((math.prod(lead),), (THREADS * width,), arguments, shared_mem=memory)
    return o, S, recurrent.Kept(states, read, first) if keep else None
