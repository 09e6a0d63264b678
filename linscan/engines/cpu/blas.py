"""Batched matrix products of modest size by BLAS, each in the calling thread: our threads do not wait for its own."""

from typing import Any

import numpy as np

_ALONE = 1 << 18  # multiply-adds up to which BLAS does not share a product among threads of its own
_STRIP = 8  # rows below which that would cost more than it spares


def product(x: Any, y: Any, out: Any) -> Any:
    """``out = x @ y``, in strips of rows small enough for one thread."""
    rows, most = x.shape[-2], max(1, _ALONE // max(1, x.shape[-1] * y.shape[-1]))
    strip = next(n for n in range(min(rows, most), 0, -1) if rows % n == 0)
    if rows <= most or strip < _STRIP:
        return np.matmul(x, y, out=out)
    cut = lambda z: z.reshape(*z.shape[:-2], rows // strip, strip, z.shape[-1])  # noqa: E731
    np.matmul(cut(x), y[..., None, :, :], out=cut(out))
    return out
