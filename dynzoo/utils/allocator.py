"""The C library's memory allocator: told to keep what it frees, or to give it back.

By default glibc gives a large freed block back to the system, and the next activation of that size
is made of fresh pages, which the system must clear one by one. A training step frees and asks for
the same blocks again and again; keeping them makes it faster (``benchmarks/throughput.py``), at the
price that the process holds the memory of its largest step until it ends.

An evaluation asks for blocks of many sizes, of each attack other ones. What is free then lies
between what is not, so that the process grows by half of its size; giving back whole pages now and
then keeps it small (``benchmarks/memory.py --standard``).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

# names and numbers of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**31 - 1  # the largest value that mallopt takes, in bytes
_GROWTH = 2**28  # bytes added at a time
# a user's own choice
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def give_back_freed_memory() -> bool:
    """Give free pages back to the system; returns whether any were. glibc only, else nothing."""
    trim = _glibc("malloc_trim")
    return trim is not None and trim(0) == 1


def keep_freed_memory() -> bool:
    """Ask the allocator to keep freed memory; returns whether it does.

    Does nothing where the allocator is not glibc's (macOS, Windows, musl, a preloaded one that
    has no ``mallopt``), and where the user has set one of glibc's ``MALLOC_..._`` variables: then
    that choice stands.
    """
    mallopt = _glibc("mallopt")
    if any(name in os.environ for name in _SETTINGS) or mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH))
    return all(mallopt(option, value) == 1 for option, value in settings)


def _glibc(name: str) -> Any:
    """A function of glibc, or ``None``: others' may differ."""
    if os.name != "posix":
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        return getattr(library, name)
    except (AttributeError, OSError):
        return None
