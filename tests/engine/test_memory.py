"""What a process does with memory that it has freed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

HELD = """
import json, torch
from fastslow.engine.memory import keep_freed_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4 / 1024
keep_freed_memory()
before = held()
block = torch.ones(2**26)
full = held()
del block
print(json.dumps([full - before, held() - before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_stays_unless_the_user_has_settings_of_their_own(own: dict[str, str]):
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", HELD], env=bare | own, check=True, stdout=subprocess.PIPE, text=True
    )
    full, left = json.loads(ran.stdout)
    assert full > 250
    assert (left < 10) if own else (left > 250)
