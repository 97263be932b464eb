"""Freed memory stays for the next chunk, so that its buffers cost no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHUNKS = """
import resource, sys
from broker.heap import keep_freed_memory
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is known to learn from what is freed")
def test_the_buffers_of_chunks_cost_no_page_faults() -> None:
    assert faults_of_twenty_chunks("as it is") > 20 * 1000, "the control: else there is nothing to gain"
    assert faults_of_twenty_chunks("keep") < 20 * 100
