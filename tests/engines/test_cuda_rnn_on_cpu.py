"""The device code of `rnn_scan`, compiled for the host and held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

from linscan._arrays import accum_dtype
from linscan.engines.reference import rnn_scan as reference
from linscan.ops import rnn_shapes
from tests import oracles
from tests.conftest import random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_rnn_scan import arguments, made
from tests.tolerances import assert_close, contracting, residual

pytestmark = [pytest.mark.slow, needs_compiler]


def given(x):
    """`x` as a launcher takes it: with memory of its own, which it may not write."""
    return x if x is None else np.asarray(x).view(Array)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    names = "rnn_scan", "newton_scan"
    modules = dict(zip(names, load(tmp_path_factory.mktemp("device_code"), *names), strict=True))
    modules["rnn_scan"].clusters, modules["rnn_scan"]._multiprocessors = lambda _: False, lambda _: 1
    return modules


@pytest.fixture
def engine(engines):
    return engines["rnn_scan"]


def check(rng, engine, name, shape, dtype, *, diagonal=False, lead=(), reverse=False, reset=None):
    """Outputs, final state and gradients are those of the plain loop in double precision."""
    cell = made(name, diagonal)
    args = arguments(rng, name, shape, dtype, diagonal=diagonal, lead=lead)
    r = rnn_shapes.prepare("rnn_scan", cell, *args, reset)
    r = r._replace(**{key: given(getattr(r, key)) for key in ("x", "R", "b", "w", "s0", "reset")})
    options = {"reverse": reverse, "workers": None}
    h, last, saved = engine.rnn_scan(r, keep=True, **options)
    alone, _, _ = engine.rnn_scan(r, keep=False, **options)
    assert alone.tobytes() == h.tobytes()
    exact = rnn_shapes.prepare("rnn_scan", cell, *(a if a is None else oracles.wide(a) for a in args), reset)
    want = reference.rnn_scan(exact, keep=True, **options)
    assert_close(h, want[0], contracting(dtype), "h")
    assert_close(last, want[1], contracting(dtype), "state")
    dh, dlast = random(rng, h.shape, dtype), random(rng, last.shape, accum_dtype(h.dtype))
    grads = engine.rnn_scan_pullback(r, saved, given(dh), given(dlast), **options)
    wide = reference.rnn_scan_pullback(exact, want[2], *map(oracles.wide, (dh, dlast)), **options)
    for what, x, y in zip(("x", "y", "w", "state"), grads, wide, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y, 4 * contracting(dtype), f"gradient of {what}")


@pytest.mark.parametrize("name", ["leaky", "peephole_lstm"])
def test_cells_without_matrices(rng, engine, name):
    reset = rng.random((2, 3, 11)) < 0.2
    check(rng, engine, name, (2, 3, 11, 5), "float64", diagonal=True, lead=(3,), reset=reset)


@pytest.mark.parametrize("name", ["almost_linear", "gru"])
def test_cells_with_matrices(rng, engine, name):
    """Five rows that share their matrices: a block's four, and one of the next."""
    check(rng, engine, name, (5, 2, 6, 13), "float32", lead=(2,), reset=rng.random((5, 2, 6)) < 0.2)


def test_backwards_16_bits_and_one_row(rng, engine, monkeypatch):
    monkeypatch.setattr(engine, "_multiprocessors", lambda _: 100)
    check(rng, engine, "elman", (1, 5, 16), "bfloat16", reverse=True)


def test_matrices_that_are_read_at_each_step(rng, engine, monkeypatch):
    monkeypatch.setattr(engine, "_WHOLE", 8)
    check(rng, engine, "lstm", (3, 5, 16), "float32", reset=np.arange(5) == 3)


def recurrence(name, args, reset):
    r = rnn_shapes.prepare("newton_scan", made(name, True), *args, reset)
    return r._replace(**{key: given(getattr(r, key)) for key in ("x", "R", "b", "w", "s0", "reset")})


@pytest.mark.parametrize("name", ["para_gru", "slstm"])
def test_newton(rng, engines, name, monkeypatch):
    engine = engines["newton_scan"]
    monkeypatch.setattr(engine, "_SHORT", 16), monkeypatch.setattr(engine, "_LONG", 16)
    args = arguments(rng, name, (2, 3, 100, 5), "float64", diagonal=True, lead=(3,))
    for warm, reset in ((0, None), (5, rng.random((2, 3, 100)) < 0.1)):
        monkeypatch.setattr(engine, "_WARM", warm)
        r = recurrence(name, args, reset)
        saved = reference.rnn_scan(r, reverse=False, keep=True, workers=None)[2]
        options = {"quasi": False, "damping": None, "tol": 1e-14, "limit": 20, "fallback": False, "workers": None}
        states, converged, count, size = engine.newton_scan(r, None, **options)
        assert converged.all()
        assert (size <= 1e-14).all()
        assert 1 <= count.max() <= (6 if name == "slstm" else 5)
        assert_close(states, saved[0], residual("float64"), "states")
        dh, dlast = (random(rng, x.shape, "float64") for x in (states[..., 0, :], states[..., 0, :, :]))
        grads = engine.newton_scan_pullback(r, None, given(saved[0]), given(dh), given(dlast), workers=None)
        wide = reference.rnn_scan_pullback(r, saved, dh, dlast, reverse=False, workers=None)
        (dx, sums, dw, ds), given_x = grads, (r.x, r.R, r.b, r.w, r.s0)
        got = rnn_shapes.gradients(r, saved[0], (dx, sums, dw, ds), given_x, False)
        for x, y in zip(got, rnn_shapes.gradients(r, saved[0], wide, given_x, False), strict=True):
            if x is not None:
                assert_close(x, y, 4 * contracting("float64"))


def test_newton_sees_every_seam(rng, engines, monkeypatch):
    """Of each row one chunk alone depends on what is before it."""
    engine, seams = engines["newton_scan"], [1, 32, 43]
    for name, value in (("_SHORT", 16), ("_LONG", 16), ("_WARM", 0)):
        monkeypatch.setattr(engine, name, value)
    args = arguments(rng, "para_gru", (len(seams), 700, 1), "float64", state=False)
    reset = np.arange(700) != 16 * np.array(seams)[:, None]
    r = recurrence("para_gru", args, reset)
    options = {"quasi": False, "damping": None, "tol": 1e-14, "limit": 20, "fallback": False, "workers": None}
    states, converged, count, _ = engine.newton_scan(r, None, **options)
    assert converged.all()
    np.testing.assert_array_equal(count, 1)
    want = reference.rnn_scan(r, reverse=False, keep=True, workers=None)[2][0]
    assert_close(states, want, residual("float64"))


def test_newton_gives_up_on_a_row_alone(rng, engines):
    """Which the loop then runs."""
    x, R, *_ = arguments(rng, "para_gru", (3, 100, 5), "float64", state=False)
    x[1, 50, 0, 2] = np.nan
    r = recurrence("para_gru", (x, R, None, None, None), None)
    options = {"quasi": False, "damping": None, "tol": 1e-14, "limit": 20, "fallback": True, "workers": None}
    states, converged, count, size = engines["newton_scan"].newton_scan(r, None, **options)
    np.testing.assert_array_equal(converged, [True, False, True])
    _, _, (want, _) = engines["rnn_scan"].rnn_scan(r, reverse=False, keep=True, workers=None)
    assert_close(states[[0, 2]], want[[0, 2]], residual("float64"))
    assert states[1].tobytes() == want[1].tobytes()
    assert np.isnan(size[1])
    assert count[1] == 0
