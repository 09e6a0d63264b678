"""The index logic of the fused convolution, thread by thread in NumPy: passes, padding, packing, blocks of a row."""

import numpy as np
import pytest

from linscan.engines.cuda.conv_sizes import (
    FINE,
    SHAPES,
    Problem,
    cut,
    memory,
    passes,
    passes_back,
    split_memory,
    split_table,
    square,
    table,
)
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


def twin_pass(v, before, radix, roots):
    """`v` is (threads, numbers each), as in fft.cuh."""
    threads, each = v.shape
    groups, t, out = each // radix, np.arange(threads), np.empty_like(v)
    for q in range(groups):
        slots = q + np.arange(radix) * groups
        x = v[:, slots]
        if before > 1:
            x = x * roots[(t + q * threads) % before][:, None] ** np.arange(radix)
        out[:, slots] = np.fft.fft(x, axis=1).astype(np.complex64)
    return out


def twin_exchange(v, shared, before, radix):
    threads, each = v.shape
    groups, t = each // radix, np.arange(threads)
    shared.barrier()
    for q in range(groups):
        j = t + q * threads
        to = j // before * (before * radix) + j % before
        at = padded(to)[:, None] + padded(np.arange(radix) * before)
        np.testing.assert_array_equal(at, padded(to[:, None] + np.arange(radix) * before))
        shared.write(at, v[:, q + np.arange(radix) * groups])


def twin_get(shared, threads, each):
    t = np.arange(threads)
    at = padded(t)[:, None] + padded(np.arange(each) * threads)
    np.testing.assert_array_equal(at, padded(t[:, None] + np.arange(each) * threads))
    return shared.read(at)


def twin_fft(v, shared, roots, order):
    """The passes of `order`; returns what is left of `roots`, too."""
    threads, each = v.shape
    size = v.size
    for before, radix in order:
        v = twin_pass(v, before, radix, roots)
        roots = roots[before if before > 1 else 0 :]
        if before * radix < size:
            twin_exchange(v, shared, before, radix)
            v = twin_get(shared, threads, each)
    return v, roots


def product(a, b, w, h, g, n):
    """Bins f and n / 2 - f of the packed transform of n real numbers, after the product, parts swapped."""
    b = np.conj(b)
    total, wo = a + b, w * -1j * (a - b)
    p, q = (total + wo) * h, (total - wo) * np.conj(g)
    even, odd = (p + q) / (2 * n), (p - q) * np.conj(w) / (2 * n)
    x, y = even + 1j * odd, np.conj(even) + 1j * np.conj(odd)
    return (z.imag + 1j * z.real for z in (x, y))


