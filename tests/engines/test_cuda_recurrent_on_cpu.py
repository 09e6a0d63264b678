"""The device code of matrix states step by step, compiled for the host and held to plain loops."""

import types

import numpy as np
import pytest

import linscan
from linscan.engines import delta_terms
from linscan.engines.reference import dplr_steps as reference
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.tolerances import accumulated, assert_close, eps

pytestmark = [pytest.mark.slow, needs_compiler]
GRADIENTS = {"linear_attention": "q k v g S0", "dplr_attention": "q k v a b g S0", "delta_rule": "q k v a b g S0"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    names = "recurrent", "recurrent_step"
    modules = load(tmp_path_factory.mktemp("device_code"), *names)
    return types.SimpleNamespace(**dict(zip(names, modules, strict=True)))


def plain(op, lead, args, do, dS, scale):
    """Outputs and gradients of every head by the steps of the reference, in double precision."""
    wide = [None if x is None else np.broadcast_to(oracles.wide(x), lead + x.shape[-2:]) for x in args]
    with linscan.use_engine("reference"):
        g = wide[-2]
        g = g[..., 0] if g is not None and g.shape[-1] == 1 else g
        if op == "linear_attention":
            (o, S), pullback = linscan.linear_attention_vjp(*wide[:3], g, wide[-1], scale=scale)
        else:
            wide[4] = wide[1] if wide[4] is None else wide[4]
            (o, S), pullback = linscan.dplr_attention_vjp(*wide[:5], g, wide[-1], scale=scale)
        grads = list(pullback(oracles.wide(do), oracles.wide(dS)))
    if g is not None and g.ndim == wide[0].ndim - 1:
        grads[-2] = grads[-2][..., None]
    return o, S, grads


def check(engine, op, args, scale=1.0):
    """Outputs, final state and every gradient."""
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in args if x is not None))
    given = [None if x is None else x.view(Array) for x in args]
    rng = np.random.default_rng(5)
    dtype, (length, keys), values = args[0].dtype, args[0].shape[-2:], args[2].shape[-1]
    state = given[-1].dtype if given[-1] is not None else dtype
    shapes = ((*lead, length, values), dtype), ((*lead, keys, values), state)
    do, dS = (random(rng, *shape).view(Array) for shape in shapes)
    if op == "linear_attention":
        o, S, kept = engine.recurrent.linear_attention(*given, lead=lead, scale=scale, keep=True)
        grads = engine.recurrent.linear_attention_pullback(*given, kept, do, dS, lead=lead, scale=scale)
    else:
        o, S, kept = engine.recurrent.dplr(*given, scale=scale, keep=True)
        grads = engine.recurrent.dplr_pullback(*given[:-1], kept, do, dS, scale=scale)
    want_o, want_S, want = plain(op, lead, args, do, dS, scale)
    tolerance = accumulated(dtype, length)
    assert o.dtype == dtype
    assert_close(o, want_o, tolerance, "o")
    assert_close(S, want_S, tolerance, "S")
    if op == "delta_rule":  # its k is the dplr's k and b
        want[1], want[4] = want[1] + want[4], None
    for name, got, exact, x in zip(GRADIENTS[op].split(), grads, want, args, strict=True):
        assert (got is None) == (x is None), name
        if got is not None:
            assert_close(got, exact, 4 * tolerance, f"gradient of {name}")


def problem(rng, op, lead, length, keys, values, dtype, decay):
    """Arguments as engines take them; unit keys, a = -k decayed."""
    q, k, b = (random(rng, (*lead, length, keys), dtype) for _ in range(3))
    k, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, b))
    v, S0 = random(rng, (*lead, length, values), dtype), random(rng, (*lead, keys, values), dtype)
    channels = {"none": 0, "scalar": 1, "vector": keys}[decay]
    g = -rng.uniform(0, 0.5, (*lead, length, channels)).astype(S0.real.dtype) if channels else None
    if op == "linear_attention":
        return [q, k, v, g, S0]
    return [q, k, v, -k.conj(), None if op == "delta_rule" else b, g, S0]


@pytest.mark.parametrize(
    ("op", "keys", "values", "dtype", "decay"),
    [
        ("linear_attention", 12, 5, "float32", "vector"),
        ("delta_rule", 20, 8, "float64", "scalar"),
        ("dplr_attention", 12, 16, "complex64", "vector"),
    ],
)
def test_plain_steps_and_steps_that_forget(rng, engine, op, keys, values, dtype, decay):
    args = problem(rng, op, (2,), 70, keys, values, dtype, decay)
    args[-2][0, [0, 64]] = args[-2][0, 40, :1] = -np.inf
    check(engine, op, args, 0.5)
    args[2][0, 10, 0] = np.nan
    if op != "linear_attention":
        args[3][0, 64] = 0
    given = [None if x is None else x.view(Array) for x in args]
    if op == "linear_attention":
        o, S, _ = engine.recurrent.linear_attention(*given, lead=(2,), scale=1.0, keep=False)
    else:
        o, S, _ = engine.recurrent.dplr(*given, scale=1.0, keep=False)
    bad = np.isnan(o)
    assert bad[0, 10:40, 0].all()
    assert not bad[0, 64:].any()
    assert not bad[..., 1:].any()
    assert not np.isnan(S).any()


@pytest.mark.parametrize(("dtype", "op"), [("bfloat16", "delta_rule"), ("float32", "dplr_attention")])
def test_a_token_of_two_steps(rng, engine, dtype, op):
    q, k, w, b = (random(rng, (3, 2, 9), "float32") for _ in range(4))
    v, S = random(rng, (3, 2, 40), "float32"), random(rng, (3, 9, 40), "float32")
    dtype = dtype_of(dtype)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    g = -rng.uniform(0, 1, (3, 2, 9)).astype("float32")
    g[0, 1] = -np.inf
    if op == "delta_rule":
        v[0, 0, 3] = np.nan  # forgotten by the second step
        given = q, k, v, b[..., 0], g, None, None, S
        terms = delta_terms.terms_of(*given)
    else:
        given = terms = q, k, v, w / 4, b, g, S
    want = reference.dplr_attention_step(*terms, scale=0.5, workers=None)
    views = [x if x is None else x.view(Array) for x in given]
    got = getattr(engine.recurrent_step, f"{op}_step")(*views, scale=0.5, workers=None)
    for name, x, y, of in zip(("o", "S"), got, want, (dtype, np.dtype("float32")), strict=True):
        assert x.dtype == of
        assert_close(x, y, eps(of) + accumulated("float32", 9), name)
