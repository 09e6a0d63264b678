"""The laws of `scan` on the GPU, and what only a GPU can get wrong: tiles, shared rows, streams, graphs, sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines.cuda.sizes import sizes_of
from linscan.ops.two_way import two_way_vjp
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_a_busy_stream, on_gpu, same
from tests.ops.test_scan import LENGTHS, decays, laid_out
from tests.tolerances import accumulated, assert_close, stable

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")
engine = pytest.importorskip("linscan.engines.cuda.scan")


@pytest.fixture(params=[False, True], ids=["block_per_row", "shared_rows"])
def shared(request, monkeypatch):
    """Whether several blocks share a row: the choice the engine makes from the card's size, here made for it."""
    monkeypatch.setattr(engine, "_multiprocessors", lambda device: 10**9 if request.param else 0)
    monkeypatch.setattr(engine, "_plans", {})
    return request.param


def exact(a, b, h0, dh, **options):
    """States and gradients by the CPU engine in double precision, itself tested against the plain loop."""
    h, pullback = linscan.scan_vjp(*(None if x is None else oracles.wide(x) for x in (a, b, h0)), **options)
    return h, *pullback(oracles.wide(dh))


def check(a, b, h0, dh, dtype, **options):
    h, pullback = linscan.scan_vjp(
        *on_gpu(a, b, h0), **{k: cupy.asarray(v) if k == "reset" else v for k, v in options.items()}
    )
    got = (h, *pullback(cupy.asarray(dh)))
    for name, x, y in zip(("h", "da", "db", "dh0"), got, exact(a, b, h0, dh, **options), strict=True):
        if x is not None:
            assert x.dtype == dtype_of(dtype)
            assert_close(cupy.asnumpy(x), y, 4 * stable(dtype), name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop(rng, dtype, length):
    a, b = decays(rng, (3, length), dtype), random(rng, (3, length), dtype)
    h0 = random(rng, (3,), dtype)
    h = linscan.scan(*on_gpu(a, b, h0))
    assert h.dtype == dtype_of(dtype)
    assert_close(cupy.asnumpy(h), oracles.scan(a, b, h0), stable(dtype))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    length=st.integers(1, 300),
    axis=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    seed=st.integers(0, 99),
)
def test_any_axis_layout_state_reset_and_direction(
    shape, length, axis, dtype, reverse, with_reset, with_state, layout, seed
):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    shape[axis] = length
    shape = tuple(shape)
    a, b = decays(rng, shape, dtype), random(rng, shape, dtype)
    h0 = random(rng, shape[:axis] + shape[axis + 1 :], dtype) if with_state else None
    reset = rng.random(shape) < 0.2 if with_reset else None
    views = [cupy.asarray(laid_out(x, "C")) for x in (a, b)]
    if layout == "F":
        views = [cupy.asfortranarray(x) for x in views]
    elif layout == "strided":
        views = [cupy.repeat(x, 2, axis=-1)[..., ::2] for x in views]
    elif layout == "flipped":
        views = [x[::-1].copy()[::-1] for x in views]
    copies = [x.copy() for x in views]
    h = linscan.scan(
        *views, *on_gpu(h0), axis=axis, reverse=reverse, reset=None if reset is None else cupy.asarray(reset)
    )
    assert_close(cupy.asnumpy(h), oracles.scan(a, b, h0, axis, reverse, reset), stable(dtype))
    assert h.flags.c_contiguous
    assert all(same(x, y) for x, y in zip(views, copies, strict=True))


