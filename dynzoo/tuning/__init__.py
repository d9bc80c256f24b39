"""Search for better networks: a recipe, a space around it, and keras-tuner underneath."""

from dynzoo.tuning.config import SearchConfig as SearchConfig
from dynzoo.tuning.driver import search as search
from dynzoo.tuning.records import SearchResult as SearchResult

__all__ = ["SearchConfig", "SearchResult", "search"]
