"""Mamba's selective scan (S6): a diagonal state-space model whose step, input and output vectors come with the data."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.ops.selective_args import gradients, prepare


@in_kind
def selective_scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    h0: Array | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
    reset: Array | None = None,
    real: bool = True,
    states: bool = False,
    workers: int | None = None,
) -> tuple[Array, Array]:
    r"""Selective scan ``h[t] = exp(Δ[t] A) h[t-1] + Δ[t] u[t] B[t]``, ``y[t] = (Re C[t]·h[t] + D u[t]) silu(z[t])``.

    Every channel d has N states: ``h[t, d, n] = exp(Δ[t, d] A[d, n]) h[t-1, d, n] + Δ[t, d] u[t, d] B[t, n]``, with
    ``Δ = dt + dt_bias``, or ``softplus(dt + dt_bias)`` if `dt_softplus`.

    Parameters
    ----------
    u : array_like, shape (..., T, D)
        Input, T steps of D channels. Real or complex.
    dt : array_like, shape (..., T, D)
        Step sizes, real; (..., T, 1) for one step size in all channels. `u`, `dt` and `z` broadcast.
    A : array_like, shape (D, N)
        Continuous eigenvalues, real or complex; usually negative, Mamba's ``-exp(A_log)``.
    B, C : array_like, shape (..., T, N) or (..., T, G, N)
        Input and output vectors, the same for all channels, or for those of each of G groups of D / G neighbours.
        Grouped are those with one axis more than `u` and `dt` (leading axes of length 1 may be needed).
    D : array_like, shape (D,), optional
        Weight of the input in the output. None means zero.
    z : array_like, shape (..., T, D), optional
        Gate, real: the output is multiplied by ``silu(z) = z / (1 + exp(-z))``. None means no gate.
    dt_bias : array_like, shape (D,), optional
        Added to `dt`, real.
    h0 : array_like, shape (..., D, N), optional
        State before the first step (after the last one if `reverse`). None means zero.
    dt_softplus : bool, default False
        Make step sizes positive by ``softplus(x) = log(1 + exp(x))``.
    reverse : bool, default False
        Run backwards in time: ``h[t]`` follows from ``h[t+1]``.
    reset : array_like of bool, shape (..., T), optional
        Where true, the state is forgotten before that step, NaN and inf included. Several sequences can so be packed
        into one.
    real : bool, default True
        Take the real part of ``C·h + D u``. False gives the sum itself. No difference if no argument is complex.
    states : bool, default False
        Return the states of all steps, (..., T, D, N), in the place of the last one.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    y : array, shape (..., T, D)
        Output. Of the promoted dtype of all arguments, or its real counterpart; but 16-bit u, dt, B, C and z give
        16-bit outputs beside parameters (A, D, dt_bias) and states in float32.
    h : array, shape (..., D, N)
        The final state (all states if `states`): the `h0` that continues the scan. With 16-bit types it is float32,
        as the state is carried, so that nothing is lost where a sequence is cut.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For an unsupported dtype, complex dt, z or dt_bias, or host and GPU arrays mixed.

    See Also
    --------
    selective_step : one step, with the same state.
    selective_scan_vjp : the gradient.
    scan : the recurrence alone, for decays and inputs of any making.

    Notes
    -----
    O(T D N) operations, an exponential each, and O(T (D + N)) memory: an array of shape (..., T, D, N) is never made
    unless `states` asks for it. B is discretised by Euler's rule, ``Δ B``, as in Mamba's code; its paper prints
    the zero-order hold. Any A is taken: real and negative as in Mamba, complex, zero, or growing. There is no factor
    of two: where complex states stand for conjugate pairs, as in Mamba's complex variant, give ``2 * C``.

    The bits of a row depend neither on the other rows nor on `workers`. The CPU engine's exponential is within
    ``(2 + |Δ A|) eps`` of the exact one; decays below the smallest normal number are zero. With this the error of
    ``h[t]`` is bounded as that of `scan`.

    References
    ----------
    .. [1] A. Gu and T. Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023,
       arXiv:2312.00752.

    Examples
    --------
    One channel of two states; the second step is long and forgets, and the two pieces go on from each other:

    >>> import numpy as np
    >>> from linscan import selective_scan
    >>> u, dt = np.ones((3, 1)), np.array([[0.1], [5.0], [0.1]])
    >>> A, B, C = np.array([[-1.0, -2.0]]), np.ones((3, 2)), np.ones((3, 2))
    >>> y, h = selective_scan(u, dt, A, B, C)
    >>> y[:, 0]
    array([ 0.2       , 10.00067833,  8.81845425])
    >>> y1, h1 = selective_scan(u[:1], dt[:1], A, B[:1], C[:1])
    >>> y2, h2 = selective_scan(u[1:], dt[1:], A, B[1:], C[1:], h0=h1)
    >>> bool(np.allclose(y2, y[1:]) and np.allclose(h2, h))
    True
    """
    p = prepare("selective_scan", (u, dt, A, B, C, D, z, dt_bias, h0), reset)
    run = pick("selective_scan", p.dtype, p.arrays[0])
    options = {"dt_softplus": bool(dt_softplus), "reverse": bool(reverse), "real": bool(real), "workers": workers}
    y, h, kept = run(*p.arrays, reset=p.reset, keep="all" if states else "last", **options)
    return p.unflat(y), p.unflat(kept if states else h)


@in_kind
def selective_scan_vjp(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    h0: Array | None = None,
    *,
    dt_softplus: bool = False,
    reverse: bool = False,
    reset: Array | None = None,
    real: bool = True,
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`selective_scan` and its pullback.

    Parameters
    ----------
    u, dt, A, B, C, D, z, dt_bias, h0, dt_softplus, reverse, reset, real, workers
        As in `selective_scan`.

    Returns
    -------
    y, h : tuple of arrays
        What `selective_scan` returns: the output and the final state.
    pullback : callable
        ``pullback(dy, dh)`` returns ``(du, ddt, dA, dB, dC, dD, dz, ddt_bias, dh0)``, each of its argument's shape and
        dtype (None where the argument was None). A cotangent None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `selective_scan`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    selective_scan : the scan.

    Notes
    -----
    Retains the arguments and one state of every few dozen steps, from which the pullback recomputes the others, a
    chunk of time after the other, in about three times the operations of the scan. Sums over channels and rows are
    made in a fixed order: the same bits at every call, for every number of `workers`. Complex cotangents are ``∂L/∂Re +
    i ∂L/∂Im``. All states are no output here; their gradient is that of `scan`, on ``exp(Δ A)`` and ``Δ u B``.

    References
    ----------
    .. [1] A. Gu and T. Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023,
       arXiv:2312.00752.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import selective_scan_vjp
    >>> u, dt, A, B, C = np.ones((2, 1)), np.ones((2, 1)), np.zeros((1, 1)), np.ones((2, 1)), np.ones((2, 1))
    >>> (y, h), pullback = selective_scan_vjp(u, dt, A, B, C)  # with A = 0 a plain sum
    >>> y.ravel(), h
    (array([1., 2.]), array([[2.]]))
    >>> du, ddt, dA, *_ = pullback(np.array([[0.0], [1.0]]), None)
    >>> du.ravel(), dA
    (array([1., 1.]), array([[1.]]))
    """
    # With a = exp(Δ A), x = Δ u, s = C·h + D u, y = s silu(z), and λ[t] = ∂L/∂h[t] over every path:
    #   g = dy silu(z),   dz = Re(conj(s) dy) silu'(z)          the gate, of the real part of s if `real`;
    #   λ[t] = conj(C[t]) g[t] + conj(a[t+1]) λ[t+1]            h[t] reaches L through y[t] and through h[t+1],
    #   the first of them with dh added, and dh0 = conj(a[0]) λ[0];
    #   dC = Σ_d conj(h) g,   dD = Σ_t conj(u) g                the output;
    #   dB = Σ_d conj(x) λ,   dx = Σ_n conj(B) λ                the input to the state, then x = Δ u:
    #   du = conj(D) g + Δ dx,   dΔ = Re(conj(u) dx) + Re Σ_n conj(A a h[t-1]) λ,   dA = Σ_t Δ conj(a h[t-1]) λ;
    #   ddt = dΔ (times softplus' = 1 / (1 + exp(-x))),   ddt_bias = Σ_t ddt.
    # A reset at t replaces a[t] by 0: nothing flows back over it, neither into A nor through the decay into Δ.
    p = prepare("selective_scan_vjp", (u, dt, A, B, C, D, z, dt_bias, h0), reset)
    options = {"dt_softplus": bool(dt_softplus), "reverse": bool(reverse), "real": bool(real), "workers": workers}
    y, h, kept = pick("selective_scan", p.dtype, p.arrays[0])(*p.arrays, reset=p.reset, keep="some", **options)
    run = pick("selective_scan_pullback", p.dtype, p.arrays[0])
    outputs = p.unflat(y), p.unflat(h)

    def pullback(dy: Array | None = None, dh: Array | None = None) -> tuple[Array | None, ...]:
        dy = _arrays.cotangent("selective_scan_vjp", "dy", dy, outputs[0]).reshape(y.shape)
        dh = _arrays.cotangent("selective_scan_vjp", "dh", dh, outputs[1]).reshape(h.shape)
        return gradients(p, run(*p.arrays, kept, dy, dh, reset=p.reset, **options))

    return outputs, pullback
