"""What a transfer over a URL held is let go of when it ends, in whatever way, and what is said of it then."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from broker.session.urls import REMEMBERED_TRANSFERS
from tests.support.live import Answer, LiveBroker, call, ok, running_broker
from tests.support.live_urls import Desk, Said, ask, at_desk, dial, digest, get_head
from tests.support.tarbytes import archive_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.long,
    pytest.mark.once,
]

TTL_S = 0.5
NEVER_S = 3600
SEVERAL = 12


@pytest.fixture(scope="module")
def unswept() -> Iterator[LiveBroker]:
    """One whose sessions are not swept: what ends a transfer must let go of it."""
    with running_broker({"sessions": {"cleanup_interval": NEVER_S}}) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[LiveBroker]:
    """Not swept either; its URLs expire soon, and a session has room for one."""
    server = {"sessions": {"cleanup_interval": NEVER_S}, "transfers": {"url_ttl_s": TTL_S, "max_open": 1}}
    with running_broker(server) as running:
        yield running


def descriptors(broker: LiveBroker) -> int:
    return len(os.listdir(f"/proc/{broker.process.pid}/fd"))


async def until_descriptors(broker: LiveBroker, at_most: int) -> None:
    """Return when it has no more than these; connections close behind their answers."""
    with trio.fail_after(20):
        while descriptors(broker) > at_most:
            await trio.sleep(0.01)


async def settled(broker: LiveBroker) -> int:
    """How many descriptors it has when every connection of `ask` is gone: the fewest of several looks."""
    return min([descriptors(broker) for _look in range(20) if not await trio.sleep(0.01)])


async def failed_download(desk: Desk, number: int) -> Said:
    """The file changes behind the opening: its bytes are not what was promised."""
    (desk.broker.workspace / "f").write_bytes(b"x")
    down = await desk.open("download", "f")
    (desk.broker.workspace / "f").write_bytes(bytes(2 + number))
    return await ask("GET", down["url"])


async def failed_upload(desk: Desk, _: int) -> Said:
    up = await desk.open("upload", "new", sha256=digest(b"meant"))
    return await ask("PUT", up["url"], b"other")


async def failed_archive(desk: Desk, _: int) -> Said:
    up = await desk.open("upload", "new", archive="tar", sha256=digest(b"meant"))
    return await ask("PUT", up["url"], archive_of({"f": b"other"}))


@pytest.mark.parametrize(
    ("fail", "status"),
    [(failed_download, 409), (failed_upload, 422), (failed_archive, 422)],
    ids=["download", "upload", "archive"],
)
async def test_a_transfer_that_failed_holds_no_descriptor(
    unswept: LiveBroker, fail: Callable[[Desk, int], Awaitable[Said]], status: int
) -> None:
    async with at_desk(unswept) as desk:
        assert (await fail(desk, 0)).status == status
        before = await settled(unswept)
        for number in range(1, SEVERAL):
            assert (await fail(desk, number)).status == status
        await until_descriptors(unswept, before + 1)
        held = [await desk.open("download", "f") for _ in range(SEVERAL) if fail is failed_download]
        assert descriptors(unswept) >= before + len(held)  # the control: one that is open holds one


async def test_more_failed_transfers_than_are_remembered_leave_nothing_behind(unswept: LiveBroker) -> None:
    before = await settled(unswept)
    async with at_desk(unswept) as desk:
        (unswept.workspace / "f").write_bytes(b"x")
        for number in range(REMEMBERED_TRANSFERS + SEVERAL):
            assert (await failed_download(desk, number)).code == "FILE_CHANGED"
        await ok(desk.client, "kill_session", session_id=desk.session_id)
    await until_descriptors(unswept, before)


async def stat(desk: Desk, up: Answer) -> None:
    assert (await desk.stat(up))["state"] == "expired"


async def head(_: Desk, up: Answer) -> None:
    assert (await ask("HEAD", up["url"])).status == 410


async def put(_: Desk, up: Answer) -> None:
    assert (await ask("PUT", up["url"], b"too late")).code == "TRANSFER_OVER"


async def finish(desk: Desk, up: Answer) -> None:
    named = {"session_id": desk.session_id, "transfer_id": up["transfer_id"]}
    assert (await call(desk.client, "finish_transfer", **named)).error[1] == "TRANSFER_OVER"


async def cancel(desk: Desk, up: Answer) -> None:
    named = {"session_id": desk.session_id, "transfer_id": up["transfer_id"]}
    assert (await ok(desk.client, "cancel_transfer", **named))["state"] in {"expired", "cancelled"}


@pytest.mark.parametrize("question", [stat, head, put, finish, cancel])
async def test_asking_about_an_expired_upload_makes_room_for_another(
    hasty: LiveBroker, question: Callable[[Desk, Answer], Awaitable[None]]
) -> None:
    """Whoever finds out that its time is over lets go of it: the part file, the account, the place."""
    async with at_desk(hasty) as desk:
        up = await desk.open("upload", "f")
        crowded = await call(desk.client, "open_transfer", session_id=desk.session_id, direction="upload", path="g")
        if crowded.is_error:  # the control, unless this machine was so slow that the first one expired before it
            assert crowded.error[1] == "POLICY_RESOURCE_EXCEEDED"
        await trio.sleep(2 * TTL_S)  # its time passes
        await question(desk, up)
        other = await desk.open("upload", "f")
        await cancel(desk, other)
        assert desk.leftovers() == []


async def test_an_expired_upload_that_nobody_asks_about_is_swept() -> None:
    server = {"sessions": {"cleanup_interval": 1}, "transfers": {"url_ttl_s": TTL_S, "max_open": 1}}
    with running_broker(server) as broker:
        async with at_desk(broker) as desk:
            up = await desk.open("upload", "f")
            open_another = {"session_id": desk.session_id, "direction": "upload", "path": "g"}
            while (await call(desk.client, "open_transfer", **open_another)).is_error:
                await trio.sleep(0.05)
            assert (await desk.stat(up))["state"] == "expired"


async def test_a_download_that_is_cancelled_while_it_is_read_is_let_go_of(unswept: LiveBroker) -> None:
    with (unswept.workspace / "f").open("wb") as sparse:
        sparse.truncate(1 << 30)
    before = await settled(unswept)
    async with at_desk(unswept) as desk:
        down = await desk.open("download", "f")
        with dial(down["url"]) as line:
            line.sendall(get_head(down["url"]))
            await trio.to_thread.run_sync(lambda: line.recv(1000, socket.MSG_PEEK))
            await cancel(desk, down)
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(lambda: [None for _ in iter(lambda: line.recv(1 << 20), b"")])
        assert (await ask("GET", down["url"])).code == "TRANSFER_OVER"
        await ok(desk.client, "kill_session", session_id=desk.session_id)
    await until_descriptors(unswept, before)
