"""The version of this package."""

__all__ = ["__version__", "version"]

__version__ = "0.2.0"  # pyproject.toml reads it here; CHANGELOG.md and CITATION.cff name it too


def version() -> str:
    """The version of the code that runs, installed or in a checkout."""
    return __version__
