"""Laws of `lse_scan`, `max_scan` and `softmax_average`, their steps and gradients, on every engine of the CPU."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines.support import SUPPORT
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, eps, logarithms

ENGINES = [engine for engine in ("reference", "cpu") if engine in SUPPORT["lse_scan"]]
REAL = ["float16", "bfloat16", "float32", "float64"]
SCANS = {"lse": np.logaddexp, "max": np.maximum}
INF = np.inf


def op(name, suffix=""):
    return getattr(linscan, f"{name}_scan{suffix}")


def decays(rng, shape, dtype):
    """Logarithms of decays from 0.3 to 0.95."""
    return np.log(rng.uniform(0.3, 0.95, shape)).astype(dtype_of(dtype))


def assert_same(got, want, tolerance):
    """Equal where infinite, close (absolutely, for a logarithm of this size) where finite."""
    got, want = oracles.wide(got), oracles.wide(want)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=tolerance)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", SCANS)
def test_equals_the_loop(rng, engine, dtype, name):
    for length in (0, 1, 2, 9, 300):
        a, b, h0 = decays(rng, (3, length), dtype), random(rng, (3, length), dtype), random(rng, (3,), dtype)
        with linscan.use_engine(engine):
            h = op(name)(a, b, h0)
        assert h.dtype == dtype_of(dtype)
        assert_same(h, oracles.semiring_scan(SCANS[name], a, b, h0), logarithms(dtype, 8))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    length=st.integers(1, 70),
    axis=st.integers(0, 2),
    dtype=st.sampled_from(["float16", "float64"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("name", SCANS)
def test_any_axis_layout_state_reset_and_direction(
    name, shape, length, axis, dtype, reverse, with_reset, with_state, layout, engine, seed
):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    shape[axis] = length
    a, b = (laid_out(x, layout) for x in (decays(rng, shape, dtype), random(rng, shape, dtype)))
    h0 = random(rng, (*shape[:axis], *shape[axis + 1 :]), dtype) if with_state else None
    reset = rng.random(shape) < 0.2 if with_reset else None
    copies = a.copy(), b.copy()
    with linscan.use_engine(engine):
        h = op(name)(a, b, h0, axis=axis, reverse=reverse, reset=reset)
    want = oracles.semiring_scan(SCANS[name], a, b, h0, axis, reverse, reset)
    assert_same(h, want, logarithms(dtype, 8))
    assert h.flags.c_contiguous
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[::-1].copy()[::-1]
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", REAL)
def test_averages_equal_plain_softmax_attention(rng, engine, dtype):
    s, v, w = random(rng, (40,), dtype), random(rng, (40,), dtype), decays(rng, (40,), dtype)
    z0, y0 = random(rng, (2,), dtype)
    with linscan.use_engine(engine):
        for state in ((None, None), (z0, y0)):
            y, z = linscan.softmax_average(s, v, w, *state)
            want_y, want_z = oracles.softmax_average(s, v, w, *(() if state[0] is None else state))
            assert y.dtype == z.dtype == dtype_of(dtype)
            assert_same(z, want_z, logarithms(dtype, 8))
            assert_close(y, want_y, 4 * logarithms(dtype, 8))
        q, k, values = (random(rng, (2, 30, 5), "float64") for _ in range(3))
        scores = np.where(np.tri(30, dtype=bool), (k @ q[0, 0])[:, None, :], -INF)  # one query, causal
        full = np.exp(scores - scores.max(axis=-1, keepdims=True))
        want = full / full.sum(axis=-1, keepdims=True) @ values
        y, z = linscan.softmax_average((k @ q[0, 0])[..., None], values, axis=-2)
        assert (y.shape, z.shape) == ((2, 30, 5), (2, 30, 1))
        assert_close(y, want, logarithms("float64", 8))


@pytest.mark.parametrize("engine", ENGINES)
def test_averages_of_any_shape(rng, engine):
    cases = [((6, 20), (6, 20), (), -1), ((20, 1), (3, 20, 4), (4,), 1), ((3, 1, 16), (3, 20, 16), (20, 1), 1)]
    cases += [((20, 3, 1), (20, 3, 9), (20, 1, 1), 0), ((), (2, 20), (), 1), ((5, 20, 64), (20, 1), (64,), -2)]
    with linscan.use_engine(engine):
        for s_shape, v_shape, w_shape, axis in cases:
            s, v, w = random(rng, s_shape, "float64"), random(rng, v_shape, "float64"), decays(rng, w_shape, "float64")
            y, z = linscan.softmax_average(s, v, w, axis=axis)
            s, v, w, z = (np.moveaxis(np.broadcast_to(x, y.shape), axis, -1) for x in (s, v, w, z))
            y = np.moveaxis(y, axis, -1)
            for row in np.ndindex(y.shape[:-1]):
                want_y, want_z = oracles.softmax_average(s[row], v[row], w[row])
                assert_same(z[row], want_z, logarithms("float64", 8))
                assert_close(y[row], want_y, logarithms("float64", 8))


@pytest.mark.parametrize("engine", ENGINES)
@given(cuts=st.lists(st.integers(0, 60), max_size=3), reverse=st.booleans())
def test_splitting_reversing_and_resetting(engine, cuts, reverse):
    rng = np.random.default_rng(3)
    a, b, v = decays(rng, (2, 60), "float64"), random(rng, (2, 60), "float64"), random(rng, (2, 60), "float64")
    pieces = list(pairwise([0, *sorted(cuts), 60]))
    tolerance, state, parts = logarithms("float64", 8), {"lse": None, "max": None, "y": None, "z": None}, []
    with linscan.use_engine(engine):
        for lo, hi in reversed(pieces) if reverse else pieces:
            part = {name: op(name)(a[:, lo:hi], b[:, lo:hi], state[name], reverse=reverse) for name in SCANS}
            x = [array[:, lo:hi] for array in (b, v, a)]
            part["y"], part["z"] = linscan.softmax_average(*x, state["z"], state["y"], reverse=reverse)
            state = state if lo == hi else {name: x[:, 0 if reverse else -1] for name, x in part.items()}
            parts.append(part)
        whole = {name: op(name)(a, b, reverse=reverse) for name in SCANS}
        whole["y"], whole["z"] = linscan.softmax_average(b, v, a, reverse=reverse)
        flipped = {name: op(name)(a[:, ::-1], b[:, ::-1], reverse=not reverse)[:, ::-1] for name in SCANS}
        flipped["y"] = linscan.softmax_average(b[:, ::-1], v[:, ::-1], a[:, ::-1], reverse=not reverse)[0][:, ::-1]
        starts = np.zeros(60, bool)
        starts[[lo if not reverse else hi - 1 for lo, hi in pieces if lo < hi]] = True
        packed = linscan.softmax_average(b, v, a, reverse=reverse, reset=starts)[0]
        apart = [linscan.softmax_average(*(x[:, i:j] for x in (b, v, a)), reverse=reverse)[0] for i, j in pieces]
    for name, x in whole.items():
        assert_same(np.concatenate([part[name] for part in (parts[::-1] if reverse else parts)], 1), x, tolerance)
    for name, x in flipped.items():
        assert_same(x, whole[name], tolerance)
    assert_same(packed, np.concatenate(apart, 1), tolerance)


@pytest.mark.parametrize("dtype", REAL)
def test_stepping_equals_scanning(rng, dtype):
    a, b, v = decays(rng, (40, 3), dtype), random(rng, (40, 3), dtype), random(rng, (40, 3), dtype)
    whole = {name: op(name)(a, b, axis=0) for name in SCANS}
    means, sums = linscan.softmax_average(b, v, a, axis=0)
    empty = np.full(3, -INF).astype(dtype_of(dtype))
    state, z, y = dict.fromkeys(SCANS, empty), empty, np.zeros(3, dtype_of(dtype))
    for t in range(40):
        state = {name: op(name, "_step")(a[t], b[t], h) for name, h in state.items()}
        y, z = linscan.softmax_average_step(b[t], v[t], a[t], z, y)
        for got, want in ((state["lse"], whole["lse"]), (state["max"], whole["max"]), (z, sums), (y, means)):
            assert got.dtype == dtype_of(dtype)
            assert_same(got, want[t], 4 * logarithms(dtype, 8))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_scores(rng, engine, dtype):
    b = random(rng, (2, 50), dtype) * 1e4
    a, v = decays(rng, (2, 50), dtype) * 100, random(rng, (2, 50), dtype)
    b[0, :10], b[1, 20:25] = -INF, -INF
    v[0, 3] = v[1, 22] = np.nan  # of no weight
    want = oracles.semiring_scan(np.logaddexp, a, b)
    with linscan.use_engine(engine):
        h = linscan.lse_scan(a, b)
        y, z = linscan.softmax_average(b, v, a)
    assert_same(h, want, logarithms(dtype, 3e4))
    assert_same(z, want, logarithms(dtype, 3e4))
    assert (y[0, :10] == 0).all()
    assert np.isfinite(y).all()
    for row in (0, 1):
        want = oracles.softmax_average(b[row], v[row], a[row])[0]
        # What a score is rounded by is an error of its weight.
        assert np.abs(y[row] - want).max() <= 2 * np.nanmax(np.abs(v)) * logarithms(dtype, 3e4)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_everything_and_not_a_number(engine):
    none = np.full((2, 6), -INF)
    b = np.array([[1.0, INF, 0.0, 5.0, -INF, 1.0], [1.0, 2.0, np.nan, 3.0, -INF, 1.0]])
    reset = np.array([0, 0, 0, 0, 0, 1], bool)
    with linscan.use_engine(engine):
        for scan in (linscan.lse_scan, linscan.max_scan):
            np.testing.assert_array_equal(scan(-1.0, none), none)
            np.testing.assert_array_equal(scan(-INF, b[:, :2]), b[:, :2])
            h = scan(-1.0, b, reset=reset)
            np.testing.assert_array_equal(h[0, 1:], [INF] * 4 + [1])
            np.testing.assert_array_equal(np.isnan(h[1]), [0, 0, 1, 1, 1, 0])
            assert h[1, 5] == 1
        y, z = linscan.softmax_average(none, b)
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_array_equal(z, none)
        v = np.arange(12.0).reshape(2, 6)
        y, z = linscan.softmax_average(b, v, reset=reset)
        np.testing.assert_array_equal(y[0, 1:], [1, 1, 1, 1, 5])  # one infinite score takes all
        np.testing.assert_array_equal(np.isnan(y[1]), [0, 0, 1, 1, 1, 0])
        assert y[1, 5] == 11
        assert np.isnan(linscan.softmax_average(np.full(2, INF), v[0, :2])[0][1])
        y = linscan.softmax_average(np.array([0.0, -INF, 0.0]), np.array([4.0, 5.0, 6.0]), [0.0, -INF, 0.0])[0]
        np.testing.assert_array_equal(y, [4, 0, 6])  # a closed gate forgets, like a reset


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_at_infinity_are_zero_and_not_nan(engine):
    b = np.array([-INF, -INF, 1.0, -INF, 2.0])
    with linscan.use_engine(engine):
        for name in SCANS:
            da, db, _ = op(name, "_vjp")(-0.5, b)[1](np.ones(5))
            assert np.isfinite(da)
            assert np.isfinite(db).all()
            assert db[2] != 0
        lse = linscan.lse_scan_vjp(-0.5, b)[1](np.ones(5))[1]
        np.testing.assert_array_equal(lse[[0, 1, 3]], 0)
        v = np.array([np.nan, 1.0, 2.0, INF, 3.0])
        _, pullback = linscan.softmax_average_vjp(b, v, -0.5)
        ds, dv, dw, _, _ = pullback(np.ones(5), np.ones(5))
        assert np.isfinite(ds).all()
        assert np.isfinite(dw)
        np.testing.assert_array_equal(dv[[0, 1, 3]], 0)


def test_max_ties_give_their_gradient_to_the_newer_term():
    a, b = np.array([0.0, 1.0, 0.0, -1.0]), np.array([2.0, 3.0, 3.0, 1.0])
    _, pullback = linscan.max_scan_vjp(a, b, 2.0)
    da, db, dh0 = pullback(np.array([1.0, 10.0, 100.0, 1000.0]))
    np.testing.assert_array_equal(db, [1, 10, 1100, 0])
    np.testing.assert_array_equal(da, [0, 0, 0, 1000])
    assert dh0 == 0


@pytest.mark.parametrize("shape", [(3, 700), (1, 20_003), (2, 300, 24), (40, 33)])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, shape):
    a, b, v = decays(rng, shape, "float32"), random(rng, shape, "float32"), random(rng, shape, "float32")
    for scan in (linscan.lse_scan, linscan.max_scan):
        one = scan(a, b, axis=1, workers=1)
        np.testing.assert_array_equal(scan(a, b, axis=1, workers=3), one)
        np.testing.assert_array_equal(scan(a[-1:], b[-1:], axis=1), one[-1:])
    one, _ = linscan.softmax_average(b, v, a, axis=1, workers=1)
    np.testing.assert_array_equal(linscan.softmax_average(b, v, a, axis=1, workers=3)[0], one)
    np.testing.assert_array_equal(linscan.softmax_average(b[-1:], v[-1:], a[-1:], axis=1)[0], one[-1:])


@pytest.mark.parametrize("shape", [(1, 40_003), (1, 2000, 24)])
def test_long_rows_in_tiles(rng, shape):
    """A cut, or turning time around, moves the edges of tiles; the second also their order."""
    a, b, v = decays(rng, shape, "float32"), random(rng, shape, "float32"), random(rng, shape, "float32")
    parts = np.s_[:, :777], np.s_[:, 777:]
    for scan in (linscan.lse_scan, linscan.max_scan):
        h = scan(a, b, axis=1)
        np.testing.assert_array_equal(scan(a[:, ::-1], b[:, ::-1], axis=1, reverse=True)[:, ::-1], h)
        rest = scan(a[parts[1]], b[parts[1]], h[:, 776], axis=1)
        assert_same(rest, h[parts[1]], logarithms("float32", 8))
    y, z = linscan.softmax_average(b, v, a, axis=1)
    back = linscan.softmax_average(b[:, ::-1], v[:, ::-1], a[:, ::-1], axis=1, reverse=True)
    np.testing.assert_array_equal(back[0][:, ::-1], y)
    rest = linscan.softmax_average(*(x[parts[1]] for x in (b, v, a)), z[:, 776], y[:, 776], axis=1)
    assert_same(rest[0], y[parts[1]], logarithms("float32", 8))


def test_max_is_exact_and_lse_counts(rng):
    b = random(rng, (5, 400), "float32")
    np.testing.assert_array_equal(linscan.max_scan(0, b), np.maximum.accumulate(b, axis=1))
    tiny = np.float32([1e-42, 0])
    np.testing.assert_array_equal(linscan.max_scan(np.float32(0), tiny), tiny[[0, 0]])  # subnormals are values here
    steps = 1 << 17
    count = linscan.lse_scan(np.float32(0), np.zeros(steps, np.float32))
    assert_same(count, np.log(np.arange(1, steps + 1)), logarithms("float32", 12))
    y, _ = linscan.softmax_average(np.zeros(steps), np.arange(float(steps)))
    assert_close(y, np.arange(steps) / 2, logarithms("float64", 8))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"reset": True}, {"reset": True, "reverse": True}])
def test_gradients(rng, engine, options):
    for shape, axis in [((2, 11), -1), ((11, 3), 0), ((2, 1), 1)]:
        a, b, v = decays(rng, shape, "float64"), random(rng, shape, "float64"), random(rng, shape, "float64")
        state = random(rng, b.sum(axis=axis).shape, "float64")
        given = {**options, "axis": axis, **({"reset": rng.random(shape) < 0.3} if "reset" in options else {})}
        with linscan.use_engine(engine):
            for h0 in (None, state, 0.5):
                linscan.check_vjp(linscan.lse_scan_vjp, a, b, h0, **given)
                # Far from ties, which a finite difference must not cross: 0.23 k is no half for k up to 12.
                apart = np.full(shape, -0.23), np.round(3 * b), None if h0 is None else np.round(h0) + 0.5
                linscan.check_vjp(linscan.max_scan_vjp, *apart, **given)
                y0 = h0 if h0 is None else state + 1
                linscan.check_vjp(linscan.softmax_average_vjp, b, v, a, h0, y0, **given)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_broadcast_arguments(rng, engine):
    b, v = random(rng, (3, 12, 1), "float64"), random(rng, (12, 4), "float64")
    with linscan.use_engine(engine):
        for a in (-0.3, decays(rng, (12, 1), "float64"), decays(rng, (3, 1, 1), "float64")):
            linscan.check_vjp(linscan.lse_scan_vjp, a, b, 0.5, axis=1)
            linscan.check_vjp(linscan.max_scan_vjp, 0 * a - 0.23, np.round(3 * b[:1]), 0.5, axis=1)
            z0, y0 = random(rng, (3, 1), "float64"), random(rng, (4,), "float64")
            linscan.check_vjp(linscan.softmax_average_vjp, b, v, a, z0, y0, axis=1)
            linscan.check_vjp(linscan.softmax_average_vjp, b[0], v, a, 0.5, None, axis=1 - (np.ndim(a) < 3))


@pytest.mark.parametrize("dtype", REAL)
def test_gradients_keep_their_dtype_and_size(rng, dtype):
    a, b, v = decays(rng, (4, 9), dtype), random(rng, (1, 9), dtype), random(rng, (4, 9), dtype)
    g = random(rng, (4, 9), dtype)
    for vjp, args, cotangents in (
        (linscan.lse_scan_vjp, (a, b), (g,)),
        (linscan.max_scan_vjp, (a, b), (g,)),
        (linscan.softmax_average_vjp, (b, v, a), (g, g)),
    ):
        exact = vjp(*map(oracles.wide, args))[1](*map(oracles.wide, cotangents))
        for grads in (vjp(*args)[1](*cotangents), vjp(*args)[1](*[None] * len(cotangents))):
            for x, got in zip(args, grads, strict=False):
                assert (got.dtype, got.shape) == (x.dtype, x.shape)
            assert grads[len(args)] is None
        if vjp is not linscan.max_scan_vjp:  # a rounding can turn a maximum's gradient to another term
            for got, want in zip(vjp(*args)[1](*cotangents), exact, strict=False):
                if got is not None:
                    assert_close(got, want, 16 * logarithms(dtype, 8))


def test_result_dtype_and_errors():
    f32 = np.ones((2, 3), np.float32)
    assert linscan.lse_scan(0, f32).dtype == np.float32
    assert linscan.max_scan(0, np.arange(3)).dtype == np.float64
    assert linscan.softmax_average(f32, f32, np.float64(0))[0].dtype == np.float64
    for name in SCANS:
        with pytest.raises(ValueError, match=rf"{name}_scan: a and b must broadcast; got \(2, 3\) and \(2, 2\)"):
            op(name)(f32, f32[:, :2])
        with pytest.raises(TypeError, match=rf"{name}_scan: arguments must be real; got complex64"):
            op(name)(1j, f32)
        with pytest.raises(TypeError, match=rf"{name}_scan_step: arguments must be real; got complex64"):
            op(name, "_step")(1j, f32, f32)
        with pytest.raises(ValueError, match=rf"{name}_scan_vjp: dh must have shape \(2, 3\); got \(3,\)"):
            op(name, "_vjp")(0, f32)[1](f32[0])
    with pytest.raises(ValueError, match=r"softmax_average: s and v and w must broadcast; got \(2, 3\) and \(2,\) and"):
        linscan.softmax_average(f32, f32[:, 0])
    with pytest.raises(ValueError, match=r"softmax_average: z0 must broadcast to \(2,\); got \(3,\)"):
        linscan.softmax_average(f32, f32, 0, np.zeros(3))
    with pytest.raises(TypeError, match=r"softmax_average: arguments must be real; got complex64"):
        linscan.softmax_average(f32, f32 * 1j)
    with pytest.raises(TypeError, match=r"softmax_average: reset must be boolean; got float32"):
        linscan.softmax_average(f32, f32, reset=f32)
    with pytest.raises(ValueError, match=r"softmax_average_vjp: dz must have shape \(2, 3\); got \(3,\)"):
        linscan.softmax_average_vjp(f32, f32)[1](None, f32[0])


def test_empty_arrays():
    for shape, axis in [((0,), 0), ((3, 0), 1), ((0, 5), 1), ((2, 0, 16), 1)]:
        x = np.ones(shape)
        for vjp, args, count in (
            (linscan.lse_scan_vjp, (x, x, 2.0), 1),
            (linscan.max_scan_vjp, (x, x, 2.0), 1),
            (linscan.softmax_average_vjp, (x, x, x, 1.0, 2.0), 2),
        ):
            out, pullback = vjp(*args, axis=axis)
            assert np.shape(out) == (shape if count == 1 else (2, *shape))
            grads = pullback(*[None] * count)
            assert [np.shape(g) for g in grads] == [np.shape(a) for a in args]
            assert (grads[-1] == 0).all()


def page(name):
    """The names that the Python of a page of the documentation defines, once it has run."""
    text = (Path(__file__).parents[2] / "docs" / "api" / f"{name}.md").read_text(encoding="utf-8")
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, names)
    return names


def test_the_models_of_the_page(rng):
    run = page("semiring_scan")
    q, k, v, o = random(rng, (4, 20, 3), "float64") * 2
    query, decay, bonus = random(rng, (3, 3), "float64")
    aaren, aft, wkv, slstm, light = (np.empty((20, 3)) for _ in range(5))
    num, den = np.zeros(3), np.zeros(3)  # of WKV-4
    cell, norm = np.zeros(3), np.zeros(3)  # of sLSTM
    gate_i, gate_f = run["mlstm_gates"](k, q)
    total, m = np.zeros(3), np.full(3, -INF)
    for t in range(20):
        e = np.exp(k[: t + 1] @ query)
        aaren[t] = e @ v[: t + 1] / e.sum()
        e = np.exp(k[: t + 1])
        aft[t] = (e * v[: t + 1]).sum(0) / e.sum(0) / (1 + np.exp(-q[t]))
        light[t] = q[t] @ (e / e.sum(0)).T @ v[: t + 1]
        now = np.exp(bonus + k[t])
        wkv[t] = (num + now * v[t]) / (den + now)
        num, den = (x * np.exp(-np.exp(decay)) + np.exp(k[t]) * y for x, y in ((num, v[t]), (den, 1)))
        f = 1 / (1 + np.exp(-q[t]))
        cell, norm = f * cell + np.exp(k[t]) * np.tanh(v[t]), f * norm + np.exp(k[t])
        slstm[t] = cell / norm / (1 + np.exp(-o[t]))
        m = np.maximum(np.log(f) + m, k[t])
        total = gate_f[t] * total + gate_i[t]
        assert_close(total * np.exp(m), norm, logarithms("float64", 8))
    tolerance = 4 * logarithms("float64", 8)
    assert_close(run["aaren"](query, k, v), aaren, tolerance)
    assert_close(run["aft_simple"](q, k, v), aft, tolerance)
    assert_close(run["wkv4"](decay, bonus, k, v), wkv, tolerance)
    assert_close(run["slstm"](k, q, v, o), slstm, tolerance)
    assert_close(run["lightnet"](q, k, v), light, tolerance)
    assert max(gate_i.max(), gate_f.max()) <= 1 + eps("float64")
    page("block_scan")
