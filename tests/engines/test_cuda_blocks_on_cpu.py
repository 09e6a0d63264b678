"""The device code of `block_scan`, compiled for the host and held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

from linscan.engines.reference import block_scan as reference
from tests import oracles
from tests.conftest import random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_block_scan import blocks, matrices
from tests.tolerances import assert_close

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    (module,) = load(tmp_path_factory.mktemp("device_code"), "block_scan")
    module._GROUP = 2
    module.tile = lambda n, itemsize, pullback: module.Tile(2 + n % 2, 2, 1)  # odd pieces of odd steps have no gaps
    return module


def check(engine, A, b, h0, dh, reset, reverse, dtype):
    """States and gradients are those of the plain loop in double precision."""
    n, options = b.shape[-1], {"reverse": reverse, "reset": reset, "workers": None}
    wide = [None if x is None else oracles.wide(x) for x in (A, b, h0, dh)]
    want = reference.block_scan(*wide[:3], **options)
    slopes = reference.block_scan_pullback(wide[0], want, *wide[2:], **options)
    A, b, h0, dh = (None if x is None else np.ascontiguousarray(x).view(Array) for x in (A, b, h0, dh))
    options["reset"] = None if reset is None else reset.view(Array)
    h = engine.block_scan(A, b, h0, **options)
    assert_close(h, want, blocks(dtype, n), "h")
    for name, x, y in zip(
        ("dA", "db", "dh0"), engine.block_scan_pullback(A, h, h0, dh, **options), slopes, strict=True
    ):
        assert_close(x, y, 4 * blocks(dtype, n), name)


@pytest.mark.parametrize(
    ("n", "length", "dtype"), [(2, 700, "float32"), (3, 516, "float32"), (3, 129, "complex128"), (9, 20, "float64")]
)
def test_equals_the_loop(rng, engine, n, length, dtype):
    A, b, dh = (
        matrices(rng, (2, length, n, n), dtype),
        random(rng, (2, length, n), dtype),
        random(rng, (2, length, n), dtype),
    )
    check(engine, A, b, random(rng, (2, n), dtype), dh, rng.random((2, length)) < 0.1, True, dtype)
