"""Convolution over several axes on the CPU: the reference, on as many threads as there are signals."""

from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference import fft_conv_nd as reference

_GRAIN = 1 << 14  # samples a thread must get for its hand-over to pay


def fft_conv_nd(u: Array, k: Array, shape: tuple[int, ...], *, workers: Any, **options: Any) -> Array:
    """See `linscan.engines.reference.fft_conv_nd`; one signal at a time, so that its transforms stay in the cache."""
    dims = len(shape)
    lead = np.broadcast_shapes(u.shape[:-dims], k.shape[:-dims])
    y = np.empty((*lead, *shape), u.dtype)
    u, k = (np.broadcast_to(x, (*lead, *x.shape[-dims:])) for x in (u, k))
    places = list(np.ndindex(lead))

    def body(lo: int, hi: int) -> None:
        for at in places[lo:hi]:
            y[at] = reference.fft_conv_nd(u[at], k[at], shape, workers=1, **options)

    parallel_for(body, len(places), grain=max(1, _GRAIN * len(places) // max(1, y.size)), workers=workers)
    return y
