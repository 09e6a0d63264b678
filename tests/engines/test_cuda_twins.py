"""The arithmetic of the GPU engine on a CPU: how views fold, and how tiles and what they carry compose.

The device code cannot run here. These twins follow it step by step in NumPy, in float32, and are held to the laws it
relies on: the tree of a tile equals the loop, and the state entering a tile has the same bits whether one block walks a
row or every tile has its own. A compiler, where there is one, then has to accept the code itself.
"""

import shutil
import subprocess
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linscan.engines.cuda import _load, layout
from linscan.engines.cuda.sizes import macros, sizes_of
from tests import oracles
from tests.tolerances import assert_close, stable

F = np.float32
IDENTITY = (F(1), F(0))


def compose(after, before):
    return after[0] * before[0], after[0] * before[1] + after[1]


def apply(pair, h):
    return pair[0] * h + pair[1]


def tame(pair):
    return bool(abs(pair[0]) <= 1024 and np.isfinite(pair[1]))


def composite(a, b):
    total = IDENTITY
    for step in zip(a, b, strict=True):
        total = compose(step, total)
    return total


def run(a, b, h):
    out = np.empty_like(b)
    for t in range(len(b)):
        h = F(a[t] * h + b[t])
        out[t] = h
    return out


def warp_scan(maps):
    """Kogge-Stone over a warp, as affine.cuh does it."""
    by = 1
    while by < len(maps):
        maps = [compose(m, maps[i - by]) if i >= by else m for i, m in enumerate(maps)]
        by *= 2
    return maps


def tile_starts(a, b, entering, lanes, rows, chunk, warps):
    """The state every chunk of a tile starts from, and the tile's composite: the body of scan.cu."""
    size = lanes * rows * chunk
    a, b = (np.concatenate([x, np.full(size * warps - len(x), fill, F)]) for x, fill in ((a, 1), (b, 0)))
    firsts, ends = [], []
    for w in range(warps):
        line, mine = IDENTITY, []
        for j in range(rows):
            at = w * size + j * lanes * chunk
            maps = [composite(a[i : i + chunk], b[i : i + chunk]) for i in range(at, at + lanes * chunk, chunk)]
            through = warp_scan(maps)
            mine += [compose(through[i - 1], line) if i else line for i in range(lanes)]
            line = compose(through[-1], line)
        firsts.append(mine)
        ends.append(line)
    total, starts = IDENTITY, []
    for w in range(warps):
        begin = apply(total, entering)
        starts += [apply(first, begin) for first in firsts[w]]
        total = compose(ends[w], total)
    return starts, total


