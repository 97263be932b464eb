"""A broker starts no program by its name: a PATH may lead through folders that sessions write, such as ~/.local/bin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.live import broker_in, call, connect, live_folder, write_config

pytestmark = [pytest.mark.bounded(90), pytest.mark.long]
DECOY = '#!/bin/sh\necho "$0" >> {told}\nexit 1\n'
NAMES = (
    *("uname", "ldconfig", "gcc", "cc", "ld", "objdump", "file", "git", "sh", "bash", "env", "which", "python3"),
    *("mount", "unshare", "ip", "df", "ps", "id", "getent", "hostname", "lscpu", "systemctl", "pgrep", "nproc"),
)


def decoys(folder: Path) -> Path:
    """Fill a folder with programs that write down that they were started; return where."""
    told = folder / "told"
    told.touch(mode=0o666)
    for name in NAMES:
        (folder / name).write_text(DECOY.format(told=told))
        (folder / name).chmod(0o755)
    return told


async def test_no_program_of_the_brokers_search_path_is_started() -> None:
    with live_folder() as base:
        write_config(base)
        told = decoys(base / "ws")
        environment = {**os.environ, "PATH": f"{base / 'ws'}:{os.environ.get('PATH', os.defpath)}"}
        asks = "import platform; platform.platform()"
        subprocess.run([sys.executable, "-c", asks], env=environment, check=True, capture_output=True)
        assert told.read_text().split() == [str(base / "ws/uname")], "the control"
        told.write_text("")
        with broker_in(base, environment=environment) as broker:
            (broker.workspace / "x.json").write_text("{}")
            async with connect(broker) as client:
                session = (await call(client, "create_session"))["session_id"]
                ran = await call(client, "execute_command", session_id=session, argv=["true"])
                assert ran["exit_code"] == 0
                path = str(broker.workspace / "x.json")
                assert (await call(client, "read_file", session_id=session, path=path))["mime_type"]
                assert (await call(client, "get_system_info"))["platform"].startswith("Linux-")
                assert not (await call(client, "get_process_list")).is_error
            assert broker.stop() == 0
        assert told.read_text() == ""
