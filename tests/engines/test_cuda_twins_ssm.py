"""The arithmetic and the cutting of the GPU's `ssm_kernel` on a CPU, step by step in NumPy, held to the plain sums.

The device code cannot run here. These twins follow it: powers as products over the bits of the exponent, the tables of
a tile as chains, which thread owns which rows and columns, and Horner's rule over a thread's rows in the gradient. A
compiler, where there is one, then has to accept the code itself.
"""

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linscan.engines.cuda import _load
from linscan.engines.cuda.kernel_sizes import WIDTH, bits_of, growth_limit, output_dtype, rows_of, tiles_of
from tests import oracles
from tests.tolerances import assert_close, powers

ACROSS = 16  # threads along each side of a tile
DOUBLE = np.dtype("float64")


def squares(z, bits):
    found = [np.asarray(z, complex)]
    for _ in range(bits - 1):
        found.append(found[-1] ** 2)
    return found


def power(square, exponent):
    x = np.ones_like(square[0])
    while exponent:
        x = x * square[(exponent & -exponent).bit_length() - 1]
        exponent &= exponent - 1
    return x


def grown(square, first, exponent):
    """`first z^exponent`, where the power alone may overflow."""
    x, top = complex(first), len(square) - 1
    with np.errstate(all="ignore"):
        while top and not np.isfinite(square[top]):
            top -= 1
        times, rest = exponent >> top, exponent & ((1 << top) - 1)
        while times and np.isfinite(x):
            x, times = x * square[top], times - 1
        while rest:
            x = x * square[(rest & -rest).bit_length() - 1]
            rest &= rest - 1
    return x