def twin_meet(threads, each, shared, spectrum, roots_of_n, roots, n):
    """All butterflies of the last pass forward, in pairs, to the results of the first pass back."""
    before, radix = passes(n // 2)[-1]
    v, r = np.empty((threads, each), np.complex64), np.arange(radix)
    own_roots, steps = roots_of_n[: before // 2 + 1], np.exp(-1j * np.pi * r / radix)  # `turned` of fft.cuh
    for t, q in np.ndindex(threads, each // radix // 2):
        j = t + q * threads
        partner = before - j if j else before // 2
        a, b = (np.fft.fft(shared.read(padded(i) + padded(r * before)) * roots[i] ** r) for i in (j, partner))
        if j == 0:
            half = radix // 2
            high = a[half:].copy()
            a[half:], b[half:] = b[half:], np.roll(high, -1)
        for i in range(radix):
            base = before // 2 if j == 0 and i >= radix // 2 else j
            f, w = base + i * before, own_roots[base] * steps[i]
            np.testing.assert_allclose(w, np.exp(-2j * np.pi * f / n), atol=1e-6)
            if f == 0:
                a[0], _ = product(a[0], a[0], w, spectrum[0].real, spectrum[n // 2].real, n)
                middle = spectrum[n // 4]
                b[radix - 1], _ = product(b[radix - 1], b[radix - 1], -1j, middle, middle, n)
            else:
                a[i], b[radix - 1 - i] = product(a[i], b[radix - 1 - i], w, spectrum[f], spectrum[n // 2 - f], n)
        if j == 0:
            high = np.roll(b[half:], 1)
            a[half:], b[half:] = high, a[half:].copy()
        v[t, 2 * q * radix : (2 * q + 2) * radix] = np.concatenate([np.fft.fft(a), np.fft.fft(b)])
    shared.barrier()
    for t, q in np.ndindex(threads, each // radix // 2):
        j = t + q * threads
        for i, part in ((j, 0), (before - j if j else before // 2, 1)):
            shared.write(padded(i * radix) + r, v[t, (2 * q + part) * radix : (2 * q + part + 1) * radix])


def twin(u, k, c, start, length):
    """The tasks of one row, as conv_fft.cu runs them."""
    each = SHAPES[c.n][0]
    threads, roots_of_n = c.n // 2 // each, table(c.n)
    before = passes(c.n // 2)[-1][0]
    spectrum, y = np.fft.rfft(k, c.n).astype(np.complex64), np.full(length, np.nan, np.float32)
    for block in range(c.blocks):
        shift, seen = block * c.step + start - c.skip, np.zeros(c.n, np.float32)
        first, last = overlap(c.n, shift, len(u))
        seen[first:last] = u[first + shift : last + shift]
        pairs = (seen[0::2] + 1j * seen[1::2]).astype(np.complex64)
        shared = Shared(c.n)
        lead = passes(c.n // 2)[:-1]
        _, roots = twin_fft(pairs.reshape(each, threads).T, shared, roots_of_n[before // 2 + 1 :], lead)
        twin_meet(threads, each, shared, spectrum, roots_of_n, roots, c.n)
        back = passes_back(c.n // 2)[1:]
        v, roots = twin_fft(twin_get(shared, threads, each), shared, roots[before:], back)
        assert len(roots) == 0
        result = np.stack([v.T.ravel().imag, v.T.ravel().real], axis=1).ravel()
        count = min(c.step, length - block * c.step)
        y[block * c.step : block * c.step + count] = result[c.skip : c.skip + count]
    return y


def twin_long(u, k, n):
    """One task of conv_long.cu: which numbers meet in which pass; the transforms themselves are NumPy's."""
    (first, second), half = square(n), n // 2
    fine, roots = np.arange(FINE), split_table(first, second)

    def root(p):
        assert np.max(p) < half
        return roots[p % FINE] * roots[FINE + p // FINE]

    np.testing.assert_allclose(root(fine * (half // FINE)), np.exp(-2j * np.pi * fine * (half // FINE) / n), atol=1e-6)
    i2, f1 = np.arange(second), np.arange(first)[:, None]
    seen = np.pad(u, (0, n - len(u)))
    work = np.fft.fft((seen[0::2] + 1j * seen[1::2]).reshape(first, second), axis=0)
    work = np.fft.fft(work * root(2 * i2 * (f1 % 16)) * root(2 * i2 * 16) ** (f1 // 16), axis=1)
    spectrum, met = np.fft.rfft(k, n), np.zeros(work.shape, int)
    for slot, f2 in np.ndindex(first // 2, second):
        pair = ((slot, f2), (first - slot, second - 1 - f2))
        if slot == 0:
            pair = ((0, f2), (0, -f2)) if f2 < second // 2 else ((first // 2, f2), (first // 2, second - 1 - f2))
        for a, b in (pair, ((0, second // 2),) * 2) if slot == f2 == 0 else (pair,):
            f = a[0] + first * a[1]
            x, y = product(work[a], work[b], root(np.array(f)), spectrum[f], spectrum[half - f], n)
            work[b] = y
            work[a] = x
            met[a] += 1
            met[b] += a != b
    assert (met == 1).all()
    work = np.fft.fft(work, axis=1) * root(2 * i2 * (f1 % 16)) * root(2 * i2 * 16) ** (f1 // 16)
    work = np.fft.fft(work, axis=0).ravel()
    return np.stack([work.imag, work.real], axis=1).ravel()


@pytest.mark.parametrize("n", SHAPES)
def test_fused_transforms_of_every_size(rng, n):
    length = n // 2
    u, k = random(rng, (length,), "float32"), random(rng, (length,), "float32")
    c = cut(Problem(length, length, 0, length, dtype_of("float32"), False, "fft"), None, 1 << 20, np)
    assert (c.n, c.fused) == (n, True)
    want = np.fft.irfft(np.fft.rfft(oracles.wide(u), n) * np.fft.rfft(oracles.wide(k), n), n)[:length]
    assert_close(twin(u, k, c, 0, length), want, transformed("float32", n))


def test_a_transform_in_three_passes(rng):
    n, length = 1 << 16, 1 << 15
    u, k = random(rng, (length,), "float32"), random(rng, (length,), "float32")
    want = np.fft.irfft(np.fft.rfft(u.astype(float), n) * np.fft.rfft(k.astype(float), n), n)
    assert_close(twin_long(u, k, n), want, transformed("float32", n))


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
    assert cut_of(40_000, 20_000, "float16", "fft")[:1] + cut_of(40_000, 20_000, "float16", "fft")[4:] == (
        65_536,
        False,
        (256, 128),
    )
    assert cut_of(1 << 20, 1 << 20, "float32", "fft").split == (1024, 1024)
    assert cut_of(1 << 20, 1 << 20, "float32", "fft", most=50_000).split is None
    assert cut_of(1 << 20, 1 << 20, "float64", "fft").split is None
    assert cut_of(1 << 20, 20_000, "float32", "blocked")[4:] == (False, (256, 256))
    assert max(max(split_memory(*square(1 << bits))) for bits in range(16, 26)) <= 227 << 10
    assert not cut_of(16_384, 16_384, "bfloat16", "fft", most=100_000).fused
    assert cut_of(2048, 100, "float16", "fft", circular=True) == (2048, 2048, 0, 1, True, None)
    assert not cut_of(2047, 100, "float16", "fft", circular=True).fused
    for length in (1, 2, 3, 5):
        assert cut_of(length, length, "float32", "fft", circular=True) == (length, length, 0, 1, False, None)
    assert cut_of(1000, 1000, "float32", "fft", bins=1001) == (2000, 1000, 0, 1, False, None)
    assert cut_of(1000, 1000, "float32", "fft", bins=2049) == (4096, 1000, 0, 1, True, None)
    assert cut_of(10**6, 9000, "float32", "blocked").blocks > 1
