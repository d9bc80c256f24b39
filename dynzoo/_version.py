"""The version of this package."""

__all__ = ["version"]


def version() -> str:
    """As installed; `0+unknown` in a checkout that was not."""
    from importlib import metadata

    try:
        return metadata.version("dynzoo")
    except metadata.PackageNotFoundError:
        return "0+unknown"  # a checkout that was not installed
