"""The laws of the log-space scans on the GPU, and what only a GPU can get wrong: tiles, shared rows, streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import on_a_busy_stream, on_gpu, same
from tests.ops.test_semiring_scan import INF, REAL, SCANS, assert_same, decays, op
from tests.tolerances import assert_close, logarithms, stable

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
cupy = pytest.importorskip("cupy")
tiles = pytest.importorskip("linscan.engines.cuda.assoc_tiles")


def check(shape, axis, dtype, rng, *, sparse=False, reset=False, reverse=False, state=True, gradients=True):
    """All three scans and their gradients are those of the CPU engine in double precision."""
    s, v, w = random(rng, shape, dtype), random(rng, shape, dtype), decays(rng, shape, dtype)
    if sparse:
        s[rng.random(shape) < 0.3], w[rng.random(shape) < 0.05] = -INF, -INF
    rows = shape[:axis] + shape[axis % len(shape) + 1 :]
    z0, y0 = (random(rng, rows, dtype), random(rng, rows, dtype)) if state else (None, None)
    starts = rng.random(shape) < 0.05 if reset else None
    options = {"axis": axis, "reverse": reverse}
    for name in ("softmax_average", "lse_scan", "max_scan"):
        given = (s, v, w, z0, y0) if name == "softmax_average" else (w, s, z0)
        run = getattr(linscan, f"{name}_vjp")
        want, back = run(*(None if x is None else oracles.wide(x) for x in given), reset=starts, **options)
        got, pullback = run(*on_gpu(*given), reset=None if starts is None else cupy.asarray(starts), **options)
        outputs = [(got, want)] if name != "softmax_average" else list(zip(got, want, strict=True))
        for x, y in outputs:
            assert x.dtype == dtype_of(dtype)
            assert_same(cupy.asnumpy(x), y, logarithms(dtype, 8))
        if not gradients or (
            name == "max_scan" and dtype != "float64"
        ):  # which of two is larger may be decided by rounding
            continue
        d = [random(rng, x.shape, dtype) for x, _ in outputs]
        for x, y in zip(pullback(*on_gpu(*d)), back(*(oracles.wide(g) for g in d)), strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert_close(cupy.asnumpy(x), y, 16 * stable(dtype) + logarithms(dtype, 8), name)


@pytest.mark.parametrize(("dtype", "reverse"), [*((dtype, False) for dtype in REAL), ("float32", True)])
@pytest.mark.parametrize("in_lanes", [False, True])
def test_tails_of_every_tile(rng, dtype, reverse, in_lanes):
    sizes = tiles.cut(in_lanes, 4, 8, 24, 10**6)
    group = dict(sizes.macros)["GROUP"] * sizes.run * sizes.warps
    marks = [sizes.run, sizes.run * sizes.warps] + ([group] if in_lanes else [])
    for mark in marks:
        for length in (mark - 1, mark, mark + 1):
            shape = (length, 3, 13) if in_lanes else (3, length)
            check(shape, 0 if in_lanes else 1, dtype, rng, reverse=reverse, reset=reverse, state=not reverse)


@pytest.mark.parametrize(("shape", "axis"), [((2, 300_001), 1), ((1, 20_000, 40), 1)])
def test_rows_of_many_groups(rng, shape, axis):
    check(shape, axis, "float32", rng, sparse=True, gradients=False)
    check(shape, axis, "float32", rng, reset=True, gradients=False)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    length=st.integers(1, 300),
    axis=st.integers(0, 3),
    dtype=st.just("float32"),
    options=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    seed=st.integers(0, 99),
)
def test_any_axis_layout_state_reset_and_direction(shape, length, axis, dtype, options, layout, seed):
    rng = np.random.default_rng(seed)
    reverse, with_reset, with_state = options
    axis %= len(shape)
    shape[axis] = length
    a, b = decays(rng, shape, dtype), random(rng, shape, dtype)
    h0 = random(rng, (*shape[:axis], *shape[axis + 1 :]), dtype) if with_state else None
    reset = rng.random(shape) < 0.2 if with_reset else None
    views = on_gpu(a, b)
    if layout == "F":
        views = [cupy.asfortranarray(x) for x in views]
    elif layout == "strided":
        views = [cupy.repeat(x, 2, axis=-1)[..., ::2] for x in views]
    elif layout == "flipped":
        views = [x[::-1].copy()[::-1] for x in views]
    copies = [x.copy() for x in views]
    starts = None if reset is None else cupy.asarray(reset)
    for name, join in SCANS.items():
        h = op(name)(*views, *on_gpu(h0), axis=axis, reverse=reverse, reset=starts)
        want = oracles.semiring_scan(join, a, b, h0, axis, reverse, reset)
        assert_same(cupy.asnumpy(h), want, logarithms(dtype, 8))
        assert h.flags.c_contiguous
    assert all(same(x, y) for x, y in zip(views, copies, strict=True))


def test_averages_of_any_shape(rng):
    cases = [((6, 20), (6, 20), (), -1), ((20, 1), (3, 20, 4), (4,), 1), ((3, 1, 16), (3, 200, 16), (200, 1), 1)]
    cases += [((20, 3, 1), (20, 3, 9), (20, 1, 1), 0), ((), (2, 20), (), 1), ((5, 300, 64), (300, 1), (64,), -2)]
    for s_shape, v_shape, w_shape, axis in cases:
        s, v, w = random(rng, s_shape, "float64"), random(rng, v_shape, "float64"), decays(rng, w_shape, "float64")
        (y, z), pullback = linscan.softmax_average_vjp(*on_gpu(s, v, w), axis=axis)
        (want_y, want_z), back = linscan.softmax_average_vjp(s, v, w, axis=axis)
        assert_same(cupy.asnumpy(z), want_z, logarithms("float64", 8))
        assert_close(cupy.asnumpy(y), want_y, logarithms("float64", 8))
        dy, dz = random(rng, want_y.shape, "float64"), random(rng, want_z.shape, "float64")
        for x, g in zip(pullback(*on_gpu(dy, dz)), back(dy, dz), strict=True):
            if g is not None:
                assert_close(cupy.asnumpy(x), g, 64 * stable("float64"))


@pytest.mark.parametrize(("shape", "axis"), [((3, 9000), 1), ((700, 35), 0)])
def test_infinities_and_nan_go_where_the_loop_has_them(rng, shape, axis):
    a, b, v = decays(rng, shape, "float32"), random(rng, shape, "float32"), random(rng, shape, "float32")
    reset = rng.random(shape) < 0.002
    for x in (a, b):
        for value in (-INF, -INF, INF, np.nan):
            x[tuple(rng.integers(0, n, 3 + sum(shape) // 900) for n in shape)] = value
    wide_v, w = np.where(b == -INF, np.nan, v), np.where(a == INF, 0, a)
    starts = cupy.asarray(reset)
    for name in SCANS:
        got = cupy.asnumpy(op(name)(*on_gpu(a, b), axis=axis, reset=starts))
        with linscan.use_engine("reference"):
            want = op(name)(a, b, axis=axis, reset=reset)
        assert_same(got, want, logarithms("float32", 8))
    y, z = linscan.softmax_average(*on_gpu(b, wide_v, w), axis=axis, reset=starts)
    with linscan.use_engine("reference"):
        want_y, want_z = linscan.softmax_average(b, wide_v, w, axis=axis, reset=reset)
    assert_same(cupy.asnumpy(z), want_z, logarithms("float32", 8))
    assert_same(cupy.asnumpy(y), want_y, logarithms("float32", 8))


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 70_001), 1), ((2, 9001, 40), 1), ((70_000, 70), 1), ((3, 70_000, 5), 1)]
)
def test_bits_depend_neither_on_the_batch_nor_on_who_shares_a_row(rng, monkeypatch, shape, axis):
    s, v, w = on_gpu(random(rng, shape, "float32"), random(rng, shape, "float32"), decays(rng, shape, "float32"))
    runs = []
    for multiprocessors in (10**9, 10**9, 0, 132):
        monkeypatch.setattr(tiles, "_multiprocessors", lambda n=multiprocessors: n)
        monkeypatch.setattr(tiles, "_plans", {})
        runs.append(linscan.softmax_average(s, v, w, axis=axis))
    assert all(same(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))
    alone = linscan.softmax_average(s[1:2], v[1:2], w[1:2], axis=axis)
    assert all(same(x[0], y[1]) for x, y in zip(alone, runs[0], strict=True))


def test_large_scores_overflow_nothing():
    y, z = linscan.softmax_average(*on_gpu(np.tile([1e4, 1e4, -1e4], 2000), np.tile([1.0, 2.0, 9.0], 2000)))
    assert float(cupy.abs(y - 1.5)[1::3].max()) < 1e-12
    assert float(cupy.abs(z[-1] - 1e4 - np.log(4000))) < 1e-9


def test_views_of_many_axes_and_empty_arrays(rng):
    a = decays(rng, (2, 3, 2, 3, 2, 3, 2, 3, 70), "float64")
    order = (7, 5, 3, 1, 8, 6, 4, 2, 0)
    want = linscan.lse_scan(a.transpose(order), a.transpose(order), axis=4)
    x = cupy.asarray(a).transpose(order)
    assert_same(cupy.asnumpy(linscan.lse_scan(x, x, axis=4)), want, logarithms("float64", 8))
    for shape, axis in [((0,), 0), ((3, 0), 1), ((0, 5), 1)]:
        for name in SCANS:
            h, pullback = op(name, "_vjp")(cupy.ones(shape), cupy.ones(shape), 2.0, axis=axis)
            assert h.shape == shape
            assert pullback(None)[0].shape == shape


def test_runs_on_the_callers_stream(rng):
    a, b = on_gpu(decays(rng, (4, 5000), "float32"), random(rng, (4, 5000), "float32"))
    want = linscan.lse_scan(a, b)
    h = on_a_busy_stream(lambda x: linscan.lse_scan(a, x), b)
    assert same(h, want)
