"""Norms, activations, gates, direct terms and AdamW on the GPU: the array code's results, layouts, repeatable bits."""

import numpy as np
import pytest

import linscan
from linscan import _arrays, _trees
from linscan.engines import pick
from linscan.models import LRU, S5, Block, Stack, Training
from linscan.ops import activation, norm
from linscan.ops.dense import embedding_vjp
from linscan.ops.half_glu import half_glu_vjp
from linscan.ops.ports import inlet_vjp, outlet_vjp
from tests import oracles
from tests.conftest import random
from tests.engines.on_device import poison, same
from tests.tolerances import assert_close, eps, stable, summed

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(1, 5), (0, 5), (2, 3, 7), (1025, 5), (130, 128), (3000, 132), (2, 40, 1030)]


def on_card(arrays):
    return [x if x is None or isinstance(x, (float, str)) else cupy.asarray(x) for x in arrays]


def check(op, arrays, tolerance, flowing=(), **options):
    """Outputs and gradients are those of the array code in double precision; those of 16 bits stay what they are."""
    with linscan.use_engine("reference"):
        want, want_back = op(*(x if x is None else oracles.wide(x) for x in arrays), **options)
    poison()
    with linscan.use_engine("cuda"):
        got, back = op(*on_card(arrays), **options)
        outputs, wanted = (list(x) if isinstance(x, tuple) else [x] for x in (got, want))
        rng = np.random.default_rng(3)
        dy = random(rng, wanted[0].shape, arrays[0].dtype)
        extra = [random(rng, wanted[0].shape, arrays[0].dtype) for _ in flowing]
        poison()
        grads, again = (back(cupy.asarray(dy), *on_card(extra)) for _ in range(2))
    grads, again = ([*g] if isinstance(g, tuple) else [g] for g in (grads, again))
    want_grads = want_back(oracles.wide(dy), *map(oracles.wide, extra))
    want_grads = [*want_grads] if isinstance(want_grads, tuple) else [want_grads]
    assert outputs[0].dtype == arrays[0].dtype
    for x, y in zip(outputs + grads, wanted + want_grads, strict=True):
        assert (x is None) == (y is None)
        if x is not None and x.size:
            assert_close(cupy.asnumpy(x), y, tolerance)
    assert all(x is None or same(x, y) for x, y in zip(grads, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(rng, dtype, shape):
    x = random(rng, shape, dtype) + np.asarray(10, random(rng, (), dtype).dtype)
    scale, shift, mean, var = (random(rng, shape[-1:], dtype) for _ in range(4))
    var = np.abs(var) + np.asarray(0.5, var.dtype)
    tolerance = summed(dtype, x.size * 100)
    for given, flowing in (((scale, shift), (1,)), ((None, None), ())):
        check(norm.layer_norm_vjp, (x, *given), tolerance, flowing)
        check(norm.rms_norm_vjp, (x, given[0]), tolerance, flowing)
        check(norm.batch_norm_vjp, (x, *given, mean, var), tolerance, flowing)
        check(norm.batch_statistics_norm_vjp, (x, *given), tolerance, flowing)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_of_many_rows_keep_their_digits(rng, offset):
    x = rng.standard_normal((200_000, 6)) + offset
    (_, mean, var), _ = norm.batch_statistics_norm_vjp(cupy.asarray(x.astype(np.float32)), None, None)
    wanted = x.astype(np.float32).astype(float)
    np.testing.assert_allclose(mean.get(), wanted.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var.get(), wanted.var(0), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gates(rng, dtype, shape):
    value, z, around = (random(rng, shape, dtype) for _ in range(3))
    b, tolerance = random(rng, shape[-1:], dtype), summed(dtype, 4 * value.size)
    for given in ((b, around), (None, None)):
        check(activation.gate_vjp, (value, z, *given), tolerance)
        check(activation.glu_vjp, (np.concatenate([value, z], -1), given[1]), tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 64), (1, 128), (3, 67, 64), (9000, 128), (50, 24)])
def test_a_gate_opened_by_what_it_lets_through(rng, dtype, shape):
    D = shape[-1]
    x, around = (random(rng, shape, dtype) for _ in range(2))
    w, b = random(rng, (D, D), dtype), random(rng, (D,), dtype)
    tolerance = summed(dtype, 4 * D * max(1, x.size // D))
    for given in ((b, around), (None, None)):
        check(half_glu_vjp, (x, w, *given), tolerance)
    check(half_glu_vjp, (x, w, b, around), tolerance, kind="silu")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "states"), [
    ((0, 6), 4), ((2, 40, 128), 8), ((9001, 70), 12), ((33, 5), 8), ((100, 130), 16), ((300, 64), 20), ((50, 16), 5),
    ((5000, 5), 8), ((40_000, 129), 16),
])  # fmt: skip
def test_ends_of_state_spaces(rng, dtype, shape, states):
    D, like = shape[-1], np.result_type(dtype, "complex64")
    u, dy, d = random(rng, shape, dtype), random(rng, shape, dtype), random(rng, (D,), dtype)
    x, dv = (random(rng, (*shape[:-1], states), like) for _ in range(2))
    B, C = random(rng, (D, states), like), random(rng, (states, D), like)

    def run(u, dy, d, x, dv, B, C):
        v, back = inlet_vjp(u, B, d)
        y, back_out = outlet_vjp(x, C, u, d)
        return [v, y, *back(dv, dy), *back_out(dy)]

    with linscan.use_engine("reference"):
        want = run(*map(oracles.wide, (u, dy, d, x, dv, B, C)))
    poison()
    with linscan.use_engine("cuda"):
        got, again = (run(*on_card((u, dy, d, x, dv, B, C))) for _ in range(2))
    for one, other, wanted in zip(got, again, want, strict=True):
        assert same(one, other)
        if one.size:
            assert_close(one.get(), wanted, summed(dtype, 4 * max(u.size, D * states)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128", "int64"])
def test_many_arrays_at_once(rng, dtype):
    sizes = (1, 0, 7, 30_000, *[3] * 70)
    kind = dtype if dtype == "complex128" else "float64"
    host = [(9 * random(rng, (n,), kind)).astype(dtype) for n in sizes]
    sources = on_card(host)
    targets = [cupy.zeros_like(x) for x in sources]
    sources[6] = sources[3][::10_000]
    host[6] = host[3][::10_000]
    for share in (None,) if dtype == "int64" else (None, 0.25):
        _arrays.copy_all(targets, sources)
        if share is not None:
            _arrays.move_all(targets, [2 * x for x in sources], share)
        for to, x in zip(targets, host, strict=True):
            np.testing.assert_array_equal(to.get(), x if share is None else x + x.dtype.type(share) * x)


@pytest.mark.parametrize(("tokens", "D"), [(17, 128), (3, 5), (40, 6)])
def test_gradients_of_tables(rng, tokens, D):
    at, dy = rng.integers(0, tokens, (3, 5000)), random(rng, (3, 5000, D), "float32")
    table = random(rng, (tokens, D), "float32")
    want = embedding_vjp(at, oracles.wide(table))[1](oracles.wide(dy))[1]
    got = embedding_vjp(*on_card((at, table)))[1](cupy.asarray(dy))[1]
    assert_close(got.get(), want, summed("float32", 5000))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", activation.KINDS)
def test_activations(rng, dtype, kind):
    far = np.array([-1e3, -40, -9, -3, -0.0, 0, 1e-4, 3, 9, 40, 1e3, np.inf])
    for shape in ((), (0,), (500,), (5, 7, 128)):
        check(activation.activation_vjp, (random(rng, shape, dtype),), 8 * eps(dtype), (1,), kind=kind)
    y = activation.activation(cupy.asarray(far.astype(dtype)), kind).get().astype(float)
    with linscan.use_engine("reference"), np.errstate(over="ignore", invalid="ignore"):
        want = activation.activation(far.astype(dtype).astype(float), kind)
    np.testing.assert_allclose(y, want.astype(dtype), rtol=8 * eps(dtype), atol=8 * eps(dtype))
    assert np.isnan(activation.activation(cupy.asarray(np.array([np.nan], dtype)), kind).get()).all()


def test_views_and_streams(rng):
    x = cupy.asarray(random(rng, (6, 50, 40), "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    for view in (x[::-2, :, 3:20], x[..., ::2], x.swapaxes(0, 2), cupy.broadcast_to(x[:1], x.shape)):
        whole, D = cupy.ascontiguousarray(view), view.shape[-1]
        scale = cupy.arange(1, D + 1, dtype=np.float32)
        for call in (
            lambda v, D=D, scale=scale: norm.layer_norm(v, scale, scale[::-1]),
            lambda v, D=D, scale=scale: norm.batch_statistics_norm_vjp(v, scale, None)[0][0],
            lambda v: activation.activation(v, "gelu"),
            lambda v: activation.activation_vjp(v, "silu")[1](v, v),
            lambda v, scale=scale: activation.gate_vjp(v, v, scale, v)[1](v)[0],
            lambda v, scale=scale: inlet_vjp(v, 1j * scale[:, None], scale)[1](v[..., :1] + 0j, v)[0],
        ):
            want = call(whole)
            cupy.cuda.Device().synchronize()
            with stream:
                got = call(view)
            stream.synchronize()
            assert_close(got.get(), want.get(), summed("float32", 6000))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adamw(rng, dtype):
    arrays = [random(rng, (70_001,), dtype) for _ in range(3)] + [rng.random(70_001).astype(dtype)]
    card, options = on_card(arrays), {"rate": 0.1, "decay": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}
    want = [oracles.wide(x) for x in arrays]
    for step in (1, 2):
        with linscan.use_engine("reference"):
            pick("adamw", want[0].dtype, want[0])(*want, np.float64(0.5), **options, step=step)
        with linscan.use_engine("cuda"):
            pick("adamw", card[0].dtype, card[0])(*card, cupy.asarray(0.5, dtype), **options, step=step)
    for x, y in zip(card, want, strict=True):
        assert_close(x.get(), y, summed(dtype, 4))


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64", "complex128"])
@pytest.mark.parametrize("method", ["zoh", "foh", "euler"])
def test_discretisation_of_diagonal_systems(rng, dtype, method):
    a, dt = random(rng, (3, 40), dtype), np.exp(rng.uniform(-6, 1, 40)).astype("float32")
    a[0, :3] = 0, 1e-3, -50
    with linscan.use_engine("reference"):
        want, want_back = linscan.discretize_diag_vjp(a, dt, method)
    got, back = linscan.discretize_diag_vjp(*on_card((a, dt)), method)
    grads = [random(rng, (3, 40), dtype) for _ in want]
    for x, y in zip([*got, *back(*on_card(grads))], [*want, *want_back(*grads)], strict=True):
        assert x.dtype == y.dtype
        assert_close(x.get(), y, eps(y.dtype))


@pytest.mark.parametrize("block", [
    Block(S5(12, 8, blocks=2, bidirectional=True), "batch", activation="gelu_tanh", gate="half_glu2"),
    Block(S5(12, 8, blocks=2), "layer", prenorm=False, gate="half_glu1"),
    Block(LRU(12, 8), "rms", gate="glu", dropout=0.1),
    Block(LRU(12, 8), "none", gate="linear"),
])  # fmt: skip
def test_gradients_of_a_model_equal_those_of_the_array_code(rng, block):
    model = Stack((block,) * 2, 5, 3, tokens=True, pool="mean")
    params, tokens = model.init(rng, np.float64), rng.integers(0, 5, (3, 70))

    def run(xp):
        tree = _trees.rebuild(params, [xp.asarray(x.copy()) for x in _trees.leaves(params).values()])
        (y, _), back = model.apply_vjp(tree, xp.asarray(tokens), training=Training(np.random.default_rng(0)))
        return [y, *_trees.leaves(back(y)[0]).values()]

    for x, y in zip(run(cupy), run(np), strict=True):
        assert_close(x.get(), y, 1000 * stable("float64"))
