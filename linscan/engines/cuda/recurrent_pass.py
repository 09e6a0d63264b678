"""The launches of recurrent.cu, a pass over time with a matrix state whatever it computes, and of recurrent_gate.cu."""

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array, real_dtype
from linscan.engines.cuda._load import kernel, shared_limit
from linscan.engines.cuda.heads import OPERAND, SIZES, packed, place, raw

EVERY = 64  # steps between the states that are kept, as in the device code
READ, SUM = 1, 2  # what is read is written, or added to what is
BY_STEP, BY_ROW, BY_COLUMN = 1, 2, 3  # what a decay acts on
_SHARED = 64 << 10  # bytes of shared memory every card gives a block that asks for them
_UNROLL = 4  # steps the compiler may interleave
_BLOCKS = 120  # where there would be fewer, blocks are made narrower: nearly the multiprocessors of an H100
_PROBLEM = np.dtype(
    [(name, "i8") for name in ("length", "heads", "rows", "columns", "chunks")]
    + SIZES
    + [("first_row", "i8"), ("first_column", "i8"), ("scale", "f8"), ("scale32", "f4", 2)]
    + [("row", OPERAND, 4), ("column", OPERAND, 2), ("decay", OPERAND), ("first", OPERAND), ("out", OPERAND, 3)]
    + [("last", "u8"), ("kept", "u8"), ("dots", "u8")]
)
_GATE = np.dtype(
    [(name, "i8") for name in ("length", "heads", "keys", "chunks", "parts")]
    + SIZES
    + [("g", OPERAND), ("x", OPERAND, 4), ("dx", "u8", 4), ("dots", "u8"), ("dg", "u8")]
)


class Pass(NamedTuple):
    """What a pass does at each step, in the order of recurrent.cu; its vectors come in this order too."""

    pre: int = 0
    reads: int = 0
    writes: int = 0
    after: int = 0
    feed: int = 0

    @property
    def rows(self) -> int:
        return self.pre + self.reads + self.writes + self.after

    @property
    def columns(self) -> int:
        return self.pre + self.writes - (self.feed == READ)


class Sizes(NamedTuple):
    """How a state lies in a block: `lanes` share a column, each with `per` rows of `columns`; `depth` steps a tile."""

    lanes: int
    per: int
    columns: int
    warps: int
    depth: int


