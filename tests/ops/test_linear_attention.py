"""Laws of `linear_attention`, its step and its gradient, on every engine that runs on the CPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, attended, eps

ENGINES = ["reference", "cpu"]
LENGTHS = [0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 100, 129]
DECAYS = [None, "scalar", "vector"]


def problem(rng, lead, length, key, value, decay, dtype="float64", mean=0.5, shared=False):
    """q, k, v, g and S0 with exponentially distributed decays; `shared` gives k, v and S0 one head for all."""
    some = (1,) * len(lead) if shared else lead
    q, k = random(rng, (*lead, length, key), dtype), random(rng, (*some, length, key), dtype)
    v, S0 = random(rng, (*some, length, value), dtype), random(rng, (*some, key, value), dtype)
    shape = {None: (), "scalar": (*lead, length), "vector": (*lead, length, key)}[decay]
    real = np.zeros(0, dtype_of(dtype)).real.dtype
    return q, k, v, None if decay is None else (-mean * rng.exponential(1, shape)).astype(real), S0


def close(got, want, dtype, length, factor=1):
    for x, y, what in zip(got, want, ("o", "S"), strict=True):
        assert_close(x, y, factor * attended(dtype, length), what)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop_for_every_remainder(rng, engine, decay, length):
    args = problem(rng, (2,), length, 5, 3, decay)
    with linscan.use_engine(engine):
        close(linscan.linear_attention(*args), oracles.linear_attention(*args), "float64", length)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_every_dtype(rng, engine, dtype, decay):
    args = problem(rng, (3,), 77, 9, 20, decay, dtype)
    with linscan.use_engine(engine):
        o, S = linscan.linear_attention(*args, scale=0.25)
        assert o.dtype == dtype_of(dtype)
        assert S.dtype == (np.float32 if dtype in ("float16", "bfloat16") else o.dtype)
        assert linscan.linear_attention(*args[:4], S)[0].dtype == o.dtype
    want = oracles.linear_attention(*args, 0.25)
    assert_close(o, want[0], attended(dtype, 77))
    assert_close(S, want[1], attended(S.dtype, 77))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 40), (33, 2), (64, 64), (100, 7), (300, 260)])
@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_any_widths(rng, engine, sizes, decay):
    args = problem(rng, (), 70, *sizes, decay, "float32")
    with linscan.use_engine(engine):
        close(linscan.linear_attention(*args), oracles.linear_attention(*args), "float32", 70)


@settings(max_examples=25)
@given(
    length=st.integers(0, 140),
    key=st.integers(1, 9),
    value=st.integers(1, 9),
    decay=st.sampled_from(DECAYS),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    signed=st.booleans(),
    with_state=st.booleans(),
    flipped=st.booleans(),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_direction_reset_sign_state_and_layout(
    length, key, value, decay, dtype, reverse, with_reset, signed, with_state, flipped, engine, seed
):
    rng = np.random.default_rng(seed)
    q, k, v, g, S0 = problem(rng, (2, 3), length, key, value, decay, dtype)
    k, v = k[:, :1], v[:1, :]
    reset = rng.random((3, length)) < 0.1 if with_reset else None
    sign = rng.choice([-1, 1], (2, 1, length, key) if decay == "vector" else (1, 3, length)) if signed else None
    S0 = S0 if with_state else None
    if flipped:
        q, v = q[..., ::-1, :].copy()[..., ::-1, :], np.asfortranarray(v)
    for x in (q, k, v):
        x.flags.writeable = False
    options = {"reverse": reverse, "reset": reset, "sign": sign}
    with linscan.use_engine(engine):
        got = linscan.linear_attention(q, k, v, g, S0, **options)
    close(got, oracles.linear_attention(q, k, v, g, S0, **options), dtype, length, 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 5e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("mean", [0.001, 0.1, 1, 5, 30])
def test_strong_and_weak_decays_keep_their_digits(rng, engine, decay, dtype, allowed, mean):
    q, k, v, g, S0 = problem(rng, (2,), 200, 16, 16, decay, dtype, mean)
    do, dS = random(rng, v.shape, dtype), random(rng, S0.shape, dtype)
    wide = [oracles.wide(x) for x in (q, k, v, g, S0)]
    with linscan.use_engine(engine):
        got, pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
        for x, want in zip(got, oracles.linear_attention(*wide), strict=True):
            assert_close(x, want, allowed)
        if dtype == "float64":
            return
        grads = pullback(do, dS)
    exact = linscan.linear_attention_vjp(*wide)[1](oracles.wide(do), oracles.wide(dS))
    for name, x, want in zip(("dq", "dk", "dv", "dg", "dS0"), grads, exact, strict=True):
        assert_close(x, want, allowed, name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_a_constant_slow_decay_is_not_rounded_step_by_step(rng, engine, decay):
    """e^g rounds to the same side at every step; over the memory of such a decay this would add up."""
    q, k, v, g, S0 = problem(rng, (), 1000, 4, 4, decay, "float32")
    g = np.full_like(g, -1.1e-4)
    want = oracles.linear_attention(q, k, v, g, S0)
    with linscan.use_engine(engine):
        for x, y in zip(linscan.linear_attention(q, k, v, g, S0), want, strict=True):
            assert_close(x, y, 5e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("reverse", [False, True])
def test_splitting_and_stepping(rng, engine, decay, reverse):
    q, k, v, g, S0 = problem(rng, (2,), 90, 4, 6, decay, "float32")
    with linscan.use_engine(engine):
        o, S = linscan.linear_attention(q, k, v, g, S0, reverse=reverse)
        for cut in (0, 1, 37, 64, 89, 90):
            state, outputs = S0, []
            for part in (slice(cut, 90), slice(0, cut)) if reverse else (slice(0, cut), slice(cut, 90)):
                piece = None if g is None else g[:, part]
                at = q[:, part], k[:, part], v[:, part], piece, state
                part_o, state = linscan.linear_attention(*at, reverse=reverse)
                outputs.append(part_o)
            whole = np.concatenate(outputs[::-1] if reverse else outputs, axis=1)
            close((whole, state), (o, S), "float32", 90)
    state = S0
    for t in reversed(range(90)) if reverse else range(90):
        now, state = linscan.linear_attention_step(q[:, t], k[:, t], v[:, t], state, None if g is None else g[:, t])
        assert_close(now, o[:, t], 4 * attended("float32", 90))
    assert_close(state, S, attended("float32", 90))


def test_a_step_takes_signs_scales_and_sixteen_bits(rng):
    import ml_dtypes

    q, k, v, g, S0 = problem(rng, (3,), 1, 4, 6, "vector", "bfloat16")
    sign = rng.choice([-1, 1], (3, 4))
    state = S0.astype(np.float32)
    o, S = linscan.linear_attention_step(q[:, 0], k[:, 0], v[:, 0], state, g[:, 0], scale=0.5, sign=sign)
    assert (o.dtype, S.dtype) == (ml_dtypes.bfloat16, np.float32)
    want = oracles.linear_attention(q, k, v, g, S0, 0.5, sign=sign[:, None])
    assert_close(o, want[0][:, 0], attended("bfloat16", 1))
    assert_close(S, want[1], attended("float32", 1))
    assert linscan.linear_attention_step(q[0, 0], k[0, 0], v[0, 0], state[0], -0.1)[0].shape == (6,)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("wide", "result"), [("float32", "bfloat16"), ("float64", "float64")])
def test_gates_in_the_arithmetics_dtype_leave_16_bit_results(rng, engine, wide, result):
    q, k, v, g, S0 = problem(rng, (2,), 5, 3, 4, "vector", "bfloat16")
    g, S0 = (x.astype(wide) for x in (g, S0))
    with linscan.use_engine(engine):
        (o, S), pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
    assert (o.dtype.name, S.dtype) == (result, wide)
    assert [x.dtype for x in pullback(o, S)] == [x.dtype for x in (q, k, v, g, S0)]
    beta = rng.uniform(0, 1, (2, 5)).astype(wide)
    with linscan.use_engine(engine):
        assert linscan.delta_rule(q, k, v, beta, g[..., 0], S0)[0].dtype.name == result


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_sequences_equal_separate_calls(rng, engine, decay):
    q, k, v, g, S0 = problem(rng, (2,), 150, 4, 3, decay)
    starts = [0, 1, 40, 64, 111]
    reset = np.zeros(150, bool)
    reset[starts] = True
    with linscan.use_engine(engine):
        o, S = linscan.linear_attention(q, k, v, g, S0, reset=reset)
        for lo, hi in zip(starts, [*starts[1:], 150], strict=True):
            part = linscan.linear_attention(*(None if x is None else x[:, lo:hi] for x in (q, k, v, g)))
            assert_close(o[:, lo:hi], part[0], attended("float64", 150))
    assert_close(S, part[1], attended("float64", 150))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_minus_infinity_forgets_exactly(rng, engine, decay):
    q, k, v, g, S0 = problem(rng, (2,), 130, 4, 3, decay, "float32")
    g[:, [3, 4, 16, 63, 64, 100]] = -np.inf
    S0[0] = np.nan  # nor does what is not finite get through
    with linscan.use_engine(engine):
        (o, S), pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
        dg = pullback(o, S)[3]
        alone = linscan.linear_attention(*(x[:, 100:] for x in (q, k, v, g)))
        late = linscan.linear_attention(q, k, v, g, np.full_like(S0, 1e30))
    assert np.isnan(o[0, :3]).all()
    assert_close(o[:, 100:], alone[0], attended("float32", 30))
    np.testing.assert_array_equal(late[0][:, 64:], o[:, 64:])
    assert not dg[1][[3, 4, 16, 63, 64, 100]].any()
    assert np.isfinite(dg[1]).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, engine, decay, bad):
    clean = problem(rng, (3,), 140, 4, 3, decay)
    want = oracles.linear_attention(*clean)
    for which in range(3):
        args = [None if x is None else x.copy() for x in clean]
        args[which][1, 70, 1] = bad
        with linscan.use_engine(engine):
            (o, S), pullback = linscan.linear_attention_vjp(*args)
            grads = pullback(np.ones_like(o), np.ones_like(S))
        assert not np.isfinite(o[1, 70]).all()
        touched = np.zeros(o.shape, bool)
        touched[1, 70 : 71 if which == 0 else None] = True
        assert_close(o[~touched], want[0][~touched], attended("float64", 140))
        assert np.isfinite(S[[0, 2]]).all()
        for grad in (x for x in grads if x is not None):
            assert np.isfinite(grad[[0, 2]]).all()
        if which == 2:  # v is not read before its time: queries of earlier steps have their gradient
            assert np.isfinite(grads[0][1, :70]).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("mean", [0.01, 0.3, 1.5])
def test_growing_states_are_the_loops(rng, engine, decay, mean):
    """A positive g: the sums of one chunk leave float32's range long before the state does."""
    q, k, v, g, S0 = problem(rng, (2,), 100, 4, 3, decay, "float32", mean)
    g *= rng.choice([-1, 1], g.shape).astype(g.dtype)
    want = oracles.linear_attention(q, k, v, g, S0)
    with linscan.use_engine(engine):
        close(linscan.linear_attention(q, k, v, g, S0), want, "float32", 100, 8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("length", [1, 37, 70])
def test_gradients(rng, engine, reverse, decay, dtype, length):
    q, k, v, g, S0 = problem(rng, (2,), length, 3, 2, decay, dtype)
    options = {"reverse": reverse, "scale": 0.5, "directions": 2}
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.linear_attention_vjp, q, k, v, g, S0, **options)
        reset, sign = rng.random(length) < 0.1, rng.choice([-1, 1], (1, length))
        options = {**options, "reset": reset, "sign": sign, "directions": 1}
        linscan.check_vjp(linscan.linear_attention_vjp, q, k, v, g, None, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
def test_gradients_of_broadcast_arguments(rng, engine, decay):
    q, k, v, g, S0 = problem(rng, (2, 2), 20, 3, 2, decay)
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.linear_attention_vjp, q, k[:, :1], v[0], g[:1], S0[0, 0], directions=1)
        linscan.check_vjp(linscan.linear_attention_vjp, q, k[:, :1], v[:1], -0.3, S0, directions=1)
        linscan.check_vjp(linscan.linear_attention_vjp, q[:, :, :], k, v[0, 0], g[:1, :1, :1], None, directions=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_growing_states(rng, engine):
    q, k, v, g, S0 = problem(rng, (2,), 40, 3, 2, "vector")
    g[0] = -g[0]
    g[1, 5] = 360
    g[1, 6] = -360
    with linscan.use_engine(engine):
        (o, _), pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
        grads = pullback(random(rng, o.shape, "float64") * (np.abs(o) < 1e30), None)
    assert all(np.isfinite(x).all() for x in grads)
    with linscan.use_engine("reference"):
        linscan.check_vjp(linscan.linear_attention_vjp, q[:1], k[:1], v[:1], g[:1], S0[:1], directions=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_shape(rng, dtype):
    args = problem(rng, (2, 3), 33, 4, 5, "vector", dtype, shared=True)
    (o, S), pullback = linscan.linear_attention_vjp(*args)
    do, dS = random(rng, o.shape, dtype), random(rng, S.shape, S.dtype)
    exact = linscan.linear_attention_vjp(*map(oracles.wide, args))[1](oracles.wide(do), oracles.wide(dS))
    for x, grad, want in zip(args, pullback(do, dS), exact, strict=True):
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
        assert_close(grad, want, 8 * attended(dtype, 33))
    assert not any(x.any() for x in pullback(None, None))


def test_bits_depend_neither_on_workers_nor_on_other_rows(rng):
    for decay in DECAYS:
        args = problem(rng, (5,), 200, 20, 30, decay, "float32")
        (o, S), pullback = linscan.linear_attention_vjp(*args, workers=1)
        grads = pullback(o, S)
        for workers in (2, 3):
            other, back = linscan.linear_attention_vjp(*args, workers=workers)
            for x, y in zip((o, S, *grads), (*other, *back(o, S)), strict=True):
                np.testing.assert_array_equal(x, y)
        last, back = linscan.linear_attention_vjp(*(None if x is None else x[-1:] for x in args))
        for x, y in zip((o, S, *grads), (*last, *back(o[-1:], S[-1:])), strict=True):
            if x is not None:
                np.testing.assert_array_equal(x[-1:], y)


def test_the_rank_of_g_says_what_it_is(rng):
    """With T = K = H, only the number of axes can tell a decay per step from one per step and channel."""
    q, k, v, _, _ = problem(rng, (4,), 4, 4, 2, None)
    g = -rng.random((4, 4))
    scalar = linscan.linear_attention(q, k, v, g)
    for vector in (np.repeat(g[..., None], 4, -1), g[..., None]):
        close(linscan.linear_attention(q, k, v, vector), scalar, "float64", 4)
    for constant in (-0.5, np.full((1, 1), -0.5), np.full((1, 1, 1), -0.5)):
        close(linscan.linear_attention(q, k, v, constant), linscan.linear_attention(q, k, v, 0 * g - 0.5), "float64", 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_precision_is_without_effect_on_a_cpu(rng, dtype):
    args = problem(rng, (2,), 70, 5, 3, "scalar", dtype)
    for x, y in zip(linscan.linear_attention(*args), linscan.linear_attention(*args, precision="tf32"), strict=True):
        np.testing.assert_array_equal(x, y)


def test_errors_say_who_what_and_what_came():
    q, v = np.ones((2, 8, 4)), np.ones((2, 8, 3))
    with pytest.raises(ValueError, match=r"linear_attention: k must be \(…, T = 8, K = 4\); got \(2, 8, 3\)"):
        linscan.linear_attention(q, v, v)
    with pytest.raises(ValueError, match=r"linear_attention: v must be \(…, T = 8, V = 3\); got \(2, 7, 3\)"):
        linscan.linear_attention(q, q, v[:, :7])
    with pytest.raises(ValueError, match=r"linear_attention: q must have a time and a feature axis; got \(8,\)"):
        linscan.linear_attention(np.ones(8), q, v)
    with pytest.raises(ValueError, match=r"g must have one axis less than q.*got 1 beside 3"):
        linscan.linear_attention(q, q, v, np.ones(8))
    with pytest.raises(ValueError, match=r"linear_attention: g must broadcast to \(2, 8\); got \(2, 7\)"):
        linscan.linear_attention(q, q, v, np.ones((2, 7)))
    with pytest.raises(ValueError, match=r"S0 must be \(…, K = 4, V = 3\); got \(3, 4\)"):
        linscan.linear_attention(q, q, v, None, np.ones((3, 4)))
    with pytest.raises(TypeError, match=r"linear_attention: S0 must be an array; got dict"):
        linscan.linear_attention(q, q, v, None, {})
    with pytest.raises(ValueError, match=r"leading axes: q and k and v must broadcast; got \(2,\) and \(3,\)"):
        linscan.linear_attention(q, np.ones((3, 8, 4)), v)
    with pytest.raises(ValueError, match=r"linear_attention: sign must be 1 or -1 everywhere"):
        linscan.linear_attention(q, q, v, sign=np.zeros((2, 8)))
    with pytest.raises(TypeError, match=r"linear_attention: g must be real; got complex128"):
        linscan.linear_attention(q, q, v, np.ones((2, 8)) * 1j)
    with pytest.raises(TypeError, match=r"linear_attention: reset must be boolean; got float64"):
        linscan.linear_attention(q, q, v, reset=np.ones(8))
    for f in (linscan.linear_attention, linscan.linear_attention_vjp):
        with pytest.raises(ValueError, match=rf"{f.__name__}: precision must be one of 'exact', 'tf32'; got 'half'"):
            f(q, q, v, precision="half")
    with pytest.raises(ValueError, match=r"linear_attention_vjp: do must have shape \(2, 8, 3\); got \(2, 8, 4\)"):
        linscan.linear_attention_vjp(q, q, v)[1](q, None)
    with pytest.raises(ValueError, match=r"linear_attention_step: k must be"):
        linscan.linear_attention_step(q[:, 0], v[:, 0], v[:, 0], np.ones((4, 3)))


def test_half_precision_carries_its_state_in_float32():
    q = k = np.ones((4096, 1), np.float16)
    o, S = linscan.linear_attention(q, k, np.full((4096, 1), 2.0**-11, np.float16))
    assert (o[-1, 0], S[0, 0]) == (2.0, 2.0)
    assert eps("float16") > 2.0**-11
