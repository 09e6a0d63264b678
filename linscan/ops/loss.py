"""What training minimises: cross-entropy and mean squares, with masks for labels that do not count."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array


def cross_entropy(logits: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean of ``-log softmax(logits)[label]``.

    Parameters
    ----------
    logits : array_like, shape (…, V)
        Real.
    labels : array_like of int, shape (…)
        From 0 to V - 1 wherever `mask` is true.
    mask : array_like of bool, shape (…), optional
        Which labels count. None means all. If none does the loss is 0.

    Returns
    -------
    loss : array, shape ()
        Of the dtype of `logits`; float32 for 16-bit ones.

    Raises
    ------
    ValueError
        If the shapes do not fit, or (on the host) a label that counts is outside 0 … V - 1.
    TypeError
        For complex logits, or labels that are no integers.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.loss import cross_entropy
    >>> cross_entropy(np.zeros((3, 4)), [0, 1, 3]).round(4)  # log 4
    np.float64(1.3863)
    """
    return cross_entropy_vjp(logits, labels, mask)[0]


def cross_entropy_vjp(
    logits: Array, labels: Array, mask: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array, None, None]]]:
    """`cross_entropy` and its pullback, ``pullback(dloss)`` to ``(dlogits, None, None)``."""
    who = "cross_entropy"
    xp, logits, labels, mask = _arrays.take(who, logits=logits, labels=labels, mask=mask)
    z = xp.asarray(logits, _arrays.accum_dtype(_arrays.result_dtype(who, logits=logits)))
    labels = xp.asarray(labels)
    if z.dtype.kind == "c":
        raise TypeError(f"{who}: logits must be real; got {z.dtype}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{who}: labels must be integers; got {labels.dtype}")
    if z.shape[:-1] != labels.shape or not z.ndim:
        raise ValueError(f"{who}: logits and labels must have shapes (..., V) and (...); got {z.shape}, {labels.shape}")
    counted = _counted(who, xp, mask, labels.shape)
    if _arrays.host_any(labels, lambda x: ((x < 0) | (x >= z.shape[-1])) & counted):
        raise ValueError(f"{who}: labels must lie in 0 … {z.shape[-1] - 1}; got {labels.min()} … {labels.max()}")
    at = xp.where(counted, labels, 0)[..., None]
    z = z - z.max(-1, keepdims=True)
    total = xp.exp(z).sum(-1, keepdims=True)
    weight = counted / xp.maximum(counted.sum(), 1).astype(z.dtype)
    hit = at == xp.arange(z.shape[-1])
    terms = xp.log(total)[..., 0] - xp.where(hit, z, 0).sum(-1)
    loss = (xp.where(counted, terms, 0) * weight.astype(z.dtype)).sum()

    def pullback(dloss: Array | None) -> tuple[Array, None, None]:
        # d loss / d z = (softmax(z) - onehot(label)) / count, at the labels that count.
        g = _arrays.cotangent(who, "dloss", dloss, loss) * weight[..., None].astype(z.dtype)
        dlogits = xp.where(counted[..., None], (xp.exp(z) / total - hit.astype(z.dtype)) * g, 0)
        return _arrays.grad_like(dlogits, logits), None, None

    return loss, pullback


def mse(y: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean of ``(y - target)²``.

    Parameters
    ----------
    y, target : array_like
        Real, of one shape.
    mask : array_like of bool, optional
        Which entries count; it broadcasts to the shape of `y`. None means all. If none does the loss is 0.

    Returns
    -------
    loss : array, shape ()
        Of the promoted dtype; float32 for 16-bit ones.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For complex arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.loss import mse
    >>> mse(np.array([1.0, 5.0]), np.array([0.0, 2.0]))
    np.float64(5.0)
    """
    return mse_vjp(y, target, mask)[0]


def mse_vjp(
    y: Array, target: Array, mask: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, None]]]:
    """`mse` and its pullback, ``pullback(dloss)`` to ``(dy, dtarget, None)``."""
    who = "mse"
    xp, *given, mask = _arrays.take(who, y=y, target=target, mask=mask)
    work = _arrays.accum_dtype(_arrays.result_dtype(who, y=given[0], target=given[1]))
    y, target = (xp.asarray(x, work) for x in given)
    if work.kind == "c":
        raise TypeError(f"{who}: y and target must be real; got {work}")
    if y.shape != target.shape:
        raise ValueError(f"{who}: y and target must have one shape; got {y.shape} and {target.shape}")
    counted = _counted(who, xp, mask, y.shape)
    weight = (counted / xp.maximum(counted.sum(), 1)).astype(work)
    off = xp.where(counted, y - target, 0)
    loss = (off * off * weight).sum()

    def pullback(dloss: Array | None) -> tuple[Array, Array, None]:
        dy = 2 * _arrays.cotangent(who, "dloss", dloss, loss) * off * weight
        return _arrays.grad_like(dy, given[0]), _arrays.grad_like(-dy, given[1]), None

    return loss, pullback


def _counted(who: str, xp: Any, mask: Array | None, shape: tuple[int, ...]) -> Array:
    if mask is None:
        return xp.ones(shape, bool)
    mask = xp.asarray(mask)
    if mask.dtype.kind != "b":
        raise TypeError(f"{who}: mask must be boolean; got {mask.dtype}")
    return _arrays.broadcast_to(who, "mask", mask, shape)
