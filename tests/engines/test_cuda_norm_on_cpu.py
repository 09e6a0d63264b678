"""The device code around a model's scans (norms, gates, AdamW, …), compiled for the host and held to the array code."""

import types

import numpy as np
import pytest

from linscan._arrays import accum_dtype
from linscan.engines.reference import activation, adamw, discretize_diag, feedthrough, half_glu, norm, ports
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, empty, load, needs_compiler
from tests.tolerances import assert_close, eps, summed

pytestmark = [pytest.mark.slow, needs_compiler]

# dtype, rows and columns: several blocks of either; numbers one by one; one thread to a row
CASES = [("float32", 600, 132), ("bfloat16", 70, 5), ("float64", 300, 2)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    names = ("norm", "activation", "feedthrough", "adamw", "discretize_diag", "half_glu", "ports", "many")
    modules = load(tmp_path_factory.mktemp("device_code"), *names)
    return types.SimpleNamespace(**dict(zip(names, modules, strict=True)))


def matrices(rng, dtype, n, columns, count):
    """Matrices, of which the second lies in a wider one and the last backwards."""
    wide = random(rng, (count, n, 2 * columns), dtype).view(Array)
    given = [x[:, :columns].copy() for x in wide]
    given[1], given[-1] = wide[1][:, columns:], wide[-1][::-1, :columns]
    return given


def vectors(rng, dtype, columns, count):
    return [random(rng, (2 * columns,), accum_dtype(dtype_of(dtype)))[::-2].view(Array) for _ in range(count)]


def alike(got, want, dtype, terms):
    """All results are those of the array code in double precision."""
    for x, y in zip(got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y, summed(dtype, terms))


def wide(arrays):
    return [x if x is None or isinstance(x, (float, str)) else oracles.wide(x) for x in arrays]


@pytest.mark.parametrize(("dtype", "n", "columns"), CASES)
def test_norms(rng, engine, dtype, n, columns):
    x, dy, around = matrices(rng, dtype, n, columns, 3)
    x += np.asarray(100, x.dtype)  # deviations are small beside the mean
    scale, shift = vectors(rng, dtype, columns, 2)
    for s, b, extra in ((scale, shift, around), (None, None, None)):
        for centred in (True, False) if dtype == "float32" else (s is None,):
            got = engine.norm.row_norm(x, s, b, 1e-5, centred=centred)
            want = norm.row_norm(*wide((x, s, b)), 1e-5, centred=centred)
            alike(got[:1], want[:1], dtype, columns * 100**2)
            back = engine.norm.row_norm_pullback(dy, x, s, *got[1:], extra)
            alike(back, norm.row_norm_pullback(*wide((dy, x, s)), *want[1:], *wide((extra,))), dtype, n * 100**2)
        y, mean, var = engine.norm.batch_norm(x, s, b, None, None, 1e-5)
        want = norm.batch_norm(*wide((x, s, b)), None, None, 1e-5)
        alike((y, mean, var), want, dtype, 100**2)
        alike(engine.norm.batch_norm(x, s, b, mean, var, 1e-5)[:1], want[:1], dtype, 100**2)
        for own in (True, False):
            back = engine.norm.batch_norm_pullback(dy, x, s, mean, var, 1e-5, extra, own=own)
            given = wide((dy, x, s, *want[1:], 1e-5, extra))
            alike(back, norm.batch_norm_pullback(*given, own=own), dtype, n * 100**2)


@pytest.mark.parametrize(("dtype", "n", "columns"), CASES)
def test_gates_and_direct_terms(rng, engine, dtype, n, columns):
    value, z, dy, around = matrices(rng, dtype, n, columns, 4)
    b = vectors(rng, dtype, columns, 1)[0]
    for bias, extra in ((b, around), (None, None)):
        given = (value, z, bias, extra)
        alike([engine.activation.gate(*given)], [activation.gate(*wide(given))], dtype, 4)
        both, want = empty((n, 2 * columns), value.dtype), np.empty((n, 2 * columns))
        db = engine.activation.gate_pullback(dy, *given[:3], both[:, :columns], both[:, columns:])
        want_db = activation.gate_pullback(*wide((dy, *given[:3])), want[:, :columns], want[:, columns:])
        alike([both, db], [want, want_db], dtype, n)
        got = engine.feedthrough.feedthrough_pullback(dy, z, b, extra)
        alike(got, feedthrough.feedthrough_pullback(*wide((dy, z, b, extra))), dtype, n)
    alike([engine.feedthrough.feedthrough(value, z, b)], [feedthrough.feedthrough(*wide((value, z, b)))], dtype, 4)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "softplus"])
