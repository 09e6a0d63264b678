"""Laws of `newton_scan` and `newton_scan_vjp`: the loop's results, its gradients, and rows that do not converge."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.ops.gated_cells import CELLS
from tests import oracles
from tests.conftest import dtype_of, random
from tests.ops.test_rnn_scan import Sine, arguments, laid_out, made
from tests.tolerances import assert_close, residual

NAMES = sorted(CELLS)


def without_info(*args, **options):
    (h, state, _), pullback = linscan.newton_scan_vjp(*args, **options)
    return (h, state), pullback


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loop(rng, dtype, diagonal, name):
    for T, d in [(0, 3), (1, 1), (40, 5)]:
        args = arguments(rng, name, (2, T, d), dtype, diagonal=diagonal)
        h, state, info = linscan.newton_scan(made(name, diagonal), *args)
        assert h.dtype == state.dtype == dtype_of(dtype)
        assert info.converged.all()
        assert info.converged.shape == info.iterations.shape == info.residual.shape == (2,)
        want = oracles.rnn(name, *args, diagonal=diagonal)
        assert_close(h, want[0], residual(dtype))
        assert_close(state, want[1], residual(dtype))


@given(
    name=st.sampled_from(NAMES),
    rows=st.lists(st.integers(1, 3), max_size=2),
    T=st.integers(0, 12),
    d=st.sampled_from([1, 2, 7]),
    diagonal=st.booleans(),
    jacobian=st.sampled_from(["exact", "quasi"]),
    damping=st.sampled_from([None, 1.0, 0.5]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "strided", "flipped"]),
    seed=st.integers(0, 99),
)
def test_any_jacobian_shape_layout_state_reset_and_direction(
    name, rows, T, d, diagonal, jacobian, damping, reverse, with_reset, with_state, layout, seed
):
    rng = np.random.default_rng(seed)
    lead = rows[-1:] if seed % 2 else []
    args = arguments(rng, name, (*rows, T, d), "float64", diagonal=diagonal, lead=lead, state=with_state)
    args = [None if a is None else laid_out(a, layout) for a in args]
    reset = rng.random((*rows, T)) < 0.3 if with_reset else None
    h, state, info = linscan.newton_scan(
        made(name, diagonal),
        *args,
        reverse=reverse,
        reset=reset,
        jacobian=jacobian,
        damping=damping,
        iterations=T + 1,  # iteration k makes k steps exact
    )
    assert info.converged.all()
    want = oracles.rnn(name, *args, reverse=reverse, reset=reset, diagonal=diagonal)
    finite = np.isfinite(want[1])
    assert_close(h, want[0], residual("float64"))
    assert_close(state[finite], want[1][finite], residual("float64"))
    assert h.flags.c_contiguous


def test_errors_shrink_quadratically_and_piecewise_linear_cells_end_exactly(rng):
    x, R, *_ = arguments(rng, "para_gru", (2000, 8), "float64")
    want, _ = linscan.rnn_scan("para_gru", x, R)
    errors = []
    for k in range(1, 6):
        h, _, info = linscan.newton_scan("para_gru", x, R, iterations=k, fallback=False)
        assert info.iterations == min(k, 5)
        errors.append(np.abs(h - want).max())
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 5 * errors[1] ** 2
    assert errors[3] < 5 * errors[2] ** 2 + 1e-13
    assert errors[4] < 1e-13
    x, R, b, w, _ = arguments(rng, "almost_linear", (300, 6), "float64")
    _, _, info = linscan.newton_scan("almost_linear", x, R, b, w)
    assert info.converged
    assert info.iterations < 8


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(rng, name, diagonal):
    vjp = partial(without_info, made(name, diagonal))
    reset = np.arange(6) % 4 == 3
    args = arguments(rng, name, (2, 6, 3), "float64", diagonal=diagonal)
    linscan.check_vjp(vjp, *args, rtol=1e-6)
    linscan.check_vjp(vjp, *args, rtol=1e-6, reverse=True, reset=reset, jacobian="quasi", damping=1.0)
    x, R, _, w, _ = args
    linscan.check_vjp(vjp, x, R, None, w, None, rtol=1e-6, iterations=0)  # the loop's states, the same gradient


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_the_loops(rng, name):
    args = arguments(rng, name, (3, 1, 50, 4), "float64", lead=(2,), state=False)
    reset = rng.random((3, 2, 50)) < 0.1
    (h, state), loop = linscan.rnn_scan_vjp(name, *args, reset=reset)
    _, parallel = linscan.newton_scan_vjp(name, *args, reset=reset)
    dh, dstate = random(rng, h.shape, "float64"), random(rng, state.shape, "float64")
    for got, want in zip(parallel(dh, dstate), loop(dh, dstate), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close(got, want, residual("float64"))
    empty = [a if i else a[:, :, :0] for i, a in enumerate(args)]
    grads = linscan.newton_scan_vjp(name, *empty)[1](None, dstate)
    assert not any(g is not None and np.any(g) for g in grads)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_cell_of_the_users(rng, diagonal):
    cell = Sine(diagonal)
    x, w = random(rng, (2, 30, 2, 3), "float64") / 2, random(rng, (1, 3), "float64") / 2
    R, b = random(rng, (2, 3) if diagonal else (2, 3, 3), "float64") / 4, random(rng, (2, 3), "float64")
    h, _, info = linscan.newton_scan(cell, x, R, b, w)
    assert info.converged.all()
    assert_close(h, linscan.rnn_scan(cell, x, R, b, w)[0], residual("float64"))
    linscan.check_vjp(partial(without_info, cell), x[:, :5], R, b, w, None, rtol=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
def test_chaotic_rows_are_run_by_the_loop_and_the_others_are_not(rng, diagonal):
    """A row whose Jacobians grow cannot be solved; it gets the loop's bits, whatever its neighbours do."""
    x = random(rng, (3, 400, 1, 6), "float64") / 4
    R = random(rng, (3, 1, 6) if diagonal else (3, 1, 6, 6), "float64") / 6
    R[1] *= -30  # steep: the sign flips at every step, and nearby states part
    cell = made("elman", diagonal)
    h, state, info = linscan.newton_scan(cell, x, R)
    assert info.converged.tolist() == [True, False, True]
    assert not info.residual[1] < 1e-3
    want, end = linscan.rnn_scan(cell, x, R)
    np.testing.assert_array_equal(h[1], want[1])
    np.testing.assert_array_equal(state[1], end[1])
    assert_close(h[::2], want[::2], residual("float64"))
    left, _, info = linscan.newton_scan(cell, x, R, fallback=False)
    assert not info.converged[1]
    assert not np.abs(left[1] - want[1]).max() < 1e-3
    grads = linscan.newton_scan_vjp(cell, x, R)[1](np.ones_like(h), None)
    assert_close(grads[0][::2], linscan.rnn_scan_vjp(cell, x, R)[1](np.ones_like(h), None)[0][::2], residual("float64"))


