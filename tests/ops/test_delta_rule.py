"""Laws of `delta_rule`, `dplr_attention`, their steps and gradients, on every engine that runs on the CPU."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines import support
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import accumulated, assert_close, eps, error

ENGINES = ["reference", "cpu"]
LENGTHS = [1, 2, 16, 17, 63, 64, 65, 130]
DECAYS = [None, "scalar", "vector"]


def unit(x):
    """Rows of unit length."""
    size = np.sqrt((np.abs(oracles.wide(x)) ** 2).sum(axis=-1, keepdims=True))
    return (oracles.wide(x) / size).astype(x.dtype)


def log_decay(rng, kind, lead, length, key, dtype, mean=0.3):
    """Logarithms of decays of this mean, or None."""
    if kind is None:
        return None
    shape = (*lead, length) if kind == "scalar" else (*lead, length, key)
    return (-rng.exponential(mean, shape)).astype(dtype)


def delta_problem(rng, length, key, value, dtype, kind, lead=(2,)):
    """Queries, unit keys, values, beta in (0, 2), decays and a state of a stable delta rule."""
    q, v = random(rng, (*lead, length, key), dtype), random(rng, (*lead, length, value), dtype)
    k = unit(random(rng, (*lead, length, key), "float64")).astype(dtype_of(dtype))
    beta = rng.uniform(0, 2, (*lead, length)).astype(dtype_of(dtype))
    state = np.float32 if dtype in ("float16", "bfloat16") else dtype
    g = log_decay(rng, kind, lead, length, key, np.empty(0, dtype_of(dtype)).real.dtype)
    return q, k, v, beta, g, random(rng, (*lead, key, value), state)


def dplr_problem(rng, length, key, value, dtype, kind, lead=(2,)):
    """The same with a = -kk and b = kk alpha, alpha in (0, 1), as in RWKV-7."""
    q, kk, v, beta, g, S0 = delta_problem(rng, length, key, value, dtype, kind, lead)
    k = random(rng, (*lead, length, key), dtype)
    return q, k, v, -kk, (kk * beta[..., None] / 2).astype(kk.dtype), g, S0


PROBLEMS = {
    "delta_rule": (delta_problem, linscan.delta_rule, linscan.delta_rule_vjp, oracles.delta_rule),
    "dplr_attention": (dplr_problem, linscan.dplr_attention, linscan.dplr_attention_vjp, oracles.dplr_attention),
}


def engine_for(op, engine, dtype):
    if dtype not in support.dtypes(op, engine):
        pytest.skip(f"{engine} leaves {dtype} to the reference")
    return linscan.use_engine(engine)


def check(got, want, dtype, length):
    assert_close(got[0], want[0], accumulated(dtype, length), "o")
    assert_close(got[1], want[1], accumulated(got[1].dtype, length), "S")


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop_for_every_chunk_remainder(rng, op, engine, kind, length):
    make, run, _, loop = PROBLEMS[op]
    problem = make(rng, length, 5, 7, "float64", kind)
    with linscan.use_engine(engine):
        check(run(*problem, scale=0.5), loop(*problem, scale=0.5), "float64", length)


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DECAYS)
def test_every_dtype(rng, op, engine, dtype, kind):
    make, run, vjp, loop = PROBLEMS[op]
    problem = make(rng, 90, 8, 6, dtype, kind)
    with engine_for(op, engine, dtype):
        got = run(*problem)
        want = loop(*problem)
        assert got[0].dtype == dtype_of(dtype)
        check(got, want, dtype, 90)
        _, pullback = vjp(*problem)
        flows = random(rng, got[0].shape, dtype), random(rng, got[1].shape, got[1].dtype)
        grads = pullback(*flows)
    with linscan.use_engine("reference"):
        exact = vjp(*(x if x is None else oracles.wide(x) for x in problem))[1](*map(oracles.wide, flows))
    for name, x, grad, right in zip("abcdefg", problem, grads, exact, strict=False):
        if x is None:
            assert grad is None
        else:
            assert (grad.dtype, grad.shape) == (x.dtype, x.shape)
            assert_close(grad, right, 2 * accumulated(dtype, 90), name)


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("key", "value"), [(1, 1), (1, 9), (3, 1), (17, 40), (100, 36), (160, 136)])
def test_every_width(rng, op, engine, key, value):
    make, run, vjp, loop = PROBLEMS[op]
    problem = make(rng, 70, key, value, "float64", "vector", lead=(1,))
    with linscan.use_engine(engine):
        check(run(*problem), loop(*problem), "float64", 70)
        (o, S), pullback = vjp(*problem)
        grads = pullback(o, S)
    with linscan.use_engine("reference"):
        exact = vjp(*problem)[1](o, S)
    for grad, right in zip(grads, exact, strict=True):
        if right is not None:
            assert_close(grad, right, 2 * accumulated("float64", 70))


@given(
    length=st.integers(1, 150),
    kind=st.sampled_from(DECAYS),
    op=st.sampled_from(list(PROBLEMS)),
    reverse=st.booleans(),
    packed=st.booleans(),
    started=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_layout_state_reset_and_direction(length, kind, op, reverse, packed, started, layout, engine, seed):
    rng = np.random.default_rng(seed)
    make, run, _, loop = PROBLEMS[op]
    *problem, S0 = make(rng, length, 4, 3, "float64", kind)
    problem = [x if x is None else laid_out(x, layout) for x in problem]
    reset = rng.random(length) < 0.2 if packed else None
    options = {"reverse": reverse, "reset": reset}
    with linscan.use_engine(engine):
        got = run(*problem, S0 if started else None, **options)
    check(got, loop(*problem, S0 if started else None, **options), "float64", length)


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[..., ::-1].copy()[..., ::-1]
    x.flags.writeable = False
    return x


@given(
    cuts=st.lists(st.integers(0, 140), max_size=4),
    reverse=st.booleans(),
    op=st.sampled_from(list(PROBLEMS)),
    engine=st.sampled_from(ENGINES),
)
def test_splitting_anywhere_and_carrying_the_state_changes_nothing(cuts, reverse, op, engine):
    make, run, _, _ = PROBLEMS[op]
    *problem, S0 = make(np.random.default_rng(1), 140, 4, 5, "float64", "scalar")
    pieces = list(pairwise([0, *sorted(cuts), 140]))
    with linscan.use_engine(engine):
        whole, end = run(*problem, S0, reverse=reverse)
        state, parts = S0, []
        for lo, hi in reversed(pieces) if reverse else pieces:
            o, state = run(*(x[:, lo:hi] for x in problem), state, reverse=reverse)
            parts.append(o)
    joined = np.concatenate(parts[::-1] if reverse else parts, axis=1)
    check((joined, state), (whole, end), "float64", 140)


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [None, "vector"])
def test_reset_is_separate_calls_and_reverse_is_flip(rng, op, engine, kind):
    make, run, _, _ = PROBLEMS[op]
    *problem, S0 = make(rng, 150, 4, 3, "float64", kind)
    reset = np.zeros(150, bool)
    reset[[0, 20, 21, 100]] = True
    with linscan.use_engine(engine):
        o, S = run(*problem, S0, reset=reset)
        for lo, hi in pairwise([0, 20, 21, 100, 150]):
            part = run(*(x if x is None else x[:, lo:hi] for x in problem))
            assert_close(o[:, lo:hi], part[0], accumulated("float64", 150))
        assert_close(S, part[1], accumulated("float64", 150))
        back = run(*(x if x is None else x[:, ::-1] for x in problem), S0)
        o, S = run(*problem, S0, reverse=True)
    np.testing.assert_array_equal(o, back[0][:, ::-1])
    np.testing.assert_array_equal(S, back[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("kind", DECAYS)
def test_stepping_equals_running(rng, dtype, kind):
    q, k, v, beta, g, S = delta_problem(rng, 80, 4, 3, dtype, kind)
    o, end = linscan.delta_rule(q, k, v, beta, g, S, scale=2)
    state = S
    for t in range(80):
        at = None if g is None else g[:, t]
        out, state = linscan.delta_rule_step(q[:, t], k[:, t], v[:, t], beta[:, t], state, at, scale=2)
        assert (out.dtype, state.dtype) == (o.dtype, end.dtype)
        assert error(out, o[:, t]) <= 8 * accumulated(dtype, 80)
    assert_close(state, end, 2 * accumulated(end.dtype, 80))
    q, k, v, a, b, g, S = dplr_problem(rng, 80, 4, 3, dtype, kind)
    o, end = linscan.dplr_attention(q, k, v, a, b, g, S, scale=2)
    for t in range(80):
        at = None if g is None else g[:, t]
        rows = (x[:, t] for x in (q, k, v, a, b))
        out, S = linscan.dplr_attention_step(*rows, S, at, scale=2)
    assert out.dtype == o.dtype
    assert_close(S, end, 2 * accumulated(end.dtype, 80))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", DECAYS)
def test_several_steps_per_token_and_a_write_key(rng, engine, reverse, kind):
    length, n = 50, 3
    q, _, _, _, g, S0 = delta_problem(rng, length, 4, 3, "float64", kind)
    _, k, v, beta, _, _ = delta_problem(rng, length * n, 4, 3, "float64", None)
    w = unit(k + 0.2 * random(rng, k.shape, "float64"))
    reset = rng.random(length) < 0.1
    for key in (None, w):
        options = {"n_householder": n, "reverse": reverse, "reset": reset}
        args = q, k, v, beta if key is None else beta / 2, g, S0, key
        with linscan.use_engine(engine):
            got = linscan.delta_rule(*args, **options)
        check(got, oracles.delta_rule(*args, **options), "float64", length * n)
    if not reverse:
        state, rows = S0, slice(0, n)
        for t in range(3):
            rows = slice(t * n, t * n + n)
            at = None if g is None else g[:, t]
            o, state = linscan.delta_rule_step(
                q[:, t], k[:, rows], v[:, rows], beta[:, rows], state, at, n_householder=n
            )
        want, _ = oracles.delta_rule(q, k, v, beta, g, S0, None, n)
        assert_close(o, want[:, 2], accumulated("float64", 9))


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_broadcast_heads(rng, op, engine):
    make, _, vjp, _ = PROBLEMS[op]
    *problem, S0 = make(rng, 70, 4, 3, "float64", "vector", lead=(2, 3))
    shared = [x if i in (0, 2) else x[:, :1] for i, x in enumerate(problem)]
    full = [np.broadcast_to(x, (2, 3, *x.shape[2:])) for x in shared]
    with linscan.use_engine(engine):
        (o, S), pullback = vjp(*shared, S0[0])
        (o_full, S_full), pullback_full = vjp(*full, np.broadcast_to(S0[0], S0.shape))
        grads, grads_full = pullback(o, S), pullback_full(o, S)
    np.testing.assert_array_equal(o, o_full)
    np.testing.assert_array_equal(S, S_full)
    for i, (grad, x) in enumerate(zip(grads, [*shared, S0[0]], strict=False)):
        right = grads_full[i]
        axes = 0 if x.ndim == 3 and i == len(shared) else 1
        right = right if x.shape == right.shape else right.sum(axis=axes, keepdims=axes == 1)
        assert_close(grad, right, accumulated("float64", 70), str(i))


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients(rng, op, engine, kind, dtype):
    make, _, vjp, _ = PROBLEMS[op]
    problem = make(rng, 70, 3, 2, dtype, kind)
    more = () if op == "dplr_attention" else (None,)
    reset = np.zeros(70, bool)
    reset[[17, 30]] = True
    with engine_for(op, engine, dtype):
        linscan.check_vjp(vjp, *problem, *more, scale=0.5, directions=2)
        linscan.check_vjp(vjp, *problem, *more, reverse=True, reset=reset, directions=1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_several_steps_and_of_a_write_key(rng, engine, kind, n):
    q, _, _, _, g, _ = delta_problem(rng, 20, 3, 2, "float64", kind)
    _, k, v, beta, _, S0 = delta_problem(rng, 20 * n, 3, 2, "float64", None)
    w = unit(k + 0.2 * random(rng, k.shape, "float64"))[:1]
    reset = np.arange(20) == 7
    with linscan.use_engine(engine):
        for key, reverse in ((w, False), (None, True)):
            options = {"n_householder": n, "reverse": reverse, "reset": reset}
            linscan.check_vjp(linscan.delta_rule_vjp, q, k, v, beta, g, S0, key, directions=2, **options)
        linscan.check_vjp(linscan.delta_rule_vjp, q, k, v, 0.7, -0.1, None, None, directions=1, n_householder=n)


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mean", [1e-3, 0.1, 1, 5, 30])
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_float32_at_every_decay(rng, op, engine, mean, kind):
    make, _, vjp, loop = PROBLEMS[op]
    problem = list(make(rng, 300, 16, 16, "float32", kind))
    g_at = -2
    problem[g_at] = log_decay(rng, kind, (2,), 300, 16, np.float32, mean)
    with linscan.use_engine(engine):
        (o, S), pullback = vjp(*problem)
        grads = pullback(o, S)
    with linscan.use_engine("reference"):
        exact = vjp(*map(oracles.wide, problem))[1](oracles.wide(o), oracles.wide(S))
    want = loop(*problem)
    assert error(o, want[0]) <= 5e-6
    for i, (grad, right) in enumerate(zip(grads, exact, strict=True)):
        if right is not None:
            assert error(grad, right) <= 1e-5, i


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key", [16, 64])
def test_float32_with_keys_that_resemble_each_other_at_beta_2(rng, engine, key):
    shape = (2, 512, key)
    common = random(rng, (2, 1, key), "float64")
    k = unit(3 * unit(common) + unit(random(rng, shape, "float64")) * 1.4).astype(np.float32)
    q, v = random(rng, shape, "float32"), random(rng, shape, "float32")
    assert 0.75 < (k[:, 1:] * k[:, :-1]).sum(axis=-1).mean() < 0.95
    with linscan.use_engine(engine):
        o, _ = linscan.delta_rule(q, k, v, 2.0, -0.01)
        double, _ = linscan.delta_rule(*map(oracles.wide, (q, k, v)), 2.0, -0.01)
    want, _ = oracles.delta_rule(q, k, v, 2.0, -0.01)
    assert error(o, want) <= 5e-6
    assert error(double, want) <= 1e-12


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_minus_infinity_forgets_exactly(rng, op, engine, kind):
    make, _, vjp, loop = PROBLEMS[op]
    problem = list(make(rng, 100, 4, 3, "float64", kind))
    at = np.s_[:, [5, 6, 40, 63, 64, 99]] if kind == "scalar" else np.s_[:, [5, 6, 40, 63, 64, 99], 1]
    problem[-2][at] = -np.inf
    with linscan.use_engine(engine):
        (o, S), pullback = vjp(*problem)
        grads = pullback(o, S)
    check((o, S), loop(*problem), "float64", 100)
    assert all(np.isfinite(x).all() for x in grads if x is not None)
    assert not grads[len(problem) - 2][at].any()
    close = list(problem)
    close[-2] = np.maximum(problem[-2], -60)  # as good as zero to double precision
    with linscan.use_engine(engine):
        right = vjp(*close)[1](o, S)
    for grad, other in zip(grads, right, strict=True):
        if other is not None:
            assert_close(grad, other, accumulated("float64", 100))


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, op, engine, bad):
    make, run, vjp, loop = PROBLEMS[op]
    problem = make(rng, 100, 4, 3, "float64", "vector")
    clean, _ = loop(*problem)
    reset = np.zeros(100, bool)
    reset[60] = True
    after, _ = loop(*problem, reset=reset)
    for which in (0, 1, 2, 3):
        args = [x.copy() for x in problem]
        args[which][1, 21] = bad
        with linscan.use_engine(engine):
            o, _ = run(*args)
            (packed, S), pullback = vjp(*args, reset=reset)
            grads = pullback(np.ones_like(o), np.ones_like(S))
        assert not np.isfinite(o[1, 21]).all()
        assert_close(o[0], clean[0], accumulated("float64", 100))
        assert_close(o[1, :21], clean[1, :21], accumulated("float64", 100))
        assert_close(packed[:, 60:], after[:, 60:], accumulated("float64", 100))
        for grad in grads:
            if grad is not None:
                assert np.isfinite(grad[0]).all()
        assert all(np.isfinite(grads[i][1, 60:]).all() for i in range(3))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("op", ["linear_attention", "delta_rule", "dplr_attention"])
def test_a_complex_state_of_a_real_problem(rng, op, engine):
    """By linearity the state's imaginary part runs beside the rest; S0 decides the result's kind as any argument."""
    if op == "linear_attention":
        q, k, v, _, g, S0 = delta_problem(rng, 70, 5, 4, "float64", "scalar")
        args = q, k, v
    else:
        *args, g, S0 = PROBLEMS[op][0](rng, 70, 5, 4, "float64", "scalar")
    run = getattr(linscan, op)
    with engine_for(op, engine, "complex128"):
        o, S = run(*args, g, S0 + 1j * S0[::-1])
    real, imaginary = run(*args, g, S0), run(*args[:2], 0 * args[2], *args[3:], g, S0[::-1])
    for got, x, y in zip((o, S), real, imaginary, strict=True):
        assert got.dtype == np.complex128
        assert_close(got, x + 1j * y, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_positive_decays_give_what_the_loop_gives_until_they_overflow(rng, engine):
    q, k, v, beta, _, S0 = delta_problem(rng, 40, 4, 3, "float32", None)
    with linscan.use_engine(engine):
        grown = linscan.delta_rule(q, k, v, beta, 0.1, S0)
        for x, y in zip(grown, oracles.delta_rule(q, k, v, beta, 0.1, S0), strict=True):
            assert_close(x, y, np.exp(0.1 * 40) * accumulated("float32", 40))
        o, _ = linscan.delta_rule(q, k, v, beta, 10.0, S0)
        kept, _ = linscan.delta_rule(q, k, 0 * v, beta, 10.0)
    assert not kept.any()  # nothing written, nothing grown, though e^(10 C) is no float32
    assert not np.isfinite(o[:, 12:]).any()  # e^(10 t) leaves float32 at t = 8, for the loop as well


@pytest.mark.parametrize("shape", [(7, 90), (1, 300), (3, 64)])
@pytest.mark.parametrize("op", PROBLEMS)
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, op, shape):
    make, run, vjp, _ = PROBLEMS[op]
    problem = make(rng, shape[1], 20, 12, "float32", "scalar", lead=shape[:1])
    (o, S), pullback = vjp(*problem, workers=1)
    grads = pullback(o, S)
    for workers in (2, 3):
        (o_more, S_more), pullback_more = vjp(*problem, workers=workers)
        np.testing.assert_array_equal(o_more, o)
        np.testing.assert_array_equal(S_more, S)
        for x, y in zip(grads, pullback_more(o, S), strict=True):
            if x is not None:
                np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(run(*(x[-1:] for x in problem))[0], o[-1:])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("op", ["linear_attention", "delta_rule", "dplr_attention"])
def test_memory_is_that_of_the_states_between_chunks(rng, op, engine):
    q, k, v, a, b, g = (random(rng, (2, 2048, 64), "float32") / 8 for _ in range(6))
    args = {"linear_attention": (q, k, v), "delta_rule": (q, k, v, 1.0), "dplr_attention": (q, k, v, a, b)}[op]
    vjp = getattr(linscan, f"{op}_vjp")
    with linscan.use_engine(engine):
        vjp(*args, -abs(g))[1](v, None)  # compiles
        tracemalloc.start()
        vjp(*args, -abs(g))[1](v, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2 * 2048 * 64 * 64 / 5  # a fifth of the states of all steps


def track(q, k, beta, S0, n=1):
    """States of a delta rule that writes no values."""
    v = np.zeros((k.shape[0], S0.shape[1]))
    return linscan.delta_rule(q, k, v, beta, None, S0, n_householder=n)


@pytest.mark.parametrize("engine", ENGINES)
def test_parity_by_a_negative_eigenvalue(rng, engine):
    bits = rng.integers(0, 2, 4096)
    with linscan.use_engine(engine):
        one = np.ones((4096, 1))
        o, _ = track(one, one, 2.0 * bits, np.ones((1, 1)))
    assert np.abs(o[:, 0] - (-1.0) ** np.cumsum(bits)).max() <= 1e-10


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [3, 4, 5])
def test_permutation_groups_by_transpositions(rng, engine, size):
    """A permutation of n things is at most n - 1 swaps, and a swap is the reflection along (e_i - e_j) / sqrt(2)."""
    n, length = size - 1, 4096
    keys, words, state = np.zeros((length * n, size)), [], np.arange(size)
    for t in range(length):
        move = rng.permutation(size)
        left, step = move.copy(), t * n
        for i in range(size):
            while left[i] != i:
                j = left[i]
                left[[i, j]] = left[[j, i]]
                keys[step, i], keys[step, j] = 0.5**0.5, -(0.5**0.5)
                step += 1
        matrix = np.eye(size)
        for row in keys[t * n : t * n + n]:
            matrix = matrix - 2 * np.outer(row, row @ matrix)
        state = np.rint(matrix @ state).astype(int)
        words.append(state)
    q = np.broadcast_to(np.eye(size)[:, None, :], (size, length, size))
    with linscan.use_engine(engine):
        o, _ = track(q, keys, 2.0, np.arange(size, dtype=float)[:, None], n)
    assert np.abs(o[..., 0].T - np.array(words)).max() <= 1e-10


@pytest.mark.parametrize("engine", ENGINES)
def test_the_alternating_group_by_two_reflections(rng, engine):
    """A5 is the rotations of the icosahedron, and a rotation is two reflections."""
    turns, golden = [], (1 + 5**0.5) / 2
    for axis, order in (((0, 1, golden), 5), ((1, 1, 1), 3)):
        axis = np.array(axis) / np.linalg.norm(axis)
        first = np.cross(axis, [0.6, -0.3, 0.2])
        first /= np.linalg.norm(first)
        half = np.pi / order
        turns.append((first, np.cos(half) * first + np.sin(half) * np.cross(axis, first)))
    word, group = rng.integers(0, 2, 4096), [np.eye(3)]
    matrices = [np.eye(3) - 2 * np.outer(y, y) for y in (turns[0][0], turns[0][1], turns[1][0], turns[1][1])]
    moves = [matrices[1] @ matrices[0], matrices[3] @ matrices[2]]
    for found in group:  # grows while it runs, until closed
        for move in moves:
            if all(np.abs(move @ found - other).max() > 1e-6 for other in group):
                group.append(move @ found)
    assert len(group) == 60
    exact, where = [], np.eye(3)
    for x in word:
        where = min(group, key=lambda other, at=moves[x] @ where: np.abs(other - at).max())  # no drift: snapped
        exact.append(where)
    keys = np.array([key for x in word for key in turns[x]])
    q = np.broadcast_to(np.eye(3)[:, None, :], (3, 4096, 3))
    with linscan.use_engine(engine):
        o, _ = track(q, keys, 2.0, np.eye(3), 2)
    assert np.abs(np.swapaxes(o, 0, 1) - np.array(exact)).max() <= 1e-10


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_arrays(engine):
    S0 = np.ones((2, 4, 3))
    with linscan.use_engine(engine):
        for lead, length in (((2,), 0), ((0,), 5), ((2, 0), 5)):
            q, v = np.ones((*lead, length, 4)), np.ones((*lead, length, 3))
            state = S0 if lead == (2,) else None
            (o, S), pullback = linscan.delta_rule_vjp(q, q, v, 1.0, -0.5, state)
            assert (o.shape, S.shape) == ((*lead, length, 3), (*lead, 4, 3))
            grads = pullback(None, None)
            assert grads[0].shape == q.shape
            if state is not None:
                np.testing.assert_array_equal(S, S0)
                np.testing.assert_array_equal(pullback(None, S0)[5], S0)


def test_errors_say_who_what_and_what_came():
    q, v, beta = np.ones((2, 8, 4)), np.ones((2, 8, 3)), np.ones((2, 8))
    with pytest.raises(ValueError, match=r"delta_rule: k must be \(…, T = 8, K = 4\); got \(2, 8, 5\)"):
        linscan.delta_rule(q, np.ones((2, 8, 5)), v, beta)
    with pytest.raises(ValueError, match=r"delta_rule: S0 must be \(…, K = 4, V = 3\); got \(2, 3, 4\)"):
        linscan.delta_rule(q, q, v, beta, None, np.ones((2, 3, 4)))
    with pytest.raises(TypeError, match=r"delta_rule: S0 must be an array; got dict"):
        linscan.delta_rule(q, q, v, beta, None, {})
    with pytest.raises(ValueError, match=r"delta_rule: v must have a time and a feature axis; got \(8,\)"):
        linscan.delta_rule(q, q, np.ones(8), beta)
    with pytest.raises(ValueError, match=r"delta_rule: k must have T n_householder = 16 steps; got \(2, 8, 4\)"):
        linscan.delta_rule(q, q, v, beta, n_householder=2)
    with pytest.raises(ValueError, match=r"delta_rule: n_householder must be at least 1; got 0"):
        linscan.delta_rule(q, q, v, beta, n_householder=0)
    with pytest.raises(ValueError, match=r"delta_rule: precision must be one of 'exact', 'tf32'; got 'half'"):
        linscan.delta_rule(q, q, v, 1.0, precision="half")
    with pytest.raises(ValueError, match=r"dplr_attention: precision must be one of"):
        linscan.dplr_attention(q, q, v, q, q, precision="half")
    with pytest.raises(TypeError, match=r"dplr_attention: g must be real; got complex128"):
        linscan.dplr_attention(q, q, v, q, q, 1j * beta)
    with pytest.raises(TypeError, match=r"dplr_attention: reset must be boolean; got float64"):
        linscan.dplr_attention(q, q, v, q, q, reset=beta)
    with pytest.raises(ValueError, match=r"dplr_attention: the leading axes"):
        linscan.dplr_attention(q, q, v, np.ones((3, 8, 4)), q)
    with pytest.raises(ValueError, match=r"delta_rule_vjp: do must have shape \(2, 8, 3\); got \(8,\)"):
        linscan.delta_rule_vjp(q, q, v, beta)[1](np.ones(8))


def test_16_bit_results_are_as_good_as_their_storage(rng):
    problem = delta_problem(rng, 200, 16, 16, "float16", "scalar")
    o, S = linscan.delta_rule(*problem)
    want = oracles.delta_rule(*problem)
    assert S.dtype == np.float32
    assert error(o, want[0]) <= eps("float16")
    assert error(S, want[1]) <= 5e-6
