"""Laws of `local_attention`, `local_attention_step` and `local_attention_vjp`, on every engine that runs on the CPU."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, averaged

ENGINES = ["reference", "cpu"]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def draw(rng, length, dtype="float64", lead=(), width=5, value=3):
    """Queries, keys, values and log gates."""
    q, k = (random(rng, (*lead, length, width), dtype) for _ in range(2))
    return q, k, random(rng, (*lead, length, value), dtype), -rng.random((*lead, length)).astype(dtype_of(dtype))


def every_row(q, k, v, window, g=None, **options):
    """The oracle for each index of the broadcast leading axes."""
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], () if g is None else g.shape[:-1])
    q, k, v = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v))
    g = None if g is None else np.broadcast_to(g, lead + g.shape[-1:])
    o = np.empty(lead + v.shape[-2:])
    for at in np.ndindex(lead):
        o[at] = oracles.local_attention(q[at], k[at], v[at], window, None if g is None else g[at], **options)
    return o


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 33, 130])
def test_equals_the_loop(rng, engine, dtype, length):
    q, k, v, g = draw(rng, length, dtype)
    with linscan.use_engine(engine):
        for window in (1, 2, 17, 64, 1000):
            for causal in (True, False):
                o = linscan.local_attention(q, k, v, window, g, causal=causal)
                assert o.dtype == dtype_of(dtype)
                want = oracles.local_attention(q, k, v, window, g, causal=causal)
                assert_close(o, want, averaged(dtype, 5, window))


@settings(max_examples=30)
@given(
    length=st.integers(1, 70),
    window=st.integers(1, 90),
    causal=st.booleans(),
    reverse=st.booleans(),
    flags=st.lists(st.booleans(), min_size=3, max_size=3),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    dtype=st.sampled_from(["float32", "float64"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_window_layout_mask_reset_and_direction(
    length, window, causal, reverse, flags, layout, dtype, engine, seed
):
    rng = np.random.default_rng(seed)
    *arrays, g = draw(rng, length, dtype)
    arrays = [laid_out(x, layout) for x in arrays]
    options = {"causal": causal, "mask": rng.random(length) < 0.7, "reset": rng.random(length) < 0.1}
    options = {name: x for name, x in options.items() if name == "causal" or flags[name == "mask"]}
    g = g if flags[2] else None
    copies = [x.copy() for x in arrays]
    with linscan.use_engine(engine):
        o = linscan.local_attention(*arrays, window, g, reverse=reverse, scale=0.7, **options)
    turn = slice(None, None, -1 if reverse else 1)
    options = {name: x if name == "causal" else x[turn] for name, x in options.items()}
    turned = [x[turn] for x in copies], None if g is None else g[turn]
    want = oracles.local_attention(*turned[0], window, turned[1], scale=0.7, **options)[turn]
    assert_close(o, want, averaged(dtype, 5, min(window, length)))
    for x, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[::-1].copy()[::-1]
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
def test_grouped_key_heads_and_other_broadcasting(rng, engine):
    q, _, _, g = draw(rng, 21, lead=(2, 3, 2))
    _, k, v, _ = draw(rng, 21, lead=(3, 1))
    with linscan.use_engine(engine):
        for gate in (None, g, g[0, :, :1]):
            o = linscan.local_attention(q, k, v, 6, gate)
            assert_close(o, every_row(q, k, v, 6, gate), averaged("float64", 5, 6))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12)
@given(
    cuts=st.lists(st.integers(0, 50), max_size=4),
    window=st.sampled_from([1, 2, 9, 80]),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_splitting_anywhere_and_carrying_the_state_changes_nothing(engine, cuts, window, reverse, seed):
    rng = np.random.default_rng(seed)
    q, k, v, g = draw(rng, 50, lead=(2,))
    g[:, 30] = -np.inf
    reset, mask = rng.random(50) < 0.05, rng.random((2, 50)) < 0.8
    pieces = list(pairwise([0, *sorted(cuts), 50]))
    state, parts = 0, []
    with linscan.use_engine(engine):
        whole = linscan.local_attention(q, k, v, window, g, mask=mask, reset=reset, reverse=reverse)
        for lo, hi in reversed(pieces) if reverse else pieces:
            part = slice(lo, hi)
            options = {"mask": mask[:, part], "reset": reset[part], "reverse": reverse}
            arrays = (x[:, part] for x in (q, k, v))
            o, state = linscan.local_attention(*arrays, window, g[:, part], state, **options)
            parts.append(o)
    assert state.shape == (2, window - 1, 5 + 3 + 2)
    assert_close(np.concatenate(parts[::-1] if reverse else parts, axis=1), whole, averaged("float64", 5, window))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 4, 60])
def test_stepping_equals_all_at_once_in_constant_memory(rng, dtype, window):
    q, k, v, g = draw(rng, 40, dtype, lead=(2, 3))
    k, v, g = k[:, :1], v[:, :1], g[:, :1]
    whole, last = linscan.local_attention(q, k, v, window, g, state=0)
    state = 0
    for t in range(40):
        arrays = (x[..., t, :] for x in (q, k, v))
        o, state = linscan.local_attention_step(*arrays, window, g[..., t], state)
        assert (o.dtype, state.shape) == (dtype_of(dtype), (2, 1, window - 1, 10))
        assert_close(o, whole[..., t, :], averaged(dtype, 5, window))
    np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_query_that_sees_no_key_gets_zero_and_nothing_flows_back(rng, engine):
    q, k, v, g = draw(rng, 20)
    mask = np.ones(20, bool)
    mask[5:12] = False
    k[15:] = -np.inf  # scores of -inf: weights of zero
    q = np.abs(q)
    with linscan.use_engine(engine):
        o, pullback = linscan.local_attention_vjp(q, k, v, 3, g, mask=mask)
        do = np.zeros_like(o)
        do[7:12] = do[17:] = 1
        grads = pullback(do)[:4]
    assert not o[7:12].any()
    assert not o[17:].any()
    assert o[:7].any(1).all()
    for grad in grads:
        assert not grad.any()
    o, _ = linscan.local_attention_step(np.ones(2), np.full(2, -np.inf), np.full(3, np.inf), 4)
    assert not o.any()
    assert_close(linscan.local_attention(q, k, v, 3, mask=np.zeros(20, bool)), np.zeros((20, 3)), 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_infinite_gate_is_a_reset(rng, engine):
    q, k, v, g = draw(rng, 30)
    reset = rng.random(30) < 0.2
    closed = np.where(reset, -np.inf, g)
    with linscan.use_engine(engine):
        o, pullback = linscan.local_attention_vjp(q, k, v, 9, closed)
        grads = pullback(v)
        want, pullback = linscan.local_attention_vjp(q, k, v, 9, np.where(reset, 0, g), reset=reset)
    np.testing.assert_array_equal(o, want)
    *want, dg, _ = pullback(v)
    for x, y in zip(grads[:4], [*want, np.where(reset, 0, dg)], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_reach_only_the_queries_that_see_them(rng, engine, bad):
    q, k, v, g = draw(rng, 60, lead=(2,))
    clean = every_row(q, k, v, 7, g)
    for which in range(3):
        arrays = [x.copy() for x in (q, k, v)]
        arrays[which][1, 20, 1] = bad
        with linscan.use_engine(engine):
            o, pullback = linscan.local_attention_vjp(*arrays, 7, g)
            grads = pullback(np.ones_like(o))
        touched = np.zeros((2, 60), bool)
        touched[1, 20 : 21 if which == 0 else 27] = True
        if bad is np.nan or which == 2:
            assert not np.isfinite(o[touched]).all()
        assert_close(o[~touched], clean[~touched], averaged("float64", 5, 7))
        far = np.zeros((2, 60), bool)
        far[1, 14:27] = True
        for grad in grads[:4]:
            assert np.isfinite(grad[~far]).all()


def test_a_reset_forgets_even_what_is_not_finite(rng):
    q, k, v, g = draw(rng, 12)
    k[3], v[4], reset = np.nan, np.inf, np.arange(12) == 6
    o, state = linscan.local_attention(q, k, v, 9, g, 0, reset=reset)
    assert_close(o[6:], oracles.local_attention(q[6:], k[6:], v[6:], 9, g[6:]), averaged("float64", 5, 9))
    assert np.isfinite(state).all()
    more = linscan.local_attention_step(q[0], k[0], v[0], 9, g[0], state)[0]
    q, k, v, g = (np.concatenate([x[6:], x[:1]]) for x in (q, k, v, g))
    assert_close(more, oracles.local_attention(q, k, v, 9, g)[-1], averaged("float64", 5, 9))


@pytest.mark.parametrize("engine", ENGINES)
def test_large_scores_do_not_overflow_and_strong_gates_keep_their_digits(rng, engine):
    q, k, v, _ = draw(rng, 200, "float32")
    with linscan.use_engine(engine):
        o = linscan.local_attention(1000 * q, k, v, 50)
        assert np.isfinite(o).all()
        g = np.full(200, -30.0, np.float32)
        g[100:] = -1e-3
        o = linscan.local_attention(q, k, v, 50, g)
    assert_close(o, oracles.local_attention(q, k, v, 50, g), averaged("float32", 5, 50))


@pytest.mark.parametrize("window", [3, 100, 700])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, window):
    q, k, v, g = draw(rng, 900, "float32", (3,), width=64, value=32)
    one, pull_one = linscan.local_attention_vjp(q, k, v, window, g, workers=1)
    alone, pull_alone = linscan.local_attention_vjp(*(x[1:2].copy() for x in (q, k, v)), window, g[1:2])
    np.testing.assert_array_equal(alone, one[1:2])
    grads = pull_one(v)
    for workers in (2, 5):
        o, pull = linscan.local_attention_vjp(q, k, v, window, g, workers=workers)
        np.testing.assert_array_equal(o, one)
        for x, y in zip(pull(v)[:4], grads, strict=False):
            np.testing.assert_array_equal(x, y)
    for x, y in zip(pull_alone(v[1:2])[:4], grads, strict=False):
        np.testing.assert_array_equal(x, y[1:2])


def test_memory_is_that_of_a_window_not_of_a_square(rng):
    q, k, v, g = draw(rng, 6000, "float32", width=8, value=8)
    o, pullback = linscan.local_attention_vjp(q, k, v, 16, g, workers=1)
    tracemalloc.start()
    linscan.local_attention(q, k, v, 16, g, workers=1)
    pullback(o)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 6000**2 / 10  # a tenth of one (T, T) matrix


def flat(q, k, v, g=None, state=None, *, window, **options):
    """`local_attention_vjp` without its argument that has no gradient and without the marks in the state."""
    whole = state
    if state is not None:
        marks = np.ones((*state.shape[:-1], 1))
        marks[..., 1::4, :] = 0
        whole = np.concatenate([state, marks], -1)
    output, pullback = linscan.local_attention_vjp(q, k, v, window, g, whole, **options)
    if state is None:
        return output, pullback

    def pull(do, dstate=None):
        dstate = None if dstate is None else np.concatenate([dstate, np.ones_like(dstate[..., :1])], -1)
        *grads, dwhole = pullback(do, dstate)
        assert not dwhole[..., -1].any()
        return *grads, dwhole[..., :-1]

    return (output[0], output[1][..., :-1]), pull


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("window", [1, 5, 40])
def test_gradients(rng, engine, window):
    q, k, v, g = draw(rng, 21, lead=(2,), width=3, value=2)
    state = random(rng, (1, window - 1, 3 + 2 + 1), "float64")
    reset, mask = rng.random(21) < 0.1, rng.random(21) < 0.8
    with linscan.use_engine(engine):
        linscan.check_vjp(flat, q, k, v, g, None, window=window, causal=False, mask=mask)
        linscan.check_vjp(flat, q, k[:1], v, g[:1], state, window=window, reset=reset)
        linscan.check_vjp(flat, q[0], k, v[:1], None, state[0], window=window, reverse=True, mask=mask, scale=0.3)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_grouped_heads_where_only_the_queries_have_the_group(rng, engine):
    q, _, _, _ = draw(rng, 12, lead=(2, 3), width=3)
    _, k, v, g = draw(rng, 12, lead=(2, 1), width=3, value=2)
    state = random(rng, (2, 1, 3, 6), "float64")
    with linscan.use_engine(engine):
        linscan.check_vjp(flat, q, k, v, g, state, window=4)
        linscan.check_vjp(flat, q, k[0, 0], v[0, 0], g[0, 0], state[0, 0], window=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_agree_between_engines(rng, dtype):
    q, k, v, g = draw(rng, 150, dtype)
    wide = [oracles.wide(x) for x in (q, k, v, g)]
    with linscan.use_engine("reference"):
        want = linscan.local_attention_vjp(*wide[:3], 20, wide[3])[1](wide[2])
    grads = linscan.local_attention_vjp(q, k, v, 20, g)[1](v)
    assert grads[4] is None
    for x, y in zip(grads[:4], want, strict=False):
        assert x.dtype == dtype_of(dtype)
        assert_close(x, y, 4 * averaged(dtype, 5, 20))  # a product of two weighted sums, and the difference dP - D


def test_integers_and_python_numbers():
    q = np.arange(6).reshape(3, 2)
    assert linscan.local_attention(q, q, q, 2).dtype == np.float64
    assert linscan.local_attention(q.astype("f"), q.astype("f"), q.astype("f"), np.int64(2)).dtype == np.float32


def test_errors_say_who_what_and_what_came():
    x, y = np.ones((2, 8, 4)), np.ones((2, 8, 3))
    call = linscan.local_attention
    with pytest.raises(ValueError, match=r"q and k must have shape \(…, T, K\) and v \(…, T, V\); got \(2, 8, 4\) and"):
        call(x, y, x, 2)
    with pytest.raises(ValueError, match=r"local_attention: q and k must"):
        call(x, x, x[:, :7], 2)
    with pytest.raises(ValueError, match=r"local_attention: window must be at least 1; got 0"):
        call(x, x, x, 0)
    with pytest.raises(TypeError, match=r"local_attention: window must be an integer; got 1\.5"):
        call(x, x, x, 1.5)
    with pytest.raises(TypeError, match=r"must be real, for weights are ordered by size; got complex128"):
        call(x, x, x + 1j, 2)
    with pytest.raises(ValueError, match=r"a state needs causal=True"):
        call(x, x, x, 2, state=0, causal=False)
    with pytest.raises(ValueError, match=r"state must have shape \(…, 2, 10\) or be 0; got \(1, 10\)"):
        call(x, x, x, 3, state=np.ones((1, 10)))
    with pytest.raises(ValueError, match=r"leading axes: q and k and v must broadcast; got \(2,\) and \(3,\)"):
        call(x, np.ones((3, 8, 4)), x, 2)
    with pytest.raises(ValueError, match=r"local_attention: g must broadcast to \(8,\); got \(5,\)"):
        call(x, x, x, 2, np.ones(5))
    with pytest.raises(TypeError, match=r"local_attention: mask must be boolean; got float64"):
        call(x, x, x, 2, mask=np.ones(8))
    with pytest.raises(ValueError, match=r"local_attention_vjp: do must have shape \(2, 8, 4\); got \(3,\)"):
        linscan.local_attention_vjp(x, x, x, 2)[1](np.ones(3))
    with pytest.raises(ValueError, match=r"local_attention_step: q, k and v must have shape"):
        linscan.local_attention_step(1.0, x, x, 2)


def test_empty_axes():
    for shape in [(0, 4), (3, 0, 4), (0, 5, 4), (5, 0)]:
        o, pullback = linscan.local_attention_vjp(*[np.ones(shape)] * 3, 3, np.zeros(shape[:-1]), None)
        assert o.shape == shape
        assert [x.shape for x in pullback(None)[:4]] == [shape] * 3 + [shape[:-1]]
    (o, state), pullback = linscan.local_attention_vjp(*[np.ones((0, 2))] * 3, 3, None, np.ones((2, 6)))
    np.testing.assert_array_equal(state[..., [0, 1, 2, 3, 5]], 1)
    assert pullback(None, state)[4].shape == (2, 6)
