"""The laws of `ssm_kernel` and its DPLR form on the GPU, and what only a GPU can get wrong: tiles, tails, streams."""

import numpy as np
import pytest

import linscan
from linscan.engines.cuda.kernel_sizes import WIDTH
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_gpu
from tests.ops.test_ssm_kernel import PRECISE, decays, real_of
from tests.ops.test_ssm_kernel_dplr import model, want_of
from tests.tolerances import assert_close, eps, matrix, powers

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
cupy = pytest.importorskip("cupy")
engine = pytest.importorskip("linscan.engines.cuda.ssm_kernel")

EDGES = [rows * WIDTH + step for rows in (1, 32, 64, 128) for step in (-1, 0, 1)]


def exact(a, c, length, real, dk=None):
    """The kernel, or the gradients, by the reference engine in double precision on the host."""
    with linscan.use_engine("reference"):
        k, pullback = linscan.ssm_kernel_vjp(oracles.wide(a), oracles.wide(c), length, real=real)
        return k if dk is None else pullback(oracles.wide(dk))


def check(a, c, length, dtype, real=True, seed=0):
    k, pullback = linscan.ssm_kernel_vjp(cupy.asarray(a), cupy.asarray(c), length, real=real)
    assert k.dtype == (real_of(dtype) if real else dtype_of(dtype))
    assert_close(k.get(), exact(a, c, length, real), powers(dtype, length), "k")
    dk = random(np.random.default_rng(seed), k.shape, k.dtype)
    for name, x, y in zip(("da", "dc"), pullback(cupy.asarray(dk)), exact(a, c, length, real, dk), strict=True):
        assert x.dtype == dtype_of(dtype)
        assert_close(x.get(), y, 2 * powers(dtype, length), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0, 1, 2, 17, 1000])
def test_equals_the_loop(rng, dtype, length):
    a, c = decays(rng, (2, 5), dtype), random(rng, (2, 5), dtype)
    want = oracles.ssm_kernel(a, c, length)
    k, whole = (linscan.ssm_kernel(cupy.asarray(a), cupy.asarray(c), length, real=real) for real in (True, False))
    assert (k.dtype, whole.dtype) == (real_of(dtype), dtype_of(dtype))
    assert_close(k.get(), want.real, powers(dtype, length))
    assert_close(whole.get(), want if whole.dtype.kind == "c" else want.real, powers(dtype, length))


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("length", [*EDGES, 3 * 128 * WIDTH + 5])
def test_tails_of_every_tile(rng, dtype, length):
    check(decays(rng, (3, 3), dtype), random(rng, (3, 3), dtype), length, dtype)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("states", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("real", [True, False])
def test_any_number_of_states(rng, dtype, states, real):
    check(decays(rng, (2, states), dtype), random(rng, (2, states), dtype), 300, dtype, real)


def test_shapes_broadcast_and_views_are_taken(rng):
    a, c = decays(rng, (3, 1, 6), "complex64"), random(rng, (2, 12), "complex64")
    k = linscan.ssm_kernel(cupy.asarray(a), cupy.asarray(c)[:, ::-2], 50)
    assert_close(k.get(), oracles.ssm_kernel(a, c[:, ::-2], 50).real, powers("complex64", 50))
    for shape in [(0, 4), (2, 0, 4)]:
        k, pullback = linscan.ssm_kernel_vjp(cupy.ones(shape), cupy.ones(4), 7)
        assert k.shape == (*shape[:-1], 7)
        assert [g.shape for g in pullback(k)] == [shape, (4,)]


def test_a_long_single_precision_kernel_keeps_its_phase(rng):
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (4, 1)))
    a = np.exp(dt * (-0.5 + 1j * np.pi * np.arange(32))).astype("F")
    c = random(rng, (4, 32), "F")
    k = linscan.ssm_kernel(cupy.asarray(a), cupy.asarray(c), 1 << 16)
    assert_close(k.get(), oracles.ssm_kernel(a, c, 1 << 16).real, 5e-7)


@pytest.mark.parametrize(("dtype", "a", "c"), [
    ("float32", [2.0, 0.5], [1e-30, 1.0]),
    ("float32", [1.001, -0.9], [1e-30, 1.0]),
    ("complex64", [1.5j, 0.9, 1e10], [1e-20, 1.0, 1e-30]),
    ("complex64", [1.01 + 0.1j, 0.5], [1.0, 1.0]),
    ("float64", [2.0, 0.5], [1e-300, 1.0]),
    ("complex128", [3 + 4j, 0.5], [1e-200, 1e10]),
])  # fmt: skip
def test_growing_kernels_overflow_where_the_loop_does(dtype, a, c):
    a, c, length = np.array(a, dtype), np.array(c, dtype), 20_000
    with np.errstate(all="ignore"):
        want = oracles.ssm_kernel(a, c, length).real
    finite = np.abs(want) < np.finfo(real_of(dtype)).max / 4
    end = length if finite.all() else int(np.argmin(finite))
    k = linscan.ssm_kernel(cupy.asarray(a), cupy.asarray(c), length).get()
    size = oracles.ssm_kernel(np.abs(a), np.abs(c), end).real
    assert end > 5
    assert np.isfinite(k[:end]).all()
    assert np.max(np.abs(k[:end] - want[:end]) / size) <= 4 * eps(dtype) + end * eps("float64")
    if dtype.endswith(("32", "64")) and end + 2000 < length:
        assert not np.isfinite(k[end + 2000 :]).any()


