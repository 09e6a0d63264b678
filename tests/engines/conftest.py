"""Fixtures of the engines' tests."""

import pytest


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that CuPy hands out is full of ones, NaN as a number: an output that is not written shows."""
    cupy = pytest.importorskip("cupy")
    empty = cupy.empty

    def full_of_ones(*args, **options):
        x = empty(*args, **options)
        x.data.memset_async(0xFF, x.nbytes)
        return x

    monkeypatch.setattr(cupy, "empty", full_of_ones)