def test_diverging_and_overflowing_rows_fall_back(rng):
    """An exploding linear part, and NaN, end in the loop's values without a warning."""
    x, R = random(rng, (2, 900, 1, 2), "float64"), np.full((1, 2, 2), 0.1)
    w = np.array([[2.5, 0.5]])
    h, _, info = linscan.newton_scan("almost_linear", x, R, None, w)
    np.testing.assert_array_equal(np.isfinite(h), np.isfinite(linscan.rnn_scan("almost_linear", x, R, None, w)[0]))
    assert not info.converged.any()
    x[1, 500] = np.nan
    h, _, info = linscan.newton_scan("leaky", x, R, None, np.full((1, 2), 0.5))
    assert info.converged.tolist() == [True, False]
    np.testing.assert_array_equal(np.isnan(h[1]).any(axis=1), np.arange(900) >= 500)


def test_gradients_of_a_packed_sequence_do_not_see_one_that_is_not_finite(rng):
    x, R = random(rng, (8, 1, 2), "float64"), np.full((1, 2, 2), 0.25)
    x[0] = np.nan
    (h, _, _), pullback = linscan.newton_scan_vjp("leaky", x, R, None, np.full((1, 2), 0.5), reset=np.arange(8) == 3)
    assert np.isfinite(h[3:]).all()
    assert np.isfinite(pullback(np.ones((8, 2)), None)[0][3:]).all()


def test_damping_converges_where_plain_newton_does_not(rng):
    x, R = random(rng, (1, 500, 3, 16), "float64"), 2 * random(rng, (3, 16), "float64")
    options = {"iterations": 50, "fallback": False}
    plain = linscan.newton_scan("para_gru", x, R, **options)[2]
    h, _, info = linscan.newton_scan("para_gru", x, R, damping=1.0, **options)
    assert not plain.converged.any()
    assert info.converged.all()
    assert_close(h, linscan.rnn_scan("para_gru", x, R)[0], 1e-9)  # a stiff recurrence: the residual's error grows


@pytest.mark.parametrize("name", ["gru", "para_gru", "para_lstm", "slstm"])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, name):
    x, R, b, w, h0 = arguments(rng, name, (5, 3, 40, 8), "float32", lead=(3,))
    x[0] *= 4  # rows need different numbers of iterations
    h, state, info = linscan.newton_scan(name, x, R, b, w, h0, workers=1)
    for workers in (2, 3):
        np.testing.assert_array_equal(linscan.newton_scan(name, x, R, b, w, h0, workers=workers)[0], h)
    alone = linscan.newton_scan(name, x[3:4, 1], R[1], b[1], None if w is None else w[1], h0[3:4, 1])
    np.testing.assert_array_equal(alone[0], h[3:4, 1])
    np.testing.assert_array_equal(alone[1], state[3:4, 1])
    assert alone[2].iterations[0] == info.iterations[3, 1]


def test_errors_say_who_what_and_what_came():
    x, R = np.ones((5, 1, 3)), np.ones((1, 3, 3))
    with pytest.raises(ValueError, match="newton_scan: jacobian must be one of 'exact', 'quasi'; got 'full'"):
        linscan.newton_scan("elman", x, R, jacobian="full")
    with pytest.raises(ValueError, match="newton_scan: damping must be positive; got 0"):
        linscan.newton_scan("elman", x, R, damping=0)
    with pytest.raises(ValueError, match="newton_scan: tol must be positive; got nan"):
        linscan.newton_scan("elman", x, R, tol=float("nan"))
    with pytest.raises(ValueError, match="newton_scan: iterations must be at least 0; got -1"):
        linscan.newton_scan("elman", x, R, iterations=-1)
    with pytest.raises(ValueError, match=r"newton_scan: R must be .* got \(3, 3\)"):
        linscan.newton_scan("elman", x, R[0])
