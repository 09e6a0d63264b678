"""Filter a live signal, sample by sample and in uneven packets: the state carried along makes both equal to one call.

Run it: ``python examples/streaming_filter.py``
"""

from collections.abc import Iterator

import numpy as np
from scipy import signal

import linscan
from linscan.data import load_ecg


def packets(x: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """`x` in pieces of 0 to 99 samples, as a network delivers them."""
    sizes = np.random.default_rng(seed).integers(0, 100, x.size)
    lo = 0
    for size in sizes:
        yield x[lo : lo + size]
        lo += size
        if lo >= x.size:
            return


def main() -> None:
    ecg, fs, _ = load_ecg()
    # The band where the beats' steep part has its energy.
    sos = signal.butter(2, [5.0, 20.0], "bandpass", fs=fs, output="sos")
    at_once = linscan.sosfilt(sos, ecg)

    # Whatever arrives goes through the filter; its final state is the next packet's initial one.
    state = np.zeros((len(sos), 2))
    received = []
    for packet in packets(ecg):
        y, state = linscan.sosfilt(sos, packet, zi=state)
        received.append(y)
    in_packets = np.concatenate(received)

    # A smoothed heart-beat envelope, one sample at a time: h = a h + (1 - a) |y|.
    a = np.exp(-1 / (0.1 * fs))  # forgets in 0.1 s
    envelope, h = np.empty(ecg.size), np.zeros(())
    for t, y in enumerate(at_once):
        h = linscan.scan_step(a, (1 - a) * abs(y), h)
        envelope[t] = h
    whole = linscan.scan(a, (1 - a) * np.abs(at_once))

    beats = signal.find_peaks(envelope, height=0.2, distance=fs / 4)[0]
    print(f"{len(received)} packets against one call: {np.abs(in_packets - at_once).max():.1e} mV apart at most")
    print(f"{ecg.size} single steps against one scan: {np.abs(envelope - whole).max():.1e} mV apart at most")
    print(f"{beats.size} beats in {ecg.size / fs:.0f} s")


if __name__ == "__main__":
    main()
