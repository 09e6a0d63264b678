"""The Cauchy sums of `ssm_kernel_dplr` in array operations, over groups of nodes.

A sum has the form ``sum_n w[j, n] / D[n, k]`` with ``D = base_k + alpha_n p_k + beta_n q_k``; `w`, `alpha` and `beta`
are real.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from linscan._arrays import Array, namespace

_ELEMENTS = 1 << 20  # of one group's D


def ssm_kernel_dplr(alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, *, workers: Any) -> Array:
    sums = namespace(w).empty((*w.shape[:-1], len(base)), np.complex128)
    for k in _groups(alpha, base):
        sums[..., k] = w @ _reciprocals(alpha, beta, base[k], p[k], q[k])
    return sums


def ssm_kernel_dplr_pullback(
    alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, dsums: Array, *, workers: Any
) -> tuple[Array, Array, Array]:
    xp = namespace(w)
    dalpha, dbeta, dw = xp.zeros_like(alpha), xp.zeros_like(beta), xp.zeros_like(w)
    for k in _groups(alpha, base):
        y, g = _reciprocals(alpha, beta, base[k], p[k], q[k]), dsums[..., k]
        dw += (g @ y.conj().swapaxes(1, 2)).real
        dD = -((y * y).conj()) * (w.swapaxes(1, 2) @ g)
        dalpha += (dD * p[k].conj()).real.sum(axis=-1)
        dbeta += (dD * q[k].conj()).real.sum(axis=-1)
    return dalpha, dbeta, dw


def _groups(alpha: Array, base: Array) -> Iterator[slice]:
    step = max(1, _ELEMENTS // max(1, alpha.size))
    for first in range(0, len(base), step):
        yield slice(first, first + step)


def _reciprocals(alpha: Array, beta: Array, base: Array, p: Array, q: Array) -> Array:
    """1 / D, (channels, N, nodes)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # an eigenvalue on a node
        return 1 / (base + alpha[..., None] * p + beta[..., None] * q)