def edges(in_lanes, dtype):
    """Lengths just below, at and above every boundary of a kernel: chunk, run, tile, two tiles, a group of tiles."""
    sizes = sizes_of(in_lanes, dtype_of(dtype).itemsize, False, 1)
    tile = sizes.run * sizes.warps
    marks = [sizes.run, tile, 2 * tile] + ([dict(sizes.macros)["GROUP"] * tile] if in_lanes else [])
    return [mark + step for mark in marks for step in (-1, 0, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_tails_of_every_tile(rng, shared, dtype, reverse):
    for length in edges(False, dtype):
        a, b, dh = decays(rng, (3, length), dtype), random(rng, (3, length), dtype), random(rng, (3, length), dtype)
        check(a, b, random(rng, (3,), dtype), dh, dtype, reverse=reverse)
    for length in edges(True, dtype):
        shape = (length, 3, 13)
        a, b, dh = decays(rng, shape, dtype), random(rng, shape, dtype), random(rng, shape, dtype)
        check(a, b, None, dh, dtype, reverse=reverse, axis=0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("length", [2, 700, 5000])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_decays_that_all_times_share(rng, shared, dtype, length, reverse):
    b, dh = random(rng, (3, length, 13), dtype), random(rng, (3, length, 13), dtype)
    h0, reset = random(rng, (3, 13), dtype), rng.random((3, length, 1)) < 0.01
    for shape in ((13,), (3, 1, 13), (), (3, length, 13)):
        a = decays(rng, shape if len(shape) < 3 else (3, 1, 13), dtype)
        on_card = cupy.broadcast_to(cupy.asarray(a), shape)
        for first, marks in ((None, None), (h0, reset)):
            want = linscan.scan_vjp(
                oracles.wide(np.broadcast_to(a, shape)),
                *(None if x is None else oracles.wide(x) for x in (b, first)),
                axis=1,
                reverse=reverse,
                reset=marks,
            )[1](oracles.wide(dh))
            options = {"axis": 1, "reverse": reverse, "reset": None if marks is None else cupy.asarray(marks)}
            back = linscan.scan_vjp(on_card, *on_gpu(b, first), **options)[1]
            for x, y in zip(back(cupy.asarray(dh)), want, strict=True):
                if y is not None:
                    assert x.shape == y.shape
                    assert_close(cupy.asnumpy(x), y, stable(dtype) * 100)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("shape", [(63, 1), (700, 1), (2, 3, 700, 8), (3000, 35), (2, 0)])
def test_both_ways_at_once(rng, shared, dtype, shape):
    b, dx = random(rng, shape, dtype), random(rng, (*shape[:-1], 2 * shape[-1]), dtype)
    for own in (shape[-1:], shape):
        a = decays(rng, own, dtype)
        for reset in (None, rng.random(shape[:-1]) < 0.01):
            x, back = two_way_vjp(*map(oracles.wide, (a, b)), reset)
            want = [x, *back(oracles.wide(dx))]
            marks = None if reset is None else cupy.asarray(reset)
            (x, back), flow = two_way_vjp(*on_gpu(a, b), marks), cupy.repeat(cupy.asarray(dx), 2, -1)[..., ::2]
            for one, other, wanted in zip([x, *back(flow)], [x, *back(flow)], want, strict=True):
                assert same(one, other)
                assert one.shape == wanted.shape
                if one.size:
                    assert_close(cupy.asnumpy(one), wanted, 100 * stable(dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex128"])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_element_is_written(rng, shared, dtype, axis):
    sizes = sizes_of(axis == 0, dtype_of(dtype).itemsize, False, 1)
    length = 2 * sizes.run * sizes.warps + 5
    shape = (length, 35) if axis == 0 else (5, length)
    a, b = on_gpu(decays(rng, shape, dtype), random(rng, shape, dtype))
    want = linscan.scan(a, b, axis=axis)
    padded = cupy.full((shape[0] + 2, shape[1] + 2), np.nan, dtype_of(dtype))
    for out in (cupy.full(shape, np.nan, dtype_of(dtype)), padded[1:-1, 1:-1]):
        assert linscan.scan(a, b, axis=axis, out=out) is out
        assert same(out, want)
    assert bool(cupy.isnan(padded[0].astype(complex)).all())
    assert bool(cupy.isnan(padded[:, -1].astype(complex)).all())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_out(rng, dtype):
    a, b = on_gpu(decays(rng, (3, 5000), dtype), random(rng, (3, 5000), dtype))
    want = linscan.scan(a, b)
    for i in (0, 1):
        inputs = [a.copy(), b.copy()]
        assert same(linscan.scan(*inputs, out=inputs[i]), want)
    buffer = cupy.concatenate([b.ravel(), cupy.zeros(7, b.dtype)])
    shifted = buffer[7:15007].reshape(3, 5000)
    assert same(linscan.scan(a, buffer[:15000].reshape(3, 5000), out=shifted), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((6, 70_001), 1), ((2, 700_001), 1), ((2, 9001, 40), 1)])
def test_bits_depend_neither_on_the_batch_nor_on_who_shares_a_row(rng, monkeypatch, dtype, shape, axis):
    a, b, dh = on_gpu(decays(rng, shape, dtype), random(rng, shape, dtype), random(rng, shape, dtype))
    runs = []
    for multiprocessors in (0, 10**9, 10**9):
        monkeypatch.setattr(engine, "_multiprocessors", lambda device, n=multiprocessors: n)
        monkeypatch.setattr(engine, "_plans", {})
        h, pullback = linscan.scan_vjp(a, b, axis=axis)
        runs.append((h, *pullback(dh)[:2]))
    assert all(same(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))
    h, pullback = linscan.scan_vjp(a[1:2], b[1:2], axis=axis)
    alone = (h, *pullback(dh[1:2])[:2])
    assert all(same(x[0], y[1]) for x, y in zip(alone, runs[0], strict=True))


@pytest.mark.parametrize("shape", [(70_000, 100), (70_000, 3), (3, 70_000, 5)])
def test_more_rows_than_a_grid_has_blocks_in_y(rng, shape):
    a, b, dh = decays(rng, shape, "float32"), random(rng, shape, "float32"), random(rng, shape, "float32")
    check(a, b, None, dh, "float32", axis=-1)


@pytest.mark.slow
def test_more_than_2_31_elements():
    length = 2**31 + 1
    b = cupy.zeros(length, dtype_of("bfloat16"))
    marks = [0, 1000, 2**31 - 2, 2**31]
    b[marks] = 1
    h = linscan.scan(0.5, b)
    for mark in marks[:2]:
        assert cupy.asnumpy(h[mark : mark + 5]).astype(float).tolist() == [1, 0.5, 0.25, 0.125, 0.0625]
    assert cupy.asnumpy(h[-4:]).astype(float).tolist() == [0, 1, 0.5, 1.25]
    assert int(cupy.count_nonzero(h.view(np.uint16))) < 700  # 2^-133 is the last that bfloat16 tells from zero
    del h
    rows = linscan.scan(0.5, b[:, None])  # as many rows of one step
    assert int(cupy.count_nonzero(rows.view(np.uint16))) == len(marks)
    assert float(rows[2**31, 0]) == 1


def test_broadcast_arguments_are_not_copied(rng):
    b, dh = random(rng, (4, 6, 3000), "float32"), random(rng, (4, 6, 3000), "float32")
    for a in (decays(rng, (6, 1), "float32"), decays(rng, (3000,), "float32"), decays(rng, (4, 1, 3000), "float32")):
        for axis in (0, 1, 2):
            check(a, b, np.float32(0.5), dh, "float32", axis=axis)
    a, b = (
        cupy.broadcast_to(cupy.asarray(np.float32(0.5)), (1 << 14, 1 << 14)),
        cupy.ones((1 << 14, 1 << 14), np.float32),
    )
    pool = cupy.get_default_memory_pool()
    out, before = cupy.empty_like(b), pool.total_bytes()
    linscan.scan(a, b, out=out)
    assert pool.total_bytes() == before


def test_views_of_many_axes(rng):
    a = decays(rng, (2, 3, 2, 3, 2, 3, 2, 3, 70), "float64")
    order = (7, 5, 3, 1, 8, 6, 4, 2, 0)
    want = oracles.scan(a.transpose(order), a.transpose(order), axis=4)
    x = cupy.asarray(a).transpose(order)
    assert_close(cupy.asnumpy(linscan.scan(x, x, axis=4)), want, stable("float64"))


@pytest.mark.parametrize("length", [40, 70_000, 400_000])
@pytest.mark.parametrize("inner", [1, 40])
def test_growing_rows_equal_the_loop(rng, shared, length, inner):
    a = np.full((2, length, inner), 1.05, np.float32)
    a[:, :: length // 4 + 1] = 1e30
    a[:, 1 :: length // 4 + 1] = 1e-30
    b = np.zeros_like(a)
    b[:, -30:] = random(rng, (2, 30, inner), "float32")
    h = cupy.asnumpy(linscan.scan(*on_gpu(a, b), axis=1))
    assert np.isfinite(h).all()
    assert_close(h, linscan.scan(a, b, axis=1), accumulated("float32", 30))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 20_000), 1), ((2, 400_000), 1), ((20_000, 33), 0)])
def test_an_unstable_fixed_point_is_kept(shared, dtype, shape, axis):
    """h = 2 h - 1 stays at 1 in the loop; composites of many steps would be differences of huge numbers."""
    h = linscan.scan(2.0, cupy.full(shape, -1.0, dtype), 1.0, axis=axis)
    assert bool((h == 1).all())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "axis"), [((3, 20_000), 1), ((20_000, 33), 0)])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, shared, bad, shape, axis):
    a, b = decays(rng, shape, "float64"), random(rng, shape, "float64")
    at, end = ((1, 7777), (1, 13_000)) if axis else ((7777, 1), (13_000, 1))
    b[at] = bad
    reset = np.zeros(shape, bool)
    reset[end] = True
    for starts in (None, reset):
        want = linscan.scan(a, b, axis=axis, reset=starts)
        h = cupy.asnumpy(linscan.scan(*on_gpu(a, b), axis=axis, reset=None if starts is None else cupy.asarray(starts)))
        clean = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(h), clean)
        assert_close(h[clean], want[clean], stable("float64"))


