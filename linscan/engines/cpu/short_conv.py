"""Short causal filters on the CPU: time last or features last, each read as it lies in memory.

The kernels know nothing of state and direction of time. A filter that runs backwards reaches forward (a negative
stride), resets cut a row into pieces that see nothing of each other, and the few outputs that see the state are taken
from the reference.
"""

from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, accum_dtype, grad_like
from linscan.engines.cpu import fir_columns, fir_rows
from linscan.engines.cpu.conv_layout import pieces_between, pieces_of
from linscan.engines.reference import short_conv as reference


def short_conv(u: Array, w: Array, bias: Array | None, state: Array | None, *, workers: Any, **options: Any) -> Array:
    """See `linscan.ops.short_conv.short_conv`; arguments as in the reference."""
    if _varied(**options):
        return reference.short_conv(u, w, bias, state, workers=workers, **options)
    start = np.zeros((1,) * (u.ndim - 1), u.dtype) if bias is None else bias
    layout = _layout(u, np.broadcast_shapes(w.shape[:-1], start.shape), **options)
    y = _sum(layout, u, w, start, _stride(**options), workers)
    if state is not None and y.size:
        head, part = _head(u, w, **options)
        y[head] = reference.short_conv(u[head], w, bias, state, **part)
    return y.astype(u.dtype, copy=False)


def short_conv_pullback(
    u: Array, w: Array, bias: Array | None, state: Array | None, dy: Array, *, workers: Any, **options: Any
) -> tuple[Array, Array, Array | None, Array | None]:
    """See `linscan.ops.short_conv.short_conv_vjp`; arguments as in the reference."""
    if _varied(**options):
        return reference.short_conv_pullback(u, w, bias, state, dy, workers=workers, **options)
    layout, stride = _layout(u, w.shape[:-1], **options), _stride(**options)
    du = _sum(layout, dy, np.conj(w), np.zeros((1,) * (u.ndim - 1), u.dtype), -stride, workers)
    dw, dstate = _taps(layout, u, dy, w, stride, workers), None
    dbias = None if bias is None else grad_like(_over_time(dy, options["axis"]), bias)
    if state is not None:
        head, part = _head(u, w, **options)
        # What the state alone does: u has had its part above.
        still = np.zeros_like(u[head])
        _, more, _, dstate = reference.short_conv_pullback(still, w, None, state, dy[head], **part)
        dw += more
    return du.astype(u.dtype, copy=False), dw, dbias, dstate


def _varied(*, axis: int, reset: Array | None, **_: Any) -> bool:
    """Whether channels beside each other are reset at different times, which these kernels do not know."""
    return reset is not None and int(np.prod(reset.shape[axis + 1 :], dtype=np.intp)) > 1


def _stride(*, dilation: int, reverse: bool, **_: Any) -> int:
    return -dilation if reverse else dilation


def _head(u: Array, w: Array, **options: Any) -> tuple[tuple[slice, ...], dict[str, Any]]:
    """Index of the outputs that see the state, and the options with which to compute them."""
    axis, length = options["axis"], u.shape[options["axis"]]
    n = min(length, (w.shape[-1] - 1) * options["dilation"])
    index = [slice(None)] * u.ndim
    index[axis] = slice(length - n, length) if options["reverse"] else slice(0, n)
    reset = options["reset"]
    return tuple(index), {**options, "reset": None if reset is None else reset[tuple(index)]}


def _over_time(dy: Array, axis: int) -> Array:
    return dy.sum(axis, dtype=np.complex128 if dy.dtype.kind == "c" else np.float64)


class _Layout(NamedTuple):
    """`u` as (batch, T, channels), weights as (rows, K, channels), and the pieces of work."""

    batch: int
    channels: int
    lead: tuple[int, ...]  # the axes of the weights, those after time in full
    pieces: Array

    def weights(self, w: Array, dtype: np.dtype) -> Array:
        w = np.broadcast_to(w, (*self.lead, w.shape[-1])).astype(dtype, copy=False)
        return np.ascontiguousarray(w.reshape(-1, self.channels, w.shape[-1]).swapaxes(1, 2))


def _layout(
    u: Array, lead: tuple[int, ...], *, axis: int, reverse: bool, reset: Array | None, dilation: int
) -> _Layout:
    before, after = u.shape[:axis], u.shape[axis + 1 :]
    batch, channels = (int(np.prod(x, dtype=np.intp)) for x in (before, after))
    own = np.arange(int(np.prod(lead[:axis], dtype=np.intp))).reshape(lead[:axis])
    table = np.stack([np.arange(batch), np.arange(batch), np.broadcast_to(own, before).ravel()], axis=1)
    if reset is None:
        pieces = pieces_of(table, u.shape[axis], u.shape[axis])
    else:
        reset = reset.reshape(reset.shape[: axis + 1])
        pieces = pieces_between(table, np.broadcast_to(reset, u.shape[: axis + 1]).reshape(batch, -1), reverse)
    return _Layout(batch, channels, (*lead[:axis], *after), pieces)


def _sum(layout: _Layout, u: Array, w: Array, bias: Array, stride: int, workers: Any) -> Array:
    """``y[t] = bias + Σ_j w[j] u[t - stride j]`` inside each piece, in the dtype of the arithmetic."""
    compute = accum_dtype(u.dtype)
    u = np.ascontiguousarray(u, compute)
    y = np.empty(u.shape, compute)
    if u.size:
        w, bias = layout.weights(w, compute), layout.weights(bias[..., None], compute)[:, 0]
        u2, y2 = u.reshape(layout.batch, -1), y.reshape(layout.batch, -1)
        if layout.channels == 1:
            fir_rows.fir(u2, w[..., 0], bias[:, 0], y2, layout.pieces, 0, stride, workers)
        else:
            fir_columns.fir(u2, w, bias, y2, layout.pieces, layout.channels, stride, workers)
    return y


def _taps(layout: _Layout, u: Array, dy: Array, w: Array, stride: int, workers: Any) -> Array:
    """The gradient of `w` by what its taps met of `u`."""
    rows = int(np.prod(layout.lead, dtype=np.intp)) // max(1, layout.channels)
    shape = (rows, w.shape[-1], layout.channels)
    if not u.size:
        return np.zeros(w.shape, w.dtype)
    u2, dy2 = (np.ascontiguousarray(x, accum_dtype(u.dtype)).reshape(layout.batch, -1) for x in (u, dy))
    if layout.channels == 1:
        dw = fir_rows.fir_taps(u2, dy2, shape[:2], layout.pieces, 0, stride, workers)[..., None]
    else:
        dw = fir_columns.fir_taps(u2, dy2, shape, layout.pieces, stride, workers)
    return grad_like(dw.swapaxes(1, 2).reshape(*layout.lead, w.shape[-1]), w)
