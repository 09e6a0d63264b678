"""Laws of `cross_scan`, `cross_merge`, `window_groups` and `short_conv_nd`: index maps and small stencils."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, summed

SHAPES = [(3, 4, 2), (1, 1, 1), (2, 1, 5, 3), (4, 2, 3, 1), (0, 3, 2), (3, 0, 2), (2, 3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool"])
def test_cross_scan_walks_the_grid_in_four_ways(rng, shape, dtype):
    x = (10 * rng.standard_normal(shape)).astype(dtype_of(dtype))
    for view in (x, np.asfortranarray(x), x[::-1, ::-1]):
        y = linscan.cross_scan(view)
        width, height = shape[-3:-1]
        assert (y.shape, y.dtype) == ((*shape[:-3], 4, width * height, shape[-1]), x.dtype)
        for t in range(width * height):
            by_row, by_column = divmod(t, height), divmod(t, width)[::-1]
            for walk, (i, j) in enumerate((by_row, by_column)):
                np.testing.assert_array_equal(y[..., walk, t, :], view[..., i, j, :])
                np.testing.assert_array_equal(y[..., walk + 2, -1 - t, :], view[..., i, j, :])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_cross_merge_is_the_exact_adjoint(rng, shape, dtype):
    x = rng.integers(-9, 9, shape).astype(dtype)  # small integers: sums without rounding
    y = rng.integers(-9, 9, (*shape[:-3], 4, shape[-3] * shape[-2], shape[-1])).astype(dtype)
    assert np.vdot(linscan.cross_scan(x), y) == np.vdot(x, linscan.cross_merge(y, shape[-3:-1]))
    np.testing.assert_array_equal(linscan.cross_merge(linscan.cross_scan(x), shape[-3:-1]), 4 * x)
    linscan.check_vjp(linscan.cross_scan_vjp, x)
    linscan.check_vjp(linscan.cross_merge_vjp, y, shape=shape[-3:-1])


def test_sixteen_bits_are_merged_in_single_precision():
    y = np.array([2048.0, 1.0, 1.0, 1.0], np.float16).reshape(4, 1, 1)
    assert linscan.cross_merge(y, (1, 1)).item() == 2052  # 2051 to even; 2048 if every sum were rounded
    assert linscan.cross_scan_vjp(np.ones((1, 1, 1), np.float16))[1](y).dtype == np.float16
    assert linscan.cross_scan_vjp(np.ones((1, 1, 1), int))[1](None).dtype == np.float64


def groups_by_hand(cells, window, size, order, sample):
    """The places of all cells, one after the other."""
    rows = []
    for name in sorted(set(sample.tolist())):
        mine = [i for i in range(len(cells)) if sample[i] == name]
        key = {i: ([cells[i][a] // window[a] for a in order], [cells[i][a] for a in order]) for i in mine}
        line = sorted(mine, key=key.__getitem__)
        while len(line) % size:
            line.append(line[len(line) - size] if len(mine) > size else line[len(line) - len(mine)])
        rows += line
    return np.array(rows, int).reshape(-1, size)


@given(
    n=st.integers(0, 40),
    dims=st.integers(1, 3),
    size=st.integers(1, 9),
    samples=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_window_groups_equal_those_made_by_hand(n, dims, size, samples, seed):
    rng = np.random.default_rng(seed)
    cells, window = rng.integers(0, 12, (n, dims)), tuple(rng.integers(1, 6, dims))
    sample, order = 2 * rng.integers(0, samples, n), tuple(rng.permutation(dims))
    groups = linscan.window_groups(cells, window, size, order=order, sample=sample)
    np.testing.assert_array_equal(groups.index, groups_by_hand(cells, window, size, order, sample))
    values = rng.standard_normal((n, 2))
    np.testing.assert_array_equal(groups.merge(groups.split(values)), values)
    for group in groups.index:
        assert len(set(sample[group])) == 1


@pytest.mark.parametrize("n", [0, 1, 5, 23])
def test_window_groups_split_and_merge_have_exact_adjoints(rng, n):
    groups = linscan.window_groups(rng.integers(0, 9, (n, 2)), (3, 3), 7, sample=rng.integers(0, 2, n))
    x = rng.integers(-9, 9, (n, 3)).astype(float)
    y = rng.integers(-9, 9, (*groups.index.shape, 3)).astype(float)
    assert np.vdot(groups.split(x), y) == np.vdot(x, groups.split_adjoint(y))
    assert np.vdot(groups.merge(y), x) == np.vdot(y, groups.merge_adjoint(x))
    assert groups.split_adjoint(y.astype(np.float16)).dtype == np.float16


def test_no_cells_make_no_groups_and_samples_without_cells_get_none():
    groups = linscan.window_groups(np.zeros((0, 3), int), (2, 2, 2), 4)
    assert (groups.index.shape, groups.place.shape) == ((0, 4), (0,))
    assert groups.split(np.ones((0, 5))).shape == (0, 4, 5)
    assert groups.merge(np.ones((0, 4, 5))).shape == (0, 5)
    assert groups.split_adjoint(np.ones((0, 4, 5))).shape == (0, 5)
    assert groups.merge_adjoint(np.ones((0, 5))).shape == (0, 4, 5)
    groups = linscan.window_groups(np.array([[1], [0]]), (4,), 3, sample=np.array([5, 2]))
    np.testing.assert_array_equal(groups.index, [[1, 1, 1], [0, 0, 0]])


def stencil(u, w, bias):
    """y[t] = bias + sum_j u[t + K // 2 - j] w[j] over one image, cell by cell."""
    u, w, bias = oracles.wide(u), oracles.wide(w), oracles.wide(bias)
    y = np.zeros((*u.shape[:2], w.shape[-1]), np.result_type(u, w)) + bias
    for s, t in np.ndindex(u.shape[:2]):
        for i, j in np.ndindex(w.shape[:2]):
            at = s + w.shape[0] // 2 - i, t + w.shape[1] // 2 - j
            if 0 <= at[0] < u.shape[0] and 0 <= at[1] < u.shape[1]:
                y[s, t] += u[at] @ w[i, j]
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 6), (1, 1), (2, 7), (0, 3)])
@pytest.mark.parametrize("taps", [(3, 3), (1, 4), (5, 2)])
def test_short_conv_nd_equals_the_loop(rng, dtype, shape, taps):
    u, w, bias = (random(rng, s, dtype) for s in ((2, *shape, 3), (*taps, 3, 4), (4,)))
    y = linscan.short_conv_nd(u, w, bias)
    assert y.dtype == dtype_of(dtype)
    want = np.stack([stencil(x, w, bias) for x in u])
    assert_close(y, want, summed(dtype, 3 * taps[0] * taps[1]))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_short_conv_nd_of_one_channel_is_fft_conv_nd(rng, dims):
    u, w = random(rng, (2, *(7, 6, 5)[:dims]), "float64"), random(rng, (3, 4, 2)[:dims], "float64")
    y = linscan.short_conv_nd(u[..., None], w[..., None, None])[..., 0]
    axes = tuple(range(-dims, 0))
    want = linscan.fft_conv_nd(u, w[None], axes, "bidirectional")
    assert_close(y, want, 100 * eps("float64"))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_short_conv_nd_gradients(rng, dtype):
    u, w, bias = (random(rng, s, dtype) for s in ((2, 4, 5, 2), (3, 2, 2, 3), (3,)))
    linscan.check_vjp(linscan.short_conv_nd_vjp, u, w, bias)
    linscan.check_vjp(linscan.short_conv_nd_vjp, u[0].real.copy(), w, None)
    linscan.check_vjp(linscan.short_conv_nd_vjp, u, w.real.copy(), bias[:1])
    du, dw, dbias = linscan.short_conv_nd_vjp(np.ones((0, 3, 2)), np.ones((3, 3, 2, 1)), 1.0)[1](None)
    assert (du.shape, dw.shape, dbias) == ((0, 3, 2), (3, 3, 2, 1), 0.0)


