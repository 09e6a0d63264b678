"""Remember forty-four years of carbon dioxide in a few numbers: the HiPPO-LegS memory, and what it can recall.

LegS keeps the Legendre coefficients of everything seen so far. Its matrix changes with time, but is triangular, so
coefficient n is a first-order recurrence in time, driven by the signal and the coefficients before it.

Run it: ``python examples/co2_memory.py``
"""

import numpy as np
from numpy.polynomial import legendre

import linscan
from linscan.data import load_co2


def memorise(u: np.ndarray, order: int) -> np.ndarray:
    """All states x[t], shape (order, T), of ``(I - A/2t) x[t] = (I + A/2t) x[t-1] + (B/t) u[t]``."""
    A, B = linscan.hippo("legs", order)
    B = B[:, 0]
    half = 0.5 / np.arange(1, u.size + 1)
    states, before = np.empty((order, u.size)), np.zeros(u.size)
    for n in range(order):
        z = -A[n, n] * half
        drive = 2 * u - before - np.concatenate(([0.0], before[:-1]))
        states[n] = linscan.scan((1 - z) / (1 + z), B[n] * half * drive / (1 + z))
        before += B[n] * states[n]
    return states


def recall(state: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The remembered signal at `times` in (0, 1): 0 is the start of the record, 1 is now."""
    return legendre.legval(2 * times - 1, state * np.sqrt(2 * np.arange(state.size) + 1))


def main() -> None:
    co2, fs, description = load_co2()
    u = co2 - co2[0]  # the memory starts empty
    print(f"{description}: {co2.size} values, of which the memory keeps …")
    for order in (4, 16, 64, 256):
        states = memorise(u, order)
        times = (np.arange(u.size) + 0.5) / u.size
        error = recall(states[:, -1], times) - u
        print(f"  {order:4d} numbers: {error.std():6.3f} ppm rms off, {np.abs(error).max():6.2f} ppm at most")

    # Every column is a memory of its own past: in 1980 it knew the record up to 1980.
    now = int(22 * fs)
    error = recall(states[:, now - 1], (np.arange(now) + 0.5) / now) - u[:now]
    print(f"  what the state after 22 years recalls of them: {error.std():.3f} ppm rms off")


if __name__ == "__main__":
    main()
