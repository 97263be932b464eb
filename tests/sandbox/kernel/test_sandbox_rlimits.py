"""Limits of setrlimit(2) and how they are reckoned: in children, on the real kernel."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.kernel import rlimits
from tests.sandbox.kernel.test_walls_namespaces import Walls, as_each, behind
from tests.sandbox.kernel.test_walls_seccomp import fork_child, in_child

MIB = 1 << 20


def after_applying(limits: dict[str, int | None], room: int) -> Any:
    """What getrlimit says of each limit in a child, before and after."""

    def child() -> list[dict[str, tuple[int, int]]]:
        said = []
        for work in (lambda: None, lambda: rlimits.apply(limits, room)):
            work()
            said.append({name: resource.getrlimit(which) for name, which in rlimits.RESOURCES.items()})
        return said

    return in_child(child)


def test_each_limit_is_lowered_for_good_and_only_tasks_have_room_beside_them() -> None:
    limits = {"memory_max_bytes": 900 * MIB, "pids_max": 30, "file_size_max_bytes": MIB, "open_files_max": 40}
    _, after = after_applying({**limits}, 7)
    assert after == {name: [value + 7 * (name == "pids_max")] * 2 for name, value in limits.items()}


def test_a_limit_that_is_not_set_or_above_the_one_there_is_changes_nothing() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != resource.RLIM_INFINITY, "the kernel has no other for this one"
    before, after = after_applying({"open_files_max": hard + 1, "file_size_max_bytes": None}, 0)
    assert after == {**before, "open_files_max": [hard, hard]}


def test_a_process_of_ours_leaves_no_core_file() -> None:
    def child() -> list[int]:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        rlimits.no_core_dumps()
        return [*resource.getrlimit(resource.RLIMIT_CORE)]

    assert in_child(child) == [0, 0]


def test_a_file_may_not_grow_beyond_its_limit() -> None:
    def child() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        rlimits.apply({"file_size_max_bytes": 10}, 0)
        with open(os.memfd_create("file"), "wb", buffering=0) as file:
            written = file.write(bytes(20))
            file.write(b"more")
        return written

    assert fork_child(child).code == -signal.SIGXFSZ


def test_a_user_has_room_for_what_others_start_and_more_where_there_are_others() -> None:
    assert rlimits.room(10, dedicated=True) == 10 + rlimits.ROOM_DEDICATED
    assert rlimits.room(10, dedicated=False) == 10 + rlimits.ROOM_SHARED


@pytest.mark.parametrize(("keepers", "tasks"), [(0, 4), (1, 6), (5, 14)])
def test_ours_are_counted_with_the_keeper_to_come(keepers: int, tasks: int) -> None:
    assert rlimits.of_ours(keepers) == tasks


@given(st.integers(0, 1000))
def test_a_command_that_may_have_as_much_as_its_session_has_room_for_ours_alone(ours: int) -> None:
    assert rlimits.room_beside(ours, 0) == ours


@as_each
@pytest.mark.parametrize("others", [0, 3])
def test_what_runs_beside_the_asker_has_room_up_to_the_widest_limit(who: str, others: int) -> None:
    def child() -> list[int]:
        end, hold = os.pipe()
        for _ in range(others):
            if os.fork() == 0:
                os.close(hold)
                os.read(end, 1)
                os._exit(0)
        asked = ((0, None), (1, None), (2, None), (9, None), (0, 1), (1, 1), (1, 2), (1, 5), (9, 5))
        return [rlimits.room_beside(ours, widened_by) for ours, widened_by in asked]

    told = {0: [0, 1, 2, 9, 0, 1, 1, 1, 9], 3: [3, 3, 3, 9, 1, 2, 3, 3, 9]}
    assert behind(Walls(who=who), child) == told[others]
