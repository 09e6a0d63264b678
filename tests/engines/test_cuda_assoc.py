"""`assoc_scan` with an operator as device code: the same as with the operator itself, and what it says of bad code."""

import numpy as np
import pytest

import linscan
from tests.conftest import dtype_of, random
from tests.engines.on_device import on_gpu
from tests.tolerances import assert_close, stable

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

AFFINE = """
__device__ Element combine(Element earlier, Element later) {
  return {later.x0 * earlier.x0, later.x0 * earlier.x1 + later.x1};
}
"""
COMPLEX = """
__device__ Element combine(Element f, Element g) { return {mul(g.a, f.a), mul_add(g.a, f.b, g.b)}; }
"""
MATRIX = """
__device__ Element combine(Element p, Element q) {
  return {q.x0 * p.x0 + q.x1 * p.x2, q.x0 * p.x1 + q.x1 * p.x3, q.x2 * p.x0 + q.x3 * p.x2, q.x2 * p.x1 + q.x3 * p.x3};
}
"""
LAST = """
// the last sample that is valid, and how many are
__device__ Element combine(Element earlier, Element later) {
  return {later.valid ? later.sample : earlier.sample, earlier.valid || later.valid, earlier.count + later.count};
}
"""


def affine(f, g):
    return g[0] * f[0], g[0] * f[1] + g[1]


def matrix(p, q):
    return q[0] * p[0] + q[1] * p[2], q[0] * p[1] + q[1] * p[3], q[2] * p[0] + q[3] * p[2], q[2] * p[1] + q[3] * p[3]


def last(f, g):
    sample = np.where(g["valid"], g["sample"], f["sample"])
    return {"sample": sample, "valid": f["valid"] | g["valid"], "count": (f["count"] + g["count"]).astype(np.uint8)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 1), -1), ((3, 2999), -1), ((130, 70), 0), ((2, 3000, 5), 1), ((2, 70_001), 1)]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrences(rng, dtype, shape, axis, reverse):
    a, b = rng.uniform(-0.9, 0.9, shape).astype(dtype_of(dtype)), random(rng, shape, dtype)
    h0 = random(rng, np.delete(shape, axis), dtype)
    start = on_gpu(np.zeros_like(h0), h0)
    got = linscan.assoc_scan(affine, on_gpu(a, b), start, axis=axis, reverse=reverse, cuda=AFFINE)
    want = linscan.scan(*(np.asarray(x).astype(np.float64) for x in (a, b, h0)), axis=axis, reverse=reverse)
    assert got[1].dtype == dtype_of(dtype)
    assert_close(cupy.asnumpy(got[1]), want, 2 * stable(dtype))
    again = linscan.assoc_scan(affine, on_gpu(a, b), start, axis=axis, reverse=reverse, cuda=AFFINE)
    assert cupy.asnumpy(again[1]).tobytes() == cupy.asnumpy(got[1]).tobytes()


def test_complex_numbers_by_name(rng):
    a, b = 0.9 * np.exp(1j * rng.uniform(-3, 3, (4, 5000))), random(rng, (4, 5000), "complex128")
    for dtype in ("complex64",):
        elems = dict(zip("ab", on_gpu(a.astype(dtype), b.astype(dtype)), strict=True))
        got = linscan.assoc_scan(None, elems, cuda=COMPLEX)
        assert_close(cupy.asnumpy(got["b"]), linscan.scan(a, b), 2 * stable(dtype))


@pytest.mark.parametrize(("length", "lanes"), [(5, 1), (4000, 1), (70_000, 1), (400, 33)])
def test_operators_that_do_not_commute(rng, length, lanes):
    given = [rng.integers(0, 3, (2, length, lanes)) for _ in range(4)]  # products that overflow, all alike
    for kind in (np.int64,):
        elems = tuple(x.astype(kind) for x in given)
        got = linscan.assoc_scan(matrix, on_gpu(*elems), axis=1, cuda=MATRIX)
        want = linscan.assoc_scan(matrix, elems, axis=1)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(x), y)


@pytest.mark.parametrize("shape", [(2, 7001), (2, 7001, 3)])
def test_mixed_types_of_one_to_eight_bytes(rng, shape):
    elems = {
        "sample": random(rng, shape, "float64"),
        "valid": rng.random(shape) < 0.01,
        "count": np.ones(shape, np.uint8),
    }
    got = linscan.assoc_scan(last, {k: cupy.asarray(v) for k, v in elems.items()}, axis=1, cuda=LAST)
    want = linscan.assoc_scan(last, elems, axis=1, algorithm="sequential")
    for name, x in want.items():
        np.testing.assert_array_equal(cupy.asnumpy(got[name]), x)


def test_views_and_nothing(rng):
    a, b = on_gpu(rng.uniform(-0.9, 0.9, (300, 4, 3)), random(rng, (3, 4, 300), "float64"))
    elems = a.T[:, ::-1], b[:, ::-1]
    got = linscan.assoc_scan(affine, elems, cuda=AFFINE)
    assert_close(cupy.asnumpy(got[1]), linscan.scan(*map(cupy.asnumpy, elems)), 2 * stable("float64"))
    assert linscan.assoc_scan(affine, (a[:0], a[:0]), axis=0, cuda=AFFINE)[0].shape == (0, 4, 3)


def test_the_operator_itself_runs_where_nothing_compiles_it(rng):
    a, b = rng.uniform(-0.9, 0.9, (2, 40)), random(rng, (2, 40), "float64")
    want = linscan.scan(a, b)
    with linscan.use_engine("reference"):
        assert_close(
            cupy.asnumpy(linscan.assoc_scan(affine, on_gpu(a, b), cuda="no code")[1]), want, 2 * stable("float64")
        )


def test_bad_code_is_quoted_with_its_line():
    x = cupy.ones((2, 5))
    with pytest.raises(
        ValueError, match=r'assoc_scan: cuda does not compile:\n(?s:.)*cuda\(3\): error: identifier "other"'
    ):
        linscan.assoc_scan(
            None, x, cuda="\n__device__ Element combine(Element x, Element y) {\n  return {x.x0 + other};\n}"
        )
    with pytest.raises(ValueError, match=r"assoc_scan: cuda does not compile:\n(?s:.)*combine"):
        linscan.assoc_scan(None, x, cuda="// nothing here")
