"""The device code of sums over rows, compiled for the host."""

import numpy as np
import pytest

from tests.conftest import random
from tests.engines.on_host import Array, load, needs_compiler
from tests.tolerances import assert_close, summed

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_rows_of_any_number(rng, tmp_path, dtype):
    (module,) = load(tmp_path, "row_sums")
    for rows, columns in ((1, 1), (9, 33), (1024, 3), (2050, 5)):
        x = random(rng, (rows, columns), dtype).view(Array)
        assert_close(module.row_sums(x), x.sum(0, dtype=np.complex128), summed(dtype, rows))