def test_activations(rng, engine, kind):
    x = np.concatenate(
        [random(rng, (242,), "float32"), np.float32([-1e3, -40, -9, -3, -0.0, 0, 1e-8, 3, 9, 40, 1e3, 2, 1, 5])]
    )
    dy, around = (random(rng, x.shape, "float32") for _ in range(2))
    for shape in ((2, 128), (256,)):
        given = [v.reshape(shape).view(Array) for v in (dy, x, around)]
        y, dx = (
            engine.activation.activation(given[1], kind),
            engine.activation.activation_pullback(*given[:2], kind, given[2]),
        )
        np.testing.assert_allclose(
            y.ravel(), activation.activation(oracles.wide(x), kind), 8 * eps("float32"), 8 * eps("float32")
        )
        want = activation.activation_pullback(oracles.wide(dy), oracles.wide(x), kind, oracles.wide(around))
        np.testing.assert_allclose(dx.ravel(), want, 0, 8 * eps("float32"))


@pytest.mark.parametrize(("n", "D", "kind"), [(150, 64, "gelu_tanh"), (65, 128, "silu")])
def test_a_gate_opened_by_what_it_lets_through(rng, engine, n, D, kind):
    x, dy, around = matrices(rng, "float32", n, D, 3)
    w, b = (random(rng, (D, D), "float32") / 8).view(Array), vectors(rng, "float32", D, 1)[0]
    for bias, extra in ((b, around), (None, None)):
        given = x, w, bias, extra
        (y, z), want = engine.half_glu.half_glu(*given, kind), half_glu.half_glu(*wide(given), kind)
        alike((y, z), want, "float32", D)
        back = engine.half_glu.half_glu_pullback(dy, x, z, w, bias, kind)
        dy_, x_, w_, b_ = wide((dy, x, w, bias))
        alike(back, half_glu.half_glu_pullback(dy_, x_, want[1], w_, b_, kind), "float32", D * n)


@pytest.mark.parametrize(("n", "channels", "states"), [(150, 130, 16), (67, 70, 32), (1, 6, 8)])
def test_ends_of_state_spaces(rng, engine, n, channels, states):
    u, dy, _ = matrices(rng, "float32", n, channels, 3)
    x, dv, _ = matrices(rng, "float32", n, states, 3)
    w, B = (
        random(rng, (states, channels), "float32").view(Array),
        random(rng, (channels, states), "float32").view(Array),
    )
    D = vectors(rng, "float32", channels, 1)[0]
    alike([engine.ports.ports(x, w, u, D)], [ports.ports(*wide((x, w, u, D)))], "float32", states)
    got = engine.ports.ports_pullback(dv, dy, u, B, D)
    alike(got, ports.ports_pullback(*wide((dv, dy, u, B, D))), "float32", n * states)


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int64"])
def test_many_arrays_at_once(rng, engine, dtype):
    sizes = (1, 0, 7, 3000, *[3] * 70)
    kind = dtype if dtype == "complex128" else "float64"
    sources, targets = ([(9 * random(rng, (n,), kind)).astype(dtype).view(Array) for n in sizes] for _ in range(2))
    sources[4], targets[5] = sources[3][::1000], targets[3][::-1][:3]  # with gaps, backwards
    targets[3] = np.zeros_like(sources[3])
    if dtype != "int64":
        want = [to + np.asarray(0.25, dtype).real * (x - to) for to, x in zip(targets, sources, strict=True)]
        engine.many.move_all(targets, sources, 0.25)
        for to, x in zip(targets, want, strict=True):
            np.testing.assert_array_equal(to, x)
    engine.many.copy_all(targets, sources)
    for to, x in zip(targets, sources, strict=True):
        np.testing.assert_array_equal(to, x)


def test_a_step_of_adamw(rng, engine):
    arrays = [random(rng, (300,), "float32").view(Array) for _ in range(3)] + [rng.random(300, np.float32).view(Array)]
    share, options = (
        np.full((), 0.5, np.float32).view(Array),
        {"rate": 0.1, "decay": 0.01, "betas": (0.9, 0.99), "eps": 1e-8},
    )
    want = [oracles.wide(x) for x in arrays]
    for step in (1, 2):
        adamw.adamw(*want, 0.5, **options, step=step)
        engine.adamw.adamw(*arrays, share, **options, step=step)
    alike(arrays, want, "float32", 2)


@pytest.mark.parametrize("dtype", ["complex128", "float32"])
def test_zero_order_hold(rng, engine, dtype):
    a, h = random(rng, (60,), dtype).view(Array), np.exp(rng.uniform(-6, 1, 60)).view(Array)
    a[:3] = 0, 1e-9, -50
    got = engine.discretize_diag.discretize_diag(a, h, "zoh", None)
    alike(got, discretize_diag.discretize_diag(oracles.wide(a), h, "zoh", None), dtype, 1)
    grads = tuple(random(rng, (60,), dtype).view(Array) for _ in range(2))
    back = engine.discretize_diag.discretize_diag_pullback(a, h, "zoh", None, grads)
    want = discretize_diag.discretize_diag_pullback(oracles.wide(a), h, "zoh", None, tuple(map(oracles.wide, grads)))
    for x, y in zip(back, want, strict=True):
        np.testing.assert_allclose(x, y, 1e-12, 1e-12)
