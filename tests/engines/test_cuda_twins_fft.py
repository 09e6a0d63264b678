"""The index logic of the fused convolution, thread by thread in NumPy: passes, padding, packing, blocks of a row."""

import numpy as np
import pytest

from linscan.engines.cuda.conv_sizes import SHAPES, Problem, cut, memory, passes, table
from linscan.engines.reference.fft_conv import overlap
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, transformed


def padded(i):
    return i + (i >> 4)


class Shared:
    """Shared memory: every word written at most once between two barriers, and read only if written."""

    def __init__(self, n):
        self.words = np.full(memory(n) // 8, np.nan, np.complex64)
        self.used = np.zeros(len(self.words), bool)

    def barrier(self):
        self.used[:] = False

    def write(self, at, values):
        at = np.asarray(at).ravel()
        assert len(np.unique(at)) == len(at)
        assert not self.used[at].any()
        self.used[at] = True
        self.words[at] = np.asarray(values).ravel()

    def read(self, at):
        assert not np.isnan(self.words[at]).any()
        return self.words[at]


def twin_fft(v, shared, roots):
    """`v` is (threads, numbers each), as in fft.cuh."""
    threads, each = v.shape
    size, t = v.size, np.arange(threads)
    for before, radix in passes(size):
        own = roots[:before] if before > 1 else None
        roots = roots[before:] if before > 1 else roots
        groups, out = each // radix, np.empty_like(v)
        for q in range(groups):
            j, slots = t + q * threads, q + np.arange(radix) * groups
            x = v[:, slots]
            if own is not None:
                x = x * own[j % before][:, None] ** np.arange(radix)
            out[:, slots] = np.fft.fft(x, axis=1).astype(np.complex64)
        v = out
        if before * radix == size:
            return v
        shared.barrier()
        for q in range(groups):
            j = t + q * threads
            to = j // before * (before * radix) + j % before
            at = padded(to)[:, None] + np.arange(radix) * padded(before)
            np.testing.assert_array_equal(at, padded(to[:, None] + np.arange(radix) * before))
            shared.write(at, v[:, q + np.arange(radix) * groups])
        v = shared.read(padded(t)[:, None] + np.arange(each) * padded(threads))
    return v


def twin_multiply(v, shared, spectrum, roots):
    threads, each = v.shape
    size, t = v.size, np.arange(threads)
    shared.barrier()
    shared.write(padded(t)[:, None] + np.arange(each) * padded(threads), v)
    out = np.empty_like(v)
    for e in range(each):
        at = np.where((e == 0) & (t == 0), 0, padded(threads - t) + (each - 1 - e) * padded(threads))
        f, b = t + e * threads, np.conj(shared.read(at))
        np.testing.assert_array_equal(at, padded((size - f) % size))
        w, h, g = roots[:threads] * roots[threads + e], spectrum[f].copy(), spectrum[size - f].copy()
        if e == 0:
            h[0], g[0] = h[0].real, g[0].real
        total, wo = v[:, e] + b, w * -1j * (v[:, e] - b)
        x, y = (total + wo) * h, (total - wo) * np.conj(g)
        even, odd = x + y, (x - y) * np.conj(w)
        out[:, e] = ((even.imag + odd.real) + 1j * (even.real - odd.imag)) / (4 * size)
    return out


def twin(u, k, c, start, length):
    """The tasks of one row, as conv_fft.cu runs them."""
    each = SHAPES[c.n][0]
    threads, roots = c.n // 2 // each, table(c.n, each)
    spectrum, y = np.fft.rfft(k, c.n).astype(np.complex64), np.full(length, np.nan, np.float32)
    for block in range(c.blocks):
        shift, seen = block * c.step + start - c.skip, np.zeros(c.n, np.float32)
        first, last = overlap(c.n, shift, len(u))
        seen[first:last] = u[first + shift : last + shift]
        pairs = (seen[0::2] + 1j * seen[1::2]).astype(np.complex64)
        shared = Shared(c.n)
        v = twin_fft(pairs.reshape(each, threads).T, shared, roots[threads + each :])
        v = twin_fft(twin_multiply(v, shared, spectrum, roots), shared, roots[threads + each :])
        result = np.stack([v.T.ravel().imag, v.T.ravel().real], axis=1).ravel()
        count = min(c.step, length - block * c.step)
        y[block * c.step : block * c.step + count] = result[c.skip : c.skip + count]
    return y


@pytest.mark.parametrize("n", SHAPES)
def test_fused_transforms_of_every_size(rng, n):
    length = n // 2
    u, k = random(rng, (length,), "float32"), random(rng, (length,), "float32")
    c = cut(Problem(length, length, 0, length, dtype_of("float32"), False, "fft"), None, 1 << 20, np)
    assert (c.n, c.fused) == (n, True)
    want = np.fft.irfft(np.fft.rfft(oracles.wide(u), n) * np.fft.rfft(oracles.wide(k), n), n)[:length]
    assert_close(twin(u, k, c, 0, length), want, transformed("float32", n))


@pytest.mark.parametrize("start", [0, 7, 99])
def test_blocks_of_a_row(rng, start):
    u, k = random(rng, (5001,), "float32"), random(rng, (100,), "float32")
    c = cut(Problem(5001, 100, start, 5001, dtype_of("float32"), False, "blocked"), None, 1 << 20, np)
    assert c.fused
    assert c.blocks > 1
    assert c.skip >= 99
    want = np.convolve(oracles.wide(u), oracles.wide(k))[start : start + 5001]
    want = np.concatenate([want, np.zeros(5001 - len(want))])
    assert_close(twin(u, k, c, start, 5001), want, transformed("float32", c.n))


def test_what_is_fused():
    def cut_of(length, taps, dtype, method, bins=None, most=1 << 20, circular=False):
        return cut(Problem(length, taps, 0, length, dtype_of(dtype), circular, method), bins, most, np)

    assert not cut_of(1000, 1000, "float64", "fft").fused
    assert not cut_of(1000, 1000, "complex64", "fft").fused
    assert not cut_of(20_000, 20_000, "float32", "fft").fused
    assert cut_of(16_384, 16_384, "bfloat16", "fft").n == 32768
    assert not cut_of(16_384, 16_384, "bfloat16", "fft", most=100_000).fused
    assert cut_of(2048, 100, "float16", "fft", circular=True) == (2048, 2048, 0, 1, True)
    assert not cut_of(2047, 100, "float16", "fft", circular=True).fused
    assert cut_of(1000, 1000, "float32", "fft", bins=1001) == (2000, 1000, 0, 1, False)
    assert cut_of(1000, 1000, "float32", "fft", bins=2049) == (4096, 1000, 0, 1, True)
    assert cut_of(10**6, 9000, "float32", "blocked").blocks > 1
