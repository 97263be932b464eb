"""How fast a file goes through a URL of open_transfer, beside nginx with the same file, client and disk in one run.

curl is the client of both. A download is compared with sendfile; ours is hashed as well, while the client is slow, or
afterwards for one as fast as here (not in its time, and before the next thing is measured). An upload is compared with
a PUT that nginx's WebDAV takes; ours is hashed and flushed to the disk before it is answered, and nginx's is not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from bench.client import Connection, open_connection
from bench.nginx import find_nginx, running_nginx
from bench.table import MB, Row, missing_row
from tests.support.live import LiveBroker

MIB = 1024 * 1024
HALF = 0.5
DOWN, UP = "raw download / nginx serving the file", "raw upload / nginx taking a PUT"
UP_OF_DOWN = "raw upload / nginx serving the file"

Rate = Callable[[], Awaitable[float]]


async def raw_rows(broker: LiveBroker, mebibytes: int, rounds: int) -> list[Row]:
    """Rates of both sides in turn; a ratio is one of the best, since what others do on the machine only slows down."""
    program = find_nginx()
    if shutil.which("curl") is None:
        return [missing_row(DOWN, "curl is not installed"), missing_row(UP, "curl is not installed")]
    if program is None:
        return [missing_row(DOWN, "nginx is not installed"), missing_row(UP, "nginx is not installed")]
    with tempfile.TemporaryDirectory(prefix="nginx-", dir=broker.base) as folder:
        base = Path(folder)
        async with running_nginx(program, base) as url, open_connection(broker.port) as connection:
            file = _make_file(base / "files" / "file", mebibytes)
            shutil.copy(file, broker.workspace / "file")
            session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
            rates = await _measure(connection, session, file, url, rounds)
            await connection.ok("kill_session", session_id=session, force=True)
    return _rows(rates)


async def _measure(
    connection: Connection, session: str, file: Path, url: str, rounds: int
) -> Mapping[str, list[float]]:
    async def ours(direction: str, path: str, curl: Callable[[str], Awaitable[float]]) -> float:
        opened = await connection.ok("open_transfer", session_id=session, direction=direction, path=path)
        rate = await curl(opened["url"])
        named = {"session_id": session, "transfer_id": opened["transfer_id"]}
        while (await connection.ok("stat_transfer", **named))["state"] == "active":  # what is hashed afterwards
            await trio.lowlevel.checkpoint()
        return rate

    async def nginx_down() -> float:
        return await _down(f"{url}/file")

    async def our_down() -> float:
        return await ours("download", "file", _down)

    async def nginx_up() -> float:
        return await _up(file, f"{url}/uploaded")

    async def our_up() -> float:
        return await ours("upload", "uploaded", partial(_up, file))

    probes: Mapping[str, Rate] = {
        "nginx down": nginx_down,
        "our down": our_down,
        "nginx up": nginx_up,
        "our up": our_up,
    }
    rates: dict[str, list[float]] = {name: [] for name in probes}
    for _round in range(rounds + 1):  # the first one warms up
        for name, probe in probes.items():
            rates[name].append(await probe())
    return {name: taken[1:] for name, taken in rates.items()}


def _rows(rates: Mapping[str, list[float]]) -> list[Row]:
    down, our_down, up, our_up = (max(rates[name]) for name in rates)
    return [_ratio(DOWN, our_down, down), _ratio(UP, our_up, up), _ratio(UP_OF_DOWN, our_up, down, bound=None)]


def _ratio(what: str, ours: float, theirs: float, bound: float | None = HALF) -> Row:
    ratio = ours / theirs
    measured = f"{ratio:.2f}: {ours / MB:.0f} MB/s, nginx {theirs / MB:.0f}"
    return Row(
        what=what,
        bound="" if bound is None else f">= {bound:g}",
        measured=measured,
        share=None if bound is None else bound / ratio,
    )


def _make_file(path: Path, mebibytes: int) -> Path:
    with path.open("wb") as file:
        for _piece in range(mebibytes):
            file.write(os.urandom(MIB))
    path.chmod(0o644)
    return path


async def _down(url: str) -> float:
    return await _curl("%{speed_download}", "--output", "/dev/null", url)


async def _up(file: Path, url: str) -> float:
    return await _curl("%{speed_upload}", "--output", "/dev/null", "--upload-file", str(file), url)


async def _curl(told: str, *words: str) -> float:
    """Bytes per second, as curl measured it; nginx may still be starting."""
    patience = ("--retry", "10", "--retry-connrefused")
    done = await trio.run_process(
        ["curl", "--silent", "--show-error", "--fail", *patience, "--write-out", told, *words],
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
    )
    return float(done.stdout)
