"""Scan kernels for channels last: one time step is a vector operation on contiguous memory.

Inputs may be of length 1 in the outer or the time axis and are then repeated along it.
"""

import numpy as np

from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals


@jit
def _at(x, k, t, lo, hi):
    return x[min(k, x.shape[0] - 1), min(t, x.shape[1] - 1), lo:hi]


@jit
def columns(a, b, h, state, lo, hi, reverse):
    """``h[t] = a[t] h[t-1] + b[t]`` in columns `lo` to `hi` of (K, T, D); `state` (K, D) goes from initial to final."""
    mode = flush_subnormals()
    length = h.shape[1]
    for k in range(h.shape[0]):
        before = state[k, lo:hi]
        for i in range(length):
            t = length - 1 - i if reverse else i
            at, bt, ht = _at(a, k, t, lo, hi), _at(b, k, t, lo, hi), h[k, t, lo:hi]
            for d in range(ht.size):
                ht[d] = at[d] * before[d] + bt[d]
            before = ht
        state[k, lo:hi] = before
    restore_subnormals(mode)


@jit
def columns_back(a, h, dh, first, da, db, flow, lo, hi, reverse):
    """The pullback: against the direction of the scan; `flow` is ``conj(a[t+1]) δ[t+1]``, `first` the state before."""
    mode = flush_subnormals()
    length = h.shape[1]
    for k in range(h.shape[0]):
        carried = flow[k, lo:hi]
        for i in range(length):
            t = i if reverse else length - 1 - i
            at, gt = _at(a, k, t, lo, hi), _at(dh, k, t, lo, hi)
            dat, dbt = da[k, t, lo:hi], db[k, t, lo:hi]
            before = first[k, lo:hi]
            if i < length - 1:
                before = h[k, t + 1 if reverse else t - 1, lo:hi]
            for d in range(carried.size):
                delta = gt[d] + carried[d]
                dbt[d] = delta
                dat[d] = np.conj(before[d]) * delta
                carried[d] = np.conj(at[d]) * delta
    restore_subnormals(mode)
