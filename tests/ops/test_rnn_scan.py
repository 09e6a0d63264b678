"""Laws of `rnn_scan`, `rnn_step` and `rnn_scan_vjp`, for every cell, on every engine that runs on the CPU."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.ops.cells import AlmostLinear, Cell
from linscan.ops.gated_cells import CELLS
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, contracting

ENGINES = ["reference", "cpu"]
REAL = ["float16", "bfloat16", "float32", "float64"]
NAMES = sorted(CELLS)


def arguments(rng, name, shape, dtype, *, diagonal=False, lead=(), state=True):
    """x (of `shape`: leading axes and T, then d), R, b, w and h0 of a cell that forgets."""
    *rows, T, d = shape
    cell = CELLS[name]
    diagonal = diagonal or cell.diagonal
    x = random(rng, (*rows, T, cell.gates, d), dtype)
    core = (cell.gates, d) if diagonal else (cell.gates, d, d)
    R = random(rng, (*lead, *core), "float64") * (0.5 if diagonal else 0.5 / np.sqrt(max(1, d)))
    b = random(rng, (*lead, cell.gates, d), dtype)
    w = rng.uniform(0.1, 0.6, (*lead, cell.weights, d)).astype(dtype_of(dtype)) if cell.weights else None
    h0 = random(rng, (*rows, cell.states, d), dtype) if state else None
    return x, R.astype(dtype_of(dtype)), b, w, h0


def made(name, diagonal):
    return CELLS[name](diagonal=True) if diagonal else name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loop(rng, engine, dtype, name):
    for T, d in [(0, 3), (1, 1), (9, 5), (12, 17)]:
        args = arguments(rng, name, (2, T, d), dtype)
        with linscan.use_engine(engine):
            h, state = linscan.rnn_scan(name, *args)
        assert h.dtype == state.dtype == dtype_of(dtype)
        want = oracles.rnn(name, *args)
        assert_close(h, want[0], contracting(dtype))
        assert_close(state, want[1], contracting(dtype))


@given(
    name=st.sampled_from(NAMES),
    rows=st.lists(st.integers(1, 3), max_size=2),
    T=st.integers(0, 9),
    d=st.sampled_from([1, 2, 7, 8, 33]),
    diagonal=st.booleans(),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_shape_layout_state_reset_and_direction(
    name, rows, T, d, diagonal, reverse, with_reset, with_state, layout, engine, seed
):
    rng = np.random.default_rng(seed)
    lead = rows[-1:] if seed % 2 else []
    args = arguments(rng, name, (*rows, T, d), "float64", diagonal=diagonal, lead=lead, state=with_state)
    args = [None if a is None else laid_out(a, layout) for a in args]
    copies = [None if a is None else a.copy() for a in args]
    reset = rng.random((*rows, T)) < 0.3 if with_reset else None
    with linscan.use_engine(engine):
        h, state = linscan.rnn_scan(made(name, diagonal), *args, reverse=reverse, reset=reset)
    want = oracles.rnn(name, *args, reverse=reverse, reset=reset, diagonal=diagonal)
    assert_close(h, want[0], contracting("float64"))
    assert_close(state[np.isfinite(want[1])], want[1][np.isfinite(want[1])], contracting("float64"))
    assert h.flags.c_contiguous
    for a, copy in zip(args, copies, strict=True):
        assert a is None or np.array_equal(a.ravel(), copy.ravel())


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = np.flip(np.flip(x, -2).copy(), -2)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("relu", [0, 2, 5, None])
def test_almost_linear_units(rng, engine, relu):
    args = arguments(rng, "almost_linear", (3, 8, 5), "float64")
    with linscan.use_engine(engine):
        h, _ = linscan.rnn_scan(AlmostLinear(relu), *args)
        linscan.check_vjp(partial(linscan.rnn_scan_vjp, AlmostLinear(relu)), *args)
    assert_close(h, oracles.rnn("almost_linear", *args, relu=relu)[0], contracting("float64"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reverse", [False, True])
def test_splitting_and_stepping_change_nothing(rng, engine, name, reverse):
    x, R, b, w, h0 = arguments(rng, name, (2, 9, 6), "float32")
    with linscan.use_engine(engine):
        h, state = linscan.rnn_scan(name, x, R, b, w, h0, reverse=reverse)
        for cut in (0, 4, 9):
            pieces = [x[:, :cut], x[:, cut:]][:: -1 if reverse else 1]
            first, middle = linscan.rnn_scan(name, pieces[0], R, b, w, h0, reverse=reverse)
            second, end = linscan.rnn_scan(name, pieces[1], R, b, w, middle, reverse=reverse)
            both = np.concatenate([first, second][:: -1 if reverse else 1], axis=1)
            np.testing.assert_array_equal(both, h)
            np.testing.assert_array_equal(end, state)
    s = h0
    for t in range(9)[:: -1 if reverse else 1]:
        s = linscan.rnn_step(name, x[:, t], R, b, w, s)
        assert_close(s[:, 0], h[:, t], contracting("float32"))
    assert_close(s, state, contracting("float32"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(rng, engine, name, diagonal):
    vjp = partial(linscan.rnn_scan_vjp, made(name, diagonal))
    reset = np.arange(6) % 4 == 3
    with linscan.use_engine(engine):
        args = arguments(rng, name, (2, 6, 3), "float64", diagonal=diagonal)
        linscan.check_vjp(vjp, *args, rtol=1e-6)
        linscan.check_vjp(vjp, *args, rtol=1e-6, reverse=True, reset=reset)
        x, R, _, w, _ = args
        linscan.check_vjp(vjp, x, R, None, w, None, rtol=1e-6, reset=reset)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lstm", "gru", "para_gru", "leaky"])
def test_gradients_of_broadcast_arguments(rng, engine, name):
    """x shared by heads, R by sequences; and the other way round."""
    vjp = partial(linscan.rnn_scan_vjp, name)
    x, R, b, w, h0 = arguments(rng, name, (2, 1, 5, 3), "float64", lead=(4,))
    h0, b = h0[:, 0, :1], b[:1]
    with linscan.use_engine(engine):
        linscan.check_vjp(vjp, x, R, b, w, None, rtol=1e-6)
        linscan.check_vjp(vjp, x[0, 0], R, b, None if w is None else w[0], None, rtol=1e-6)
        linscan.check_vjp(vjp, np.concatenate([x] * 4, axis=1), R[:1], b, w, None, rtol=1e-6)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", ["lstm", "para_gru"])
def test_gradients_keep_their_dtype_and_size(rng, dtype, name):
    args = arguments(rng, name, (2, 7, 4), dtype)
    (h, state), pullback = linscan.rnn_scan_vjp(name, *args)
    cotangents = random(rng, h.shape, dtype), random(rng, state.shape, dtype)
    exact = linscan.rnn_scan_vjp(name, *(a if a is None else oracles.wide(a) for a in args))[1]
    exact = exact(*map(oracles.wide, cotangents))
    for got, want, arg in zip(pullback(*cotangents), exact, args, strict=True):
        if arg is None:
            assert got is None
            continue
        assert (got.dtype, got.shape) == (arg.dtype, arg.shape)
        assert_close(got, want, 4 * contracting(dtype))
    assert not any(g is not None and np.any(g) for g in pullback(None, None))


class Sine(Cell):
    """A user's cell: two states, two gates, and an input that R sees through its square."""

    gates, states, weights = 2, 2, 1
    start = (0.5, 0.25)

    def step(self, x, y, s, w):
        a, b = np.sin(x + 2 * y)[..., 0, :], (x * y)[..., 1, :]
        return np.stack([a * s[..., 1, :], 0.3 * s[..., 0, :] + w[..., 0, :] * b], axis=-2)

    def step_vjp(self, x, y, s, w, ds):
        (p, q), g = (ds[..., 0, :], ds[..., 1, :]), (x + 2 * y)[..., 0, :]
        dg, db = p * s[..., 1, :] * np.cos(g), q * w[..., 0, :]
        dx = np.stack([dg, db * y[..., 1, :]], axis=-2)
        dy = np.stack([2 * dg, db * x[..., 1, :]], axis=-2)
        return dx, dy, np.stack([0.3 * q, p * np.sin(g)], axis=-2), (q * (x * y)[..., 1, :])[..., None, :]

    def feed(self, s):
        return s[..., 0, :] ** 2

    def feed_vjp(self, s, du):
        return np.stack([2 * s[..., 0, :] * du, 0 * du], axis=-2)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_cell_of_the_users(rng, diagonal):
    cell = Sine(diagonal)
    x, w = random(rng, (2, 6, 2, 3), "float64"), random(rng, (1, 3), "float64")
    R, b = random(rng, (2, 3) if diagonal else (2, 3, 3), "float64") / 4, random(rng, (2, 3), "float64")
    h, state = linscan.rnn_scan(cell, x, R, b, w)
    s = np.broadcast_to(np.array([[0.5], [0.25]]), (2, 2, 3))
    for t in range(6):
        u = s[:, 0] ** 2
        y = b + (R * u[:, None] if diagonal else np.einsum("gij,bj->bgi", R, u))
        s = np.stack([np.sin(x[:, t, 0] + 2 * y[:, 0]) * s[:, 1], 0.3 * s[:, 0] + w * x[:, t, 1] * y[:, 1]], axis=1)
        assert_close(h[:, t], s[:, 0], contracting("float64"))
    assert_close(state, s, contracting("float64"))
    linscan.check_vjp(partial(linscan.rnn_scan_vjp, cell), x, R, b, w, None, rtol=1e-6)
    linscan.check_vjp(partial(linscan.rnn_scan_vjp, cell), x, R, b, w, state, rtol=1e-6, reset=[0, 0, 1, 0, 1, 0])


