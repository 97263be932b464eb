"""Facts about the machine and its processes now: psutil, in threads.

Owns the samples from which a usage is computed; knows no session and no rule. Nothing here waits for a measuring
interval: a usage is measured from the last time it was asked for.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import psutil
import trio

from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

T = TypeVar("T")

FACT_THREADS = 4
SAMPLES = 4096  # processes whose last sample is remembered, the longest unasked forgotten first
# The kernel counts in ticks of 10 ms: over less than this the difference says nothing.
SHORTEST_SPAN_S = 0.1


@attrs.frozen(kw_only=True)
class CpuFacts:
    """`usage_percent` of all processors together, 0 to 100, since it was last asked for."""

    usage_percent: float
    count: int


@attrs.frozen(kw_only=True)
class MemoryFacts:
    """Memory of the machine; available is what programs can get without swapping."""

    total_bytes: int
    available_bytes: int
    used_percent: float


@attrs.frozen(kw_only=True)
class DiskFacts:
    """One mounted file system."""

    mount_point: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    used_percent: float


@attrs.frozen(kw_only=True)
class SystemFacts:
    """State of the machine at one moment."""

    hostname: str
    platform: str
    cpu: CpuFacts
    memory: MemoryFacts
    disks: tuple[DiskFacts, ...]
    uptime_s: float


@attrs.frozen(kw_only=True)
class ProcessFacts:
    """One process. `cpu_percent` of one processor, since it was last asked for, else since its start."""

    pid: int
    parent_pid: int
    uid: int
    name: str
    cmdline: tuple[str, ...]
    status: str
    cpu_percent: float
    memory_rss_bytes: int


def _platform() -> str:
    """Return what `platform.platform` says; that one starts a `uname` by PATH, which may hold what a session wrote."""
    kernel, (library, version) = os.uname(), platform.libc_ver()
    name = f"{kernel.sysname}-{kernel.release}-{kernel.machine}"
    return f"{name}-with-{library}{version}" if library else name


class FactSource:
    """Source of such facts. One for the whole broker; any number of tasks may ask."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(FACT_THREADS)
        self._cpu = _CpuUsage()
        self._processes = _ProcessUsage()

    async def system(self) -> SystemFacts:
        """Return the state of the machine. Cancellation: leaves the thread behind, which holds nothing."""
        return await self._in_thread(self._system)

    async def processes(self, *, pids: Iterable[int]) -> tuple[ProcessFacts, ...]:
        """Return the facts of these processes, by pid; those that are gone are left out."""
        wanted = sorted(set(pids))
        return await self._in_thread(lambda: self._describe(wanted, None))

    async def processes_of(self, uid: int) -> tuple[ProcessFacts, ...]:
        """Return the facts of all processes whose real user is *uid*, by pid."""
        return await self._in_thread(lambda: self._describe(sorted(psutil.pids()), uid))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # A dead network mount blocks statvfs for ever: a caller with a deadline must be able to leave.
        return await run_in_thread(call, limiter=self._limiter, abandon_on_cancel=True)

    def _system(self) -> SystemFacts:
        memory = psutil.virtual_memory()
        return SystemFacts(
            hostname=socket.gethostname(),
            platform=_platform(),
            cpu=CpuFacts(usage_percent=self._cpu.percent(), count=os.cpu_count() or 1),
            memory=MemoryFacts(total_bytes=memory.total, available_bytes=memory.available, used_percent=memory.percent),
            disks=tuple(_disks()),
            uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
        )

    def _describe(self, pids: Collection[int], uid: int | None) -> tuple[ProcessFacts, ...]:
        found = (self._describe_one(pid, uid) for pid in pids)
        return tuple(facts for facts in found if facts is not None)

    def _describe_one(self, pid: int, uid: int | None) -> ProcessFacts | None:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                real_uid = process.uids().real
                if uid is not None and real_uid != uid:
                    return None
                return ProcessFacts(
                    pid=pid,
                    parent_pid=process.ppid(),
                    uid=real_uid,
                    name=process.name(),
                    cmdline=_cmdline(process),
                    status=process.status(),
                    cpu_percent=self._processes.percent(process),
                    memory_rss_bytes=process.memory_info().rss,
                )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None  # it ended meanwhile, or /proc hides it from us (hidepid)


class _CpuUsage:
    """Work of the processors between two questions; safe to ask from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = self._now()
        self._percent = 0.0

    @staticmethod
    def _now() -> tuple[float, float]:
        times = psutil.cpu_times()
        # guest time is counted in user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total, total - times.idle - times.iowait

    def percent(self) -> float:
        with self._lock:
            last, now = self._last, self._now()
            span = now[0] - last[0]
            if span >= SHORTEST_SPAN_S:
                # Counters of a processor may step back a little; a usage never does.
                self._percent = round(min(100.0, max(0.0, 100 * (now[1] - last[1]) / span)), 1)
                self._last = now
            return self._percent


class _ProcessUsage:
    """Work of each process between two questions; pids that were used again are told apart by their start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[int, float], tuple[float, float, float]] = OrderedDict()

    def percent(self, process: psutil.Process) -> float:
        started, now = process.create_time(), time.time()
        key = process.pid, started
        times = process.cpu_times()
        spent = times.user + times.system
        with self._lock:
            since, before, percent = self._last.pop(key, (started, 0.0, 0.0))
            if now - since >= SHORTEST_SPAN_S:
                percent = round(max(0.0, 100 * (spent - before) / (now - since)), 1)
                since, before = now, spent
            self._last[key] = since, before, percent
            while len(self._last) > SAMPLES:
                self._last.popitem(last=False)
        return percent


def _cmdline(process: psutil.Process) -> tuple[str, ...]:
    try:
        return tuple(process.cmdline())
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return ()


def _disks() -> Iterable[DiskFacts]:
    mounts = {part.device: part.mountpoint for part in reversed(psutil.disk_partitions(all=False))}
    # In a container the root is an overlay, which is no physical disk and yet the one that fills up.
    points = dict.fromkeys(["/", *mounts.values()])
    seen = set()
    for point in sorted(points):
        try:
            device = Path(point).stat().st_dev
            usage = psutil.disk_usage(point)
        except OSError:
            continue  # unmounted meanwhile, or not ours to see
        if usage.total == 0 or device in seen:
            continue
        seen.add(device)
        yield DiskFacts(
            mount_point=point,
            total_bytes=usage.total,
            used_bytes=usage.used,
            free_bytes=usage.free,
            used_percent=usage.percent,
        )
