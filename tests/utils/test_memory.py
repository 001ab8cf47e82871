from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from lit_gfs.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    np.ones(2**17)  # 1 MiB
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(mode: str, **environment: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    # 200 arrays of 256 pages. Another C library has no such option.
    most = 5_000 if hasattr(ctypes.CDLL(None), "mallopt") else 100_000
    assert count_page_faults("default", MALLOC_MMAP_THRESHOLD_="131072") > 40_000
    assert count_page_faults("keep") < most


def test_the_users_own_settings_stay() -> None:
    assert count_page_faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > 40_000


HOLES = """
import os
import numpy as np
from pathlib import Path
from lit_gfs.utils.memory import keep_freed_memory, release_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
keep_freed_memory()
blocks = [np.ones(2**20) for _ in range(40)]  # 8 MiB each
pins = [np.ones(2**10) for _ in range(40)]
full = resident()
del blocks
kept = resident()
release_freed_memory()
print(full, kept, resident())
"""


def test_what_is_kept_can_be_handed_back() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, check=True
    )
    full, kept, released = map(int, done.stdout.split())
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        assert kept > full - 50
        assert released < full - 250
