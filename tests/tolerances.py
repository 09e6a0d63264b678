"""Every tolerance of the suite: a number from the dtype and the length, with its reason."""

import numpy as np

_STORAGE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # unit in the last place at 1: how coarse the stored result is


def eps(dtype: object) -> float:
    """Machine epsilon of the arithmetic done for `dtype`; of the storage for the two 16-bit types."""
    name = getattr(dtype, "name", None) or np.dtype(dtype).name
    return _STORAGE[name] if name in _STORAGE else float(np.finfo(name).eps)


def accumulated(dtype: object, length: int) -> float:
    """Norm-wise error of `length` dependent multiply-adds on data of one size."""
    # Each step rounds once or twice (complex: four times); independent roundings add up like a random walk, and the
    # factor 8 is five standard deviations of it with the rounding's own spread of eps / sqrt(12).
    return 8 * eps(dtype) * max(1.0, float(length)) ** 0.5


def stable(dtype: object) -> float:
    """Norm-wise error of a recurrence that forgets (|a| bounded below 1): old roundings die out with the state."""
    # A geometric sum of roundings of relative size eps / 2 each; with |a| <= 0.95 in root mean square below 4 eps,
    # doubled for complex multiplication and the storage of the result.
    return 8 * eps(dtype)


def contracting(dtype: object) -> float:
    """Norm-wise error of a nonlinear cell's loop that forgets, gates and matrix products included."""
    # A step rounds a dozen elementwise results and the sum of a matrix row, eps / 2 each and independent: about 2 eps
    # in root mean square. States decay by 0.9 or faster, which sums 1 / sqrt(1 - 0.81) = 2.3 of them; three deviations.
    return 16 * eps(dtype)


def residual(dtype: object) -> float:
    """Norm-wise error of a recurrence that forgets, solved until its residual is 64 eps of the arithmetic."""
    # States that decay by 0.9 or faster sum up to 1 / (1 - 0.9) residuals, were they all as large as allowed: ten. The
    # 16-bit types solve in float32 and round once.
    name = getattr(dtype, "name", None) or dtype
    return 640 * eps("float32" if name in _STORAGE else dtype) + (contracting(dtype) if name in _STORAGE else 0)


def filtered(dtype: object, a: object) -> float:
    """Norm-wise error of a filter with the denominator `a` (1-D), against a wide loop or another order of its sums."""
    # A rounding of relative size eps enters every state at every step and comes out through 1/a: at most the sum of its
    # impulse response times larger; the order of the sums differs too, which counts each of the taps once.
    a = np.asarray(a).astype(np.complex128)
    response = [1.0 + 0j]
    for t in range(1, 400):
        response.append(-sum(a[k] / a[0] * response[t - k] for k in range(1, min(t, len(a) - 1) + 1)))
    return 2 * len(a) * eps(dtype) * float(np.abs(response).sum())


def transformed(dtype: object, length: int) -> float:
    """Norm-wise error of a sum computed through FFTs of about `length` points."""
    # Each of the log2(n) butterfly levels adds one rounding of relative size eps in root mean square; three transforms.
    return 3 * eps(dtype) * (2 + np.log2(max(2, length)))


def summed(dtype: object, length: int) -> float:
    """Norm-wise error of a sum of `length` products, term after term, of random signs."""
    # The rounding of each partial sum, which itself grows like a random walk; twice for complex, and the storage.
    return 4 * eps(dtype) * max(1.0, float(length)) ** 0.5


def matrix(dtype: object) -> float:
    """Norm-wise error of a solve with, or a function of, a random matrix of a dozen rows."""
    # Done in double whatever the dtype, and rounded once; the condition numbers of such matrices are in the hundreds.
    return max(eps(dtype), 1000 * eps(np.float64))


def powers(dtype: object, length: int) -> float:
    """Norm-wise error of a sum of powers ``a**l``, l < `length`, |a| <= 1, whose tables are made in double."""
    # Rounding a in double turns the phase of a**l by l eps; then each state's term is rounded, and added, in `dtype`.
    return 8 * eps(dtype) + length * eps(np.float64)


def averaged(dtype: object, width: int, window: int) -> float:
    """Norm-wise error of softmax-weighted means of `window` rows, scores from products of `width` random numbers."""
    # A score's absolute rounding error, that of a sum of products of size one, is its weight's relative error; then the
    # weighted sum rounds as any sum does.
    return summed(dtype, width) + summed(dtype, window)


def logarithms(dtype: object, size: float) -> float:
    """Absolute error of a running logarithm of sums of exponentials of numbers up to `size`; of its weights as well."""
    # Each step rounds a number of this size two or three times by eps / 2, and passes on its predecessor's error times
    # a weight below 1; sums that keep everything gain one term in t steps, so that their errors die out as slowly.
    return 16 * eps(dtype) * size


def error(got: object, want: object) -> float:
    """Distance as a share of the norm of `want`; inf where either is not finite, absolute where `want` vanishes."""
    got, want = (np.asarray(x).astype(np.complex128).ravel() for x in (got, want))
    if got.shape != want.shape:
        raise AssertionError(f"sizes differ: {got.shape} and {want.shape}")
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return np.inf
    largest = np.abs(want).max(initial=0.0) or 1.0  # first, lest a square overflow
    return float(np.linalg.norm((got - want) / largest) / (np.linalg.norm(want / largest) or 1.0))


def assert_close(got: object, want: object, tolerance: float, what: str = "result") -> None:
    """Raise unless `got` is within `tolerance` of `want`, as a share of its norm."""
    if np.shape(got) != np.shape(want):
        raise AssertionError(f"{what}: shape {np.shape(got)}, expected {np.shape(want)}")
    distance = error(got, want)
    if not distance <= tolerance:
        raise AssertionError(f"{what}: off by {distance:.3g} of the norm, allowed {tolerance:.3g}")


def attended(dtype: object, length: int) -> float:
    """Norm-wise error of linear attention over `length` steps, against a wide loop or other chunks."""
    # An output is a sum over time of sums over K, each term with a factor e^x of relative error |x| eps where |x| e^x
    # counts, below 1; the partial sums grow with the number of terms, at most 64 of which are of one chunk.
    return 8 * eps(dtype) * max(1.0, min(float(length), 64.0)) ** 0.5
