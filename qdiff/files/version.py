"""Version of this program, recorded in the files that it writes."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str | None:
    """Return the installed version; None if the package runs uninstalled."""
    try:
        return version("qdiff")
    except PackageNotFoundError:
        return None
