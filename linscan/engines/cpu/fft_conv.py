"""Long convolutions on the CPU: batches of rows, or of blocks of a row, that fit the second-level cache.

Each batch is transformed, multiplied and transformed back before the next is touched; whole-array transforms would
move every intermediate through memory. A batch holds several rows because the transforms work on some side by side.
Its size depends on the shapes alone, so neither `workers` nor other rows change a row's bits.
"""

from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu.conv_layout import layout_of, pieces_of
from linscan.engines.cpu.fir_rows import fir, fir_taps
from linscan.engines.cpu.pool import parallel_for
from linscan.engines.reference import fft_conv as reference

_BATCH = 1 << 20  # bytes of one batch of signal
_ROWS = 128  # that a batch has at most
_SPLITS = 8  # ranges a single group is cut into, for the threads to share
_LINE = 16  # channels that lie beside each other are taken together, so that cache lines are used up
_GRAIN = 1 << 15  # samples a thread must get for its hand-over to pay


class _Plan(NamedTuple):
    """How outputs are cut into transforms of length n, each giving `step` of them from its index `skip` on."""

    n: int
    step: int
    skip: int
    blocks: int
    tasks: list[tuple[int, slice, list[tuple[slice, slice]]]]  # (split, groups, [(rows, blocks)])
    real: bool

    def forward(self, x: Array) -> Array:
        fft = reference.transforms(np)
        return fft.rfft(x, self.n) if self.real else fft.fft(x, self.n)

    def back(self, x: Array) -> Array:
        fft = reference.transforms(np)
        back = fft.irfft if self.real else fft.ifft
        return back(x, self.n, overwrite_x=True)


def fft_conv(
    u: Array, k: Array, y: Array, *, start: int, circular: bool, method: str, spectrum: Array | None, workers: Any
) -> None:
    """See `linscan.engines.reference.fft_conv`; `y` is filled."""
    compute, layout = accum_dtype(y.dtype), layout_of(u, k, y.shape)
    u3, k3, y4 = layout.signal(u), layout.kernel(k), layout.result(y)
    if method == "direct":
        _direct(u3.astype(compute, copy=False), k3.astype(compute, copy=False), y4, start, workers)
    else:
        given, bins = (None, None) if spectrum is None else (layout.kernel(spectrum), spectrum.shape[-1])
        plan = _plan(u3, k.shape[-1], y4.shape, compute.kind != "c", start, circular, method, bins)
        for g, m, c in sorted(_transformed(u3, k3, y4, compute, plan, start, given, workers)):
            row = u3[g, m], k3[g, c], y4[g, m, c]
            reference.fft_conv(*row, start=start, circular=circular, method=method, spectrum=None, workers=1)
    if not np.may_share_memory(y4, y):
        y[...] = layout.undo(y4, y)


def _direct(u: Array, k: Array, y: Array, start: int, workers: Any) -> None:
    g, m, c, length = y.shape
    rows, table = _rows(g, m, c), np.zeros(g * c, u.dtype)
    target = y if y.flags.c_contiguous and y.dtype == u.dtype else np.empty(y.shape, u.dtype)
    u2, k2 = (np.ascontiguousarray(x).reshape(-1, x.shape[-1]) for x in (u, k))
    fir(u2, k2, table, target.reshape(-1, length), pieces_of(rows, u.shape[-1], length), start, 1, workers)
    if target is not y:
        y[...] = target


def _rows(g: int, m: int, c: int) -> Array:
    """For each row of (groups, rows, kernels): its own number, its signal's, its kernel's."""
    group, row, kernel = (x.ravel() for x in np.indices((g, m, c)))
    return np.stack([np.arange(g * m * c), group * m + row, group * c + kernel], axis=1)


