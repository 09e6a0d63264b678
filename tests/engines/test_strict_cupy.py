"""Array code that serves NumPy and CuPy alike keeps to what both can do, on a stand-in as strict as a GPU."""

import numpy as np
import pytest

import linscan
from linscan.engines.reference.assoc_scan import ALGORITHMS
from tests.conftest import random
from tests.strict_cupy import ndarray, strict_cupy


@pytest.fixture
def cupy():
    with strict_cupy() as module, linscan.use_engine("reference"):
        yield module


def on_both(cupy, call, *arrays):
    """The call on the host and on the stand-in: the same bits; returns how often a value was asked for."""
    with linscan.use_engine("reference"):
        want = call(np, *arrays)
    got = call(cupy, *(None if x is None else cupy.asarray(x) for x in arrays))
    waits = ndarray.waits
    for x, y in zip(flat(got), flat(want), strict=True):
        assert isinstance(x, ndarray)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.get(), y)
    return waits


def flat(x):
    """All arrays of a nested result."""
    if isinstance(x, dict):
        x = tuple(x.values())
    return [z for y in x for z in flat(y)] if isinstance(x, (tuple, list)) else [] if x is None else [x]


def test_the_stand_in_is_strict(cupy):
    x = cupy.asarray(np.ones(3))
    with pytest.raises(TypeError, match="implicit conversion"):
        np.asarray(x)
    for mixed in (lambda: x + np.ones(3), lambda: cupy.add(x, np.ones(3)), lambda: x[np.array([0])]):
        with pytest.raises(TypeError, match="a NumPy array among device arrays"):
            mixed()
    x += x
    x[:1] *= 2
    np.testing.assert_array_equal(x.get(), [4, 2, 2])
    assert float(x.sum()) == 8
    assert ndarray.waits == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_assoc_scan_of_elementwise_operators_level_by_level(rng, cupy, algorithm, reverse):
    a, b, start = rng.uniform(0.5, 1, (3, 37)), random(rng, (3, 37), "float64"), random(rng, (3,), "float64")

    def then(f, g):
        return {"a": g["a"] * f["a"], "b": g["a"] * f["b"] + g["b"]}

    def affine(xp, a, b, start):
        initial = {"a": xp.ones(3), "b": start}
        return linscan.assoc_scan(then, {"a": a, "b": b}, initial, reverse=reverse, algorithm=algorithm)

    assert on_both(cupy, affine, a, b, start) == 0

    def lse(xp, b):  # a number on the host as the initial value, the library's own functions as operators
        return (
            linscan.assoc_scan(xp.logaddexp, b, -1.0, axis=0, reverse=reverse, algorithm=algorithm),
            linscan.assoc_scan(lambda x, y: xp.where(y > 0.5, y, x), b, reverse=reverse, algorithm=algorithm),
        )

    assert on_both(cupy, lse, b) == 0


def test_assoc_scan_takes_as_many_array_operations_as_levels(cupy):
    calls = []

    def op(x, y):
        calls.append(len(y))
        return x + y

    y = linscan.assoc_scan(op, cupy.ones(1024), algorithm="hillis_steele")
    assert len(calls) == 10
    assert float(y[-1]) == 1024
    calls.clear()
    linscan.assoc_scan(op, cupy.ones(1024), algorithm="blelloch")
    assert len(calls) == 19  # ten levels up, nine down


def test_the_gradient_of_assoc_scan(rng, cupy):
    def times(p, q):
        return p * q, lambda d: (d * q.conj(), d * p.conj())

    def call(xp, x, start, dy):
        y, pullback = linscan.assoc_scan_vjp(times, x, start)
        return y, pullback(dy), pullback(None)

    assert on_both(cupy, call, *(random(rng, s, "complex128") for s in ((2, 9), (2,), (2, 9)))) == 0


@pytest.mark.parametrize("causal", [False, True])
def test_local_attention(rng, cupy, causal):
    q, k, v = (random(rng, (2, 9, 3), "float32") for _ in range(3))
    g, mask, reset = -rng.random(9).astype("f"), rng.random(9) < 0.7, rng.random(9) < 0.2

    def call(xp, q, k, v, g, mask, reset):
        state = 0 if causal else None
        options = {"causal": causal, "mask": mask, "reset": reset, "reverse": True}
        o, pullback = linscan.local_attention_vjp(q, k, v, 4, g, state, **options)
        last = () if state is None else linscan.local_attention_step(q[:, 0], k[:, 0], v[:, 0], 4, g[0], o[1])
        return o, pullback(*o) if causal else pullback(o), last

    assert on_both(cupy, call, q, k, v, g, mask, reset) == 0


def test_grid_scan_and_its_maps(rng, cupy):
    shapes = [(3, 4, 2), (3, 4, 2), (3, 4, 5), (3, 4, 2, 2), (3, 4, 2), (3, 4, 2), (3, 4), (4, 2, 5), (3, 2, 5)]

    def grid(xp, *arrays):
        outputs, pullback = linscan.grid_scan_vjp(*arrays, reverse=(True, False))
        return outputs, pullback(*outputs)

    assert on_both(cupy, grid, *(random(rng, s, "float32") for s in shapes)) == 0

    def maps(xp, x, w):
        y, back = linscan.cross_scan_vjp(x)
        z, forth = linscan.cross_merge_vjp(y, (3, 4))
        conv, pullback = linscan.short_conv_nd_vjp(x, w, 1.0)
        return y, back(y), z, forth(z), conv, pullback(conv)[:2]

    assert on_both(cupy, maps, random(rng, (3, 4, 2), "float16"), random(rng, (3, 3, 2, 5), "float16")) == 0

    def groups(xp, cells, sample, x):
        made = linscan.window_groups(cells, (2, 2), 4, sample=sample)
        y = made.split(x)
        return *made, y, made.merge(y), made.split_adjoint(y), made.merge_adjoint(x)

    cells, x = rng.integers(0, 7, (21, 2)), random(rng, (21, 3), "float64")
    assert on_both(cupy, groups, cells, rng.integers(0, 3, 21), x) > 0  # the number of groups is asked for
