"""A gigabyte through one command: bounded memory, exact counts, and every byte up to the quota to be had."""

from __future__ import annotations

import base64
import gc
from pathlib import Path

import psutil
import pytest

from tests.broker.tools.test_jobs import SERVER, hands
from tests.sandbox.init.test_sandbox_births import wait_exit

pytestmark = [pytest.mark.long, pytest.mark.once]

MIB = 1024 * 1024
QUOTA = 64 * MIB
LINE = 64
FLOOD = """
import os
line = lambda n: b'%062d\\n\\n' % n
done = 0
while done < {total}:
    done += os.write(1, b''.join(line(done // 64 + i) for i in range(1024))[done % 64:])
"""
FAST = "import os\nblock = b'0123456789abcde\\n' * 65536\nfor _ in range(1024): os.write(1, block)"
MEMORY_SLACK = 40 * MIB


@pytest.mark.long
@pytest.mark.bounded(120)
async def test_a_gigabyte_stays_in_bounded_memory(tmp_path: Path) -> None:
    server = SERVER.replace("inline_bytes: 4096", f"inline_bytes: 4096, spill_bytes: {QUOTA}")
    async with hands(tmp_path, server) as own:
        await own.python("print('x' * 1_000_000)")
        gc.collect()
        before = psutil.Process().memory_info().rss
        begun = await own.python(FAST, background=True, timeout_seconds=60)
        peak = 0
        while (page := await own.ok("read_output", command_id="c2", cursor=-16, wait_seconds=1))["running"]:
            peak = max(peak, psutil.Process().memory_info().rss)
        assert peak - before < MEMORY_SLACK
        done = await own.ok("wait_command", command_id=begun["command_id"])
        kept = page["total_bytes"]
        assert kept + done["dropped_bytes"] == 1024 * MIB
        assert 0 <= QUOTA - kept < MIB
        assert (len(done["stdout"].encode()) < 4200, done["stdout_omitted_bytes"]) == (True, 1024 * MIB - 4096)
        for cursor in (0, 12_345_678, kept - 100):
            page = await own.ok("read_output", command_id="c2", cursor=cursor, max_bytes=48, encoding="base64")
            expected = (b"0123456789abcde\n" * 5)[cursor % 16 :][:48]
            assert base64.b64decode(page["data"]) == expected[: kept - cursor]
        await wait_exit(begun["pid"])


@pytest.mark.bounded(120)
async def test_every_byte_of_a_full_quota_can_be_paged_and_searched(tmp_path: Path) -> None:
    server = SERVER.replace("inline_bytes: 4096", f"inline_bytes: 4096, spill_bytes: {8 * MIB}")
    async with hands(tmp_path, server) as own:
        begun = await own.python(FLOOD.format(total=16 * MIB), wait_seconds=60)
        command_id, cursor = begun["command_id"], 0
        kept = (await own.ok("read_output", command_id=command_id, max_bytes=4))["total_bytes"]
        assert 0 <= 8 * MIB - kept < 4096
        while cursor < kept:
            page = await own.ok(
                "read_output", command_id=command_id, cursor=cursor, max_bytes=1 * MIB, encoding="base64"
            )
            data = base64.b64decode(page["data"])
            first = cursor // LINE
            wanted = b"".join(b"%062d\n\n" % n for n in range(first, first + len(data) // LINE + 2))
            assert data == wanted[cursor % LINE :][: len(data)]
            cursor = page["next_cursor"]
        last = kept // LINE - 1
        found = await own.ok("search_output", command_id=command_id, pattern=f"0{last}$")
        assert [match["cursor"] for match in found["matches"]] == [last * LINE]
        assert found["dropped_bytes"] == 16 * MIB - kept


async def test_older_output_makes_room_for_newer(tmp_path: Path) -> None:
    server = SERVER.replace("inline_bytes: 4096", f"inline_bytes: 4096, spill_bytes: {MIB}")
    async with hands(tmp_path, server) as own:
        for _ in range(3):
            await own.python("print('x' * 600_000, end='')")
        pages = [await own.ok("read_output", command_id=f"c{n}") for n in (1, 2, 3)]
        assert [page["evicted_bytes"] for page in pages] == [600_000, 600_000, 0]
        assert pages[0]["data"] == ""
        assert pages[2]["data"] == "x" * 4096
        assert (await own.ok("wait_command", command_id="c1"))["stdout"].startswith("x" * 2048)
