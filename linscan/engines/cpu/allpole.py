"""Time-varying all-pole filters on the CPU: one row at a time, rows shared out between threads."""

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.jit import flush_subnormals, jit, restore_subnormals
from linscan.engines.cpu.pool import parallel_for

_GRAIN = 1 << 15  # multiply-adds a thread must get for its hand-over (about 30 us) to pay
_TIMES = 1024  # samples between two moves of the past to the front of the window


def allpole(a: Array, x: Array, zi: Array, *, axis, workers) -> Array:
    """See `linscan.ops.allpole.allpole`; `a` is (…, K), `zi` (rows, K) with the newest output first."""
    y, taps = np.empty(x.shape, x.dtype), a.shape[-1]
    if x.size:
        outer, inner = (int(np.prod(s, dtype=np.intp)) for s in (x.shape[:axis], x.shape[axis + 1 :]))
        x3, y3 = (v.reshape(outer, x.shape[axis], inner) for v in (x, y))
        # Oldest first, as the window lies in memory: the newest output, which a step waits for, is subtracted last.
        a4, past = a[..., ::-1].reshape(*x3.shape, taps), zi[..., ::-1].reshape(outer, inner, taps)

        def body(lo: int, hi: int) -> None:
            _rows(a4, x3, y3, past, np.empty(taps + _TIMES, x.dtype), lo, hi)

        parallel_for(body, outer * inner, grain=max(1, _GRAIN // (x.shape[axis] * max(1, taps))), workers=workers)
    return y


@jit
def _rows(a, x, y, past, seen, lo, hi):
    mode = flush_subnormals()
    taps, inner, length = a.shape[3], x.shape[2], x.shape[1]
    for row in range(lo, hi):
        g, i = row // inner, row % inner
        coefficients, xs, ys = a[g, :, i], x[g, :, i], y[g, :, i]
        for k in range(taps):
            seen[k] = past[g, i, k]
        for start in range(0, length, _TIMES):
            n = min(_TIMES, length - start)
            for t in range(n):
                line, window, total = coefficients[start + t], seen[t : t + taps], xs[start + t]
                for k in range(taps):
                    total -= line[k] * window[k]
                seen[t + taps] = total
                ys[start + t] = total
            for k in range(taps):
                seen[k] = seen[n + k]
    restore_subnormals(mode)
