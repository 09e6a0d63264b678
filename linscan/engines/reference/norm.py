"""Normalisation of rows by their own statistics or of columns by those of all rows, and the pullbacks.

Matrices are (n, D), of the dtype of `x`; `scale`, `shift`, statistics and their gradients are in the dtype arithmetic
is done in. With ``r = (var + eps)^(-1/2)`` the normal rows are ``(x - mean) r``, which pullbacks make anew. `around` is
added to dx, or None: what flows around the norm.
"""

from typing import Any

from linscan._arrays import Array, accum_dtype, sum_rows

Three = tuple[Array, Array | None, Array | None]


def row_norm(x: Array, scale: Array | None, shift: Array | None, eps: float, *, centred: bool) -> Three:
    """See `linscan.ops.norm.layer_norm`, or `rms_norm` if not `centred`: ``(y, mean, r)``, of every row.

    `mean` and `r` are (n,); `mean` is None if not `centred`.
    """
    wide = x.astype(accum_dtype(x.dtype), copy=False)
    mean = wide.mean(-1) if centred else None
    about = wide if mean is None else wide - mean[:, None]
    r = ((about * about).mean(-1) + eps) ** -0.5
    return _affine(about * r[:, None], scale, shift, x.dtype), mean, r


def row_norm_pullback(
    dy: Array, x: Array, scale: Array | None, mean: Array | None, r: Array, around: Array | None
) -> Three:
    """The gradients ``(dx, dscale, dshift)``; a `mean` of None was not taken out."""
    # n = (x - m) r with m and r functions of x through means over its row:
    #   dx = r (dn - mean(dn) - n mean(dn n)): the direct share, then what passes through m, then through r.
    # About 0 there is no share through m.
    wide, g = (a.astype(accum_dtype(x.dtype), copy=False) for a in (x, dy))
    normal = (wide if mean is None else wide - mean[:, None]) * r[:, None]
    dn = g if scale is None else g * scale
    dx = dn - normal * (dn * normal).mean(-1, keepdims=True)
    dx = r[:, None] * (dx if mean is None else dx - dn.mean(-1, keepdims=True))
    return _plus(dx, around, x.dtype), sum_rows(g * normal), sum_rows(g)


def batch_norm(
    x: Array, scale: Array | None, shift: Array | None, mean: Array | None, var: Array | None, eps: float
) -> Three:
    """See `linscan.ops.norm.batch_norm`: ``(y, mean, var)``; without the two given, those of `x`."""
    wide = x.astype(accum_dtype(x.dtype), copy=False)
    if mean is None:
        mean = sum_rows(wide) / max(1, len(x))
    about = wide - mean
    if var is None:
        var = sum_rows(about * about) / max(1, len(x))
    return _affine(about * (var + eps) ** -0.5, scale, shift, x.dtype), mean, var


def batch_norm_pullback(
    dy: Array, x: Array, scale: Array | None, mean: Array, var: Array, eps: float, around: Array | None, *, own: bool
) -> Three:
    """The gradients ``(dx, dscale, dshift)``; `own` if the statistics were those of `x`."""
    wide, g = (a.astype(accum_dtype(x.dtype), copy=False) for a in (x, dy))
    r = (var + eps) ** -0.5
    normal = (wide - mean) * r
    dscale, dshift = sum_rows(g * normal), sum_rows(g)
    dx = g - (dshift + normal * dscale) / len(x) if own and len(x) else g  # as for rows, with means over columns
    return _plus(dx * (r if scale is None else r * scale), around, x.dtype), dscale, dshift


def _affine(normal: Array, scale: Array | None, shift: Array | None, dtype: Any) -> Array:
    y = normal if scale is None else normal * scale
    return (y if shift is None else y + shift).astype(dtype, copy=False)


def _plus(dx: Array, around: Array | None, dtype: Any) -> Array:
    return (dx if around is None else dx + around).astype(dtype, copy=False)