def test_the_gradient_of_a_growing_kernel(rng):
    a, c = np.array([[1.2, 0.5], [2.0, 0.9]]), random(rng, (2, 2), "float64")
    length = 3000
    dk = np.zeros((2, length))
    dk[:, :600] = random(rng, (2, 600), "float64")
    _, pullback = linscan.ssm_kernel_vjp(cupy.asarray(a), cupy.asarray(c), length)
    with np.errstate(all="ignore"):
        want = linscan.ssm_kernel_vjp(a, c, length)[1](dk)
    for x, y in zip(pullback(cupy.asarray(dk)), want, strict=True):
        for got, exact_row in zip(x.get().T, y.T, strict=True):
            assert_close(got, exact_row, powers("float64", length))
    single = linscan.ssm_kernel_vjp(cupy.asarray(a, "f"), cupy.asarray(c, "f"), length)[1]
    assert all(bool(cupy.isfinite(x[1:, 1]).all()) for x in single(cupy.asarray(dk, "f")))


def test_zero_to_the_power_of_zero_is_one_and_nothing_divides_by_a():
    a, c = cupy.zeros((1, 2), "F"), cupy.asarray([[2.0, 3j]], "F")
    k, pullback = linscan.ssm_kernel_vjp(a, c, 300, real=False)
    assert k[0, :2].tolist() == [2 + 3j, 0]
    assert not bool(k[0, 1:].any())
    da, dc = pullback(cupy.ones_like(k))
    assert (da.tolist(), dc.tolist()) == ([[2, -3j]], [[1, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_channel(rng, bad):
    a, c = decays(rng, (3, 20), "complex64"), random(rng, (3, 20), "complex64")
    a[1, 3] = bad
    k, pullback = linscan.ssm_kernel_vjp(cupy.asarray(a), cupy.asarray(c), 5000)
    finite = np.isfinite(k.get())
    assert finite[[0, 2]].all()
    assert finite[1, 0]
    assert not finite[1, 1:].any()
    assert np.isfinite(np.stack([g.get() for g in pullback(cupy.ones_like(k))]))[:, [0, 2]].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_repeat_and_do_not_depend_on_the_batch(rng, dtype):
    a, c = decays(rng, (6, 40), dtype, 0.99), random(rng, (6, 40), dtype)
    dk = random(rng, (6, 20_000), real_of(dtype))

    def run(part):
        k, pullback = linscan.ssm_kernel_vjp(cupy.asarray(a[part]), cupy.asarray(c[part]), 20_000)
        return [x.get() for x in (k, *pullback(cupy.asarray(dk[part])))]

    whole = run(slice(None))
    for x, again, alone in zip(whole, run(slice(None)), run(slice(2, 3)), strict=True):
        assert x.tobytes() == again.tobytes()
        assert x[2:3].tobytes() == alone.tobytes()


def test_more_channels_than_a_grid_has_blocks_in_y(rng):
    a, c = decays(rng, (70_000, 3), "complex64"), random(rng, (70_000, 3), "complex64")
    check(a, c, 9, "complex64")


def test_a_captured_graph_computes_anew(rng):
    a, c = cupy.asarray(decays(rng, (2, 5), "complex64")), cupy.asarray(random(rng, (2, 5), "complex64"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        linscan.ssm_kernel(a, c, 500)
        stream.synchronize()
        stream.begin_capture()
        k = linscan.ssm_kernel(a, c, 500)
        graph = stream.end_capture()
        c *= 2
        graph.launch(stream)
        stream.synchronize()
    assert_close(k.get(), oracles.ssm_kernel(a.get(), c.get(), 500).real, powers("complex64", 500))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(("rank", "length", "lead"), [(1, 1, ()), (1, 200, (3,)), (2, 1001, (2, 3))])
def test_diagonal_plus_low_rank_equals_the_full_matrix(rng, dtype, rank, length, lead):
    arrays = model(rng, 5, rank, dtype, other=rank > 1, lead=lead)
    arrays = (*arrays[:5], arrays[5].astype(arrays[0].real.dtype))
    k, pullback = linscan.ssm_kernel_dplr_vjp(*on_gpu(*arrays), length)
    assert k.dtype == real_of(dtype)
    for at in np.ndindex(*lead):
        want = want_of([x if x is None else x[at] for x in arrays], length, True)
        assert_close(k[at].get(), want, matrix(dtype))
    with linscan.use_engine("reference"):
        wide = [None if x is None else oracles.wide(x) for x in arrays]
        _, exact = linscan.ssm_kernel_dplr_vjp(*wide, length)
    dk = random(rng, k.shape, k.dtype)
    for i, (x, y) in enumerate(zip(pullback(cupy.asarray(dk)), exact(oracles.wide(dk)), strict=True)):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x.get(), y, 4 * matrix(dtype), i)
