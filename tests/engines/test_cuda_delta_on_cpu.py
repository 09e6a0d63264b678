"""The delta rule's device code for tensor cores on the host, held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_delta_rule import unit
from tests.tolerances import assert_close, eps

pytestmark = [pytest.mark.slow, needs_compiler]
DTYPE = dtype_of("bfloat16")  # float16 is converted by instructions that only a card has
NAMES = ("q", "k", "v", "beta", "g", "S0")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return load(tmp_path_factory.mktemp("device_code"), "delta_segments")[0]


def problem(rng, length, keys, values, lead=(), gated=True):
    q, v = random(rng, (*lead, length, keys), DTYPE), random(rng, (*lead, length, values), DTYPE)
    k = unit(random(rng, (*lead, length, keys), "float64")).astype(DTYPE)
    beta = rng.uniform(0, 2, (*lead, length)).astype("float32")
    g = -rng.uniform(0, 0.2, (*lead, length)).astype("float32") if gated else None
    return q, k, v, beta, g, random(rng, (*lead, keys, values), "float32")


def run(engine, q, k, v, beta, g, S0, scale=1.0):
    """Outputs, final state, and the gradients for cotangents that are always the same."""
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, S0)), beta.shape[:-1])
    given = [x.view(Array) for x in (q, k, v, beta)] + [None if g is None else g[..., None].view(Array)]
    S0 = np.broadcast_to(S0, lead + S0.shape[-2:]).view(Array)
    way = engine if engine.is_long(q.shape[-2]) else engine.delta_chunk
    o, S, kept = way.delta_rule(*given, S0, scale=scale, keep=True)
    return o, S, way.delta_rule_pullback(*given, kept, *cotangents(o, S), scale=scale)


def cotangents(o, S):
    rng = np.random.default_rng(5)
    return random(rng, o.shape, DTYPE).view(Array), random(rng, S.shape, "float32").view(Array)


def check(engine, q, k, v, beta, g, S0, scale=1.0):
    """Outputs, final state and gradients are those of the chunks in double precision."""
    o, S, grads = run(engine, q, k, v, beta, g, S0, scale)
    lead = S.shape[:-2]
    wide = [None if x is None else oracles.wide(x) for x in (q, k, v, beta, g, S0)]
    with linscan.use_engine("reference"):
        axes = (2, 2, 2, 1, 1, 2)
        full = [
            None if x is None else np.broadcast_to(x, lead + x.shape[x.ndim - n :])
            for x, n in zip(wide, axes, strict=True)
        ]
        (want_o, want_S), pullback = linscan.delta_rule_vjp(*full, scale=scale)
        want = pullback(*map(oracles.wide, cotangents(o, S)))
    assert_close(o, want_o, 4 * eps("bfloat16"), "o")
    assert_close(S, want_S, 2 * eps("bfloat16"), "S")
    for name, got, exact in zip(NAMES, grads, want[:6], strict=True):
        assert (got is None) == (exact is None)
        if got is not None:
            got = got[..., 0] if name == "g" else got
            assert_close(got, exact, (16 if name == "g" else 4) * eps("bfloat16"), f"gradient of {name}")


def test_the_plain_loop(rng, engine):
    check(engine, *problem(rng, 200, 40, 24), scale=0.5)


def test_keys_that_resemble_each_other(rng, engine):
    q, k, v, beta, g, S0 = problem(rng, 150, 24, 16)
    k = unit(0.3 * oracles.wide(k) + oracles.wide(k)[:1]).astype(k.dtype)
    check(engine, q, k, v, 0 * beta + 2, g * 0.01, S0)


def test_no_decay_and_one_step(rng, engine):
    check(engine, *problem(rng, 1, 5, 3, gated=False))


def test_strong_decays_and_steps_that_forget(rng, engine):
    q, k, v, beta, g, S0 = problem(rng, 70, 15, 72, lead=(2,))
    g[0] *= 300
    g[1, [0, 5, 63, 64]] = -np.inf
    check(engine, q, k, v, beta, g, S0)


def test_heads_share_keys_where_they_lie(rng, engine):
    q, k, v, beta, g, S0 = problem(rng, 20, 7, 24, lead=(2, 2))
    check(engine, q, k[:, :1], v[..., ::3], beta[:1], g, S0[0, ..., ::3])


def test_segments_of_time(rng, engine, monkeypatch):
    monkeypatch.setattr(engine, "_WHOLE", 2)
    monkeypatch.setattr(engine, "_SEGMENT", 1)
    q, k, v, beta, g, S0 = problem(rng, 150, 9, 10)
    check(engine, q, k, v, 0.1 * beta, 0.1 * g, S0)  # states that outlast a segment


def test_what_is_not_finite_reaches_later_times_and_back_earlier_ones_until_it_is_forgotten(rng, engine):
    given = problem(rng, 60, 7, 9, lead=(7,))
    given[4][:, 40] = -np.inf
    clean, state, flows = run(engine, *given)
    for which, x in enumerate(given[:5]):  # q[0], k[1], …
        x[which, 21] = np.nan
    given[5][5, 0] = np.nan
    o, S, grads = run(engine, *given)
    np.testing.assert_array_equal(S, state)
    for which in range(7):
        assert np.isfinite(o[which, 21].astype(float)).all() == (which == 6)
        begin = 21 if which < 5 else 0
        np.testing.assert_array_equal(o[which, :begin], clean[which, :begin])
        for x, y in ((o, clean), *zip(grads[:5], flows[:5], strict=True)):
            np.testing.assert_array_equal(x[which, 40:], y[which, 40:])
        assert np.isfinite(grads[1][which, :22].astype(float)).all() == (which == 6)


@pytest.mark.parametrize(("length", "keys", "values", "scale"), [(70, 24, 12, 0.5), (20, 80, 72, 1.0)])
def test_float32(rng, tmp_path, length, keys, values, scale):
    (engine,) = load(tmp_path, "delta_rule")
    q, k, v, beta, g, S0 = problem(rng, length, keys, values, lead=(1,), gated=length == 70)
    given = [x.astype("float32").view(Array) for x in (q, k, v, beta)]
    given += [None if g is None else g[..., None].view(Array), None, None]
    options = {"scale": scale, "keep": length == 70, "precision": "tf32", "workers": None}
    o, S, kept = engine.delta_rule(*given, S0.view(Array), **options)
    wide = [None if x is None else oracles.wide(x) for x in (q, k, v, beta, g, S0)]
    with linscan.use_engine("reference"):
        (want, last), pullback = linscan.delta_rule_vjp(*wide, scale=scale)
    assert_close(o, want, 2.0**-20, "o")
    assert_close(S, last, 2.0**-20, "S")
    if kept is None:
        return
    do, dS = (random(rng, x.shape, "float32").view(Array) for x in (o, S))
    *grads, _, dS0 = engine.delta_rule_pullback(*given, kept, do, dS, scale=scale, workers=None)
    for name, got, exact in zip(NAMES, (*grads, dS0), pullback(*map(oracles.wide, (do, dS))), strict=False):
        assert_close(np.reshape(got, exact.shape), exact, 2.0**-19, f"gradient of {name}")


def test_float32_not_finite_or_of_unlike_sizes(rng, tmp_path):
    (engine,) = load(tmp_path, "single_delta")
    q, k, v, beta, g, S0 = problem(rng, 70, 9, 33, lead=(1,))
    v = v.astype(float) * 10 ** rng.uniform(-8, 8, (1, 70, 1))
    g[rng.random(g.shape) < 0.3] = -np.inf

    def distance():
        given = [x.astype("float32").view(Array) for x in (q, k, v, beta, g[..., None], 0 * S0)]
        o, S, _ = engine.delta_rule(*given, scale=1.0, keep=False)
        with linscan.use_engine("reference"):
            want, last = linscan.delta_rule(*map(oracles.wide, (q, k, v.astype("float32"), beta, g)))
        for got, exact in ((o, want), (S, last)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
        norms = [np.linalg.norm(np.where(np.isfinite(want), x, 0), axis=-1) for x in (o - want, want)]
        return norms[0] / np.maximum(norms[1], 1e-30)

    assert distance().max() < 2.0**-16
    q[0, 3, 1] = k[0, 9, 2] = v[0, 20, 0] = np.nan
    v[0, 40, 1], g[0, 60] = np.inf, np.nan
    assert distance().max() < 2.0**-16
