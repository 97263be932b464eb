"""A process is known out here by the number it has out here, whatever it calls itself."""

from __future__ import annotations

import os
import subprocess

import trio

from sandbox.kernel.processes import pid_of, take_pid


async def test_a_pidfd_tells_the_number_until_the_process_is_gone() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        assert pid_of(pidfd) == process.pid
        assert process.stdin is not None
        process.stdin.close()
        await trio.lowlevel.wait_readable(pidfd)
        process.wait()
        assert pid_of(pidfd) == 0
        os.close(pidfd)


def test_taking_the_number_closes_the_descriptor() -> None:
    pidfd = os.pidfd_open(os.getpid())
    assert take_pid(pidfd) == os.getpid()
    try:
        os.fstat(pidfd)
    except OSError:
        return
    raise AssertionError("still open")
