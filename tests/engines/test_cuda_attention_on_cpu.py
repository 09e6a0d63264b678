"""The device code of `linear_attention`, compiled for the host and held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

import linscan
from linscan._arrays import grad_like
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.tolerances import assert_close, eps

pytestmark = [pytest.mark.slow, needs_compiler]
DTYPE, BFLOAT16 = dtype_of("bfloat16"), eps("bfloat16")  # float16 is converted by instructions that only a card has


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return load(tmp_path_factory.mktemp("device_code"), "linear_attention")[0]


def check(engine, q, k, v, g, S0, scale=1.0, precision="exact", unit=BFLOAT16, gate=16):
    """Outputs, final state and gradients of every head are those of the plain loop in double precision."""
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, g, S0) if x is not None))
    given = [None if x is None else x.view(Array) for x in (q, k, v, g, S0)]
    options = {"lead": lead, "scale": scale, "workers": None}
    o, S, states = engine.linear_attention(*given, keep=True, precision=precision, **options)
    rng = np.random.default_rng(5)
    do, dS = random(rng, o.shape, q.dtype).view(Array), random(rng, S.shape, "float32").view(Array)
    grads = engine.linear_attention_pullback(*given, states, do, dS, **options)
    exact = [None if x is None else np.empty(lead + x.shape[-2:]) for x in given]
    for row in np.ndindex(*lead):
        wide = [None if x is None else oracles.wide(np.broadcast_to(x, lead + x.shape[-2:])[row]) for x in given]
        (want_o, want_S), pullback = linscan.linear_attention_vjp(*wide, scale=scale)
        # What products take in is rounded: q, k and v, the decayed products and the states.
        assert_close(o[row], want_o, 4 * unit, "o")
        assert_close(S[row], want_S, 2 * unit, "S")
        for every, one in zip(exact, pullback(*map(oracles.wide, (do[row], dS[row]))), strict=True):
            if every is not None:
                every[row] = one
    for name, x, got, want in zip(("q", "k", "v", "g", "S0"), given, grads, exact, strict=True):
        assert (got is None) == (x is None)
        if x is not None:
            got, want = grad_like(oracles.wide(got), oracles.wide(x)), grad_like(want, oracles.wide(x))
            assert_close(got, want, (gate if name == "g" else 4) * unit, f"gradient of {name}")


def test_the_plain_loop(rng, engine):
    q, k = (random(rng, (70, 80), DTYPE) for _ in range(2))
    v, S0 = random(rng, (70, 72), DTYPE), random(rng, (80, 72), "float32")
    check(engine, q, k, v, np.log(rng.uniform(0.5, 1, (70, 1))).astype("float32"), S0, scale=0.5)


def test_no_decay_and_one_step(rng, engine):
    q, k, v = (random(rng, (1, 1), DTYPE) for _ in range(3))
    check(engine, q, k, v, None, None)


def test_strong_decays_and_steps_that_forget(rng, engine):
    q, k, v = (random(rng, (130, n), DTYPE) for n in (15, 15, 9))
    S0 = random(rng, (15, 9), "float32")
    g = -rng.uniform(0, 60, (130, 1)).astype("float32")
    check(engine, q, k, v, g, S0)
    g[:] = -0.1
    g[[0, 5, 63, 64, 100]] = -np.inf
    check(engine, q, k, v, g, S0)


def test_heads_share_keys_where_they_lie(rng, engine):
    q, v = random(rng, (2, 2, 66, 7), DTYPE), random(rng, (2, 1, 66, 24), DTYPE)[..., ::3]
    k = random(rng, (66, 2, 7), DTYPE).swapaxes(0, 1)
    check(engine, q, k, v, -rng.uniform(0, 1, (2, 66, 1)).astype("float32"), None)


def test_segments_of_time(rng, engine, monkeypatch):
    monkeypatch.setattr(engine, "_WHOLE", 2)
    monkeypatch.setattr(engine, "_SEGMENT", 2)
    q, k, v = (random(rng, (150, 9), DTYPE) for _ in range(3))
    g = -rng.uniform(0, 0.1, (150, 1)).astype("float32")
    g[70] = -np.inf
    check(engine, q, k, v, g, random(rng, (9, 9), "float32"))


def gates(rng, *shape, largest=1.0):
    return -rng.uniform(0, largest, shape).astype("float32")


def test_decays_by_channel(rng, engine):
    q, k = (random(rng, (70, 80), DTYPE) for _ in range(2))
    v, S0 = random(rng, (70, 72), DTYPE), random(rng, (80, 72), "float32")
    check(engine, q, k, v, gates(rng, 70, 80, largest=0.3), S0, scale=0.5)


def test_strong_decays_by_channel_and_steps_that_forget(rng, engine):
    q, k, v = (random(rng, (150, n), DTYPE) for n in (15, 15, 9))
    S0 = random(rng, (15, 9), "float32")
    g = gates(rng, 150, 15, largest=60)
    check(engine, q, k, v, g, S0)
    g[:] = -0.1
    g[[0, 5, 63, 64, 100]] = -np.inf
    g[[1, 21, 85, 86, 149], 3] = -np.inf
    check(engine, q, k, v, g, S0)
    check(engine, *(x[:1] for x in (q, k, v, g)), None)


def test_heads_share_decays_by_channel(rng, engine, monkeypatch):
    monkeypatch.setattr(engine.gated_attention, "_WHOLE", 1)
    monkeypatch.setattr(engine.gated_attention, "_SEGMENT", 1)
    q, v = random(rng, (2, 2, 66, 7), DTYPE), random(rng, (2, 1, 66, 24), DTYPE)[..., ::3]
    k = random(rng, (66, 2, 7), DTYPE).swapaxes(0, 1)
    check(engine, q, k, v, gates(rng, 2, 66, 7), random(rng, (2, 1, 7, 8), "float32"))


FLOAT32 = {"exact": 2.0**-22, "tf32": 2.0**-11}  # what each product of two numbers is wrong by, at most


@pytest.mark.parametrize("precision", FLOAT32)
def test_float32(rng, engine, precision, monkeypatch):
    unit = {"precision": precision, "unit": FLOAT32[precision]}
    q, k, v = (random(rng, (80, n), "float32") for n in (9, 9, 5))
    S0, g = random(rng, (9, 5), "float32"), gates(rng, 80, 1, largest=60)
    g[[0, 5, 63, 64]] = -np.inf
    check(engine, q, k, v, g, S0, gate=512, **unit)  # dg is what is left of sums that are hundreds of times as large
    if precision == "exact":
        monkeypatch.setattr(engine, "_WHOLE", 1)
        monkeypatch.setattr(engine, "_SEGMENT", 1)
        check(engine, q, k, v, gates(rng, 80, 1, largest=0.1), S0, **unit)


def test_float32_of_many_keys_and_values(rng, engine):
    q, k, v = (random(rng, (20, n), "float32") for n in (80, 80, 72))
    check(engine, q, k, v, None, random(rng, (80, 72), "float32"), scale=0.5, unit=FLOAT32["exact"])


def test_float32_steps_of_unlike_sizes(rng, engine):
    """Each number is as exact as those it is made of let it be."""
    q, k, v = (random(rng, (70, n), "float64") for n in (9, 9, 5))
    q, v = q * 10 ** rng.uniform(-9, 9, (70, 1)), v * 10 ** rng.uniform(-9, 9, (70, 1)) * 10 ** rng.uniform(-3, 3, 5)
    g = np.where(rng.random((70, 1)) < 0.9, -np.inf, -0.1)
    given = [x.astype("float32").view(Array) for x in (q, k, v, g)]
    options = {"lead": (), "scale": 1.0, "workers": None, "keep": False, "precision": "exact"}
    o, S, _ = engine.linear_attention(*given, None, **options)
    *exact, g = map(oracles.wide, given)
    most = linscan.linear_attention(*map(np.abs, exact), g)
    for got, want, size in zip((o, S), linscan.linear_attention(*exact, g), most, strict=True):
        assert (np.abs(got - want) <= 2.0**-20 * size).all()


@pytest.mark.parametrize("precision", FLOAT32)
def test_what_is_not_finite_stays_where_it_belongs(rng, engine, precision):
    q, k, v = (random(rng, (70, n), "float32") for n in (9, 9, 5))
    g = gates(rng, 70, 1)
    q[3, 1] = k[9, 2] = v[20, 0] = np.nan
    v[30, 1], g[40], g[60] = np.inf, -np.inf, np.nan
    options = {"lead": (), "scale": 1.0, "workers": None, "keep": False, "precision": precision}
    o, S, _ = engine.linear_attention(*(x.view(Array) for x in (q, k, v, g)), None, **options)
    want, last = linscan.linear_attention(*map(oracles.wide, (q, k, v, g)))
    np.testing.assert_array_equal(np.isnan(o), np.isnan(want))
    np.testing.assert_array_equal(np.isnan(S), np.isnan(last))
    fine = np.isfinite(want)
    assert_close(np.where(fine, o, 0), np.where(fine, want, 0), 2.0**-19)
