"""Does a wheel hold the package, all of it, and nothing else? ``python check_wheel.py WHEEL``."""

import sys
import zipfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
source = {
    path.relative_to(root).as_posix()
    for path in (root / "linscan").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    licensed = any(name.endswith("licenses/LICENSE") for name in wheel.namelist())

problems = [f"missing: {name}" for name in sorted(source - names)]
problems += [f"does not belong: {name}" for name in sorted(names - source)]
problems += [f"a test: {name}" for name in sorted(names) if "tests" in name.split("/")]
problems += [] if "linscan/py.typed" in names else ["no py.typed"]
problems += [] if licensed else ["no licence"]
print("\n".join(problems) or f"{sys.argv[1]}: {len(names)} files, as in the source")
sys.exit(bool(problems))
