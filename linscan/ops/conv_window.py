"""Every mode of a long convolution as one window of one sum, ``y[t] = Σ_j k[j] seen[start + t - j]``.

Apart from `fft_conv` and its contract, because its gradient and its engines know only this form: no modes, no state.
"""

from typing import Any, NamedTuple

from linscan import _arrays
from linscan._arrays import Array

MODES = ("causal", "bidirectional", "circular")
METHODS = ("auto", "direct", "fft", "blocked")

# Up to this many taps (or samples) the plain sum is as fast as a transform, and keeps small values beside large ones.
_DIRECT = 64
# From this ratio of signal to kernel on, blocks cost less than one transform of the whole.
_BLOCKED = 16


class Window(NamedTuple):
    """``y[t] = Σ_j k[j] seen[start + t - j]`` for t < len(u), where `seen` is the past, then u. Time is last."""

    u: Array
    k: Array  # only the taps that can act
    past: Array | None  # the state, or the end of a periodic u
    start: int
    circular: bool  # the engine wraps around
    method: str
    spectrum: Array | None
    time: int  # the time axis of the result, negative
    given: tuple[Any, Any, Any]  # u, k, state as they came, time last
    taps: slice | None  # which of the given taps k holds; None: all, folded to the period

    @property
    def dtype(self) -> Any:
        """The dtype of the result."""
        return self.k.dtype

    @property
    def seen(self) -> Array:
        """All inputs, in the dtype of the result."""
        xp = _arrays.namespace(self.u)
        seen = self.u if self.past is None else xp.concatenate([self.past, self.u], -1)
        return seen.astype(self.dtype, copy=False)

    def split(self, dseen: Array) -> tuple[Array, Array | None]:
        """The gradient of the inputs seen, told apart into those of u and of the state."""
        if self.past is None:
            return dseen, None
        past = self.past.shape[-1]
        du, dpast = dseen[..., past:], dseen[..., :past]
        if self.given[2] is not None:
            return du, dpast
        if past:  # the end of a periodic signal was seen twice
            du[..., -past:] += dpast
        return du, None

    def all_taps(self, dk: Array) -> Array:
        """The gradient of the taps given: those out of reach get zero, those folded together get the same."""
        xp, width = _arrays.namespace(dk), self.given[1].shape[-1]
        if self.taps is None:
            return dk[..., xp.arange(width) % self.u.shape[-1]]
        before, after = self.taps.start, width - self.taps.stop
        return xp.pad(dk, [(0, 0)] * (dk.ndim - 1) + [(before, after)]) if before or after else dk


def prepare(who: str, u: Any, k: Any, axis: int, mode: str, *, state: Any, method: str, spectrum: Any = None) -> Window:
    """The window that `mode` asks for, after all checks."""
    _arrays.check_choice(who, "mode", mode, MODES)
    _arrays.check_choice(who, "method", method, METHODS)
    if state is not None and mode != "causal":
        raise ValueError(f"{who}: state needs mode 'causal'; got {mode!r}")
    if spectrum is not None and method not in ("auto", "fft"):
        raise ValueError(f"{who}: spectrum needs method 'fft' or 'auto'; got {method!r}")
    xp, u, k, state, spectrum = _arrays.take(who, u=u, k=k, state=state, spectrum=spectrum)
    dtype = _arrays.result_dtype(who, u=u, k=k, state=state)
    own = _arrays.result_dtype(who, u=u, state=state)
    u, k = xp.asarray(u), xp.asarray(k)
    if u.ndim == 0 or k.ndim == 0:
        raise ValueError(f"{who}: u and k need a time axis; got shapes {u.shape} and {k.shape}")
    ndim = max(u.ndim, k.ndim)
    time = _arrays.check_axis(who, axis, ndim) - ndim
    given = u, k, state = tuple(time_last(who, n, x, time) for n, x in (("u", u), ("k", k), ("state", state)))
    _arrays.broadcast_shapes(who, u=u.shape[:-1], k=k.shape[:-1])
    u, k, past = _arrays.cast(xp, u, own), _arrays.cast(xp, k, dtype), None
    length, width = u.shape[-1], k.shape[-1]
    if state is not None:
        past = _arrays.broadcast_to(who, "state", xp.asarray(state, own), (*u.shape[:-1], max(width - 1, 0)))
    start, taps = _reach(mode, length, width, whole=state is not None or spectrum is not None)
    start = start if state is None else max(width - 1, 0)
    if taps != slice(0, width):
        k = _fold(xp, k, length) if taps is None else k[..., taps]
    method = _choose(method if spectrum is None else "fft", length, k.shape[-1])
    if spectrum is not None:
        spectrum = _check_spectrum(who, time_last(who, "spectrum", spectrum, time), u, k, mode)
    if mode == "circular" and method != "fft" and k.shape[-1]:
        past = u[..., length - k.shape[-1] + 1 :]
        start = past.shape[-1]
    return Window(u, k, past, start, mode == "circular" and past is None, method, spectrum, time, given, taps)


def time_last(who: str, name: str, x: Any, time: int) -> Any:
    """`x` with its time axis last; a one-dimensional array has no other, and None and scalars have none."""
    if getattr(x, "ndim", 0) < 2 or time == -1:
        return x
    if x.ndim < -time:
        raise ValueError(f"{who}: {name} of shape {x.shape} has no axis {time}, the time axis")
    return _arrays.namespace(x).moveaxis(x, time, -1)


def time_back(x: Array, time: int) -> Array:
    """Undo `time_last`."""
    return _arrays.namespace(x).moveaxis(x, -1, time) if getattr(x, "ndim", 0) > 1 and time != -1 else x


def _reach(mode: str, length: int, width: int, *, whole: bool) -> tuple[int, slice | None]:
    """The index of lag 0, and the taps that can reach from one sample of the signal to another (all if `whole`)."""
    if mode == "circular":
        return 0, slice(0, width) if width <= length else None
    centre = width // 2 if mode == "bidirectional" else 0
    if whole:
        return centre, slice(0, width)
    first = max(0, centre - max(length - 1, 0))
    return centre - first, slice(first, min(width, centre + length))


def _fold(xp: Any, k: Array, period: int) -> Array:
    """The kernel with taps a period apart added up."""
    if period == 0:
        return k[..., :0]
    rounds = -(-k.shape[-1] // period)
    padded = xp.zeros((*k.shape[:-1], rounds * period), k.dtype)
    padded[..., : k.shape[-1]] = k
    return padded.reshape(*k.shape[:-1], rounds, period).sum(-2)


def _choose(method: str, length: int, width: int) -> str:
    """The method auto stands for: by sizes alone, so that results do not change their accuracy with their values."""
    if method != "auto":
        return method
    if min(length, width) <= _DIRECT:
        return "direct"
    return "blocked" if length >= _BLOCKED * width else "fft"


def _check_spectrum(who: str, spectrum: Array, u: Array, k: Array, mode: str) -> Array:
    """The given spectrum in the result's complex dtype; ValueError unless its size can serve these lengths."""
    bins, real = spectrum.shape[-1], k.dtype.kind != "c"
    if mode == "circular":
        fits, need = bins == (u.shape[-1] // 2 + 1 if real else u.shape[-1]), f"n = {u.shape[-1]}"
    else:
        shortest = u.shape[-1] + k.shape[-1] - 1
        fits, need = (2 * (bins - 1) if real else bins) >= shortest, f"an even n of at least {shortest}"
    if not fits or spectrum.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"{who}: spectrum must be the transform of k with {need}; got shape {spectrum.shape}")
    return spectrum.astype(_arrays.complex_dtype(k.dtype), copy=False)
