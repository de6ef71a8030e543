"""The version of this program, for the files that it writes."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str | None:
    """Return the installed version; None where the package runs uninstalled, from its folder."""
    try:
        return version("qdiff")
    except PackageNotFoundError:
        return None
