"""What the operations with a matrix state share: shapes, dtypes, signs and directions; no recurrence of its own.

Their state S is (…, K, V); queries and keys are (…, T, K), values (…, T, V). Leading axes are batch and heads: they
broadcast, and stay unbroadcast in what `prepare` returns, so that an engine reads a shared key head where it lies.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array

# The axes of each argument after the leading ones. The two marked * may also be (…, T, K): their rank decides.
_AXES = {"q": "TK", "k": "TK", "v": "TV", "a": "TK", "b": "TK", "w": "TK", "beta": "T", "g": "T*", "sign": "T*"}
_AXES |= {"S0": "KV", "reset": "T"}
_REAL = ("g", "sign", "reset")
_CONSTANT = ("beta", "g", "sign", "reset")  # these may have one entry along T (or K) that stands for all
_WIDE = ("beta", "g", "S0")  # these stay in the arithmetic's dtype beside 16-bit arrays


class Prepared(NamedTuple):
    """Checked arguments of one call, and the sizes they agree on."""

    xp: ModuleType
    arrays: dict[str, Any]
    dtype: np.dtype
    lead: tuple[int, ...]
    length: int
    key: int
    value: int

    @property
    def state_dtype(self) -> np.dtype:
        """The dtype of the state: that of the arithmetic, float32 for 16-bit storage."""
        return _arrays.accum_dtype(self.dtype)


def prepare(who: str, **named: Any) -> Prepared:
    """Check shapes and dtypes of the named arguments, which must include q, k and v; `_AXES` says what each must be.

    The dtype is the promoted one of all, except that gates and S0 in just the arithmetic's dtype do not count: float32
    decays and a float32 state beside bfloat16 arrays leave their results bfloat16.
    """
    xp, *taken = _arrays.take(who, **named)
    arrays = dict(zip(named, taken, strict=True))
    for name in ("q", "k", "v"):
        if getattr(arrays[name], "ndim", 0) < 2:
            raise ValueError(f"{who}: {name} must have a time and a feature axis; got {np.shape(arrays[name])}")
    numbers = {n: x for n, x in arrays.items() if n not in ("sign", "reset")}
    dtype = _arrays.result_dtype(who, **{n: x for n, x in numbers.items() if n not in _WIDE})
    promoted = _arrays.result_dtype(who, **numbers)
    dtype = dtype if promoted == _arrays.accum_dtype(dtype) else promoted
    sizes = {"T": arrays["q"].shape[-2], "K": arrays["q"].shape[-1], "V": arrays["v"].shape[-1]}
    leads: dict[str, tuple[int, ...]] = {}
    ready: dict[str, Any] = {}
    for name, x in arrays.items():
        if x is None:
            ready[name] = None
            continue
        x = _cast(who, name, xp.asarray(x), dtype)
        axes = _axes_of(who, name, x, arrays["q"])
        ready[name] = x = _fit(who, name, x, axes, sizes)
        leads[name] = x.shape[: x.ndim - len(axes)]
    lead = _arrays.broadcast_shapes(f"{who}: the leading axes", **leads)
    return Prepared(xp, ready, dtype, lead, *sizes.values())


def _cast(who: str, name: str, x: Array, dtype: np.dtype) -> Array:
    """`x` in the dtype an engine takes it in."""
    if name == "reset":
        if x.dtype.kind not in "biu":
            raise TypeError(f"{who}: reset must be boolean; got {x.dtype}")
        return x.astype(bool, copy=False)
    if name in _REAL:
        if x.dtype.kind == "c":
            raise TypeError(f"{who}: {name} must be real; got {x.dtype} (a phase is a rotation of q and k)")
        if name == "sign" and _arrays.host_any(x, lambda s: abs(s) != 1):
            raise ValueError(f"{who}: sign must be 1 or -1 everywhere")
        return x.astype(_arrays.real_dtype(_arrays.accum_dtype(dtype)), copy=False)
    return x.astype(_arrays.accum_dtype(dtype) if name in _WIDE else dtype, copy=False)


def _axes_of(who: str, name: str, x: Array, q: Array) -> str:
    axes = _AXES[name]
    if axes != "T*":
        return axes
    if x.ndim not in (0, q.ndim - 1, q.ndim):
        raise ValueError(
            f"{who}: {name} must have one axis less than q, (…, T), or as many, (…, T, K); got {x.ndim} beside {q.ndim}"
        )
    return "TK" if x.ndim == q.ndim else "T"


def _fit(who: str, name: str, x: Array, axes: str, sizes: dict[str, int]) -> Array:
    """`x` with exactly its axes at the end; an argument that may be constant is repeated along them, as a view."""
    want = tuple(sizes[axis] for axis in axes)
    if name in _CONSTANT:
        lead = x.shape[: max(0, x.ndim - len(want))]
        return x if x.shape == lead + want else _arrays.broadcast_to(who, name, x, lead + want)
    if x.shape[max(0, x.ndim - len(want)) :] != want:
        shape = "(…, " + ", ".join(f"{axis} = {n}" for axis, n in zip(axes, want, strict=True)) + ")"
        raise ValueError(f"{who}: {name} must be {shape}; got {tuple(x.shape)}")
    return x


def check_precision(who: str, precision: str) -> None:
    """Refuse what is not a precision of products; engines that have one kind of products need not be told."""
    _arrays.check_choice(who, "precision", precision, ("exact", "tf32"))


def zero_state(p: Prepared) -> Array:
    """The state before the first step: S0, or zeros, of shape lead + (K, V)."""
    shape = (*p.lead, p.key, p.value)
    given = p.arrays.get("S0")
    return p.xp.zeros(shape, p.state_dtype) if given is None else p.xp.broadcast_to(given, shape)


def flip(p: Prepared) -> Prepared:
    """The same problem with time turned round, as views."""
    turned = {n: x if n == "S0" or x is None else flip_time(x, time_axis(n, x, p)) for n, x in p.arrays.items()}
    return p._replace(arrays=turned)


def flip_time(x: Array, axis: int) -> Array:
    """A view of `x` with `axis` backwards."""
    return x[(..., slice(None, None, -1), *[slice(None)] * (-axis - 1))]


def time_axis(name: str, x: Array, p: Prepared) -> int:
    """Where time is in the prepared argument `name`, counted from the end."""
    return -2 if _AXES[name] in ("TK", "TV") or (is_vector(x, p) and _AXES[name] == "T*") else -1


def is_vector(g: Array | None, p: Prepared) -> bool:
    """Whether a prepared decay is (…, T, K) rather than (…, T): decided by its rank alone."""
    q = p.arrays["q"]
    return g is not None and q is not None and g.ndim == q.ndim


def log_decay(p: Prepared) -> Array | None:
    """`g` as (…, T, 1) or (…, T, K), -inf where the state is forgotten."""
    g, reset = p.arrays["g"], p.arrays["reset"]
    if g is not None and not is_vector(g, p):
        g = g[..., None]
    if reset is None:
        return g
    real = _arrays.real_dtype(p.state_dtype)
    return p.xp.where(reset[..., None], real.type(-np.inf), real.type(0) if g is None else g)


def turns(p: Prepared) -> Array | None:
    """Products of `sign` up to each step, (…, T, 1) or (…, T, K); None where no sign is given.

    With P[t] = sign[t] P[t-1], the state P S obeys the recurrence without signs if q, k and what else touches it are
    multiplied by P: signs cost one pass over the inputs and no engine needs to know of them.
    """
    sign = p.arrays.get("sign")
    if sign is None:
        return None
    vector = is_vector(sign, p)
    product = p.xp.cumprod(sign, axis=-2 if vector else -1)
    return product if vector else product[..., None]
