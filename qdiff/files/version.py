"""Version of this program, recorded in the files that it writes."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version


def own_version() -> str | None:
    """Return the installed version; None if the package runs uninstalled."""
    try:
        return version("qdiff")
    except PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Return the versions and the machine that numbers depend on."""
    import torch

    packages = ("torch", "torchvision", "numpy")
    versions = [f"Python {platform.python_version()}", f"qdiff {own_version() or 'not installed'}"]
    return {
        "versions": ", ".join([*versions, *(f"{package} {version(package)}" for package in packages)]),
        "machine": f"{platform.platform()}, {os.cpu_count()} processors, torch uses {torch.get_num_threads()} threads",
    }
