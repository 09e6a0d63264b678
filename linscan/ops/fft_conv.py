"""Long convolutions along one axis: ``y[t] = Σ_j k[j] u[t-j]``, by FFT or directly.

The module is `fft_conv` rather than `conv`: a kernel as long as the signal and a filter of a few taps (`short_conv`)
share an equation but neither their layout nor their gradient's algorithm.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import check_workers, pick
from linscan.ops.conv_window import Window, prepare, time_back, time_last


def fft_conv(
    u: Array,
    k: Array,
    axis: int = -1,
    mode: str = "causal",
    *,
    state: Array | None = None,
    method: str = "auto",
    spectrum: Array | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Array]:
    r"""Convolution ``y[t] = Σ_j k[j] u[t-j]`` of a signal with a kernel of any length, along one axis.

    Parameters
    ----------
    u : array_like
        Signal, T samples along `axis`. Real or complex.
    k : array_like
        Kernel, K taps along `axis`; a one-dimensional kernel serves every row. The other axes of `u` and `k` broadcast.
    axis : int, default -1
        The axis of the broadcast shape that is time.
    mode : {"causal", "bidirectional", "circular"}
        - causal: ``y[t] = Σ_j k[j] u[t-j]`` with ``u[t] = 0`` for t < 0, or from `state`.
        - bidirectional: ``y[t] = Σ_j k[j] u[t + K//2 - j]``: the middle tap ``k[K//2]`` acts at lag 0, the taps after
          it on the past, those before it on the future. See Notes for kernels that come as a pair.
        - circular: as causal, with u periodic; taps beyond T wrap around.
    state : array_like, optional
        The K - 1 inputs before the first, oldest first: `u`'s shape with K - 1 along `axis`, or 0. Causal only. Given,
        the call also returns the state that continues the signal.
    method : {"auto", "direct", "fft", "blocked"}
        How to sum. auto takes direct if T or K is at most 64, else blocked if T is at least 16 K, else fft. See Notes.
    spectrum : array_like, optional
        ``rfft(k, n)`` along `axis` (``fft(k, n)`` if the result is complex) for a kernel used many times; any even n
        that is at least T + K - 1 (circular: n is T). `k` is still needed. auto then means fft.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        T samples along `axis`, of the broadcast shape and the promoted dtype, C-contiguous.
    state : array
        Only if `state` was given: the last K - 1 inputs.

    Raises
    ------
    ValueError
        If the shapes do not broadcast, or for an unknown `mode` or `method`, or options that exclude each other.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    short_conv : a few taps for each channel, with bias and resets.
    fft_conv_nd : several axes at once.
    ssm_kernel : the kernel of a state-space model.

    Notes
    -----
    Direct is O(T K) and its error in ``y[t]`` is at most ``K eps Σ_j |k[j] u[t-j]|``: small outputs keep their digits.
    FFT is O((T + K) log(T + K)), in sizes with factors 2, 3 and 5; its error is of the order of ``eps ‖k‖ ‖u‖``,
    **relative to the largest values of the row**: the far tail of a decaying kernel, or what precedes a burst, drowns
    in it. Blocked (overlap-save) is O(T log K), and its error relates to a window of about eight kernel lengths. Where
    small values beside large ones matter, use direct, float64, or a scan.

    A NaN or inf reaches the same outputs by every method, those within K - 1 after it: rows in which a transform spread
    one are redone without it. (Not so where finite numbers overflow in the transform: sums beyond 3e38 in float32.)
    Kernel pairs of other conventions, `k1` acting on the future: ``concatenate([k1[::-1], k0])`` where k1[0] is lag
    -1 (S4, SGConv); ``concatenate([k1[:0:-1], k0])`` with k1[0] added to k0[0] where both count lag 0 (MEGA, Hyena).
    Rows are transformed in batches that fit the cache; a row's bits do not depend on the other rows or on `workers`.

    References
    ----------
    .. [1] A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", 3rd ed., section 8.7, 2009.
    .. [2] A. Gu, K. Goel and C. Ré, "Efficiently modeling long sequences with structured state spaces", 2021,
       arXiv:2111.00396.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import fft_conv
    >>> u = np.array([1.0, 0.0, 0.0, 2.0])
    >>> k = np.array([4.0, 2.0, 1.0])
    >>> fft_conv(u, k)
    array([4., 2., 1., 8.])
    >>> fft_conv(u, k, mode="bidirectional")
    array([2., 1., 8., 4.])

    In two pieces, the state carried over:

    >>> y1, state = fft_conv(u[:2], k, state=0)
    >>> y2, state = fft_conv(u[2:], k, state=state)
    >>> np.concatenate([y1, y2]), state
    (array([4., 2., 1., 8.]), array([0., 2.]))
    """
    window = prepare("fft_conv", u, k, axis, mode, state=state, method=method, spectrum=spectrum)
    y = _run(window, workers)
    return y if state is None else (y, _last_state(window))


def _run(w: Window, workers: int | None) -> Array:
    check_workers("fft_conv", workers)  # nothing runs where nothing is to be done
    xp = _arrays.namespace(w.u)
    y = _empty(xp, np.broadcast_shapes(w.u.shape[:-1], w.k.shape[:-1]), w.u.shape[-1], w)
    _sum(w, w.seen, w.k, y, w.start, workers, w.spectrum)
    return time_back(y, w.time)


def _sum(
    w: Window, u: Array, k: Array, y: Array, start: int, workers: int | None, spectrum: Array | None = None
) -> None:
    """Fill `y` with the window of ``u * k`` that starts at `start`."""
    if k.shape[-1] == 0 or u.shape[-1] == 0:
        y[...] = 0
    elif y.size:
        run = pick("fft_conv", w.dtype, y)
        run(u, k, y, start=start, circular=w.circular, method=w.method, spectrum=spectrum, workers=workers)


def _last_state(w: Window) -> Array:
    """The last K - 1 of all inputs, in memory of their own."""
    xp, past = _arrays.namespace(w.u), cast(Array, w.past)
    length, span = w.u.shape[-1], past.shape[-1]
    last = xp.concatenate([past[..., min(length, span) :], w.u[..., max(length - span, 0) :]], -1)
    return xp.ascontiguousarray(time_back(last, w.time))


def fft_conv_vjp(
    u: Array,
    k: Array,
    axis: int = -1,
    mode: str = "causal",
    *,
    state: Array | None = None,
    method: str = "auto",
    workers: int | None = None,
) -> tuple[Any, Callable[..., tuple[Array, Array, Array | None]]]:
    """`fft_conv` and its pullback.

    Parameters
    ----------
    u, k, axis, mode, state, method, workers
        As in `fft_conv`.

    Returns
    -------
    y : array, or (y, state)
        What `fft_conv` returns.
    pullback : callable
        ``pullback(dy)``, or ``pullback(dy, dstate)`` if `state` was given, returns ``(du, dk, dstate)``, each of its
        argument's shape and dtype (None where the argument was None). A cotangent None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `fft_conv`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    fft_conv : the convolution, with the choice of methods.

    Notes
    -----
    Two correlations by the method of the forward: ``du`` is `dy` against the kernel, ``dk`` is `dy` against the signal,
    where the rows that share a kernel are summed before the one transform back. Retains `u`, `k` and `state`. A NaN or
    inf in `dy` reaches what the sum gives it to in ``du``, but may reach every tap of ``dk``. Complex cotangents
    are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import fft_conv_vjp
    >>> y, pullback = fft_conv_vjp(np.array([1.0, 5.0, 2.0]), np.array([4.0, 3.0]))
    >>> du, dk, _ = pullback(np.array([0.0, 0.0, 1.0]))
    >>> du, dk
    (array([0., 3., 4.]), array([2., 5.]))
    """
    # y[t] = Σ_j k[j] x[start + t - j], x the inputs seen, S of them. Each product hands its cotangent to both factors:
    #   dx[s] = Σ_t dy[t] conj(k[start + t - s]), the window of dy * reversed conj(k) that starts at K - 1 - start;
    #   dk[j] = Σ_t dy[t] conj(x[start + t - j]).
    w = prepare("fft_conv_vjp", u, k, axis, mode, state=state, method=method)
    y = _run(w, workers)
    after = None if state is None else _last_state(w)

    def pullback(dy: Array | None, dstate: Array | None = None) -> tuple[Array, Array, Array | None]:
        xp = _arrays.namespace(y)
        g = xp.moveaxis(_arrays.cotangent("fft_conv_vjp", "dy", dy, y), w.time, -1)
        dseen: Any = _arrays.grad_like(_back_to_inputs(w, g, workers), w.seen)
        if after is not None:
            flow = _arrays.cotangent("fft_conv_vjp", "dstate", dstate, after)
            dseen[..., w.u.shape[-1] :] += time_last("fft_conv_vjp", "dstate", flow, w.time)
        du, dpast = w.split(dseen)
        grads = zip((du, _back_to_kernel(w, g, workers), dpast), w.given, strict=True)
        du, dk, dstate = (time_back(_arrays.grad_like(grad, x), w.time) for grad, x in grads)
        return du, dk, dstate

    return (y if after is None else (y, after)), pullback


def _back_to_inputs(w: Window, dy: Array, workers: int | None) -> Array:
    """The gradient of all inputs seen, not summed over the axes in which they were broadcast."""
    xp = _arrays.namespace(dy)
    k, start = xp.conj(w.k)[..., ::-1], w.k.shape[-1] - 1 - w.start
    if w.circular:  # tap j acts at lag -j, which is T - j
        k = xp.concatenate([xp.zeros((*k.shape[:-1], dy.shape[-1] - k.shape[-1]), w.dtype), k], -1)
        k, start = xp.roll(k, 1, -1), 0
    dseen = _empty(xp, dy.shape[:-1], w.u.shape[-1] + (0 if w.past is None else w.past.shape[-1]), w)
    _sum(w, dy, k, dseen, start, workers)
    return dseen


def _empty(xp: Any, shape: tuple[int, ...], length: int, w: Window) -> Array:
    """Memory in which time lies where the result has it, seen with time last."""
    place = len(shape) + 1 + w.time
    out = xp.empty((*shape[:place], length, *shape[place:]), w.dtype)
    return out if place == len(shape) else xp.moveaxis(out, place, -1)


def _back_to_kernel(w: Window, dy: Array, workers: int | None) -> Array:
    """The gradient of the kernel as it was given."""
    xp = _arrays.namespace(dy)
    if w.k.size == 0 or dy.size == 0:
        return xp.zeros(w.given[1].shape, w.dtype)
    run = pick("fft_conv_pullback", w.dtype, dy)
    dk = run(w.seen, w.k, dy, start=w.start, circular=w.circular, method=w.method, workers=workers)
    return w.all_taps(dk)
