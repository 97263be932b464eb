"""Freed memory stays for the next chunk, so that its buffers cost no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHUNKS = """
import resource, sys
from broker.memory.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def chunk():
    buffers = [b"x" * 1_400_000 for _ in range(6)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
chunk(), chunk()
before = faults()
for _ in range(20):
    chunk()
print(faults() - before)
"""


def faults_of_twenty_chunks(how: str) -> int:
    said = subprocess.run([sys.executable, "-c", CHUNKS, how], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(said.stdout)


MAPPED = """
import ctypes, threading
from pathlib import Path
from broker.memory.heap import HEAP_BLOCK_BYTES, keep_freed_memory
keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def use():
    for _ in range(3):
        large = b"x" * (2 * HEAP_BLOCK_BYTES)
        del large
        blocks = [b"x" * (HEAP_BLOCK_BYTES // 2) for _ in range(4)]
        del blocks
before = resident()
ready = threading.Barrier(4)
def work():
    ready.wait()
    use()
    ready.wait()
    ready.wait()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
ready.wait()
ready.wait()
print((resident() - before) // HEAP_BLOCK_BYTES)
ready.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_many_threads_have_freed_stays_once_and_not_with_each() -> None:
    said = subprocess.run([sys.executable, "-c", MAPPED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(said.stdout) <= 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is known to learn from what is freed")
def test_the_buffers_of_chunks_cost_no_page_faults() -> None:
    assert faults_of_twenty_chunks("as it is") > 20 * 1000, "the control: else there is nothing to gain"
    assert faults_of_twenty_chunks("keep") < 20 * 100
