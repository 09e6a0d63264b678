"""Laws of `ssm_kernel` and `ssm_kernel_vjp`, on every engine that runs on the CPU."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines.reference import ssm_kernel as reference
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import accumulated, assert_close, eps, powers

ENGINES = ["reference", "cpu"]
LENGTHS = [0, 1, 2, 15, 16, 17, 127, 128, 129, 1000, 4100]
PRECISE = ["float32", "float64", "complex64", "complex128"]


def decays(rng, shape, dtype, low=0.9, high=1.0):
    kind = dtype_of(dtype)
    size = rng.uniform(low, high, shape)
    turn = np.exp(1j * rng.uniform(-np.pi, np.pi, shape)) if kind.kind == "c" else rng.choice([-1.0, 1.0], shape)
    return (size * turn).astype(kind)


def real_of(dtype):
    return np.dtype({"complex64": "f4", "complex128": "f8"}.get(dtype, dtype_of(dtype)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop(rng, engine, dtype, length):
    a, c = decays(rng, (2, 5), dtype), random(rng, (2, 5), dtype)
    want = oracles.ssm_kernel(a, c, length)
    with linscan.use_engine(engine):
        k, whole = linscan.ssm_kernel(a, c, length), linscan.ssm_kernel(a, c, length, real=False)
    assert (k.dtype, whole.dtype) == (real_of(dtype), dtype_of(dtype))
    assert_close(k, want.real, powers(dtype, length))
    assert_close(whole, want if whole.dtype.kind == "c" else want.real, powers(dtype, length))


@given(
    lead=st.sampled_from(
        [((), ()), ((3,), ()), ((), (2, 3)), ((2, 1), (3,)), ((1,), (1,)), ((0,), ()), ((2, 0), (1,))]
    ),
    states=st.integers(0, 9),
    length=st.integers(0, 300),
    dtype=st.sampled_from(PRECISE),
    layout=st.sampled_from(["C", "strided", "flipped", "shared"]),
    real=st.booleans(),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_shape_and_layout(lead, states, length, dtype, layout, real, engine, seed):
    rng = np.random.default_rng(seed)
    a, c = decays(rng, (*lead[0], states), dtype), random(rng, (*lead[1], states), dtype)
    if layout == "strided":
        a, c = (np.repeat(x, 2, axis=-1)[..., ::2] for x in (a, c))
    elif layout == "flipped":
        a, c = (x[..., ::-1].copy()[..., ::-1] for x in (a, c))
    elif layout == "shared" and states:
        a, c = a[..., :1], c
    a.flags.writeable = c.flags.writeable = False
    with linscan.use_engine(engine):
        k = linscan.ssm_kernel(a, c, length, real=real)
    want = oracles.ssm_kernel(a, c, length)
    assert_close(k, want.real if real else want, powers(dtype, length))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["complex64", "float32"])
def test_a_long_single_precision_kernel_keeps_its_phase(rng, engine, dtype):
    length = 1 << 15
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (4, 1)))
    a = np.exp(dt * (-0.5 + (0 if dtype == "float32" else 1j * np.pi * np.arange(32)))).astype(dtype)
    a = np.broadcast_to(a, (4, 32))
    c = random(rng, (4, 32), dtype)
    with linscan.use_engine(engine):
        k = linscan.ssm_kernel(a, c, length)
    assert_close(k, oracles.ssm_kernel(a, c, length).real, 5e-7)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "a", "c"), [
    ("float32", [2.0, 0.5], [1e-30, 1.0]),
    ("float32", [1.001, -0.9], [1e-30, 1.0]),
    ("complex64", [1.5j, 0.9, 1e10], [1e-20, 1.0, 1e-30]),
    ("complex64", [1.01 + 0.1j, 0.5], [1.0, 1.0]),
    ("float64", [2.0, 0.5], [1e-300, 1.0]),
    ("complex128", [3 + 4j, 0.5], [1e-200, 1e10]),
])  # fmt: skip
def test_growing_kernels_overflow_where_the_loop_does(engine, dtype, a, c):
    a, c, length = np.array(a, dtype), np.array(c, dtype), 20_000
    with np.errstate(all="ignore"):
        want = oracles.ssm_kernel(a, c, length).real
    finite = np.abs(want) < np.finfo(real_of(dtype)).max / 4
    end = length if finite.all() else int(np.argmin(finite))
    assert end > 5
    with linscan.use_engine(engine):
        k = linscan.ssm_kernel(a, c, length)
    ratio = k[:end] / want[:end]
    size = oracles.ssm_kernel(np.abs(a), np.abs(c), end).real  # what rounding is relative to
    assert np.isfinite(ratio).all()
    assert np.max(np.abs(k[:end] - want[:end]) / size) <= 4 * eps(dtype) + end * eps("float64")
    if dtype.endswith(("32", "64")) and end + 2000 < length:
        assert not np.isfinite(k[end + 2000 :]).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_growing_state_without_weight_adds_nothing(engine):
    with linscan.use_engine(engine):
        k = linscan.ssm_kernel(np.float32([1.5, 0.5]), np.float32([0, 1]), 800)
    assert_close(k, 0.5 ** np.arange(800), powers("float32", 800))


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_to_the_power_of_zero_is_one(engine):
    with linscan.use_engine(engine):
        np.testing.assert_array_equal(linscan.ssm_kernel([0.0, 0.0], [2.0, 3.0], 3), [5, 0, 0])
        np.testing.assert_array_equal(linscan.ssm_kernel([0j], [2 - 1j], 200, real=False), [2 - 1j] + [0] * 199)
        _, pullback = linscan.ssm_kernel_vjp(np.array([0.0]), np.array([2.0]), 300)
        np.testing.assert_array_equal(np.array(pullback(np.arange(1.0, 301.0))).ravel(), [4, 1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_nan_stays_in_its_channel(rng, engine, dtype):
    a, c = decays(rng, (3, 4), dtype), random(rng, (3, 4), dtype)
    clean = oracles.ssm_kernel(a, c, 500).real
    a[1, 2] = np.nan
    with linscan.use_engine(engine):
        k, pullback = linscan.ssm_kernel_vjp(a, c, 500)
        grads = pullback(np.ones_like(k))
    assert np.isnan(k[1, 1:]).all()
    assert_close(k[[0, 2]], clean[[0, 2]], powers(dtype, 500))
    assert_close(k[1, :1], clean[1, :1], powers(dtype, 1))
    for g in grads:
        assert np.isfinite(g[[0, 2]]).all()
        assert np.isfinite(g[1, [0, 1, 3]]).all()


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize(("channels", "length"), [(1, 30_000), (3, 5_000), (9, 700)])
def test_bits_depend_neither_on_workers_nor_on_other_channels(rng, dtype, channels, length):
    a, c = decays(rng, (channels, 12), dtype, 0.99), random(rng, (channels, 12), dtype)
    results = []
    for workers in (1, 2, 5):
        k, pullback = linscan.ssm_kernel_vjp(a, c, length, workers=workers)
        results.append((k, *pullback(k)))
    k, pullback = linscan.ssm_kernel_vjp(a[-1:], c[-1:], length)
    for x, *others in zip(*results, strict=True):
        for y in others:
            np.testing.assert_array_equal(x, y)
    for x, y in zip(results[0], (k, *pullback(k)), strict=True):
        np.testing.assert_array_equal(x[-1:], y)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_array_of_channels_states_and_length(rng, engine):
    a, c = decays(rng, (8, 64), "complex64"), random(rng, (8, 64), "complex64")
    with linscan.use_engine(engine):
        linscan.ssm_kernel_vjp(a, c, 100)[1](np.ones((8, 100), np.float32))
        tracemalloc.start()
        k, pullback = linscan.ssm_kernel_vjp(a, c, 1 << 14)
        pullback(k)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < a.size * (1 << 14) * 8 / 4


def test_the_reference_takes_channels_in_groups(rng, monkeypatch):
    a, c = decays(rng, (5, 3), "complex128"), random(rng, (5, 3), "complex128")
    with linscan.use_engine("reference"):
        k, pullback = linscan.ssm_kernel_vjp(a, c, 300)
        whole = k, *pullback(k)
        monkeypatch.setattr(reference, "_ELEMENTS", 2 * 130 * 3)
        k, pullback = linscan.ssm_kernel_vjp(a, c, 300)
    for x, y in zip(whole, (k, *pullback(k)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_one_of_each_conjugate_pair_with_twice_the_weight(rng):
    a, c = decays(rng, (3, 4), "complex128"), random(rng, (3, 4), "complex128")
    both = linscan.ssm_kernel(np.concatenate((a, a.conj()), -1), np.concatenate((c, c.conj()), -1), 100, real=False)
    assert_close(both, linscan.ssm_kernel(a, 2 * c, 100), powers("complex128", 100))


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_convolving_scanning_and_stepping_agree(rng, dtype):
    a, c = decays(rng, (4,), dtype), random(rng, (4,), dtype)
    u = random(rng, (300,), real_of(dtype))
    convolved = np.convolve(oracles.wide(linscan.ssm_kernel(a, c, 300)), oracles.wide(u))[:300]
    scanned = (c * linscan.scan(a, u[:, None], axis=0)).sum(axis=-1).real
    h, stepped = np.zeros(4, dtype), []
    for t in range(300):
        h = linscan.scan_step(a, u[t : t + 1], h)
        stepped.append((c * h).sum().real)
    assert_close(scanned, convolved, accumulated(dtype, 300))
    assert_close(stepped, convolved, accumulated(dtype, 300))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["real", "complex", "mixed"])
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("length", [0, 1, 2, 33, 300])
def test_gradients(rng, engine, kind, real, length):
    a = decays(rng, (2, 3), "float64" if kind == "real" else "complex128", 0.5, 0.9)
    c = random(rng, (2, 3), "complex128" if kind == "complex" else "float64")
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.ssm_kernel_vjp, a, c, length=length, real=real)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_broadcast_arguments(rng, engine):
    a, c = decays(rng, (3, 1, 4), "complex128", 0.5, 0.9), random(rng, (2, 1), "complex128")
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.ssm_kernel_vjp, a, c, length=12)
        linscan.check_vjp(linscan.ssm_kernel_vjp, 0.7, c, length=12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize(("length", "growth"), [(1000, 1.0), (3000, 1.0), (3000, 1.05)])
def test_gradients_equal_their_sums(rng, engine, dtype, length, growth):
    """Also where |a| > 1 and only the start of the kernel counts: tables would overflow there."""
    a, c = decays(rng, (2, 3), dtype, 0.98 * growth, growth), random(rng, (2, 3), dtype)
    g = random(rng, (2, length), real_of(dtype)) * np.exp(-0.06 * np.arange(length) * (growth > 1))
    g = g.astype(real_of(dtype))
    with linscan.use_engine(engine):
        da, dc = linscan.ssm_kernel_vjp(a, c, length)[1](g)
    assert (da.dtype, dc.dtype) == (a.dtype, c.dtype)
    want = oracles.ssm_kernel_grads(a, c, oracles.wide(g))
    want = want if a.dtype.kind == "c" else [w.real for w in want]
    assert_close(dc, want[1], 4 * powers(dtype, length))
    assert_close(da, want[0], 4 * powers(dtype, length))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_size(rng, engine, dtype):
    a, c = decays(rng, (2, 3), dtype), random(rng, (1, 3), dtype)
    with linscan.use_engine(engine):
        k, pullback = linscan.ssm_kernel_vjp(a, c, 20)
        for g in (None, random(rng, k.shape, k.dtype)):
            da, dc = pullback(g)
            assert (da.dtype, da.shape, dc.dtype, dc.shape) == (a.dtype, a.shape, c.dtype, c.shape)
    exact = linscan.ssm_kernel_vjp(oracles.wide(a), oracles.wide(c), 20)[1](oracles.wide(g))
    for got, want in zip((da, dc), exact, strict=True):
        assert_close(got, want, 2 * powers(dtype, 20))


def test_result_dtype():
    f32, c64 = np.full(2, 0.5, np.float32), np.full(2, 0.5, np.complex64)
    assert linscan.ssm_kernel(f32, f32, 3).dtype == np.float32
    assert linscan.ssm_kernel(f32, c64, 3).dtype == np.float32
    assert linscan.ssm_kernel(f32, c64, 3, real=False).dtype == np.complex64
    assert linscan.ssm_kernel(f32, 1j, 3, real=False).dtype == np.complex64
    assert linscan.ssm_kernel(f32, np.ones(2), 3).dtype == np.float64
    assert linscan.ssm_kernel([1, 0], [1, 1], 3).dtype == np.float64


def test_errors_say_who_what_and_what_came():
    x = np.ones((2, 8))
    with pytest.raises(ValueError, match=r"ssm_kernel: a_bar and c must broadcast; got \(2, 8\) and \(2, 7\)"):
        linscan.ssm_kernel(x, x[:, :7], 3)
    with pytest.raises(ValueError, match=r"ssm_kernel: a_bar and c must have an axis of states; got \(\) and \(\)"):
        linscan.ssm_kernel(0.5, 1.0, 3)
    with pytest.raises(ValueError, match=r"ssm_kernel: length must be at least 0; got -1"):
        linscan.ssm_kernel(x, x, -1)
    with pytest.raises(TypeError, match=r"ssm_kernel: length must be an integer; got 2\.5"):
        linscan.ssm_kernel(x, x, 2.5)
    with pytest.raises(ValueError, match=r"ssm_kernel_vjp: dk must have shape \(2, 3\); got \(3,\)"):
        linscan.ssm_kernel_vjp(x, x, 3)[1](np.ones(3))
