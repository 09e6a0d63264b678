"""The device code of `block_scan`, compiled for the host and held to the plain loop (see test_cuda_on_cpu.py)."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from linscan.engines.cuda import _load
from linscan.engines.reference import block_scan as reference
from tests import oracles
from tests.conftest import random
from tests.engines.test_cuda_on_cpu import Array, launch, library, stand_in
from tests.ops.test_block_scan import blocks, matrices
from tests.tolerances import assert_close

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


def launcher(folder, file, **beside):
    """The launchers of one file, as they are, their kernels compiled into `folder` as they first run.

    `beside` are the modules of launchers that it imports.
    """
    loaded = {}

    def kernel(source, name, dtype, *macros):
        def run(grid, threads, arguments):
            key = source, dtype, macros
            if key not in loaded:
                loaded[key] = library(folder / f"{file}{len(loaded)}.cpp", _load.text(source, dtype, *macros), (name,))
            launch(getattr(loaded[key], f"on_cpu_{name}"), grid, threads, arguments)

        return run

    path = Path(_load.__file__).with_name(f"{file}.py")
    spec = importlib.util.spec_from_file_location(f"{file}_on_cpu", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in())
        for name, other in beside.items():
            patch.setitem(sys.modules, f"linscan.engines.cuda.{name}", other)
        spec.loader.exec_module(module)
    module.kernel = kernel
    return module


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    module = launcher(tmp_path_factory.mktemp("device_code"), "block_scan")

    module._GROUP = 2
    module.tile = lambda n, itemsize, pullback: module.Tile(2, 2, 1)
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


@pytest.mark.parametrize(("n", "length", "dtype"), [(2, 700, "float32"), (3, 129, "complex128"), (9, 20, "float64")])
def test_equals_the_loop(rng, engine, n, length, dtype):
    A, b, dh = (
        matrices(rng, (2, length, n, n), dtype),
        random(rng, (2, length, n), dtype),
        random(rng, (2, length, n), dtype),
    )
    check(engine, A, b, random(rng, (2, n), dtype), dh, rng.random((2, length)) < 0.1, True, dtype)
