"""Train a small model to foretell an electrocardiogram, store it, and run it one sample at a time.

Run it: ``python examples/stream_model.py``
"""

import tempfile
from pathlib import Path

import numpy as np

from linscan.data import load_ecg
from linscan.models import LRU, Block, Stack
from linscan.train import AdamW, Cosine, Settings, fit, load, save
from linscan.train.data import InMemory

WINDOW, AHEAD, STEPS = 256, 10, 100


def main() -> None:
    ecg, fs, description = load_ecg()
    x = ((ecg - ecg.mean()) / ecg.std()).astype(np.float32)[:, None]

    # Windows of the recording, each with itself AHEAD samples later as the target; the last quarter is for the test.
    count = (len(x) - AHEAD) // WINDOW
    u, target = (x[i : i + count * WINDOW].reshape(count, WINDOW, 1) for i in (0, AHEAD))
    cut = count * 3 // 4
    data = InMemory({"u": u[:cut], "target": target[:cut]}, {"u": u[cut:], "target": target[cut:]}, size=16)

    model = Stack((Block(LRU(channels=16, states=16)),), inputs=1, outputs=1)
    settings = Settings(
        STEPS, loss="mse", optimiser=AdamW(0.01), schedule=Cosine(STEPS, warmup=STEPS // 10), clip=1.0, every=STEPS
    )
    fitted = fit(model, data, settings, progress=False)
    naive = float(((u[cut:] - target[cut:]) ** 2).mean())
    print(f"{description}: {len(x)} samples at {fs:g} Hz, {settings.steps} steps")
    error = fitted.history[-1]["test_loss"]
    print(f"  squared error {1000 * AHEAD / fs:.0f} ms ahead: {error:.4f}; of repeating the present: {naive:.4f}")

    # Stored and read again, then run over unseen samples all at once and one at a time.
    path = Path(tempfile.mkdtemp()) / "ecg.safetensors"
    save(path, fitted.params)
    params, live = load(path), u[cut:].reshape(-1, 1)[:1000]
    at_once, _ = model.apply(params, live)
    state, one_by_one = 0, np.empty_like(live)
    for t, sample in enumerate(live):
        one_by_one[t], state = model.step(params, sample, state)
    apart = np.linalg.norm(one_by_one - at_once) / np.linalg.norm(at_once)
    print(f"  {path.name}, sample by sample and all at once: {apart:.1e} of the norm apart")


if __name__ == "__main__":
    main()
