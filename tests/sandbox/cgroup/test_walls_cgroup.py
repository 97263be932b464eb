"""Control groups where no privilege is needed: texts of the kernel, values, and what is refused as a base."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cgroup.chores import Chores
from sandbox.cgroup.group import CgroupFault, Group, is_cgroup2
from sandbox.cgroup.layer import look
from sandbox.cgroup.place import REQUIRED, Mount, NoCgroup, cgroup2_mounts, directory_of, find_base, own_group
from sandbox.cgroup.usage import read_flat, shown_size
from sandbox.plan.limits import GroupLimits
from sandbox.plan.plan import SandboxSettings


def settings(**fields: object) -> SandboxSettings:
    given = {"unprivileged_user": "", "cgroup_base": "data/cgroup", "enable_cgroups": True, "require": ()}
    unused = {"enable_namespaces": False, "private_tmp": True, "private_tmp_bytes": 1 << 28}
    return SandboxSettings(**(given | unused | fields))  # type: ignore[arg-type]


PURE = "35 24 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
CONTAINER = "712 700 0:31 /docker/4f\\040a /sys/fs/cgroup ro,nosuid master:9 - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PURE, (Mount(point="/sys/fs/cgroup", root="/"),)),
        (HYBRID, (Mount(point="/sys/fs/cgroup/unified", root="/"),)),
        (CONTAINER, (Mount(point="/sys/fs/cgroup", root="/docker/4f a"),)),
        ("22 27 0:21 / /proc rw - proc proc rw\n", ()),
    ],
)
def test_mounts_are_found_by_their_file_system(text: str, found: tuple[Mount, ...]) -> None:
    assert cgroup2_mounts(text) == found


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/user.slice/user-1000.slice\n", "/user.slice/user-1000.slice"),
        ("9:name=systemd:/\n4:memory:/job\n0::/\n", "/"),
        ("4:memory:/job\n", None),
    ],
)
def test_our_own_group_is_the_one_of_version_2(text: str, group: str | None) -> None:
    assert own_group(text) == group


@pytest.mark.parametrize(
    ("group", "root", "directory"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/a/b", "/", "/sys/fs/cgroup/a/b"),
        ("/docker/4f", "/docker/4f", "/sys/fs/cgroup"),
        ("/docker/4f/x", "/docker/4f", "/sys/fs/cgroup/x"),
        ("/docker/4fx", "/docker/4f", None),  # a sibling whose name begins the same
        ("/../other", "/docker/4f", None),
    ],
)
def test_a_group_is_looked_up_in_the_mount_that_shows_it(group: str, root: str, directory: str | None) -> None:
    assert directory_of(group, (Mount(point="/sys/fs/cgroup", root=root),)) == directory


def test_limits_are_said_as_the_kernel_says_them_back() -> None:
    limits = GroupLimits(
        memory_max_bytes=(64 << 20) + 1,
        swap_max_bytes=0,
        pids_max=32,
        cpu_max_cores=1.5,
        io_weight=50,
        kill_together=True,
    )
    assert limits.files() == (
        ("memory.max", str(64 << 20)),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "32"),
        ("cpu.max", "150000 100000"),
        ("io.weight", "default 50"),
    )


WIDE = GroupLimits(memory_max_bytes=100, swap_max_bytes=0, pids_max=5, io_weight=7)


@pytest.mark.parametrize(
    ("override", "beyond"),
    [
        (WIDE, False),
        (GroupLimits(), False),
        (GroupLimits(memory_max_bytes=99, pids_max=1, io_weight=9000), False),
        (GroupLimits(cpu_max_cores=64), False),  # the session may use all processors
        (GroupLimits(memory_max_bytes=101), True),
        (GroupLimits(swap_max_bytes=1), True),
    ],
)
def test_a_session_is_widened_only_where_an_override_goes_beyond_it(override: GroupLimits, *, beyond: bool) -> None:
    assert override.beyond(WIDE) is beyond
    assert (WIDE.widened(override) != WIDE) is beyond


def test_a_widened_session_keeps_what_is_wider_already() -> None:
    widened = WIDE.widened(GroupLimits(memory_max_bytes=300, pids_max=2))
    assert (widened.memory_max_bytes, widened.pids_max, widened.io_weight) == (300, 5, 7)
    roomy = widened.with_room(10, 3)
    assert (roomy.memory_max_bytes, roomy.pids_max, roomy.swap_max_bytes) == (310, 8, 0)
    assert GroupLimits().with_room(10, 3) == GroupLimits()


def test_a_command_gets_time_and_disk_of_its_own_only_where_it_differs_from_the_session() -> None:
    session = GroupLimits(cpu_max_cores=1.5, io_weight=50, pids_max=9)
    assert session.without_shared(session) == GroupLimits(pids_max=9)
    own = GroupLimits(cpu_max_cores=0.5, io_weight=50).without_shared(session)
    assert (own.cpu_max_cores, own.io_weight) == (0.5, None)


@pytest.mark.parametrize(("size_bytes", "shown"), [(512 << 20, "512 MiB"), (3 << 19, "1.5 MiB")])
def test_sizes_are_shown_in_mib(size_bytes: int, shown: str) -> None:
    assert shown_size(size_bytes) == shown


def test_no_limit_writes_nothing() -> None:
    assert GroupLimits().files() == ()


@pytest.mark.parametrize(
    "fields",
    [{"memory_max_bytes": 0}, {"pids_max": 0}, {"cpu_max_cores": 0.0}, {"io_weight": 10_001}, {"swap_max_bytes": -1}],
)
def test_an_impossible_limit_is_no_value(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        GroupLimits(**fields)  # type: ignore[arg-type]


@given(st.dictionaries(st.from_regex(r"[a-z_.]{1,12}", fullmatch=True), st.integers(0, 1 << 63), max_size=8))
def test_flat_files_are_read_as_they_are_written(values: dict[str, int]) -> None:
    assert read_flat("".join(f"{name} {value}\n" for name, value in values.items())) == values


def test_a_plain_directory_is_no_cgroup_whatever_lies_in_it(tmp_path: Path) -> None:
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.max"):
        (tmp_path / name).write_text("")
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert not is_cgroup2(str(tmp_path))
    with pytest.raises(CgroupFault, match="no cgroup v2 directory"):
        Group(str(tmp_path))
    with pytest.raises(NoCgroup, match="would limit nothing"):
        find_base(str(tmp_path))
    assert (tmp_path / "memory.max").read_text() == ""


@pytest.mark.parametrize(
    ("configured", "why"),
    [("/nonexistent", "no cgroup v2"), ("/proc/self/cgroup", "no cgroup")],
)
def test_a_base_that_is_none_is_refused_with_its_reason(configured: str, why: str) -> None:
    with pytest.raises(NoCgroup, match=why) as caught:
        find_base(configured)
    assert caught.value.remedy


def test_a_hybrid_machine_is_told_what_is_missing() -> None:
    mounts = cgroup2_mounts(Path("/proc/self/mountinfo").read_text())
    if not mounts or set(Path(mounts[0].point, "cgroup.controllers").read_text().split()) >= REQUIRED:
        pytest.skip("cgroup v2 has its controllers here, or is not mounted")
    with pytest.raises(NoCgroup, match="no memory and no pids controller") as caught:
        find_base(mounts[0].point)
    assert caught.value.path == mounts[0].point
    assert os.path.isabs(caught.value.path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (settings(enable_cgroups=False), "sandbox.enable_cgroups"),
        (settings(cgroup_base="/proc"), "no cgroup v2 directory.*Delegate=yes.*sandbox.cgroup_base"),
    ],
)
def test_a_cgroup_layer_that_is_not_there_says_why_and_what_to_do(settings: SandboxSettings, said: str) -> None:
    place = look(settings, frozenset())
    assert place.base is None
    assert place.report.state == "unavailable"
    assert re.search(said, place.report.detail)


def test_the_customers_relative_base_means_that_a_place_is_looked_for() -> None:
    assert "'data/cgroup' is no absolute path, so a place was looked for" in look(settings(), frozenset()).report.detail
    assert "looked for" not in look(settings(cgroup_base=""), frozenset()).report.detail


async def test_chores_are_done_in_order_and_told_in_the_loop() -> None:
    chores, done = Chores(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chores.work_off)
        for number in range(3):
            chores.soon(lambda number=number: number * 10, done.append)
        await chores.settled()
        assert done == [0, 10, 20]
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):  # sessions that are being cancelled still need theirs
            chores.soon(lambda: 30, done.append)
            await chores.settled()
        chores.stop()
    assert done == [0, 10, 20, 30]
