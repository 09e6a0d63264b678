"""The device code of the log-space scans, compiled for the host and held to the plain loop."""

import numpy as np
import pytest

import linscan
from linscan.engines.reference import semiring_scan as reference
from tests import oracles
from tests.conftest import random
from tests.engines.on_host import Array, launch, library, load, needs_compiler
from tests.ops.test_semiring_scan import assert_same, decays
from tests.tolerances import logarithms

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    names = "assoc_tiles", "semiring_scan", "assoc_scan"
    tiles, module, operators = load(tmp_path_factory.mktemp("device_code"), *names)
    cut = tiles.cut

    def small(in_lanes, *sizes):  # two warps, and groups of two
        macros, run, warps = cut(in_lanes, *sizes)
        return tiles.Cut((*macros[:-2], ("WARPS", 2), ("GROUP", 2)), run, min(warps, 2))

    tiles.cut, tiles._multiprocessors = small, lambda: 10**9
    module.tiles, module.operators = tiles, operators
    return module


def shared_rows(engine, wanted):
    """Whether every tile has its block: bits do not depend on it."""
    engine.tiles._plans.clear()
    engine.tiles._multiprocessors = lambda: 10**9 if wanted else 0


def arrays(*given):
    return [None if x is None else np.ascontiguousarray(x).view(Array) for x in given]


@pytest.mark.parametrize(("shape", "axis"), [((2, 2600), 1), ((70, 35), 0)])
def test_equal_the_loop(rng, engine, shape, axis):
    rows = shape[:axis] + shape[axis + 1 :]
    s, v, w = random(rng, shape, "float32") * 4, random(rng, shape, "float32"), decays(rng, shape, "float32")
    s[rng.random(shape) < 0.2], w[rng.random(shape) < 0.05] = -np.inf, -np.inf
    v[s == -np.inf] = np.nan
    reset, z0, y0 = rng.random(shape) < 0.02, random(rng, rows, "float32"), random(rng, rows, "float32")
    for reverse, first in ((False, (z0, y0)), (True, (None, None))):
        options = {"axis": axis, "reverse": reverse, "reset": reset, "workers": None}
        wide = [None if x is None else oracles.wide(x) for x in (s, v, w, *first)]
        want = reference.softmax_average(*wide, **options), reference.max_scan(wide[2], wide[0], wide[3], **options)
        s_, v_, w_, z_, y_, options["reset"] = arrays(s, v, w, *first, reset)
        shared_rows(engine, True)
        y, z = engine.softmax_average(s_, v_, w_, z_, y_, **options)
        shared_rows(engine, False)
        for x, same in zip((y, z), engine.softmax_average(s_, v_, w_, z_, y_, **options), strict=True):
            np.testing.assert_array_equal(x, same)
        assert_same(z, want[0][1], logarithms("float32", 16))
        assert_same(y, want[0][0], logarithms("float32", 16))
        assert_same(engine.max_scan(w_, s_, z_, **options), want[1], logarithms("float32", 16))


MATRICES = """
static Element combine(Element p, Element q) {
  return {q.x0 * p.x0 + q.x1 * p.x2, q.x0 * p.x1 + q.x1 * p.x3, q.x2 * p.x0 + q.x3 * p.x2, q.x2 * p.x1 + q.x3 * p.x3};
}
"""


def matrices(p, q):
    return q[0] * p[0] + q[1] * p[2], q[0] * p[1] + q[1] * p[3], q[2] * p[0] + q[3] * p[2], q[2] * p[1] + q[3] * p[3]


@pytest.mark.parametrize(("shape", "axis"), [((2, 1500), 1), ((40, 33), 0)])
def test_a_users_operator(rng, engine, tmp_path, shape, axis):
    """Products of integer matrices, which do not commute; overflow is the same in any order."""

    class Compiled:
        def __init__(self, source, name, options):
            self.run = library(tmp_path / "operator.cpp", source).on_cpu_scan

        def compile(self):
            pass

        def __call__(self, grid, threads, arguments):
            launch(self.run, grid, threads, arguments)

    module = engine.operators
    module.cupy.RawKernel = Compiled
    elems = [rng.integers(-2, 3, shape).astype(np.int32) for _ in range(4)]
    first = [rng.integers(-2, 3, np.delete(shape, axis)).astype(np.int32) for _ in range(4)]
    want = linscan.assoc_scan(matrices, tuple(elems), tuple(first), axis=axis, reverse=True, algorithm="sequential")
    y = arrays(*elems)
    module.assoc_scan(MATRICES, ("x0", "x1", "x2", "x3"), y, arrays(*first), axis, True)
    for got, exact in zip(y, want, strict=True):
        np.testing.assert_array_equal(got, exact)
