"""Take the wandering baseline out of an electrocardiogram: one high-pass, designed by SciPy and run by linscan.

Run it: ``python examples/baseline_removal.py``
"""

import numpy as np
from scipy import signal

import linscan
from linscan.data import load_ecg


def main() -> None:
    ecg, fs, description = load_ecg()
    sos = signal.butter(4, 0.5, "highpass", fs=fs, output="sos")

    # The filter starts as if the first sample had always been there, so there is no step to ring after.
    zi = signal.sosfilt_zi(sos)
    filtered, _ = linscan.sosfilt(sos, ecg, zi=zi * ecg[0])

    # Twelve leads at once: the same filter along the last axis, on as many threads as pay.
    leads = ecg * np.linspace(0.5, 1.5, 12)[:, None]
    many, _ = linscan.sosfilt(sos, leads, zi=zi[:, None, :] * leads[None, :, :1])

    slow = signal.butter(2, 0.3, "lowpass", fs=fs, output="sos")  # to see what is left below 0.3 Hz
    print(description)
    for name, x in (("before", ecg), ("after", filtered)):
        wander = signal.sosfiltfilt(slow, x)
        print(f"  baseline {name}: {wander.std():.3f} mV rms, spanning {np.ptp(wander):.2f} mV")
    expected = signal.sosfilt(sos, ecg, zi=zi * ecg[0])[0]
    print(
        f"  from scipy.signal.sosfilt: {np.linalg.norm(filtered - expected) / np.linalg.norm(expected):.1e} of the norm"
    )
    print(f"  lead 3 of 12, filtered together: {np.abs(many[2] - filtered * (0.5 + 2 / 11)).max():.1e} mV away")


if __name__ == "__main__":
    main()
