"""The selective scan on the CPU: how rows and blocks of channels are handed to the kernels and the threads.

A block holds the states of a few vectors of channels in the nearest cache while it runs over all of time, so that no
array of all states is made. Gradients that sum over channels (of B and C) are summed within each block and then over
the blocks, in their order.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, real_dtype
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.cpu.selective_kernels import TIMES, backward, forward
from linscan.engines.cpu.selective_math import constants
from linscan.engines.cpu.selective_tiles import DDT, DU, DY, DZ, GATE
from linscan.engines.cpu.selective_vectors import lanes_of

_GRAIN = 1 << 15  # states a thread must get for its hand-over (about 30 us) to pay
_VECTORS = 4  # of channels in a block


class _Layout(NamedTuple):
    """How channels are cut into blocks: G groups of E neighbours each, in blocks of `width`."""

    rows: int
    length: int
    groups: int
    members: int
    states: int
    lanes: int

    @property
    def width(self) -> int:
        return _VECTORS * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.members // self.width)

    @property
    def tasks(self) -> int:
        return self.rows * self.groups * self.blocks

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.groups, self.members, self.width

    def pack(self, x: Array) -> Array:
        """(…, D, N) as (… G blocks, vectors, N, lanes), zero beyond the channels there are; always a new array."""
        lead = x.shape[:-2]
        padded = np.zeros((*lead, self.groups, self.blocks * self.width, x.shape[-1]), x.dtype)
        padded[..., : self.members, :] = x.reshape(*lead, self.groups, self.members, x.shape[-1])
        vectors = padded.reshape(math.prod(lead) * self.groups * self.blocks, _VECTORS, self.lanes, x.shape[-1])
        return np.ascontiguousarray(vectors.swapaxes(-1, -2))

    def unpack(self, x: Array, states: int | None = None) -> Array:
        """The inverse of `pack` for R rows: (R, D, N)."""
        states = self.states if states is None else states
        vectors = x.reshape(self.tasks, _VECTORS, states, self.lanes).swapaxes(-1, -2)
        whole = vectors.reshape(self.rows, self.groups, self.blocks * self.width, states)
        return whole[:, :, : self.members].reshape(self.rows, self.groups * self.members, states)

    def run(self, body: Any, workers: Any) -> None:
        grain = max(1, _GRAIN // max(1, self.length * self.width * self.states))
        parallel_for(body, self.tasks, grain=grain, workers=workers)


def _prepared(u, dt, A, B, C, D, z, dt_bias, reset):
    """Everything the kernels read, in the dtype of the arithmetic."""
    compute, real = A.dtype, real_dtype(A.dtype)
    layout = _Layout(*u.shape[:2], B.shape[2], A.shape[0] // B.shape[2], A.shape[1], lanes_of(compute))
    z = np.zeros((0, 0, 0), real) if z is None else z
    sequences = _plain(dt, real), _plain(u, compute), _plain(z, real)
    vectors = tuple(_plain(x, compute) for x in (B, C))
    D = np.zeros(A.shape[0], compute) if D is None else D
    bias = np.zeros(A.shape[0], real) if dt_bias is None else dt_bias
    blocks = layout.pack(_binary(A)), layout.pack(A), *(layout.pack(x[:, None]).reshape(-1) for x in (D, bias))
    flags = np.zeros(0, bool) if reset is None else reset.reshape(-1)
    return layout, (sequences, vectors, blocks, _plain(flags, np.dtype(bool))), constants(real)


def _binary(A: Array) -> Array:
    """Eigenvalues for powers of two instead of e; the angle stays."""
    A = A.copy()
    A.real[...] = A.real.astype(np.float64) / math.log(2)
    return A


def _plain(x: Array, dtype: np.dtype) -> Array:
    """`x`, C-contiguous and read-only: one kernel serves all layouts, for a copy that is small beside the work."""
    x = np.ascontiguousarray(x, dtype).view()
    x.flags.writeable = False
    return x


def _tiles(layout, compute, reals, wholes):
    """A thread's tiles, with gates of one, and zeros to copy."""
    real, full = (np.zeros((k, TIMES * layout.width), t) for k, t in ((reals, real_dtype(compute)), (wholes, compute)))
    real[GATE] = 1
    return real, full, np.zeros(layout.width, real.dtype), np.zeros(layout.width * max(1, layout.states), compute)


def selective_scan(u, dt, A, B, C, D, z, dt_bias, h0, *, dt_softplus, reverse, reset, real, keep, workers):
    """See `linscan.ops.selective_scan.selective_scan`: ``(y, h_last, kept)``."""
    layout, inputs, coef = _prepared(u, dt, A, B, C, D, z, dt_bias, reset)
    compute, size = A.dtype, layout.width * layout.states
    state = layout.pack(np.zeros((len(u), *A.shape), compute) if h0 is None else h0).reshape(layout.tasks, size)
    y = np.empty(u.shape, compute)
    every = np.empty((len(u) * layout.length if keep == "all" else 0, *A.shape), compute)
    kept = np.empty((layout.tasks, -(-layout.length // TIMES), size) if keep == "some" else (0, 0, 0), compute)

    def body(lo: int, hi: int) -> None:
        tiles = _tiles(layout, compute, DDT, DY)
        flags = dt_softplus, reverse
        forward(*inputs, y, kept, every, state, tiles, coef, layout.shape, flags, lo, hi)

    if y.size:
        layout.run(body, workers)
    y = y.real if real else y
    stored = y.astype(real_dtype(u.dtype) if real else u.dtype, order="C", copy=False)
    states = every.reshape(*u.shape, A.shape[1]) if keep == "all" else kept
    return stored, layout.unpack(state), states


def selective_scan_pullback(
    u, dt, A, B, C, D, z, dt_bias, h0, kept, dy, dh, *, dt_softplus, reverse, reset, real, workers
):
    """See `linscan.ops.selective_scan.selective_scan_vjp`: all gradients, those of A, D and dt_bias for every row."""
    layout, inputs, coef = _prepared(u, dt, A, B, C, D, z, dt_bias, reset)
    compute, (rows, length, _), n = A.dtype, u.shape, A.shape[1]
    flow = layout.pack(dh.astype(compute, copy=False)).reshape(layout.tasks, layout.width * n)
    du, ddt = np.empty(u.shape, compute), np.empty(u.shape, real_dtype(compute))
    grads = du, ddt, np.empty(u.shape if z is not None else (0, 0, 0), ddt.dtype)
    dA, dD = (np.zeros((layout.tasks, layout.width * k), compute) for k in (n, 1))
    dB, dC = (np.zeros((rows, layout.groups, layout.blocks, length, n), compute) for _ in range(2))
    dy, flags = _plain(dy, compute), (dt_softplus, reverse)

    def body(lo: int, hi: int) -> None:
        sizes = (k * n * layout.lanes for k in (TIMES + 1, TIMES))
        tiles = *_tiles(layout, compute, DZ + 1, DU + 1), *(np.zeros(size, compute) for size in sizes)
        backward(*inputs, kept, dy, grads, (dA, dB, dC, dD), flow, tiles, coef, layout.shape, flags, lo, hi)

    if u.size:
        layout.run(body, workers)
    dB, dC = (x.sum(2).swapaxes(1, 2) for x in (dB, dC))
    dD = None if D is None else layout.unpack(dD, 1)[..., 0]
    dz, dbias = None if z is None else grads[2], None if dt_bias is None else ddt.sum(1)
    return du, ddt, layout.unpack(dA), dB, dC, dD, dz, dbias, None if h0 is None else layout.unpack(flow)
