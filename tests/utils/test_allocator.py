"""The allocator keeps what it frees, where it can be told to."""

import json
import os
import platform
import subprocess
import sys

import pytest

from dynzoo.utils import allocator

pytestmark = pytest.mark.any_backend

PROGRAM = """
import json, resource, runpy, sys
import numpy as np

keep_freed_memory = runpy.run_path(sys.argv[2])["keep_freed_memory"]
kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for size in (3_000_000, 5_000_000, 7_000_000):
        np.empty(size).fill(1.0)

use()
before = faults()
for _ in range(5):
    use()
print(json.dumps([kept, faults() - before]))
"""


def run(mode, program=PROGRAM, **variables):
    environ = {k: v for k, v in os.environ.items() if k not in allocator._SETTINGS}
    result = subprocess.run(
        [sys.executable, "-c", program, mode, allocator.__file__],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    kept, faults = run("keep")
    _, default = run("leave")
    assert kept is True
    # some 170,000 small pages or 300 huge ones by default
    assert faults < default / 10


HELD = """
import json, runpy, sys
import numpy as np

allocator = runpy.run_path(sys.argv[2])

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

# small blocks of which every 16th stays, so that nothing is free at the end of the heap
blocks = [np.ones(4096) for _ in range(8192)]
blocks = blocks[::16]
before = held()
given = allocator["give_back_freed_memory"]()
print(json.dumps([given, held() / before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_is_given_back():
    given, share = run("trim", program=HELD, MALLOC_MMAP_MAX_="0")
    assert given is True
    assert share < 0.5  # 256 MiB were asked for, 16 are in use


def test_a_users_own_setting_stands():
    kept, _ = run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept is False


def test_an_allocator_without_mallopt_is_left_alone(monkeypatch):
    class Library:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Library())
    for name in allocator._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert allocator.keep_freed_memory() is False
    assert allocator.give_back_freed_memory() is False
