"""The laws of `local_attention` on the GPU, and what only a GPU can get wrong: tiles, layouts, streams."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import on_gpu, poison, same
from tests.tolerances import assert_close, averaged, eps

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def draw(rng, length, dtype="float64", lead=(), width=5, value=3):
    """Queries, keys, values and log gates."""
    q, k = (random(rng, (*lead, length, width), dtype) for _ in range(2))
    return q, k, random(rng, (*lead, length, value), dtype), -rng.random((*lead, length)).astype(dtype_of(dtype))


def loose(dtype, width, window):
    """The tolerance of weighted means; on tensor cores weights and what is weighted are rounded to the dtype."""
    if dtype in ("float16", "bfloat16"):
        return averaged("float32", width, window) + 4 * eps(dtype)
    return averaged(dtype, width, window)


def check(dtype, q, k, v, window, g=None, state=None, mask=None, reset=None, **options):
    """Outputs, final state and gradients: those of the reference engine in double precision on the host."""
    flags = {"mask": mask, "reset": reset}
    device = {name: None if x is None else cupy.asarray(x) for name, x in flags.items()}
    poison()
    with linscan.use_engine("cuda"):
        out, pullback = linscan.local_attention_vjp(*on_gpu(q, k, v), window, *on_gpu(g, state), **device, **options)
    wide = [None if x is None else oracles.wide(x) for x in (q, k, v, g, state)]
    with linscan.use_engine("reference"):
        want, back = linscan.local_attention_vjp(*wide[:3], window, *wide[3:], **flags, **options)
    o, exact = (out, want) if state is None else (out[0], want[0])
    assert o.dtype == dtype_of(dtype)
    assert_close(cupy.asnumpy(o), exact, loose(dtype, q.shape[-1], window), "o")
    rng = np.random.default_rng(3)
    given = [random(rng, o.shape, dtype)]
    if state is not None:
        np.testing.assert_array_equal(cupy.asnumpy(out[1]).astype(float), want[1])
        given.append(random(rng, out[1].shape, dtype))
    poison()
    grads = pullback(*on_gpu(*given))
    for name, x, y in zip(("q", "k", "v", "g", "state"), grads, back(*map(oracles.wide, given)), strict=True):
        assert (x is None) == (y is None), name
        if x is not None:  # a product of two weighted sums, and the difference dP - D
            assert_close(cupy.asnumpy(x), y, 4 * loose(dtype, q.shape[-1], window), f"gradient of {name}")
    return o


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 31, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_window(rng, dtype, window, causal):
    for length in (1, 64, 65, 170):
        q, k, v, g = draw(rng, length, dtype, (2,))
        check(dtype, q, k, v, window, g if length % 2 else None, causal=causal)


@pytest.mark.parametrize(
    ("dtype", "width", "value"),
    [("float16", *sizes) for sizes in ((64, 64), (128, 40), (65, 1), (256, 130))]
    + [("float32", *sizes) for sizes in ((33, 130), (256, 256))]
    + [("float64", *sizes) for sizes in ((64, 64), (200, 256))],
)
def test_any_width(rng, dtype, width, value):
    q, k, v, g = draw(rng, 90, dtype, (), width, value)
    check(dtype, q, k, v, 40, g)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_resets_states_and_direction(rng, dtype):
    q, k, v, g = draw(rng, 150, dtype, (2, 3))
    mask, reset = rng.random((2, 1, 150)) < 0.8, rng.random(150) < 0.05
    state = random(rng, (3, 29, 10), dtype)
    check(dtype, q, k[:, :1], v, 30, g, state, mask=mask, reset=reset)
    check(dtype, q, k, v[:1], 30, g[0], state, reverse=True, mask=mask, scale=0.3)
    check(dtype, q, k, v, 30, None, mask=mask, reset=reset, causal=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_no_key_gets_zero_and_nothing_flows_back(rng, dtype):
    q, k, v, g = draw(rng, 200, dtype)
    mask = np.ones(200, bool)
    mask[5:120] = False
    k[150:] = -np.inf  # scores of -inf: weights of zero
    q = np.abs(q)
    arrays = on_gpu(q, k, v)
    o, pullback = linscan.local_attention_vjp(*arrays, 30, *on_gpu(g), mask=cupy.asarray(mask))
    do = cupy.zeros_like(o)
    do[34:120] = do[180:] = 1
    assert not bool(o[34:120].any())
    assert not bool(o[180:].any())
    assert bool(o[:34].any(1).all())
    for grad in pullback(do)[:4]:
        assert not bool(grad.any())
    assert not bool(linscan.local_attention(*arrays, 3, mask=cupy.zeros(200, bool)).any())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_only_those_that_see_it(rng, dtype, bad):
    q, k, v, g = draw(rng, 260, dtype, (2,))
    clean = linscan.local_attention(*map(oracles.wide, (q, k, v)), 7, oracles.wide(g))
    for which in range(3):
        arrays = [x.copy() for x in (q, k, v)]
        arrays[which][1, 130, 1] = bad
        o, pullback = linscan.local_attention_vjp(*on_gpu(*arrays), 7, *on_gpu(g))
        grads = pullback(cupy.ones_like(o))
        touched = np.zeros((2, 260), bool)
        touched[1, 130 : 131 if which == 0 else 137] = True
        o = cupy.asnumpy(o).astype(float)
        if np.isnan(bad) or which == 2:
            assert not np.isfinite(o[touched]).all()
        assert_close(o[~touched], clean[~touched], 2 * loose(dtype, 5, 7))
        far = np.ones((2, 260), bool)
        far[1, 124:137] = False
        for grad in grads[:4]:
            assert np.isfinite(cupy.asnumpy(grad).astype(float)[far]).all()


def test_large_scores_and_strong_gates(rng):
    q, k, v, _ = draw(rng, 200, "float32")
    assert bool(cupy.isfinite(linscan.local_attention(*on_gpu(1000 * q, k, v), 50)).all())
    g = np.full(200, -30.0, np.float32)
    g[100:] = -1e-3
    o = linscan.local_attention(*on_gpu(q, k, v), 50, cupy.asarray(g))
    assert_close(cupy.asnumpy(o), oracles.local_attention(q, k, v, 50, g), averaged("float32", 5, 50))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layouts(rng, dtype):
    q, k, v, g = on_gpu(*draw(rng, 130, dtype, (2, 3), 16, 24))
    want = linscan.local_attention(q, k, v, 40, g)
    turned = [cupy.ascontiguousarray(cupy.moveaxis(x, 2, 0)) for x in (q, k, v)]
    assert same(linscan.local_attention(*(cupy.moveaxis(x, 0, 2) for x in turned), 40, g), want)
    spread = [cupy.repeat(x, 2, axis=-1)[..., ::2] for x in (q, k, v)]
    assert same(linscan.local_attention(*spread, 40, cupy.repeat(g, 3, -1)[..., ::3]), want)
    odd = [cupy.concatenate([x[..., :1], x], -1)[..., 1:] for x in (q, k, v)]  # not aligned
    assert same(linscan.local_attention(*odd, 40, g), want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bits_repeat_and_depend_on_no_other_row(rng, dtype):
    q, k, v, g = on_gpu(*draw(rng, 900, dtype, (3,), 64, 32))
    o, pullback = linscan.local_attention_vjp(q, k, v, 100, g)
    grads = pullback(v)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        again, back = linscan.local_attention_vjp(q, k, v, 100, g)
        repeated = back(v)
    stream.synchronize()
    assert same(again, o)
    assert all(same(x, y) for x, y in zip(grads[:4], repeated, strict=False))
    alone, back = linscan.local_attention_vjp(q[1], k[1], v[1], 100, g[1])
    assert same(alone, o[1])
    assert all(same(x, y[1]) for x, y in zip(back(v[1]), grads[:4], strict=False))


def test_many_rows_and_memory_of_a_window(rng):
    q, k, v, _ = on_gpu(*draw(rng, 3, "float32", (70_000,)))
    o = linscan.local_attention(q, k, v, 2)
    assert same(o[-7:], linscan.local_attention(q[-7:], k[-7:], v[-7:], 2))
    q, k, v, g = on_gpu(*draw(rng, 100_000, "float16", (), 64, 64))
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    o, pullback = linscan.local_attention_vjp(q, k, v, 512, g)
    pullback(o)
    assert pool.total_bytes() - before < 100_000 * 512 * 2  # less than one weight of each pair in a window