def test_reset_forgets_even_what_is_not_finite():
    a, b = on_gpu(np.full(6, 0.5), np.array([np.inf, 1.0, np.nan, 1.0, 2.0, 4.0]))
    h, pullback = linscan.scan_vjp(a, b, reset=cupy.asarray(np.array([0, 0, 0, 1, 0, 0], bool)))
    da, db, _ = pullback(cupy.ones(6))
    assert h[3:].tolist() == [1, 2.5, 5.25]
    assert float(da[3]) == 0
    assert db[:3].tolist() == [1.75, 1.5, 1]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex", "mixed"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 21), -1), ((2, 210, 3), 1), ((21, 9), 0), ((3, 1), -1), ((1, 3000), -1)]
)
def test_gradients_equal_the_reference_engine(rng, reverse, kind, shape, axis):
    a = decays(rng, shape, "complex128" if kind == "complex" else "float64")
    b, dh = (random(rng, shape, "float64" if kind == "real" else "complex128") for _ in range(2))
    rest = shape[:axis] + shape[axis % len(shape) + 1 :]
    for reset in (None, rng.random(shape) < 0.2):
        for h0 in (None, random(rng, rest, b.dtype)):
            options = {"axis": axis, "reverse": reverse}
            host = linscan.scan_vjp(a, b, h0, reset=reset, **options)[1](dh)
            given_reset = None if reset is None else cupy.asarray(reset)
            state = cupy.asarray(h0) if isinstance(h0, np.ndarray) else h0
            got = linscan.scan_vjp(*on_gpu(a, b), state, reset=given_reset, **options)[1](cupy.asarray(dh))
            for x, y in zip(got, host, strict=True):
                if y is not None:
                    assert_close(cupy.asnumpy(x), y, 4 * stable("complex128"))