def test_a_subclass_of_a_shipped_cell_runs_its_own_step(rng):
    class Reversed(CELLS["elman"]):
        def step(self, x, y, s, w):
            return -super().step(x, y, s, w)

    x, R, *_ = arguments(rng, "elman", (4, 3), "float64")
    np.testing.assert_array_equal(linscan.rnn_scan(Reversed(), x, R)[0][0], -np.tanh(x[0, 0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [5, 64])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, name, d):
    args = arguments(rng, name, (5, 3, 40, d), "float32", lead=(3,))
    x, R, b, w, h0 = args
    (h, state), pullback = linscan.rnn_scan_vjp(name, *args, workers=1)
    grads = pullback(h, state)
    for workers in (2, 3):
        again, pullback = linscan.rnn_scan_vjp(name, *args, workers=workers)
        np.testing.assert_array_equal(again[0], h)
        for one, two in zip(grads, pullback(h, state), strict=True):
            np.testing.assert_array_equal(one, two)
    alone = linscan.rnn_scan(name, x[3:4, 1], R[1], b[1], None if w is None else w[1], h0[3:4, 1])
    np.testing.assert_array_equal(alone[0], h[3:4, 1])
    np.testing.assert_array_equal(alone[1], state[3:4, 1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_large_inputs_and_what_is_not_finite(rng, engine, name):
    x, R, b, w, _ = arguments(rng, name, (3, 8, 5), "float64")
    with linscan.use_engine(engine):
        clean, _ = linscan.rnn_scan(name, x, R, b, w)
        for bad in (np.nan, np.inf, -1e4):
            x2 = x.copy()
            x2[1, 4, -1, 2] = bad
            h, _ = linscan.rnn_scan(name, x2, R, b, w, reset=np.arange(8) == 6)
            reset, _ = linscan.rnn_scan(name, x, R, b, w, reset=np.arange(8) == 6)
            np.testing.assert_array_equal(h[[0, 2]], reset[[0, 2]])
            np.testing.assert_array_equal(h[1, 6:], reset[1, 6:])
            np.testing.assert_array_equal(h[1, :4], clean[1, :4])
            assert np.isnan(h[1, 4, 2]) or not np.isnan(bad)
            assert bad != -1e4 or np.isfinite(h).all()
        for size in (1e3, -1e3):  # saturated gates of either sign
            assert np.isfinite(linscan.rnn_scan(name, np.full_like(x, size), R, b, w)[0]).all()


def test_result_dtype_and_errors(rng):
    x, R = np.ones((2, 5, 4, 3)), np.ones((4, 3, 3))
    assert linscan.rnn_scan("lstm", x.astype("f"), R.astype("f"))[0].dtype == np.float32
    assert linscan.rnn_scan("lstm", x.astype("f"), R)[0].dtype == np.float64
    assert linscan.rnn_scan("lstm", x.astype(int), R.astype("f"))[0].dtype == np.float64
    with pytest.raises(ValueError, match=r"rnn_scan: cell must be one of 'elman', .*; got 'ltsm'"):
        linscan.rnn_scan("ltsm", x, R)
    with pytest.raises(TypeError, match=r"rnn_scan: cell must be a name or a .*; got int"):
        linscan.rnn_scan(3, x, R)
    with pytest.raises(ValueError, match=r"rnn_scan: x must be \(…, T, G, d\) with G = 3 and d = 3; got \(2, 5, 4"):
        linscan.rnn_scan("gru", x, R)
    with pytest.raises(ValueError, match=r"rnn_scan: R must be \(…, G, d, d\) with G = 4 and d = 3; got \(4, 3\)"):
        linscan.rnn_scan("lstm", x, R[:, 0])
    with pytest.raises(ValueError, match=r"rnn_scan: R must be \(…, G, d\) with G = 3 and d = 3; got \(3, 2\)"):
        linscan.rnn_scan("para_gru", x[:, :, :3], R[:3, 0, :2])
    with pytest.raises(ValueError, match=r"rnn_scan: x and R must broadcast; got \(2,\) and \(3,\)"):
        linscan.rnn_scan("lstm", x, np.ones((3, 4, 3, 3)))
    with pytest.raises(ValueError, match=r"rnn_scan: w is needed by this cell, of shape \(…, 3, 3\)"):
        linscan.rnn_scan("peephole_lstm", x, R)
    with pytest.raises(ValueError, match=r"rnn_scan: h0 must broadcast to \(2, 2, 3\); got \(3, 3\)"):
        linscan.rnn_scan("lstm", x, R, h0=np.ones((3, 3)))
    with pytest.raises(ValueError, match="AlmostLinear: relu must be at least 0; got -1"):
        AlmostLinear(-1)
    with pytest.raises(TypeError, match="rnn_scan: cells are real; got complex128"):
        linscan.rnn_scan("lstm", x + 1j, R)
    with pytest.raises(TypeError, match="rnn_scan: reset must be boolean; got float64"):
        linscan.rnn_scan("lstm", x, R, reset=np.ones(5))
    with pytest.raises(ValueError, match=r"rnn_step: x must be \(…, G, d\) with G = 4; got \(3,\)"):
        linscan.rnn_step("lstm", np.ones(3), R)
    with pytest.raises(ValueError, match=r"rnn_scan_vjp: dh must have shape \(2, 5, 3\); got \(3,\)"):
        linscan.rnn_scan_vjp("lstm", x, R)[1](np.ones(3), None)
