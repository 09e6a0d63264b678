"""Short filters as Numba-CUDA kernels: a thread for every output, and for the weights' gradient a tree of sums.

``y[t] = bias + sum_j w[j] x[t - j d]``, where x is the state and then the inputs, d the dilation. A reset between
t - j d and t ends the sum.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import cuda

from linscan._arrays import Array, grad_like, namespace
from linscan.engines.numba_cuda.launch import THREADS, folded, launch

_BLOCKS = 2**31 - 1  # of a grid; threads take several outputs beyond it


def short_conv(u: Array, w: Array, bias: Array | None, state: Array | None, *, axis, dilation, reverse, reset, workers):
    """See `linscan.ops.short_conv.short_conv`."""
    xp = namespace(u)
    y = xp.empty(u.shape, u.dtype)
    if y.size:
        x, taps, cut, result = _views(u, w, state, reset, y, axis, dilation, reverse)
        shift = xp.zeros((), u.dtype) if bias is None else bias
        shift = xp.broadcast_to(shift, u.shape[:axis] + u.shape[axis + 1 :]).reshape(-1)
        launch(_filter(), _grid(y.size), (*x, taps, shift, cut), (result,), dilation)
    return y


def short_conv_pullback(
    u: Array, w: Array, bias: Array | None, state: Array | None, dy: Array, *, axis, dilation, reverse, reset, workers
):
    """The gradients of `u`, `w`, `bias` and `state`, summed over the axes in which `w` and `bias` were broadcast."""
    xp, span = namespace(u), (w.shape[-1] - 1) * dilation
    others = u.shape[:axis] + u.shape[axis + 1 :]
    du = xp.zeros(u.shape, u.dtype)
    dpast = xp.zeros((*u.shape[:axis], span, *u.shape[axis + 1 :]), u.dtype)
    dw = xp.zeros((*others, w.shape[-1]), np.complex128 if u.dtype.kind == "c" else np.float64)
    if u.size:
        x, taps, cut, flow = _views(u, w, state, reset, xp.asarray(dy), axis, dilation, reverse)
        to = [folded(g, axis) for g in (dpast, du)]
        to = [g[:, ::-1] for g in to] if reverse else to
        launch(_inputs(), _grid(u.size + dpast.size), (flow, taps, cut), tuple(to), dilation)
        launch(_weights(dw.dtype), min(dw.size, _BLOCKS), (*x, flow, cut), (dw.reshape(-1, w.shape[-1]),), dilation)
    dbias = None if bias is None else grad_like(dy.sum(axis), bias)
    return du, grad_like(dw, w), dbias, None if state is None else dpast


def _views(
    u: Array, w: Array, state: Array | None, reset: Array | None, y: Array, axis: int, dilation: int, reverse: bool
):
    """(past, inputs), weights as (rows, taps), resets, and outputs; time in the middle, in the direction of the run."""
    xp, span = namespace(u), (w.shape[-1] - 1) * dilation
    others = u.shape[:axis] + u.shape[axis + 1 :]
    past = xp.zeros((), u.dtype) if state is None else state
    past = xp.broadcast_to(past, (*u.shape[:axis], span, *u.shape[axis + 1 :]))
    cut = xp.zeros((), np.uint8) if reset is None else reset.view(np.uint8)
    arrays = [folded(x, axis) for x in (past, u, xp.broadcast_to(cut, u.shape), y)]
    past, u, cut, y = (x[:, ::-1] for x in arrays) if reverse else arrays
    taps = xp.broadcast_to(w, (*others, w.shape[-1])).reshape(-1, w.shape[-1])
    return (past, u), taps, cut, y


def _grid(items: int) -> int:
    return min(-(-items // THREADS), _BLOCKS)


@cuda.jit(device=True)
def is_cut(cut, outer, inner, first, last):
    """Whether a sequence begins at one of the steps first + 1 to last; those before 0 are the state's."""
    for t in range(max(first + 1, 0), last + 1):
        if cut[outer, t, inner]:
            return True
    return False


@cache
def _filter() -> Any:
    @cuda.jit
    def filter_outputs(past, u, w, bias, cut, y, dilation):
        length, width, span = y.shape[1], y.shape[2], past.shape[1]
        for item in range(cuda.grid(1), y.size, cuda.gridsize(1)):
            inner, t, outer = item % width, item // width % length, item // (width * length)
            row = outer * width + inner
            total = bias[row]
            for j in range(w.shape[1]):
                s = t - j * dilation
                if j and is_cut(cut, outer, inner, s, s + dilation):
                    break
                total += w[row, j] * (u[outer, s, inner] if s >= 0 else past[outer, span + s, inner])
            y[outer, t, inner] = total

    return filter_outputs


@cache
def _inputs() -> Any:
    @cuda.jit
    def input_gradients(dy, w, cut, dpast, du, dilation):
        length, width, span = dy.shape[1], dy.shape[2], dpast.shape[1]
        for item in range(cuda.grid(1), dy.shape[0] * (span + length) * width, cuda.gridsize(1)):
            inner, s, outer = item % width, item // width % (span + length) - span, item // (width * (span + length))
            row = outer * width + inner
            total = w[row, 0] * 0
            for j in range(w.shape[1]):
                t = s + j * dilation
                if t >= length or (j and is_cut(cut, outer, inner, t - dilation, t)):
                    break
                if t >= 0:
                    total += w[row, j].conjugate() * dy[outer, t, inner]
            if s >= 0:
                du[outer, s, inner] = total
            else:
                dpast[outer, span + s, inner] = total

    return input_gradients


@cache
def _weights(dtype: np.dtype) -> Any:
    number, kind = numba.from_dtype(dtype), dtype.type

    @cuda.jit
    def weight_gradients(past, u, dy, cut, dw, dilation):
        """A block sums one weight's gradient: a thread every THREADS-th step, then the threads in a tree."""
        sums = cuda.shared.array(THREADS, number)
        i, span = cuda.threadIdx.x, past.shape[1]
        length, width, taps = dy.shape[1], dy.shape[2], dw.shape[1]
        for item in range(cuda.blockIdx.x, dw.size, cuda.gridDim.x):
            j, row = item % taps, item // taps
            outer, inner = row // width, row % width
            total = kind(0)
            for t in range(i, length, THREADS):
                s = t - j * dilation
                if not is_cut(cut, outer, inner, s, t):
                    x = u[outer, s, inner] if s >= 0 else past[outer, span + s, inner]
                    total += kind(dy[outer, t, inner]) * kind(x).conjugate()
            sums[i] = total
            cuda.syncthreads()
            step = THREADS // 2
            while step > 0:
                if i < step:
                    sums[i] += sums[i + step]
                step //= 2
                cuda.syncthreads()
            if i == 0:
                dw[row, j] = sums[0]
            cuda.syncthreads()

    return weight_gradients