@given(length=st.integers(1, 70), seed=st.integers(0, 99))
def test_the_tree_of_a_tile_equals_the_loop(length, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-1, 1, length).astype(F), rng.standard_normal(length).astype(F)
    starts, total = tile_starts(a, b, F(0.5), lanes=4, rows=3, chunk=2, warps=3)
    want = np.concatenate([[0.5], oracles.scan(a, b, 0.5)])
    got = [starts[t // 2] for t in range(0, length, 2)]
    assert_close(np.array(got), want[0:length:2], 2 * stable("float32"))
    assert_close(np.array(apply(total, F(0.5))), want[-1], 2 * stable("float32"))


class Row:
    """Tiles of one row with the state each leaves, and carry.cuh's two ways of finding the state that enters one."""

    def __init__(self, a, b, h0, tile, group):
        cuts = range(0, len(b), tile)
        self.pieces = [(a[i : i + tile], b[i : i + tile]) for i in cuts]
        self.maps = [composite(*piece) for piece in self.pieces]
        self.h0, self.group = h0, group
        self.left = {}

    def walk_in_one_block(self):
        prefix, start, entering = IDENTITY, self.h0, self.h0
        states = []
        for k, (piece, pair) in enumerate(zip(self.pieces, self.maps, strict=True)):
            states.append(entering)
            left = run(*piece, entering)[-1]
            self.left[k] = left
            longer = compose(pair, prefix)
            x, last = apply(longer, start), (k + 1) % self.group == 0
            anchor = not tame(longer)
            start = left if anchor else (x if np.isfinite(x) else left) if last else start
            prefix = IDENTITY if anchor or last else longer
            entering = apply(prefix, start)
            entering = entering if np.isfinite(entering) else left
        return states

    def share_between_blocks(self, rng):
        """Tile by tile, from what the tiles before have published alone; reading what is not published is an error."""
        published, groups, states = {}, [], []
        for k, (piece, pair) in enumerate(zip(self.pieces, self.maps, strict=True)):
            first = k - k % self.group
            start = self.group_start(k // self.group, published, groups, rng)
            prefix, all_tame = IDENTITY, True
            for i in range(first, k):
                prefix = compose(self.maps[i], prefix)
                all_tame = all_tame and tame(prefix)
            if (k + 1) % self.group == 0:
                groups.append(compose(pair, prefix) if all_tame else (F(0), F(np.nan)))
            if not all_tame:
                prefix, begin = IDENTITY, start
                for i in range(first, k):
                    longer = compose(self.maps[i], prefix)
                    begin, prefix = (begin, longer) if tame(longer) else (published[i], IDENTITY)
                start = begin
            entering = self.h0
            if k:
                entering = apply(prefix, start)
                entering = entering if np.isfinite(entering) else published[k - 1]
            states.append(entering)
            longer = compose(pair, prefix)
            x = apply(longer, start)
            if not tame(longer) or not np.isfinite(x):
                published[k] = run(*piece, entering)[-1]
            elif (k + 1) % self.group == 0:
                published[k] = x
        return states

    def group_start(self, g, published, groups, rng):
        """From the state of any group before, whichever has arrived, through the maps of those between."""
        back = int(rng.integers(g + 1))
        start = published[(g - back) * self.group - 1] if g > back else self.h0
        for pair in groups[g - back : g]:
            start = apply(pair, start)
            if not (tame(pair) and np.isfinite(start)):
                return published[g * self.group - 1]
        return start


@given(
    length=st.integers(1, 120),
    tile=st.integers(1, 6),
    group=st.integers(1, 5),
    kind=st.sampled_from(["fading", "growing", "wild", "broken"]),
    seed=st.integers(0, 999),
)
def test_states_between_tiles_do_not_tell_who_computed_them(length, tile, group, kind, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-1, 1, length).astype(F), rng.standard_normal(length).astype(F)
    if kind == "growing":
        a = rng.uniform(1, 40, length).astype(F)
        b[:] = 0
    elif kind == "wild":
        a *= 10.0 ** rng.uniform(-30, 30, length).astype(F)
    elif kind == "broken":
        b[rng.integers(length)] = rng.choice([np.inf, np.nan])
    with np.errstate(all="ignore"):
        row = Row(a, b, F(1), tile, group)
        one, many = np.array(row.walk_in_one_block()), np.array(row.share_between_blocks(rng))
        assert one.tobytes() == many.tobytes()
        whole = np.concatenate([[F(1)], run(a, b, F(1))])[: len(one) * tile : tile][: len(one)]
        if kind == "fading":
            assert_close(one, whole, 2 * stable("float32"))
        elif kind != "wild":
            np.testing.assert_array_equal(np.isfinite(one), np.isfinite(whole))


@given(st.data())
def test_folding_batch_axes_reaches_the_same_elements(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), max_size=5)))
    bases = [np.arange(4**5 * 8), np.arange(4**5 * 8)]
    views = []
    for base in bases:
        order = data.draw(st.permutations(range(len(sizes))))
        x = base[: int(np.prod(sizes))].reshape([sizes[i] for i in order]).transpose(np.argsort(order))
        if sizes and data.draw(st.booleans()):
            x = np.broadcast_to(x[:1], sizes) if data.draw(st.booleans()) else x[::-1]
        views.append(x)
    steps = [tuple(s // x.itemsize for s in x.strides) for x in views]
    kept, merged = layout.fold(sizes, steps)
    for x, step in zip(views, merged, strict=True):
        first = int(x[(0,) * x.ndim])
        offsets = [sum(i * s for i, s in zip(index, step, strict=True)) for index in np.ndindex(*kept)]
        np.testing.assert_array_equal(first + np.array(offsets), x.ravel())


def view(strides, itemsize=4, address=512):
    return types.SimpleNamespace(
        dtype=types.SimpleNamespace(itemsize=itemsize), strides=strides, data=types.SimpleNamespace(ptr=address)
    )


@pytest.mark.parametrize(
    ("strides", "length", "reverse", "address", "mode"),
    [
        ((64, 4), 16, False, 512, layout.VECTOR),
        ((64, 4), 16, False, 516, layout.STAGED),
        ((64, 4), 15, False, 512, layout.VECTOR),
        ((64, 4), 15, True, 512, layout.STAGED),
        ((64, 4), 16, True, 512, layout.VECTOR),
        ((68, 4), 17, False, 512, layout.STAGED),
        ((64, -4), 16, False, 512, layout.STAGED),
        ((64, 8), 16, False, 512, layout.STAGED),
        ((4, 0), 16, False, 516, layout.CONSTANT),
        ((0, 4), 16, False, 512, layout.VECTOR),
    ],
)
def test_sixteen_bytes_at_a_time_only_where_aligned(strides, length, reverse, address, mode):
    s = layout.strides(view(strides, address=address), 1)
    assert layout.mode(s, list(s.batch), length, reverse) == mode


def test_the_layout_struct():
    operands = [layout.strides(view((400, 40, 4)), 1), None, None, layout.strides(view((0, 4, 0)), 1)] + [None] * 3
    struct = layout.layout((7, 10), 10, 4, True, operands).view(layout.LAYOUT)[0]
    assert (struct["length"], struct["rows"], struct["tiles"], struct["ndim"]) == (10, 70, 3, 2)
    assert struct["size"][:2].tolist() == [7, 10]
    decay, out = struct["operand"][0], struct["operand"][3]
    assert (decay["start"], decay["time"], decay["batch"][:2].tolist()) == (90, -10, [100, 1])
    assert (out["start"], out["time"], out["batch"][:2].tolist()) == (9, -1, [0, 0])
    assert layout.strides(view((400, 6)), 1) is None
    assert layout.layout((2,) * 7, 3, 4, False, [layout.strides(view((4, 12, 4, 20, 4, 28, 4, 36)), 0)]) is None


def test_headers_are_pasted_once_and_defines_lead():
    code = _load.text("scan.cu", "float32", ("SPLIT", 1))
    assert code.startswith("#define STORAGE float\n#define SPLIT 1\n")
    assert "#include" not in code
    assert code.count("struct Affine {") == 1


VARIANTS = [
    (in_lanes, dtype, pullback, split, resets)
    for in_lanes in (False, True)
    for dtype, resets in [
        ("float32", False),
        ("float32", True),
        ("bfloat16", True),
        ("float64", False),
        ("complex64", True),
    ]
    for pullback in (False, True)
    for split in (False, True)
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("in_lanes", "dtype", "pullback", "split", "resets"), VARIANTS)
def test_device_code_compiles_without_spills(tmp_path, in_lanes, dtype, pullback, split, resets):
    itemsize = {"float32": 4, "bfloat16": 2, "float64": 8, "complex64": 8}[dtype]
    variant = macros(sizes_of(in_lanes, itemsize, pullback, 1), pullback, split, resets, pullback)
    source = tmp_path / "kernel.cu"
    source.write_text(_load.text("scan_lanes.cu" if in_lanes else "scan.cu", dtype, *variant))
    cards = [75, 80, 90] if dtype in ("float32", "bfloat16") and not resets else [75, 90]
    targets = [f"-gencode=arch=compute_{card},code=sm_{card}" for card in cards]
    command = ["nvcc", *_load.OPTIONS, *targets, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "kernel.o"), str(source)]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stderr
    if dtype == "float32" and not resets:
        sm_90 = report.stderr[report.stderr.index("'sm_90'") :]
        assert "0 bytes spill stores, 0 bytes spill loads" in sm_90.splitlines()[2], sm_90