def sizes_of(
    program: Pass, rows: int, columns: int, heads: int, itemsize: int, decay: int, limit: int = _SHARED
) -> Sizes | None:
    """None for states that registers or shared memory do not hold.

    The number of heads has a say in how many warps share vectors, and bits do not depend on that; but if decays are per
    column, a block's width says which of them are seen together, so there it has none.
    """
    words = itemsize // 4
    per, wide, most = (16, 4, 8) if words == 1 and rows > 64 else (8 if rows > 4 else 4, 8, 4)
    while 32 * per < rows:
        per *= 2
    lanes = 1 << (-(-rows // per) - 1).bit_length()
    wide = min(wide, (64 if per <= 16 else 128) // (per * words), 1 << max(0, columns - 1).bit_length())
    if not wide:
        return None
    needed = -(-columns * lanes // (32 * wide))
    warps = min(4 if decay == BY_COLUMN else most, 1 << (needed - 1).bit_length())
    depth = 16
    room = max(_SHARED, limit * warps // 8)  # eight warps fill a multiprocessor
    while shared(program, Sizes(lanes, per, wide, warps, depth), itemsize, decay) > room:
        if depth == 1 and warps == 1:
            return None
        depth, warps = (depth // 2, warps) if depth > 1 else (1, 1)
    while decay != BY_COLUMN and warps > 1 and heads * -(-needed // warps) < _BLOCKS:
        warps //= 2
    return Sizes(lanes, per, wide, warps, depth)


def shared(program: Pass, sizes: Sizes, itemsize: int, decay: int) -> int:
    """Bytes of the struct ``Shared`` of recurrent.cuh: two tiles of vectors and three of decays."""
    rows, tile = sizes.lanes * sizes.per, 32 * sizes.warps // sizes.lanes * sizes.columns
    channels = {BY_ROW: rows, BY_COLUMN: tile}.get(decay, 1)
    vectors = rows * program.rows + tile * program.columns
    return itemsize * sizes.depth * (2 * vectors + 6 * channels) + 64


def run(
    program: Pass,
    rows: list[Array],
    columns: list[Array],
    g: Array | None,
    first: Array | None,
    outs: list[Array | None],
    *,
    lead: tuple[int, ...],
    turned: bool = False,
    last: Array | None = None,
    kept: Array | None = None,
    multiply: bool = False,
    scale: float = 1.0,
) -> Array | None:
    """One pass, all of the arithmetic's dtype. `first` is (…, K, V), `turned` says that the rows of S are V.

    `kept` (heads, chunks, K, V) is filled with the states after every EVERY steps, or, with `multiply`, multiplied with
    those here: then the parts of the sums over columns are returned, (parts, heads, chunks, K).
    """
    (length, height), width = rows[0].shape[-2:], columns[0].shape[-1]
    dtype, heads, chunks = rows[0].dtype, math.prod(lead), -(-length // EVERY)
    decay = 0 if g is None else BY_STEP if g.shape[-1] == 1 else BY_COLUMN if turned else BY_ROW
    sizes = sizes_of(program, height, width, heads, dtype.itemsize, decay, shared_limit(rows[0]))
    if sizes is None:
        raise ValueError(f"recurrent: states of {height} x {width} {dtype} are too large")
    tiles = -(-width // (32 * sizes.warps // sizes.lanes * sizes.columns))
    dots = cupy.zeros((tiles * sizes.warps, heads, chunks, height), real_dtype(dtype)) if multiply else None
    p = np.zeros(1, _PROBLEM)
    p["length"], p["heads"], p["rows"], p["columns"] = length, heads, height, width
    p["chunks"], p["scale"], p["scale32"] = chunks, scale, scale
    arrays: dict[Any, Array] = {("row", i): x for i, x in enumerate(rows)}
    arrays |= {("column", i): x for i, x in enumerate(columns)}
    arrays |= {("out", i): x for i, x in enumerate(outs) if x is not None}
    if g is not None:
        arrays["decay"] = g
    if first is not None:
        first = cupy.ascontiguousarray(first)
        arrays["first"] = first
        p["first_row"], p["first_column"] = (1, height) if turned else (width, 1)
    alive = place(p, lead, arrays)
    p["last"], p["kept"], p["dots"] = (0 if x is None else x.data.ptr for x in (last, kept, dots))
    vectors = alive[: len(rows) + len(columns)] + ([arrays["decay"]] if decay > BY_STEP else [])
    macros: dict[str, int] = {"LANES": sizes.lanes, "PER": sizes.per, "COLUMNS": sizes.columns, "WARPS": sizes.warps}
    macros |= {
        "DEPTH": sizes.depth,
        "UNROLL": 2 if program.feed else 1 if program.rows > 3 else _UNROLL,
        "PRE": program.pre,
        "READS": program.reads,
        "WRITES": program.writes,
    }
    macros |= {"AFTER": program.after, "FEED": program.feed, "DECAY": decay}
    macros |= {"KEEP": 0 if kept is None else 2 if multiply else 1, "PACKED": int(packed(*vectors))}
    code = kernel("recurrent.cu", "run", dtype.name, *macros.items())
    memory = shared(program, sizes, dtype.itemsize, decay)
    if code.max_dynamic_shared_size_bytes < memory:
        code.max_dynamic_shared_size_bytes = memory
    code((heads * tiles,), (32 * sizes.warps,), (raw(p),), shared_mem=memory)
    return dots


def gate(g: Array, pairs: list[tuple[Array, Array]], dots: Array, lead: tuple[int, ...]) -> Array:
    """dg, (…, T, 1) or (…, T, K), from (q, dq), (k, dk), perhaps (a, da), and (b, db); see recurrent_gate.cu."""
    length, keys = pairs[0][0].shape[-2:]
    vector = g.shape[-1] > 1
    parts, heads, chunks, _ = dots.shape
    p = np.zeros(1, _GATE)
    p["length"], p["heads"], p["keys"], p["chunks"], p["parts"] = length, heads, keys, chunks, parts
    arrays: dict[Any, Array] = {("x", i): x for i, (x, _) in enumerate(pairs)}
    alive = place(p, lead, arrays | {"g": g})
    for i, (_, dx) in enumerate(pairs):
        p["dx"][0, i] = dx.data.ptr
    dg = cupy.empty((*lead, length, keys if vector else 1), g.dtype)
    p["dots"], p["dg"] = dots.data.ptr, dg.data.ptr
    macros = ("PAIRS", len(pairs)), ("VECTOR", int(vector))
    code = kernel("recurrent_gate.cu", "gate", pairs[0][0].dtype.name, *macros)
    code((heads * chunks,), (128,), (raw(p),))
    del alive
    return dg
