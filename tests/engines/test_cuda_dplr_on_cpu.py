"""`dplr_attention` on tensor cores: its device code on the host, held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

import linscan
from linscan._arrays import grad_like
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_delta_rule import unit
from tests.tolerances import assert_close, eps

pytestmark = [pytest.mark.slow, needs_compiler]
DTYPE = dtype_of("bfloat16")  # float16 is converted by instructions that only a card has


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    (module,) = load(tmp_path_factory.mktemp("device_code"), "dplr_chunk")
    module.summed = lambda x, like: x  # gradients of shared heads are summed here
    return module


def vectors(rng, length, keys, values, lead=()):
    """Queries, two unit keys, and values."""
    q, v = random(rng, (*lead, length, keys), DTYPE), random(rng, (*lead, length, values), DTYPE)
    k, w = (unit(random(rng, (*lead, length, keys), "float64")).astype(DTYPE) for _ in range(2))
    return q, k, w, v


def decays(rng, *shape, largest=0.2):
    return -rng.uniform(0, largest, shape).astype("float32")


def scaled(x, factor):
    return (oracles.wide(x) * factor).astype(x.dtype)


def run(engine, terms, S0, scale=1.0):
    """Outputs, final state, and the gradients for cotangents that are always the same."""
    terms = engine.Terms(*(x.view(Array) if isinstance(x, np.ndarray) else x for x in terms))
    if terms.a.__array_interface__ == terms.b.__array_interface__:
        terms = terms._replace(b=terms.a)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (*terms[:7], S0) if x is not None))
    S0 = np.broadcast_to(S0, lead + S0.shape[-2:]).view(Array)
    o, S, kept = engine.run(terms, S0, scale=scale, keep=True)
    return o, S, engine.pullback(terms, kept, *cotangents(o, S), scale=scale)


def cotangents(o, S):
    rng = np.random.default_rng(5)
    return random(rng, o.shape, DTYPE).view(Array), random(rng, S.shape, "float32").view(Array)


def wide(*arrays):
    return [None if x is None else oracles.wide(x) for x in arrays]


def agree(names, found, exact, given):
    for name, got, want, x in zip(names, found, exact, given, strict=True):
        assert (got is None) == (want is None), name
        if want is not None:
            got = got[..., 0] if name == "g" and got.shape[-1] == 1 else got
            tolerance = (16 if name == "g" else 2 if name == "S" else 4) * eps("bfloat16")
            assert_close(grad_like(oracles.wide(got), x), grad_like(want, x), tolerance, name)


def check_delta(engine, q, k, v, beta, g, S0, w=None, scale=1.0):
    """The delta rule, and its gradients, in double precision."""
    gates = None if g is None else g if g.ndim == q.ndim else g[..., None]
    terms = q, k, k if w is None else w, None, v, beta[..., None], gates, w is not None, -1.0
    o, S, found = run(engine, terms, S0, scale)
    given = wide(q, k, v, beta, g, S0, w)
    with linscan.use_engine("reference"):
        (want_o, want_S), pullback = linscan.delta_rule_vjp(*given, scale=scale)
        want = pullback(*wide(*cotangents(o, S)))
    agree("oS", (o, S), (want_o, want_S), (want_o, want_S))
    dq, da, db, _, dv, dbeta, dg, dS0 = found
    grads = (dq, db, dv, dbeta, dg, dS0, None) if w is None else (dq, da, dv, dbeta, dg, dS0, db)
    agree(("q", "k", "v", "beta", "g", "S0", "w"), grads, want, given)


def check_dplr(engine, q, k, v, a, b, g, S0, scale=1.0):
    gates = None if g is None else g if g.ndim == q.ndim else g[..., None]
    o, S, found = run(engine, (q, a, b, k, v, None, gates, True, 1.0), S0, scale)
    given = wide(q, k, v, a, b, g, S0)
    with linscan.use_engine("reference"):
        (want_o, want_S), pullback = linscan.dplr_attention_vjp(*given, scale=scale)
        want = pullback(*wide(*cotangents(o, S)))
    agree("oS", (o, S), (want_o, want_S), (want_o, want_S))
    dq, da, db, dk, dv, _, dg, dS0 = found
    agree(("q", "k", "v", "a", "b", "g", "S0"), (dq, dk, dv, da, db, dg, dS0), want, given)


def test_decays_by_channel(rng, engine):
    q, k, _, v = vectors(rng, 150, 40, 24)
    beta, S0 = rng.uniform(0, 2, 150).astype("float32"), random(rng, (40, 24), "float32")
    check_delta(engine, q, k, v, beta, decays(rng, 150, 40), S0, scale=0.5)


def test_a_key_to_write_along(rng, engine):
    q, k, w, v = vectors(rng, 90, 24, 16)
    beta, S0 = rng.uniform(0, 1, 90).astype("float32"), random(rng, (24, 16), "float32")
    check_delta(engine, q, k, v, beta, decays(rng, 90), S0, w)


def test_two_directions(rng, engine):
    q, a, b, v = vectors(rng, 130, 40, 24)
    k, S0 = random(rng, (130, 40), DTYPE), random(rng, (40, 24), "float32")
    check_dplr(engine, q, k, v, scaled(a, -1), scaled(b, 0.7), decays(rng, 130, 40), S0, scale=0.3)


def test_strong_decays_and_steps_that_forget(rng, engine):
    q, k, w, v = vectors(rng, 70, 15, 9, lead=(2,))
    beta, S0 = rng.uniform(0, 2, (2, 70)).astype("float32"), random(rng, (2, 15, 9), "float32")
    g = decays(rng, 2, 70, 15, largest=60)
    g[1] *= 1e-2
    g[1, [0, 5, 63, 64]] = -np.inf
    check_delta(engine, q, k, v, beta, g, S0)
    check_dplr(engine, q, w, v, scaled(k, 0.5), k, g, S0)


def test_keys_that_resemble_each_other(rng, engine):
    q, k, _, v = vectors(rng, 150, 24, 16)
    k = unit(0.3 * oracles.wide(k) + oracles.wide(k)[:1]).astype(DTYPE)
    g, S0 = decays(rng, 150, 24, largest=2e-3), random(rng, (24, 16), "float32")
    check_delta(engine, q, k, v, np.full(150, 2, "float32"), g, S0)


def test_no_decay_and_one_step(rng, engine):
    q, k, w, v = vectors(rng, 1, 5, 3)
    S0 = random(rng, (5, 3), "float32")
    check_dplr(engine, q, k, v, w, k, None, S0)
    check_delta(engine, q, k, v, np.ones(1, "float32"), None, S0, w)


def test_heads_share_keys_where_they_lie(rng, engine):
    q, k, w, v = vectors(rng, 20, 7, 72, lead=(2, 2))
    beta, S0 = rng.uniform(0, 1, (2, 1, 20)).astype("float32"), random(rng, (7, 24), "float32")
    check_delta(engine, q, k[:, :1], v[..., ::3], beta, decays(rng, 2, 2, 20), S0, w[:1])


def test_what_is_not_finite_reaches_later_times_and_back_earlier_ones_until_it_is_forgotten(rng, engine):
    q, k, b, v = vectors(rng, 60, 7, 9, lead=(7,))
    a, S0, g = k.copy(), random(rng, (7, 7, 9), "float32"), decays(rng, 7, 60, 7)
    g[:, 40], a[:, 40] = -np.inf, 0
    terms = [q, a, b, k, v, None, g, True, 1.0]
    clean, state, flows = run(engine, terms, S0)
    for which, x in enumerate((q, a, b, k, v, g)):
        x[which, 21] = np.nan
    S0[6, 0] = np.nan
    o, S, grads = run(engine, terms, S0)
    np.testing.assert_array_equal(S, state)
    for which in range(7):
        begin = 21 if which < 6 else 0
        assert not np.isfinite(o[which, begin].astype(float)).all()
        np.testing.assert_array_equal(o[which, :begin], clean[which, :begin])
        for n in (0, 1, 2, 3, 4, 6):
            begin = 41 if n == 1 else 40  # a reads what is then forgotten
            np.testing.assert_array_equal(grads[n][which, begin:], flows[n][which, begin:])
        assert np.isfinite(grads[4][which, :22].astype(float)).all() == (which in (4, 6))