def test_short_conv_nd_leaves_strangers_alone(rng):
    u, w = random(rng, (7, 7, 1), "float64"), random(rng, (3, 3, 1, 1), "float64")
    u[2, 2] = np.nan
    y = linscan.short_conv_nd(u, w)
    bad = np.zeros((7, 7), bool)
    bad[1:4, 1:4] = True
    np.testing.assert_array_equal(np.isnan(y[..., 0]), bad)


def test_convs5_is_two_stencils_around_a_scan(rng):
    """States a x + (B * u) on every cell, read by a stencil: in time all at once, and step by step."""
    u, a = random(rng, (6, 5, 5, 2), "float64"), 0.9 * np.exp(1j * rng.uniform(0, 3, 4))
    into, out = random(rng, (3, 3, 2, 4), "complex128"), random(rng, (3, 3, 4, 2), "complex128")
    whole = 2 * linscan.short_conv_nd(linscan.scan(a, linscan.short_conv_nd(u, into), axis=0), out).real
    x = np.zeros((5, 5, 4), complex)
    for t in range(6):
        x = a * x + stencil(u[t], into, 0)
        assert_close(2 * stencil(x, out, 0).real, whole[t], summed("float64", 36))


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (
            ValueError,
            r"cross_scan: x must have shape \(…, X, Y, D\); got \(3, 2\)",
            lambda: linscan.cross_scan(np.ones((3, 2))),
        ),
        (
            ValueError,
            r"cross_merge: y must have shape \(…, 4, 2 \* 3, D\); got \(4, 5, 1\)",
            lambda: linscan.cross_merge(np.ones((4, 5, 1)), (2, 3)),
        ),
        (
            ValueError,
            r"window_groups: cells must have shape \(n, 2\), as window has edges; got \(3, 3\)",
            lambda: linscan.window_groups(np.ones((3, 3), int), (2, 2), 4),
        ),
        (
            TypeError,
            "window_groups: cells must be integers; got float64",
            lambda: linscan.window_groups(np.ones((3, 2)), (2, 2), 4),
        ),
        (
            ValueError,
            "window_groups: cells must not be negative",
            lambda: linscan.window_groups(np.full((3, 2), -1), (2, 2), 4),
        ),
        (
            ValueError,
            r"window_groups: order must name each of the 2 coordinates once; got \(0, 2\)",
            lambda: linscan.window_groups(np.ones((3, 2), int), (2, 2), 4, order=(0, 2)),
        ),
        (
            ValueError,
            r"window_groups: sample must have shape \(3,\); got \(2,\)",
            lambda: linscan.window_groups(np.ones((3, 2), int), (2, 2), 4, sample=np.ones(2, int)),
        ),
        (
            ValueError,
            "window_groups: size must be at least 1; got 0",
            lambda: linscan.window_groups(np.ones((3, 1), int), (2,), 0),
        ),
        (
            ValueError,
            r"short_conv_nd: u must have shape \(…, X, Y, D\) and w \(K, …, D, P\); got \(4, 4, 2\) and \(3, 3, 3, 1\)",
            lambda: linscan.short_conv_nd(np.ones((4, 4, 2)), np.ones((3, 3, 3, 1))),
        ),
        (
            ValueError,
            r"short_conv_nd: bias must broadcast to \(1,\); got \(2,\)",
            lambda: linscan.short_conv_nd(np.ones((4, 4, 2)), np.ones((3, 3, 2, 1)), np.ones(2)),
        ),
    ],
)
def test_errors_say_who_what_and_what_came(error, text, call):
    with pytest.raises(error, match=text):
        call()
