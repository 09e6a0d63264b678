"""One S4D layer, three ways: as a convolution, as a scan and one sample at a time. They agree to rounding.

Run it: ``python examples/s4d_three_ways.py``
"""

import numpy as np

import linscan
from linscan.data import load_ecg


def main() -> None:
    u, _, description = load_ecg()
    u = u.astype(np.float32)
    rng = np.random.default_rng(0)

    # The layer as S4D initialises it: eigenvalues -1/2 + i pi n, random C, one step size, zero-order hold.
    modes = 32
    lam, _ = linscan.diagonal_init("lin", 2 * modes)  # its input weights are 1
    lam = lam.astype(np.complex64)
    c = (rng.standard_normal((modes, 2)) @ [1, 1j] / np.sqrt(2)).astype(np.complex64)
    a_bar, w = linscan.discretize_diag(lam, np.float32(0.01), "zoh")

    # 1  y = kernel * u, where kernel[t] = 2 Re sum of c w a_bar^t
    kernel = linscan.ssm_kernel(a_bar, 2 * c * w, u.size)
    by_convolution = linscan.fft_conv(u, kernel)

    # 2  x[t] = a_bar x[t-1] + w u[t],  y = 2 Re sum of c x
    states = linscan.scan(a_bar[:, None], w[:, None] * u)
    by_scan = 2 * (c @ states).real

    # 3  the same recurrence with one step per sample: what runs on a live signal
    x, by_step = np.zeros(modes, np.complex64), np.empty_like(u)
    for t in range(u.size):
        x = linscan.scan_step(a_bar, w * u[t], x)
        by_step[t] = 2 * (c @ x).real

    print(f"{description}: {u.size} samples, {modes} complex modes, {by_scan.dtype}")
    for name, y in (("convolution", by_convolution), ("single steps", by_step)):
        print(f"  {name} and scan: {np.linalg.norm(y - by_scan) / np.linalg.norm(by_scan):.1e} of the norm apart")


if __name__ == "__main__":
    main()