def _plan(
    u: Array, taps: int, shape: tuple[int, ...], real: bool, start: int, circular: bool, method: str, bins
) -> _Plan:
    (g, m, _, length), samples = shape, u.shape[-1]
    n, step = reference.block_size(taps, real)
    skip, blocks = n - step, -(-length // step)
    if method == "fft" or blocks == 1:
        step, skip, blocks = length, start, 1
        if circular:
            n = samples
        elif bins is not None:
            n = 2 * (bins - 1) if real else bins
        else:
            n = reference.fft_size(samples, taps, start, length, real)
    batch = min(max(_BATCH // (n * (4 if real else 8)), 4), _ROWS)
    beside = min(_LINE, batch) if abs(u.strides[0]) < abs(u.strides[-1]) else 1
    together = 1 if blocks > 1 else max(1, batch // m, beside)
    if blocks > 1:
        parts = [(slice(i, i + 1), slice(b, min(b + batch, blocks))) for i in range(m) for b in range(0, blocks, batch)]
    else:
        rows = max(1, batch // min(g, together))
        parts = [(slice(i, min(i + rows, m)), slice(0, 1)) for i in range(0, m, rows)]
    groups = [slice(i, min(i + together, g)) for i in range(0, g, together)]
    splits = min(len(parts), -(-_SPLITS // len(groups)))
    cuts = [len(parts) * s // splits for s in range(splits + 1)]
    tasks = [(s, gs, parts[cuts[s] : cuts[s + 1]]) for gs in groups for s in range(splits)]
    return _Plan(n, step, skip, blocks, tasks, real)


def _seen(u: Array, plan: _Plan, blocks: slice, start: int, compute: np.dtype) -> Array:
    """What each transform of a batch works on: whole rows, or overlapping windows of one, zero outside its range."""
    if plan.blocks == 1:
        return u[:, :, None].astype(compute, copy=False)
    shift = blocks.start * plan.step + start - plan.skip
    strip = np.zeros((*u.shape[:-1], (blocks.stop - blocks.start - 1) * plan.step + plan.n), compute)
    first, last = reference.overlap(strip.shape[-1], shift, u.shape[-1])
    strip[..., first:last] = u[..., first + shift : last + shift]
    return np.lib.stride_tricks.sliding_window_view(strip, plan.n, axis=-1)[..., :: plan.step, :]


def _transformed(u: Array, k: Array, y: Array, compute: np.dtype, plan: _Plan, start: int, given, workers) -> set:
    """Fill `y`; returns the (group, row, kernel) whose results are not all finite."""
    bad: set[tuple[int, int, int]] = set()

    def batch(gs: slice, ms: slice, blocks: slice, spectra: Array) -> None:
        seen = plan.forward(_seen(u[gs, ms], plan, blocks, start, compute))
        for c in range(y.shape[2]):
            product = np.multiply(seen, spectra[:, c, None, None], out=seen if c + 1 == y.shape[2] else None)
            out = plan.back(product)[..., plan.skip : plan.skip + plan.step]
            _place(out, y[gs, ms, c], blocks.start * plan.step)
            # Every output of a transform holds a share of its first bin, the sum of the inputs.
            bad.update((gs.start + i, ms.start + j, c) for i, j, _ in np.argwhere(~np.isfinite(out[..., 0])))

    def body(lo: int, hi: int) -> None:
        with np.errstate(all="ignore"):
            for _, gs, parts in plan.tasks[lo:hi]:
                spectra = plan.forward(k[gs].astype(compute, copy=False)) if given is None else given[gs]
                for ms, blocks in parts:
                    batch(gs, ms, blocks, spectra)

    parallel_for(body, len(plan.tasks), grain=_grain(plan, y), workers=workers)
    return bad


def _place(blocks: Array, y: Array, t: int) -> None:
    """Write blocks of outputs (…, block, step) one after the other into `y` from `t` on; the last may be cut short."""
    count, step = blocks.shape[-2:]
    whole = min(count, (y.shape[-1] - t) // step)
    target = y[..., t : t + whole * step]
    target.reshape(*target.shape[:-1], whole, step)[...] = blocks[..., :whole, :]
    rest = y[..., t + whole * step : t + count * step]
    if whole < count:
        rest[...] = blocks[..., whole, : rest.shape[-1]]


def _grain(plan: _Plan, y: Array) -> int:
    return max(1, _GRAIN * len(plan.tasks) // max(1, y.size))


def fft_conv_pullback(u: Array, k: Array, dy: Array, *, start: int, circular: bool, method: str, workers: Any) -> Array:
    """See `linscan.engines.reference.fft_conv`: the kernel's gradient, summed over the rows that share it."""
    compute, layout = accum_dtype(dy.dtype), layout_of(u, k, dy.shape)
    u3, k3, dy4 = layout.signal(u), layout.kernel(k), layout.result(dy)
    g, m, c = layout.shape
    if method == "direct":
        u2, dy2 = (np.ascontiguousarray(x, compute).reshape(-1, x.shape[-1]) for x in (u3, dy4))
        pieces = pieces_of(_rows(g, m, c), u.shape[-1], dy.shape[-1])
        dk = fir_taps(u2, dy2, (g * c, k.shape[-1]), pieces, start, 1, workers).reshape(k3.shape)
    else:
        plan = _plan(u3, k.shape[-1], dy4.shape, compute.kind != "c", start, circular, method, None)
        dk = _correlated(u3, dy4, k3.shape, compute, plan, start, workers)
    return layout.undo(dk, k).astype(k.dtype, copy=False)


def _correlated(u: Array, dy: Array, shape: tuple, compute: np.dtype, plan: _Plan, start: int, workers) -> Array:
    """Spectra of signal and cotangent meet, are summed in double precision, and one transform leads back."""
    wide = np.complex128
    parts = np.zeros((1 + max(task[0] for task in plan.tasks), *shape), compute)

    def batch(gs: slice, ms: slice, blocks: slice, total: Array) -> None:
        seen = np.conj(plan.forward(_seen(u[gs, ms], plan, blocks, start, compute)))
        for c in range(dy.shape[2]):
            g = np.zeros((*dy[gs, ms, c].shape[:2], blocks.stop - blocks.start, plan.n), compute)
            for i, b in enumerate(range(blocks.start, blocks.stop)):
                piece = dy[gs, ms, c, b * plan.step : (b + 1) * plan.step]
                g[:, :, i, plan.skip : plan.skip + piece.shape[-1]] = piece
            total[:, c] += np.multiply(plan.forward(g), seen).sum((1, 2))

    def body(lo: int, hi: int) -> None:
        with np.errstate(all="ignore"):
            for split, gs, batches in plan.tasks[lo:hi]:
                bins = plan.n // 2 + 1 if plan.real else plan.n
                total = np.zeros((gs.stop - gs.start, dy.shape[2], bins), wide)
                for ms, blocks in batches:
                    batch(gs, ms, blocks, total)
                parts[split, gs] = plan.back(total)[..., : shape[-1]]

    parallel_for(body, len(plan.tasks), grain=_grain(plan, dy), workers=workers)
    return parts.sum(0)