def test_runs_on_the_callers_stream(rng):
    a, b = on_gpu(decays(rng, (4, 5000), "float32"), random(rng, (4, 5000), "float32"))
    want = linscan.scan(a, b)
    h = on_a_busy_stream(lambda x: linscan.scan(a, x), b)
    assert same(h, want)


@pytest.mark.parametrize("shape", [(4, 5000), (1, 300_000)])
def test_a_captured_graph_computes_anew_at_every_launch(rng, shape):
    a, b = on_gpu(decays(rng, shape, "float32"), random(rng, shape, "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        out = cupy.empty_like(b)
        linscan.scan(a, b, out=out)
        stream.synchronize()
        stream.begin_capture()
        linscan.scan(a, b, out=out)
        graph = stream.end_capture()
        for _ in range(2):
            b += 1
            junk = cupy.zeros(1 << 20, np.uint8)  # takes back what the capture may have freed
            want = linscan.scan(a, b)
            out.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            assert same(out, want)
            assert not bool(junk.any())


def test_two_devices_arrays_are_refused():
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU here")
    a = cupy.ones((2, 100), np.float32)
    with cupy.cuda.Device(1):
        b = cupy.ones((2, 100), np.float32)
        assert linscan.scan(b, b).device.id == 1
    with pytest.raises(TypeError, match=r"must be on the current device, GPU 0; a is on GPU 1: call inside `with cupy"):
        linscan.scan(b, b)
    with pytest.raises(TypeError, match="scan: all arrays must be on one device; a is on GPU 0, b on GPU 1"):
        linscan.scan(a, b)


def test_host_and_device_arrays_do_not_mix():
    with pytest.raises(
        TypeError, match=r"scan: all arrays must live in one place; b is on the GPU \(CuPy\), a on the host"
    ):
        linscan.scan(np.ones(3), cupy.ones(3))


def test_empty_arrays():
    for shape, axis in [((0,), 0), ((3, 0), 1), ((0, 5), 1), ((2, 0, 16), 1)]:
        h, pullback = linscan.scan_vjp(cupy.ones(shape), cupy.ones(shape), 2.0, axis=axis)
        assert h.shape == shape
        da, db, dh0 = pullback(None)
        assert (da.shape, db.shape, float(dh0)) == (shape, shape, 0.0)


def test_torch_tensors_are_taken_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.ones(5, device="cuda")
    out = cupy.from_dlpack(x)
    h = linscan.scan(0.5, x, out=out)
    assert isinstance(h, cupy.ndarray)
    assert x.tolist() == h.tolist() == [1, 1.5, 1.75, 1.875, 1.9375]
