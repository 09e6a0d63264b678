"""Does an installation with the core dependencies alone work? Run it outside the checkout with ``python -I``."""

import sys
from importlib.util import find_spec
from pathlib import Path

import linscan

here = Path(__file__).resolve().parent.parent
if here in Path(linscan.__file__).resolve().parents:
    sys.exit("linscan was imported from the checkout, not from the wheel")
extras = [name for name in ("matplotlib", "tqdm", "ml_dtypes", "hypothesis", "pytest") if find_spec(name)]
if extras:
    sys.exit(f"not a clean environment: it has {', '.join(extras)}")

for name in linscan.__all__:
    getattr(linscan, name)

import numpy as np  # noqa: E402

h = linscan.scan(0.5, np.ones((3, 4), np.float32))
np.testing.assert_array_equal(h, np.broadcast_to(np.float32([1, 1.5, 1.75, 1.875]), (3, 4)))
with linscan.use_engine("reference"):
    np.testing.assert_array_equal(linscan.scan(0.5, np.ones((3, 4), np.float32)), h)
print(f"linscan {linscan.__version__}: {len(linscan.__all__)} public names import, and scan runs on both engines")
