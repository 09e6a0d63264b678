"""The device code of `grid_scan`, compiled for the host and held to the antidiagonals of the reference."""

import numpy as np
import pytest

from linscan.engines.reference import grid_scan as reference
from tests import oracles
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_grid_scan import draw
from tests.tolerances import assert_close, stable

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    (module,) = load(tmp_path_factory.mktemp("device_code"), "grid_scan")
    module._FORWARD, module._BACKWARD, module._BLOCKS = (2, 1), (2, 1), 2
    return module


def test_equals_the_antidiagonals(rng, engine):
    shape, dtype = (5, 4, 11, 35), "complex64"
    arrays = draw(rng, *shape, dtype, lead=(2,))
    slopes = draw(rng, *shape, dtype, lead=(2,))
    given = arrays + [slopes[2], *slopes[7:]]
    wide = [oracles.wide(x) for x in given]
    given = [np.ascontiguousarray(x).view(Array) for x in given]
    tolerance = 4 * stable(dtype) * sum(shape[:2]) ** 0.5
    for name, count in (("grid_scan", 9), ("grid_scan_pullback", 12)):
        got = getattr(engine, name)(*given[:count], workers=None)
        want = getattr(reference, name)(*wide[:count], workers=None)
        for i, (x, y) in enumerate(zip(got, want, strict=True)):
            assert_close(x, y, tolerance, f"{name} {i}")
