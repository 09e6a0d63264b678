"""The device code of sums over rows, compiled for the host."""

import importlib.util
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from linscan.engines.cuda import _load
from tests.conftest import random
from tests.engines.test_cuda_on_cpu import Array, launch, library, stand_in
from tests.tolerances import assert_close, summed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_rows_of_any_number(rng, tmp_path, dtype):
    compiled = library(tmp_path / "sums.cpp", _load.text("row_sums.cu", dtype), ("run",))
    capture = types.ModuleType("capture")
    capture.capturable = lambda run: run
    spec = importlib.util.spec_from_file_location("row_sums_on_cpu", Path(_load.__file__).with_name("row_sums.py"))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in())
        patch.setitem(sys.modules, "linscan.engines.cuda.capture", capture)
        spec.loader.exec_module(module)
    module.kernel = lambda *_: lambda *arguments: launch(compiled.on_cpu_run, *arguments)
    for rows, columns in ((1, 1), (9, 33), (1024, 3), (2050, 5)):
        x = random(rng, (rows, columns), dtype).view(Array)
        assert_close(module.row_sums(x), x.sum(0, dtype=np.complex128), summed(dtype, rows))
