"""Search for better networks: a recipe, a space around it, and keras-tuner underneath."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "HyperModel": "hypermodel",
        "SearchConfig": "config",
        "SearchResult": "records",
        "search": "driver",
    },
)
