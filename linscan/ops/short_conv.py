"""Depthwise causal filters of a few taps: ``y[t] = bias + Σ_j w[j] u[t - j]``, each channel with weights of its own."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.ops.short_conv_state import carry, pass_on, prepare


@in_kind
def short_conv(
    u: Array,
    w: Array,
    bias: Array | None = None,
    state: Array | None = None,
    *,
    axis: int = -2,
    dilation: int = 1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Array]:
    r"""Depthwise causal filter ``y[t] = bias + Σ_j w[j] u[t - j]`` of K taps, along one axis.

    Parameters
    ----------
    u : array_like
        Signal, (…, T, D) by default, T steps along `axis`. Real or complex.
    w : array_like
        Weights (…, K): taps last, newest first, so that ``w[…, 0]`` meets the present. Its other axes broadcast to
        those of `u` without time: (D, K) for one filter per channel, (K,) for one filter for all.
    bias : array_like, optional
        Added to every output; broadcasts to the axes of `u` without time, as (D,).
    state : array_like, optional
        The ``(K - 1) dilation`` inputs before the first, oldest first: `u`'s shape with that many steps along `axis`,
        or 0. Given, the call also returns the state that continues the signal. None means zeros, and no state returned.
    axis : int, default -2
        The time axis of `u`; -1 for signals with time last, (…, D, T). Both layouts are read as they are.
    dilation : int, default 1
        Steps between taps: ``u[t - dilation j]``.
    reverse : bool, default False
        Run backwards, ``u[t + dilation j]``; the state is then what follows the last step.
    reset : array_like of bool, optional
        Where true, a new sequence begins (in the direction of the run): no tap reaches across, so that several
        sequences can be packed into one. Broadcastable to `u`'s shape, as (…, T, 1).
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array
        Of `u`'s shape and the promoted dtype, C-contiguous.
    state : array
        Only if `state` was given: the last inputs, zero where they belong to a sequence that a reset has ended.

    Raises
    ------
    ValueError
        If the shapes do not broadcast, or `dilation` is below 1.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    short_conv_step : one step with the same state.
    fft_conv : kernels as long as the signal.

    Notes
    -----
    The plain sum, O(T K), in one pass over memory for the usual K of 2 to 8; 16-bit types are summed in float32. The
    error in ``y[t]`` is at most ``(K + 1) eps Σ_j |w[j] u[t-j]|``. A NaN reaches the K - 1 outputs after it.
    Libraries of deep learning store the taps in the opposite order, oldest first: ``w[:, ::-1]``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import short_conv
    >>> u = np.array([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]])  # 3 steps of 2 channels
    >>> w = np.array([[1.0, -1.0], [0.5, 0.25]])  # a difference, and an echo
    >>> short_conv(u, w)
    array([[1.  , 0.5 ],
           [1.  , 0.25],
           [1.  , 0.  ]])

    In pieces, the state carried over:

    >>> y1, state = short_conv(u[:1], w, state=0)
    >>> y2, state = short_conv(u[1:], w, state=state)
    >>> y2, state
    (array([[1.  , 0.25],
           [1.  , 0.  ]]), array([[3., 0.]]))
    """
    p = prepare("short_conv", u, w, bias, state, axis, dilation, reverse, reset)
    y = pick("short_conv", p.u.dtype, p.u)(p.u, p.w, p.bias, p.state, workers=workers, **p.options)
    return y if p.state is None else (y, carry(p))


def short_conv_step(u: Array, w: Array, bias: Array | None, state: Array, *, dilation: int = 1) -> tuple[Array, Array]:
    """One step of `short_conv` with the default layout: the filter of one new input.

    Parameters
    ----------
    u : array_like
        The input of this step, (…, D).
    w, bias : array_like
        As in `short_conv`; `bias` may be None.
    state : array_like
        The inputs before it, (…, (K - 1) dilation, D), oldest first, or 0: what `short_conv` takes and returns.
    dilation : int, default 1
        As in `short_conv`.

    Returns
    -------
    y : array
        The output of this step, (…, D).
    state : array
        The state after it, a new array.

    Raises
    ------
    ValueError, TypeError
        As in `short_conv`.

    See Also
    --------
    short_conv : all steps at once.

    Notes
    -----
    O(K) operations on each channel, and one copy of the state.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import short_conv_step
    >>> w, state = np.array([1.0, -1.0]), np.zeros((1, 2))
    >>> for u in np.array([[1.0, 5.0], [3.0, 4.0]]):
    ...     y, state = short_conv_step(u, w, None, state)
    >>> y
    array([ 2., -1.])
    """
    xp, u = _arrays.take("short_conv_step", u=u)
    y, state = short_conv(xp.asarray(u)[..., None, :], w, bias, state, dilation=dilation, workers=1)
    return y[..., 0, :], state


@in_kind
def short_conv_vjp(
    u: Array,
    w: Array,
    bias: Array | None = None,
    state: Array | None = None,
    *,
    axis: int = -2,
    dilation: int = 1,
    reverse: bool = False,
    reset: Array | None = None,
    workers: int | None = None,
) -> tuple[Any, Callable[..., tuple[Array, Array, Array | None, Array | None]]]:
    """`short_conv` and its pullback.

    Parameters
    ----------
    u, w, bias, state, axis, dilation, reverse, reset, workers
        As in `short_conv`.

    Returns
    -------
    y : array, or (y, state)
        What `short_conv` returns.
    pullback : callable
        ``pullback(dy)``, or ``pullback(dy, dstate)`` if `state` was given, returns ``(du, dw, dbias, dstate)``, each of
        its argument's shape and dtype (None where the argument was None). A cotangent None means zero.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As in `short_conv`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    short_conv : the filter.

    Notes
    -----
    The same filter in the opposite direction, and one more pass for the weights, summed in double precision in a fixed
    order. Retains `u`, `w` and `state`. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import short_conv_vjp
    >>> y, pullback = short_conv_vjp(np.array([[1.0], [5.0], [2.0]]), np.array([4.0, 3.0]))
    >>> du, dw, _, _ = pullback(np.array([[0.0], [0.0], [1.0]]))
    >>> du.ravel(), dw
    (array([0., 3., 4.]), array([2., 5.]))
    """
    # Each product w[j] x[t - j] hands its cotangent to both factors, unless a reset lies between t - j and t:
    #   du[s] = Σ_j conj(w[j]) dy[s + j],   dw[j] = Σ_t dy[t] conj(x[t - j]),   dbias = Σ_t dy[t],
    # with x the state and then u. The state that is returned is the end of x.
    p = prepare("short_conv_vjp", u, w, bias, state, axis, dilation, reverse, reset)
    y = pick("short_conv", p.u.dtype, p.u)(p.u, p.w, p.bias, p.state, workers=workers, **p.options)
    run = pick("short_conv_pullback", p.u.dtype, p.u)
    after = None if p.state is None else carry(p)

    def pullback(dy: Array | None, dstate: Array | None = None) -> tuple[Array, Array, Array | None, Array | None]:
        dy = _arrays.cotangent("short_conv_vjp", "dy", dy, y)
        grads = run(p.u, p.w, p.bias, p.state, dy, workers=workers, **p.options)
        if after is not None:
            pass_on(p, grads[0], grads[3], _arrays.cotangent("short_conv_vjp", "dstate", dstate, after))
        du, dw, dbias, dpast = map(_arrays.grad_like, grads, given)
        return du, dw, dbias, dpast

    _, *given = _arrays.take("short_conv_vjp", u=u, w=w, bias=bias, state=state)
    return (y if after is None else (y, after)), pullback
