"""The watch of the broker's own port: who needs one, and that there is no start without one where it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.sandbox.machine.test_sandbox_netpeers import ROOT, WITHOUT_NETLINK
from tests.support.door import needs_root

OPEN = f"""
import sys
sys.path.insert(0, sys.argv[1])
from broker.access.peerwatch import open_watch
from sandbox.kernel import namespaces
from sandbox.plan.plan import Plan, LayerUnavailable
{WITHOUT_NETLINK}
for name, spaces, internet, seccomp in (
    ("shared", namespaces.PID, True, True),
    ("own network", namespaces.NET, True, True),
    ("filtered", 0, False, True),
    ("no filter", 0, False, False),
):
    plan = Plan(landlock_abi=7, switch_user=True, seccomp=seccomp, spaces=spaces, internet=internet,
                network="some", own_task_count=False, private_tmp=False, private_tmp_bytes=0, require=(), layers=())
    try:
        open_watch(plan, None, None, None, None)
        print(name, "starts")
    except LayerUnavailable as refused:
        print(name, refused.layer, "serve on stdio" in refused.remedy)
"""


def starts(*arguments: str) -> list[str]:
    words = [sys.executable, "-c", OPEN, str(ROOT), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_where_the_kernel_answers_every_plan_starts() -> None:
    assert starts() == ["shared starts", "own network starts", "filtered starts", "no filter starts"]


@needs_root
def test_where_it_does_not_only_what_sessions_cannot_reach_starts(tmp_path: Path) -> None:
    said = starts(str(tmp_path))
    assert said == ["shared network True", "own network starts", "filtered starts", "no filter network True"]
