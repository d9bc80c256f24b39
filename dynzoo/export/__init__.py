"""Graphs for other runtimes, with their certificate beside them."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "FORMATS": "exporter",
        "export_model": "exporter",
        "numbers_of": "certificate",
        "radii": "certificate",
    },
)
