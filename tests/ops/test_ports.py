"""Laws of what is joined: the ends of a state space, scans both ways, and a gate opened by what it lets through."""

import numpy as np
import pytest

import linscan
from linscan.ops import activation
from linscan.ops.half_glu import half_glu_vjp
from linscan.ops.ports import inlet_vjp, outlet_vjp
from linscan.ops.two_way import two_way_vjp
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, summed


def through(u, B, C, D):
    """``Re(u B C) + D u``, and its pullback."""
    v, back_in = inlet_vjp(u, B, D)
    y, back_out = outlet_vjp(v, C, u, D)

    def pullback(dy):
        dv, dC = back_out(dy)
        du, dB, dD = back_in(dv, dy)
        return du, dB, dC, dD

    return y, pullback


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5), (700, 5)])
def test_the_ends_of_a_state_space_equal_the_sums(rng, dtype, shape):
    like = np.result_type(dtype, "complex64")
    u, D, B, C = (random(rng, s, t) for s, t in ((shape, dtype), ((5,), dtype), ((5, 3), like), ((3, 5), like)))
    v = oracles.dense(u, B, np.zeros(3))
    assert inlet_vjp(u, B, D)[0].dtype == like
    assert_close(inlet_vjp(u, B, D)[0], v, summed(dtype, 8))
    y = outlet_vjp(v.astype(like), C, u, D)[0]
    assert y.dtype == dtype_of(dtype)
    want = oracles.dense(v, C, np.zeros(5)).real + oracles.wide(D) * oracles.wide(u)
    assert_close(y, want, summed(dtype, 16))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_gradients_through_both_ends(rng, shape):
    u, D = random(rng, shape, "float64"), random(rng, (5,), "float64")
    linscan.check_vjp(through, u, random(rng, (5, 3), "complex128"), random(rng, (3, 5), "complex128"), D)


def test_ends_that_do_not_fit_are_refused():
    u, B, D = np.ones((2, 5)), np.ones((5, 3), complex), np.ones(5)
    with pytest.raises(ValueError, match=r"inlet: u, w and D must have shapes .*; got \(2, 5\), \(4, 3\) and \(5,\)"):
        inlet_vjp(u, B[:4], D)
    with pytest.raises(
        ValueError, match=r"outlet: x, w, u and D must have shapes .*; got \(2, 3\), \(3, 5\), \(2, 5\)"
    ):
        outlet_vjp(np.ones((2, 3), complex), B.T, u, D[:4])


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3), (2, 0, 3), (0, 4, 3)])
def test_both_ways_are_two_scans_of_every_sequence(rng, engine, shape):
    b, marks = random(rng, shape, "complex128"), np.arange(shape[-2]) % 3 == 2
    parts = np.split(np.arange(shape[-2]), np.flatnonzero(marks))
    for a in (random(rng, (3,), "complex128"), random(rng, shape, "complex128")):
        for reset, spans in ((None, [slice(None)]), (np.broadcast_to(marks, shape[:-1]), parts)):
            with linscan.use_engine(engine):
                x, _ = two_way_vjp(a, b, reset)
            for span in spans:
                own = a if a.ndim == 1 else a[..., span, :]
                forth, back = (linscan.scan(own, b[..., span, :], axis=-2, reverse=r) for r in (False, True))
                assert_close(x[..., span, :], np.concatenate([forth, back], -1), summed("complex128", 10))
    linscan.check_vjp(lambda a, b: two_way_vjp(a, b, marks), random(rng, (3,), "complex128"), b[..., :7, :])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (0, 4), (300, 64)])
def test_a_gate_opened_by_what_it_lets_through_equals_its_parts(rng, dtype, shape):
    D = shape[-1]
    x, around = (random(rng, shape, dtype) for _ in range(2))
    w, b = random(rng, (D, D), dtype), random(rng, (D,), dtype)
    wide = [oracles.wide(a) for a in (x, w, b, around)]
    z = oracles.dense(activation.activation(wide[0], "silu"), wide[1], wide[2])
    y = half_glu_vjp(x, w, b, around, kind="silu")[0]
    assert y.dtype == dtype_of(dtype)
    assert_close(y, wide[0] / (1 + np.exp(-z)) + wide[3], summed(dtype, 4 * D))


def test_gradients_of_a_gate_opened_by_what_it_lets_through(rng):
    x, around, w = random(rng, (2, 3, 4), "float64"), random(rng, (2, 3, 4), "float64"), random(rng, (4, 4), "float64")
    for b in (random(rng, (4,), "float64"), None):
        for beside in (around, None):
            linscan.check_vjp(half_glu_vjp, x, w, b, beside, kind="gelu_tanh")
    with pytest.raises(ValueError, match=r"half_glu: w must have shape \(4, 4\); got \(4, 3\)"):
        half_glu_vjp(x, w[:, :3])
    with pytest.raises(ValueError, match="half_glu: kind must be one of 'identity', 'relu'"):
        half_glu_vjp(x, w, kind="gelo")