def row_of(i, ty, rows):
    quad = min(rows // ACROSS, 4)
    return i // quad * 64 + ty * quad + i % quad


def column_of(j, tx):
    return j // 4 * 64 + tx * 4 + j % 4


def chain(x, step, count):
    values = [x]
    for _ in range(count - 1):
        values.append(values[-1] * step)
    return np.stack(values)


def forward(a, c, length):
    """One channel, tile by tile; every lag is written once or this raises."""
    rows = rows_of(length, DOUBLE)
    square = squares(a, bits_of(length, rows))
    k = np.full(length, np.nan)
    share = 256 // 8  # threads that make a state's tables
    for tile in range(tiles_of(length, rows)):
        wide, tall = WIDTH // share, rows // share
        column = np.concatenate([chain(power(square, m * wide), square[0], wide) for m in range(share)])
        row = np.concatenate(
            [chain(c * power(square, (tile * rows + m * tall) * WIDTH), square[7], tall) for m in range(share)]
        )
        values = row.real @ column.real.T - row.imag @ column.imag.T
        for ty in range(ACROSS):
            for i in range(rows // ACROSS):
                for tx in range(ACROSS):
                    for j in range(8):
                        q, r = row_of(i, ty, rows), column_of(j, tx)
                        at = (tile * rows + q) * WIDTH + r
                        if at < length:
                            assert np.isnan(k[at])
                            k[at] = values[q, r]
    return k


@given(length=st.sampled_from([1, 2, 127, 128, 129, 4095, 4096, 4097, 8193, 9000]), seed=st.integers(0, 9))
def test_tiles_cover_the_kernel_once(length, seed):
    rng = np.random.default_rng(seed)
    a, c = rng.uniform(0.9, 1, 3) * np.exp(1j * rng.uniform(-3, 3, 3)), rng.standard_normal(3) + 1j
    k = forward(a, c, length)
    assert_close(k, oracles.ssm_kernel(a, c, length).real, powers("complex128", length))


def backward(a, g):
    """p and its derivative of one state, by threads: Horner's rule over four rows, then the power they begin at."""
    length = len(g)
    rows = rows_of(length, DOUBLE)
    square = squares(a, bits_of(length, rows))
    down = rows // ACROSS
    quad, s = min(down, 4), square[7]
    lower = [power(square, max(r - 1, 0)) for r in range(WIDTH)]
    z = np.array([lower[r] * square[0] if r else 1 for r in range(WIDTH)])
    slope = np.array([r * lower[r] if r else 0 for r in range(WIDTH)])
    total = np.zeros(2, complex)
    for tile in range(tiles_of(length, rows)):
        part = np.zeros((rows, WIDTH))
        piece = g[tile * rows * WIDTH : (tile + 1) * rows * WIDTH]
        part.ravel()[: len(piece)] = piece
        v, w = part @ z, part @ slope
        for ty in range(ACROSS):
            for top in range(0, down, quad):
                p = p_slope = within = 0
                for i in reversed(range(top, top + quad)):
                    at = row_of(i, ty, rows)
                    p_slope, p, within = p_slope * s + p, p * s + v[at], within * s + w[at]
                q = tile * rows + row_of(top, ty, rows)
                before, z127 = power(square, max(q - 1, 0) * WIDTH), power(square, 127)
                begin = before * s if q else before
                total += begin * p, begin * (128 * z127 * p_slope + within)
                if q:
                    total[1] += q * WIDTH * before * z127 * p
    return total


@given(
    length=st.sampled_from([1, 2, 127, 128, 129, 4096, 4097, 8193, 20_000]),
    a=st.sampled_from([0.0, 1.0, -0.99, 0.999j, 0.98 * np.exp(0.3j)]),
    seed=st.integers(0, 9),
)
def test_the_gradient_of_rows_adds_up(length, a, seed):
    g = np.random.default_rng(seed).standard_normal(length)
    lag = np.arange(length)
    with np.errstate(all="ignore"):
        want = [(g * a**lag).sum(), (g[1:] * lag[1:] * np.asarray(a, complex) ** (lag[1:] - 1)).sum()]
    found = backward(a, g)
    for x, y, size in zip(found, want, (abs(g).sum(), (lag * abs(g)).sum()), strict=True):
        assert abs(x - y) <= length * 1e-15 * max(size, 1)


@given(
    log=st.floats(0.01, 60),
    exponent=st.integers(0, 5000),
    first=st.sampled_from([0.0, 1e-300, 1.0]),
    bits=st.integers(8, 20),
)
def test_growing_powers_overflow_no_earlier_than_the_product(log, exponent, first, bits):
    exponent &= (1 << bits) - 1
    with np.errstate(all="ignore"):
        square = squares(2.0**log, bits)
    size = log * exponent + (np.log2(first) if first else 0)
    x = grown([complex(s) for s in square], first, exponent)
    if not first:
        assert x == 0
    elif abs(size) < 1000:
        assert abs(np.log2(abs(x)) - size) < 1e-9 * max(1, exponent)
    elif size > 1100:
        assert not np.isfinite(x)


def test_sizes():
    single, double = np.dtype("complex64"), np.dtype("complex128")
    assert [rows_of(n, single) for n in (1, 4096, 4097, 8192, 8193, 1 << 20)] == [32, 32, 64, 64, 128, 128]
    assert [rows_of(n, double) for n in (1, 4096, 4097, 1 << 20)] == [32, 32, 64, 64]
    assert [tiles_of(n, 32) for n in (1, 4096, 4097)] == [1, 1, 2]
    assert [bits_of(n, 32) for n in (1, 4096, 4097)] == [13, 13, 14]
    assert growth_limit(1, 32, single) == 2 ** (120 / 4096)
    assert growth_limit(1, 32, double) == 2 ** (1000 / 4096)
    assert (output_dtype(single, True), output_dtype(single, False)) == (np.dtype("float32"), single)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("source", "dtype", "rows", "parts"), [
    ("squares.cu", "float32", 128, 1), ("ssm_kernel.cu", "float32", 128, 1), ("ssm_kernel_back.cu", "float32", 128, 1),
    ("ssm_kernel.cu", "complex64", 32, 2), ("ssm_kernel_back.cu", "complex64", 32, 2),
    ("ssm_kernel.cu", "complex128", 64, 1), ("ssm_kernel_back.cu", "complex128", 64, 1),
])  # fmt: skip
def test_device_code_compiles_without_spills(tmp_path, source, dtype, rows, parts):
    file = tmp_path / "kernel.cu"
    file.write_text(_load.text(source, dtype, ("ROWS", rows), ("PARTS", parts)))
    targets = [f"-gencode=arch=compute_{card},code=sm_{card}" for card in (75, 90)]
    command = ["nvcc", *_load.OPTIONS, *targets, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "kernel.o"), str(file)]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stderr
    if dtype in ("float32", "complex64"):
        lines = report.stderr[report.stderr.index("'sm_90'") :].splitlines()
        spills = [line for line in lines if "bytes spill stores" in line]
        assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills), report.stderr
