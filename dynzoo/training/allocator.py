"""The C library's memory allocator, told to keep what it frees while a model trains on a CPU.

By default glibc gives a large freed block back to the system, and the next activation of that size
is made of fresh pages, which the system must clear one by one. A training step frees and asks for
the same blocks again and again; keeping them makes it faster (``benchmarks/throughput.py``), at the
price that the process holds the memory of its largest step until it ends.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# names and numbers of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = 2**31 - 1  # the largest value that mallopt takes, in bytes
_GROWTH = 2**28  # bytes added at a time
# a user's own choice
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask the allocator to keep freed memory; returns whether it does.

    Does nothing where the allocator is not glibc's (macOS, Windows, musl, a preloaded one that
    has no ``mallopt``), and where the user has set one of glibc's ``MALLOC_..._`` variables: then
    that choice stands.
    """
    if any(name in os.environ for name in _SETTINGS) or os.name != "posix":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 (others' mallopt may differ)
    except (AttributeError, OSError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH))
    return all(mallopt(option, value) == 1 for option, value in settings)
