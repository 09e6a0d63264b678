"""Random numbers that several papers' initialisations share, in double precision."""

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from linscan.models.layer import Params, typed


def log_steps(rng: np.random.Generator, shape: tuple[int, ...], least: float, most: float) -> np.ndarray:
    """Logarithms of time steps, uniform between those of `least` and `most`."""
    return rng.uniform(np.log(least), np.log(most), shape)


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...], variance: float = 1.0) -> np.ndarray:
    """Complex normal numbers; the variance is that of both parts together."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * np.sqrt(variance / 2)


def lecun_normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Normal numbers cut off at two standard deviations, of variance ``1 / fan_in`` after the cut."""
    cut = ndtri(rng.uniform(ndtr(-2), ndtr(2), shape))
    density = np.exp(-2) / np.sqrt(2 * np.pi)
    return cut / np.sqrt(fan_in * (1 - 4 * density / (1 - 2 * ndtr(-2))))


def uniform_fan(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Uniform numbers within ``1 / sqrt(fan_in)`` of 0: the weights and biases of ordinary layers."""
    return rng.uniform(-1, 1, shape) / np.sqrt(fan_in)


def init_dense(rng: np.random.Generator, rows: int, columns: int, dtype: Any) -> Params:
    """Weights and biases, uniform within ``1 / sqrt(rows)`` of 0."""
    return typed({"w": uniform_fan(rng, (rows, columns), rows), "b": uniform_fan(rng, (columns,), rows)}, dtype)
