"""Who makes the audit durable, by itself. A pipe stands for a disk that refuses: it cannot be made durable."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from broker.audit.sync import Syncer
from tests.support.descriptors import open_descriptors

BOUND_S = 20.0
AWHILE_S = 0.3
"""In which something would have happened."""


@attrs.define(eq=False)
class Disk:
    """Descriptors to make durable, and what is said of it."""

    file: int
    refusing: int
    refusing_too: int
    said: queue.SimpleQueue[str] = attrs.field(factory=queue.SimpleQueue)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ExitStack() as stack:
        file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        ends = [file, *os.pipe(), *os.pipe()]
        for fd in ends:
            stack.callback(os.close, fd)
        yield Disk(file=file, refusing=ends[1], refusing_too=ends[3])


def all_said(disk: Disk) -> list[str]:
    return [disk.said.get() for _number in range(disk.said.qsize())]


def own_thread() -> threading.Thread:
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "audit sync")
    return thread


def test_what_was_written_is_made_durable_though_nobody_writes_again(disk: Disk) -> None:
    syncer = Syncer(disk.said.put)
    syncer.mark(disk.refusing)
    assert "loss of power: Invalid argument" in disk.said.get(timeout=BOUND_S)
    syncer.mark(disk.refusing_too)
    assert syncer.close(BOUND_S)
    assert all_said(disk) == [], "it was said already"


def test_many_writes_are_made_durable_together(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.sync.SYNC_S", 1000.0)
    before = open_descriptors()
    syncer = Syncer(disk.said.put)
    for _number in range(100):
        syncer.mark(disk.refusing)
        syncer.mark(disk.file)
    assert len(open_descriptors() - before) == 2
    with pytest.raises(queue.Empty):
        disk.said.get(timeout=AWHILE_S)
    assert syncer.close(BOUND_S), "which does not wait for the time to be over"
    assert len(all_said(disk)) == 1
    assert open_descriptors() == before


def test_a_disk_that_refuses_again_is_complained_about_again(disk: Disk) -> None:
    syncer = Syncer(disk.said.put)
    for fd in (disk.refusing, disk.file, disk.refusing_too):
        syncer.mark(fd)
    assert syncer.close(BOUND_S)
    assert len(all_said(disk)) == 2


def test_what_cannot_be_marked_is_complained_about(disk: Disk) -> None:
    syncer = Syncer(disk.said.put)
    syncer.mark(-1)
    syncer.mark(-1)
    assert syncer.close(BOUND_S)
    (said,) = all_said(disk)
    assert "Bad file descriptor" in said


def test_its_end_waits_for_the_disk_and_not_longer_than_it_may(disk: Disk) -> None:
    answers = threading.Event()
    syncer = Syncer(lambda _: answers.wait(BOUND_S))
    thread = own_thread()
    assert thread.daemon, "the end of the process does not wait for a disk"
    syncer.mark(disk.refusing)
    assert not syncer.close(0.01)
    answers.set()
    assert syncer.close(BOUND_S)
    assert not thread.is_alive()


def test_while_nothing_is_written_it_does_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.sync.SYNC_S", 0.0)
    syncer = Syncer(disk.said.put)
    clock = time.pthread_getcpuclockid(own_thread().ident or 0)
    with pytest.raises(queue.Empty):
        disk.said.get(timeout=AWHILE_S)
    assert time.clock_gettime(clock) < AWHILE_S / 10
    assert syncer.close(BOUND_S)
