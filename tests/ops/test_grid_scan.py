"""Laws of `grid_scan` and `grid_scan_vjp`, on every engine that runs on the CPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import accumulated, assert_close, stable

ENGINES = ["reference", "cpu"]
AXES = (2, 2, 2, 3, 2, 2, 1)  # without those of the grid and of the batch, of the seven arguments before the states


def draw(rng, width, height, keys, values, dtype="float64", lead=()):
    """The nine arguments, with gates that share out what comes in."""
    tails = [(keys,), (keys,), (values,), (2, 2), (2,), (2,), ()]
    arrays = [random(rng, (*lead, width, height, *tail), dtype) for tail in tails]
    alpha = rng.random((*lead, width, height))
    alpha = np.stack([alpha, alpha, 1 - alpha, 1 - alpha], -1).reshape(arrays[3].shape)
    turn = np.exp(1j * rng.uniform(-np.pi, np.pi)) if dtype_of(dtype).kind == "c" else -1
    arrays[3] = (0.9 * turn * alpha).astype(dtype_of(dtype))
    states = [random(rng, (*lead, n, keys, values), dtype) for n in (height, width)]
    return [*arrays, *states]


def every_grid(arrays):
    """The oracle for each index of the one leading axis."""
    outputs = [oracles.grid_scan(*(x[i] for x in arrays)) for i in range(len(arrays[0]))]
    return [np.stack(x) for x in zip(*outputs, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 7, 3, 5), (9, 4, 1, 8), (5, 6, 4, 70)])
def test_equals_the_loop(rng, engine, dtype, shape):
    if engine == "cpu" and dtype_of(dtype).kind == "c":
        pytest.skip("complex numbers run on the reference")
    arrays = draw(rng, *shape, dtype)
    with linscan.use_engine(engine):
        got = linscan.grid_scan(*arrays)
    for x, want in zip(got, oracles.grid_scan(*arrays), strict=True):
        assert x.dtype == dtype_of(dtype)
        assert_close(x, want, stable(dtype) * sum(shape[:2]) ** 0.5)


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    reverse=st.tuples(st.booleans(), st.booleans()),
    given_=st.lists(st.booleans(), min_size=3, max_size=3),
    layout=st.sampled_from(["F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_layout_orientation_and_missing_argument(shape, reverse, given_, layout, engine, seed):
    rng = np.random.default_rng(seed)
    arrays = [laid_out(x, layout) for x in draw(rng, *shape)]
    arrays[6:] = [x if used else None for x, used in zip(arrays[6:], given_, strict=True)]
    copies = [None if x is None else x.copy() for x in arrays]
    with linscan.use_engine(engine):
        o, r, d = linscan.grid_scan(*arrays, reverse=reverse)
    fx, fy = (slice(None, None, -1 if back else 1) for back in reverse)
    turned = [None if x is None else x[fx, fy] for x in copies[:7]]
    turned += [None if x is None else x[f] for x, f in zip(copies[7:], (fy, fx), strict=True)]
    want = oracles.grid_scan(*turned)
    tolerance = stable("float64") * sum(shape[:2]) ** 0.5
    for x, y, f in zip((o, r, d), want, ((fx, fy), (fy,), (fx,)), strict=True):
        assert_close(x[f], y, tolerance)
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
def test_batches_and_broadcasting(rng, engine):
    arrays = draw(rng, 4, 5, 2, 3, lead=(3,))
    with linscan.use_engine(engine):
        for x, want in zip(linscan.grid_scan(*arrays), every_grid(arrays), strict=True):
            assert_close(x, want, accumulated("float64", 9))
        shared = [arrays[0][:1], *arrays[1:3], 0.5 * np.eye(2), np.ones(2), *arrays[5:7], 1.0, arrays[8][0]]
        wide = [np.broadcast_to(x, y.shape) for x, y in zip(shared, arrays, strict=True)]
        for x, want in zip(linscan.grid_scan(*shared), every_grid(wide), strict=True):
            assert_close(x, want, accumulated("float64", 9))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [(False, False), (True, False), (True, True)])
@settings(max_examples=8)
@given(cut=st.integers(0, 6), axis=st.integers(0, 1))
def test_splitting_along_either_axis_and_carrying_the_states_changes_nothing(engine, reverse, cut, axis):
    arrays = draw(np.random.default_rng(cut), 6, 6, 2, 3)
    parts = [(slice(None),) * axis + (part,) for part in (slice(0, cut), slice(cut, 6))]
    if reverse[axis]:
        parts.reverse()
    with linscan.use_engine(engine):
        whole, r, d = linscan.grid_scan(*arrays, reverse=reverse)
        along, others, pieces, ends = arrays[7 + axis], arrays[8 - axis], {}, {}
        for part in parts:
            cells = [x[part] for x in arrays[:7]]
            states = (along, others[part[-1]]) if axis == 0 else (others[part[-1]], along)
            pieces[part[-1].start], *left = linscan.grid_scan(*cells, *states, reverse=reverse)
            along, ends[part[-1].start] = left if axis == 0 else left[::-1]
    tolerance = accumulated("float64", 12)
    order = sorted(pieces, key=lambda start: (start, -len(parts)))
    first, last = [p[-1].start for p in sorted(parts, key=lambda p: (p[-1].start, p[-1].stop))]
    if first != last:
        assert_close(np.concatenate([pieces[i] for i in order], axis), whole, tolerance)
        assert_close(np.concatenate([ends[i] for i in order]), (d, r)[axis], tolerance)
    assert_close(along, (r, d)[axis], tolerance)


@pytest.mark.parametrize("engine", ENGINES)
def test_p_mode_conserves_what_an_antidiagonal_sends(rng, engine):
    n = 40
    alpha = rng.random((n, n))
    gates = np.stack([alpha, alpha, 1 - alpha, 1 - alpha], -1).reshape(n, n, 2, 2)
    source = np.zeros((n, n, 2))
    source[0, 0] = 1
    one = np.ones((n, n, 1))
    with linscan.use_engine(engine):
        o, r, d = linscan.grid_scan(one, one, one, gates, source, np.ones((n, n, 2)))
    sent = [np.trace(o[::-1, :, 0], offset) for offset in range(2 - n, 1)]  # until the borders let go of some
    assert_close(sent, np.full(n - 1, 2.0), accumulated("float64", n))
    assert_close(r.sum() + d.sum(), 2.0, accumulated("float64", 2 * n))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("missing", [(1, 0), (0, 1)])
def test_d_mode_is_a_scan_along_one_axis_and_then_along_the_other(rng, engine, missing):
    arrays = draw(rng, 8, 7, 2, 3)
    arrays[3][..., missing[0], missing[1]] = 0
    q, k, v, gates, source, mark, direct, r0, d0 = arrays
    pair = (k[..., :, None] * v[..., None, :])[..., None, :, :] * source[..., None, None]
    gates = gates[..., None, None]
    if missing == (1, 0):  # D by itself along y, then R along x from it
        d = linscan.scan(gates[:, :, 1, 1], pair[:, :, 1], d0, axis=1)
        up = np.concatenate([d0[:, None], d[:, :-1]], 1)
        r = linscan.scan(gates[:, :, 0, 0], gates[:, :, 0, 1] * up + pair[:, :, 0], r0, axis=0)
        left = np.concatenate([r0[None], r[:-1]])
    else:
        r = linscan.scan(gates[:, :, 0, 0], pair[:, :, 0], r0, axis=0)
        left = np.concatenate([r0[None], r[:-1]])
        d = linscan.scan(gates[:, :, 1, 1], gates[:, :, 1, 0] * left + pair[:, :, 1], d0, axis=1)
        up = np.concatenate([d0[:, None], d[:, :-1]], 1)
    read = mark[..., 0, None, None] * left + mark[..., 1, None, None] * up
    o = (q[..., None] * read).sum(-2) + (direct * (q * k).sum(-1))[..., None] * v
    with linscan.use_engine(engine):
        got = linscan.grid_scan(*arrays)
    for x, want in zip(got, (o, r[-1], d[:, -1]), strict=True):
        assert_close(x, want, accumulated("float64", 15))


@pytest.mark.parametrize("engine", ENGINES)
def test_free_paths_grow_as_the_loop_does(engine):
    one, two = np.ones((40, 40, 1), np.float32), np.ones((40, 40, 2), np.float32)
    gates = np.ones((40, 40, 2, 2), np.float32)
    with linscan.use_engine(engine):
        got = linscan.grid_scan(one, one, one, gates, two, two)
    for x, want in zip(got, oracles.grid_scan(one, one, one, gates, two, two), strict=True):
        assert want.max() > 1e20
        assert_close(x, want, accumulated("float32", 80))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_only_the_cells_after_them(rng, engine, bad):
    arrays = draw(rng, 7, 8, 2, 3, lead=(2,))
    clean = every_grid(arrays)[0]
    for which in range(7):
        spoiled = [x.copy() for x in arrays]
        spoiled[which][1, 3, 4] = bad
        with linscan.use_engine(engine):
            o, r, d = linscan.grid_scan(*spoiled)
        touched = np.zeros(o.shape, bool)
        touched[1, 3:, 4:] = True
        assert not np.isfinite(o[touched]).all()
        assert_close(o[~touched], clean[~touched], accumulated("float64", 15))
        assert np.isfinite(r[1, :4]).all()
        assert np.isfinite(d[1, :3]).all()


@pytest.mark.parametrize("values", [5, 130])
def test_bits_depend_neither_on_workers_nor_on_other_grids(rng, values):
    arrays = draw(rng, 12, 11, 6, values, "float32", lead=(4,))
    outputs, pullback = linscan.grid_scan_vjp(*arrays, workers=1)
    grads = pullback(*outputs)
    for workers in (2, 3):
        others, pull = linscan.grid_scan_vjp(*arrays, workers=workers)
        for x, y in zip((*others, *pull(*outputs)), (*outputs, *grads), strict=True):
            np.testing.assert_array_equal(x, y)
    alone, pull = linscan.grid_scan_vjp(*(x[2:3].copy() for x in arrays))
    for x, y in zip((*alone, *pull(*(x[2:3] for x in outputs))), (*outputs, *grads), strict=True):
        np.testing.assert_array_equal(x, y[2:3])


@pytest.mark.parametrize(
    ("engine", "dtype"), [("reference", "float64"), ("reference", "complex128"), ("cpu", "float64")]
)
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (1, 5, 1, 9), (4, 2, 3, 67)])
def test_gradients(rng, engine, dtype, shape):
    arrays = draw(rng, *shape, dtype)
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.grid_scan_vjp, *arrays)
        linscan.check_vjp(linscan.grid_scan_vjp, *arrays[:6], None, None, None, reverse=(False, True))


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_broadcast_arguments(rng, engine):
    q, k, v, _, _, mark, direct, r0, _ = draw(rng, 3, 4, 2, 2, lead=(2,))
    shared = 0.4 * rng.random((2, 2)), rng.random((4, 2))
    with linscan.use_engine(engine):
        linscan.check_vjp(
            linscan.grid_scan_vjp, q[:1], k, v[0], *shared, mark, direct[:1], r0, 0.5, reverse=(True, False)
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_size(rng, dtype):
    arrays = draw(rng, 5, 6, 3, 4, dtype)
    outputs, pullback = linscan.grid_scan_vjp(*arrays)
    with linscan.use_engine("reference"):
        _, pull = linscan.grid_scan_vjp(*map(oracles.wide, arrays))
    for x, y, argument in zip(pullback(*outputs), pull(*map(oracles.wide, outputs)), arrays, strict=True):
        assert (x.shape, x.dtype) == (argument.shape, argument.dtype)
        assert_close(x, y, 4 * accumulated(dtype, 11))


def test_errors_say_who_what_and_what_came():
    q, g, s = np.ones((4, 5, 2)), np.ones((4, 5, 2, 2)), np.ones((4, 5, 2))
    call = linscan.grid_scan
    with pytest.raises(ValueError, match=r"grid_scan: q must have shape \(…, X, Y, K\) and v \(…, X, Y, V\); got"):
        call(q, q, q[:3], g, s, s)
    with pytest.raises(ValueError, match=r"grid_scan: k must broadcast to \(4, 5, 2\); got \(4, 5, 3\)"):
        call(q, np.ones((4, 5, 3)), q, g, s, s)
    with pytest.raises(ValueError, match=r"grid_scan: transition must broadcast to \(4, 5, 2, 2\); got"):
        call(q, q, q, np.ones((4, 5, 2, 3)), s, s)
    with pytest.raises(ValueError, match=r"grid_scan: r0 must broadcast to \(5, 2, 2\); got \(4, 2, 2\)"):
        call(q, q, q, g, s, s, None, np.ones((4, 2, 2)))
    with pytest.raises(ValueError, match=r"grid_scan: leading axes: q and k and .* broadcast; got \(2,\) and \(3,\)"):
        call(np.ones((2, 4, 5, 2)), np.ones((3, 4, 5, 2)), q, g, s, s)
    with pytest.raises(ValueError, match=r"grid_scan: reverse must be a pair, for x and y; got \(True,\)"):
        call(q, q, q, g, s, s, reverse=(True,))
    with pytest.raises(ValueError, match=r"grid_scan_vjp: dr must have shape \(5, 2, 2\); got \(3,\)"):
        linscan.grid_scan_vjp(q, q, q, g, s, s)[1](None, np.ones(3))
    with pytest.raises(TypeError, match=r"grid_scan: q has dtype object"):
        call(np.full((4, 5, 2), None), q, q, g, s, s)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (3, 0, 2, 2), (3, 2, 0, 2), (3, 2, 2, 0)])
def test_empty_axes(rng, engine, shape):
    arrays = draw(rng, *shape)
    with linscan.use_engine(engine):
        outputs, pullback = linscan.grid_scan_vjp(*arrays)
        grads = pullback(*outputs)
    for x, want in zip(outputs, oracles.grid_scan(*arrays), strict=True):
        assert_close(x, want, 0)
    assert [x.shape for x in grads] == [x.shape for x in arrays]
