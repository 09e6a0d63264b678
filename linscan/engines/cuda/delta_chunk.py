"""The delta rule on tensor cores: 16-bit arrays, one decay a step or none, keys to 256; see delta_chunk.cu."""

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.head_layout import packed, placed

STEPS, _PAD = 64, 8  # as in delta_chunk.cuh
_TILE = 64  # values are padded to a multiple of it in what is kept
_STAGES = 3  # chunks in shared memory, at most
_WARPS, _TILES = 16, 2  # of a block that makes the gradients of a chunk; tiles of values in shared memory, at most
_FEW = 64  # blocks that leave half of the card idle: then each has half the values
_KEPT = np.dtype([("steps", "u8"), ("states", "u8"), ("wide", "i8")])


class Kept(NamedTuple):
    """What one pass leaves for the gradients, in the arrays' dtype: see the struct of this name."""

    steps: Array
    states: Array

    def struct(self) -> np.ndarray:
        values = self.steps.shape[-1]
        return np.array([(self.steps.data.ptr, self.states.data.ptr, values)], _KEPT).view(f"V{_KEPT.itemsize}")


def fits(q: Array, v: Array, g: Array | None, w: Array | None, lead: tuple[int, ...], scale: float) -> bool:
    """Whether the tensor cores take it: else the delta rule is run as `dplr_attention`."""
    sizes = math.prod(lead), q.shape[-2], q.shape[-1], v.shape[-1]
    plain = q.dtype.itemsize == 2 and w is None and (g is None or g.shape[-1] == 1) and math.isfinite(scale)
    return plain and 0 < min(sizes) and sizes[2] <= 256 and int(q.device.compute_capability) >= 80


def delta_rule(
    q, k, v, beta, g, S0, *, scale: float, keep: bool, read: bool = True
) -> tuple[Array, Array, Kept | None]:
    """See `linscan.ops.delta_rule`; k as it came, g (…, T, 1) or None, S0 with all leading axes.

    Without `read` only the final state is made.
    """
    call = Call(q, k, v, beta, g, S0)
    o, S = cupy.empty((*call.lead, *v.shape[-2:]) if read else 0, q.dtype), cupy.empty(S0.shape, np.float32)
    kept = call.kept() if keep else None
    call.along("forwards", kept, (*call.inputs, call.first, o, S), scale, [("KEEP", int(keep)), ("READ", int(read))])
    return o, S, kept


def delta_rule_pullback(q, k, v, beta, g, kept: Kept, do, dS, *, scale: float) -> tuple[Array | None, ...]:
    """The gradients of q, k, v, beta, g and S0, with the leading axes of dS."""
    call = Call(q, k, do, beta, g, dS)
    back = call.kept()
    dS0 = call.backwards(back, scale)
    return *call.gradients(kept, back, scale), dS0


class Call:
    """The arrays of one call where they lie, and the launches on them."""

    def __init__(self, q, k, v, beta, g, S):
        self.lead, self.length, self.keys, self.values = S.shape[:-2], q.shape[-2], q.shape[-1], v.shape[-1]
        beta = beta.astype(np.float32, copy=False)[..., None]
        (*self.inputs, self.first), self.struct = placed(self.lead, self.length, (q, k, v, beta, g, S), 1)
        self.rows, self.chunks = math.prod(self.lead), -(-self.length // STEPS)
        self.wide_keys, self.wide = -(-self.keys // 64) * 64, -(-self.values // _TILE) * _TILE
        self.limit = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
        aligned = all(map(packed, self.inputs[:3]))
        self.macros = [("KEYS", self.wide_keys), ("DECAYS", int(g is not None)), ("PACKED", int(aligned))]

    def kept(self) -> Kept:
        dtype, steps = self.inputs[0].dtype, (self.rows, self.length, self.wide)
        states = (self.rows, self.chunks, self.wide, self.wide_keys)
        return Kept(cupy.empty(steps, dtype), cupy.empty(states, dtype))

    def backwards(self, kept: Kept | None, scale: float) -> Array:
        """The gradient of the state before the first step; v are the gradients of the outputs."""
        dS0 = cupy.empty((*self.lead, self.keys, self.values), np.float32)
        self.along("backwards", kept, (*self.inputs, self.first, dS0), scale, [("READ", 1)])
        return dS0

    def along(self, name: str, kept: Kept | None, arguments: tuple[Any, ...], scale: float, macros: list[Any]) -> None:
        """Through all chunks, one block for each row and 128 or 64 of its values."""
        warps = 8 if self.values > 64 and self.rows * -(-self.values // 128) > _FEW else 4
        stages = max(n for n in range(1, _STAGES + 1) if n == 1 or _shared(self.wide_keys, warps, n) <= self.limit)
        source = "delta_chunk.cu" if name == "forwards" else "delta_chunk_flow.cu"
        struct = np.zeros(1, f"V{_KEPT.itemsize}") if kept is None else kept.struct()
        blocks, shared = self.rows * -(-self.values // (16 * warps)), _shared(self.wide_keys, warps, stages)
        arguments += self.keys, self.values, np.float32(scale), struct
        self.launch(
            source, name, [("WARPS", warps), ("STAGES", stages), *macros], blocks, 32 * warps, arguments, shared
        )

    def gradients(self, forth: Kept, back: Kept, scale: float) -> tuple[Array | None, ...]:
        """Those of q, k, v, beta and g, of every chunk by itself."""
        dtype, steps = self.inputs[0].dtype, (*self.lead, self.length)
        dq, dk, dv = (cupy.empty((*steps, n), dtype) for n in (self.keys, self.keys, self.values))
        dbeta, dg = (cupy.empty(steps, np.float32) for _ in range(2))
        arguments = (*self.inputs, forth.struct(), back.struct(), dq, dk, dv, dbeta, dg)
        arguments += self.keys, self.values, np.float32(scale)
        blocks, tiles = self.rows * self.chunks, _TILES if _shared_back(self.wide_keys, _TILES) <= self.limit else 1
        shared, macros = _shared_back(self.wide_keys, tiles), [("WARPS", _WARPS), ("TILES", tiles)]
        self.launch("delta_chunk_back.cu", "gradients", macros, blocks, 32 * _WARPS, arguments, shared)
        return dq, dk, dv, dbeta, None if self.inputs[4] is None else dg[..., None]

    def launch(self, source, name, macros, blocks, threads, arguments, shared) -> None:
        code = kernel(source, name, self.inputs[0].dtype.name, *self.macros, *macros)
        if code.max_dynamic_shared_size_bytes < shared:
            code.max_dynamic_shared_size_bytes = shared
        code((blocks,), (threads,), (self.struct, *arguments), shared_mem=shared)


def _shared(keys: int, warps: int, stages: int) -> int:
    """Bytes of the struct ``Shared`` of delta_pass.cuh."""
    stage, turns = 2 * STEPS * (2 * (keys + _PAD) + 16 * warps + _PAD), 2 if stages == 3 else 1
    scores = 2 * STEPS * (2 * (STEPS + _PAD) + 2 * (16 + _PAD)) + 4 * STEPS * 20
    return stages * stage + turns * scores + (3 * 6 + 1 + turns) * 4 * STEPS


def _shared_back(keys: int, tiles: int) -> int:
    """Bytes of the struct ``Shared`` of delta_chunk_back.cu."""
    tile, rows = 3 * (STEPS + _PAD) + 2 * (keys + _PAD), 2 * (keys + _PAD)
    return 2 * STEPS * (tiles * tile + rows) + 4 * ((_WARPS + 6 + 4) * STEPS + _WARPS)
