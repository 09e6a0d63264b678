"""The laws of matrix states step after step on the GPU, and what only a GPU can get wrong: tiles, layouts, streams."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import bits_repeat, on_gpu, poison, same
from tests.ops.test_delta_rule import delta_problem, dplr_problem, log_decay
from tests.tolerances import accumulated, assert_close, eps

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")


def linear_problem(rng, length, key, value, dtype, kind, lead=(2,)):
    """Queries, keys, values, decays and a state."""
    q, k, v, _, g, S0 = delta_problem(rng, length, key, value, dtype, kind, lead)
    return q, k, v, g, S0


PROBLEMS = {
    "linear_attention": (linear_problem, linscan.linear_attention, linscan.linear_attention_vjp),
    "delta_rule": (delta_problem, linscan.delta_rule, linscan.delta_rule_vjp),
    "dplr_attention": (dplr_problem, linscan.dplr_attention, linscan.dplr_attention_vjp),
}


def check(op, problem, **options):
    """Output, final state and gradients: those of the reference engine in double precision on the host."""
    vjp, dtype, length = PROBLEMS[op][2], problem[0].dtype, problem[1].shape[-2]
    reset = options.pop("reset", None)
    poison()
    (o, S), pullback = vjp(*on_gpu(*problem), reset=None if reset is None else cupy.asarray(reset), **options)
    wide = [x if x is None else oracles.wide(x) for x in problem]
    with linscan.use_engine("reference"):
        (want_o, want_S), want = vjp(*wide, reset=reset, **options)
    assert o.dtype == dtype
    assert_close(o.get(), want_o, accumulated(dtype, length), "o")
    assert_close(S.get(), want_S, accumulated(S.dtype, length), "S")
    rng = np.random.default_rng(3)
    do, dS = random(rng, o.shape, dtype), random(rng, S.shape, S.dtype)
    poison()
    for i, (got, exact) in enumerate(zip(pullback(*on_gpu(do, dS)), want(*map(oracles.wide, (do, dS))), strict=True)):
        assert (got is None) == (exact is None), i
        if got is not None:
            assert_close(got.get(), exact, 2 * accumulated(dtype, length), f"gradient {i}")


# Every variant of a kernel takes a second or more to compile: most tests share the widths 12 and 20.


@pytest.mark.parametrize("op", PROBLEMS)
def test_tails_of_every_tile(rng, op):
    for length in (1, 2, 15, 16, 17, 63, 64, 65, 200):
        check(op, PROBLEMS[op][0](rng, length, 12, 20, "float32", "vector"))


@pytest.mark.parametrize(
    ("op", "dtype", "kind"),
    [
        ("delta_rule", "float32", None),
        ("linear_attention", "float64", "scalar"),
        ("delta_rule", "float64", "vector"),
        ("linear_attention", "complex64", "scalar"),
        ("dplr_attention", "complex64", None),
        ("dplr_attention", "complex128", "vector"),
    ],
)
def test_every_dtype_and_decay(rng, op, dtype, kind):
    check(op, PROBLEMS[op][0](rng, 90, 12, 20, dtype, kind), scale=0.5)


@pytest.mark.parametrize(
    ("op", "key", "value", "dtype"),
    [
        ("linear_attention", 1, 9, "float32"),
        ("delta_rule", 3, 1, "float32"),
        ("dplr_attention", 17, 40, "float32"),
        ("linear_attention", 128, 128, "float32"),
        ("delta_rule", 128, 128, "float32"),
        ("dplr_attention", 128, 128, "float32"),
        ("delta_rule", 300, 5, "float32"),
        ("linear_attention", 256, 130, "float64"),
        ("dplr_attention", 130, 256, "complex128"),
    ],
)
def test_any_width(rng, op, key, value, dtype):
    heads = 133 if key == 128 else 1  # blocks of eight warps where there are many
    check(op, PROBLEMS[op][0](rng, 70, key, value, dtype, "vector", lead=(heads,)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storage_of_16_bits(rng, dtype):
    check("dplr_attention", dplr_problem(rng, 90, 130, 20, dtype, "vector"))  # tensor cores take up to 128 keys


@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_options(rng, op, kind):
    problem = PROBLEMS[op][0](rng, 150, 12, 20, "float32", kind, lead=(2, 3))
    reset = rng.random((2, 3, 150)) < 0.05
    check(op, problem, reset=reset)
    check(op, problem, reverse=True, reset=reset)
    shared = [x if i in (0, 2) or x is None else x[:, :1] for i, x in enumerate(problem)]
    check(op, shared, reverse=True)
    strong = list(problem)
    strong[-2] = log_decay(rng, kind, (2, 3), 150, 12, np.float32, 30)
    strong[-2][..., 7] = -np.inf
    check(op, strong)


def test_several_steps_per_token_and_a_write_key(rng):
    q, _, _, _, g, S0 = delta_problem(rng, 50, 12, 20, "float64", "vector")
    _, k, v, beta, _, _ = delta_problem(rng, 150, 12, 20, "float64", None)
    check("delta_rule", (q, k, v, beta, g, S0), n_householder=3)
    q, k, v, beta, g, S0 = delta_problem(rng, 90, 12, 20, "float64", "scalar")
    check("delta_rule", (q, k, v, beta / 2, g, S0, k), reverse=True)


@pytest.mark.parametrize("op", PROBLEMS)
def test_what_is_forgotten_stays_where_it_was(rng, op):
    make, run, vjp = PROBLEMS[op]
    problem = make(rng, 100, 12, 20, "float32", "vector")
    problem[2][1, 20, 3] = np.nan
    reset = np.zeros((2, 100), bool)
    reset[:, [0, 50]] = True
    o, S = run(*on_gpu(*problem), reset=cupy.asarray(reset))
    bad = np.isnan(o.get())
    assert bad[1, 20:50, 3].all()
    assert bad.sum() == 30
    assert bool(cupy.isfinite(S).all())
    _, pullback = vjp(*on_gpu(*problem), reset=cupy.asarray(reset))
    dv = pullback(cupy.ones_like(o))[2].get()
    assert np.isfinite(dv[:, 50:]).all()
    assert np.isfinite(dv[0]).all()


@pytest.mark.parametrize("op", ["linear_attention", "delta_rule"])
def test_bits_repeat_and_depend_on_nothing_else(rng, op):
    make, run, vjp = PROBLEMS[op]
    args = on_gpu(*make(rng, 200, 64, 128, "float32", "scalar", lead=(150,)))
    bits_repeat(run, vjp, args)


def test_many_heads(rng):
    q, k, v, beta, g, S0 = delta_problem(rng, 3, 4, 4, "float32", "scalar", lead=(70_000,))
    o, S = linscan.delta_rule(*on_gpu(q, k, v, beta, g, S0))
    for at in (0, 65_536, 69_999):
        want = oracles.delta_rule(*(x[at] for x in (q, k, v, beta, g, S0)))
        assert_close(o[at].get(), want[0], accumulated("float32", 3))
        assert_close(S[at].get(), want[1], accumulated("float32", 3))


def test_views_are_read_where_they_lie(rng):
    q, k, v, beta, g, S0 = on_gpu(*delta_problem(rng, 70, 12, 20, "float32", "vector", lead=(2, 3)))
    turned = [cupy.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    wide = cupy.repeat(turned[0], 2, axis=-1)[..., ::2]
    want = linscan.delta_rule(q, k, v, beta, g, S0)
    for first in (turned[0], wide):
        got = linscan.delta_rule(first, *turned[1:], beta[..., ::-1].copy()[..., ::-1], g, S0)
        assert all(same(x, y) for x, y in zip(got, want, strict=True))


def test_a_captured_graph_runs_again(rng):
    args = on_gpu(*linear_problem(rng, 90, 12, 20, "float32", "vector"))
    want = linscan.linear_attention(*args)[0]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        linscan.linear_attention(*args)
        stream.begin_capture()
        o, _ = linscan.linear_attention(*args)
        graph = stream.end_capture()
        o.fill(0)
        graph.launch(stream)
    stream.synchronize()
    assert same(o, want)


@pytest.mark.parametrize(
    ("dtype", "key", "value", "kind"),
    [
        ("bfloat16", 128, 128, "scalar"),
        ("float16", 100, 65, "vector"),
        ("float32", 256, 40, "vector"),
        ("float32", 300, 8, "scalar"),
        ("float64", 128, 130, None),
        ("complex64", 4, 3, "scalar"),
        ("complex128", 33, 40, "vector"),
    ],
)
def test_stepping_equals_the_loop(rng, dtype, key, value, kind):
    for op, (make, _, _) in PROBLEMS.items():
        *problem, g, S = make(rng, 3, key, value, dtype, kind)
        want, end = getattr(oracles, op)(*problem, g, S)
        arrays, state, decay = on_gpu(*problem), cupy.asarray(S), None if g is None else cupy.asarray(g)
        run = getattr(linscan, f"{op}_step")
        for t in range(3):
            poison()
            o, state = run(*(x[:, t] for x in arrays), state, None if g is None else decay[:, t])
            assert o.dtype == dtype_of(dtype)
            assert_close(o.get(), want[:, t], eps(dtype) + accumulated(state.dtype, key), op)
        assert_close(state.get(), end, accumulated(state.dtype, key), op)


def test_a_token_of_several_steps(rng):
    q, _, _, _, g, S = delta_problem(rng, 4, 16, 20, "float32", "vector")
    _, k, v, beta, _, _ = delta_problem(rng, 12, 16, 20, "float32", None)
    want, _ = oracles.delta_rule(q, k, v, beta, g, S, None, 3)
    q, k, v, beta, g, state = on_gpu(q, k, v, beta, g, S)
    for t in range(4):
        at = slice(3 * t, 3 * t + 3)
        o, state = linscan.delta_rule_step(q[:, t], k[:, at], v[:, at], beta[:, at], state, g[:, t], n_householder=3)
    assert_close(o.get(), want[:, -1], accumulated("float32", 16))


def test_parity_by_a_negative_eigenvalue(rng):
    bits = rng.integers(0, 2, (3, 4096))
    key = cupy.ones((3, 4096, 1))
    o, _ = linscan.delta_rule(key, key, 0 * key, cupy.asarray(2.0 * bits), S0=cupy.ones((3, 1, 1)))
    assert float(cupy.abs(o[..., 0] - cupy.asarray(1 - 2 * (bits.cumsum(axis=-1) % 2))).max()) <= 1e-10


@pytest.mark.parametrize("size", [3, 5])
def test_permutation_groups_by_transpositions(rng, size):
    """A permutation of n things is at most n - 1 swaps, and a swap is the reflection along (e_i - e_j) / sqrt(2)."""
    steps, n, state = 4096, size - 1, np.arange(size)
    k, want = np.zeros((steps * n, size)), np.zeros((steps, size))
    for t in range(steps):
        for i in range(n):
            x, y = rng.choice(size, 2, replace=False)
            k[t * n + i, [x, y]] = np.array([1, -1]) / np.sqrt(2)
            state[[x, y]] = state[[y, x]]
        want[t] = state
    q = np.broadcast_to(np.eye(size)[:, None], (size, steps, size))
    args = on_gpu(q, k, np.zeros((steps * n, 1)), np.full(steps * n, 2.0))
    start = np.arange(size, dtype=np.float64)[:, None]
    o, _ = linscan.delta_rule(*args, None, cupy.asarray(start), n_householder=n)
    assert np.abs(o.get()[..., 0].T - want).max() <= 1e-10
