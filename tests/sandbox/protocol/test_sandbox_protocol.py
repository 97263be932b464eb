"""What is legal when: each side performs what its table names, and refuses every other message."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox import sniffing, wire
from sandbox.commands import running
from sandbox.commands.running import Command
from sandbox.commands.streams import Streams
from sandbox.errors import BirthFailed
from sandbox.init import keeper, keeper_pool, spare
from sandbox.init.keeper import Slot
from sandbox.init.keeper_pool import Keepers
from sandbox.init.spare import Interpreter, start_interpreter
from sandbox.inside.init import main as init_main
from sandbox.inside.init.main import Unborn
from sandbox.inside.keeper import keeper as keeper_inside
from sandbox.protocol.commands import (
    EXIT_NOT_STARTED,
    FROM_INIT,
    FROM_KEEPER,
    FROM_LEADER,
    FROM_SNIFFER,
    READY,
    TO_INIT,
    TO_KEEPER,
    TO_LEADER,
    UNABLE,
)
from tests.sandbox.init.test_sandbox_births import ABI, PLAIN, open_world, plan_for
from tests.sandbox.test_sandbox_shortage import eventually
from tests.support.descriptors import open_descriptors

ROOT = Path(__file__).resolve().parents[3]
OF_A_LEADER = ("program", "started", "stage")  # these messages have no `op`, and are known by their first key
TABLES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    **{f"to_init {state}": legal for state, legal in TO_INIT.items()},
    **{f"from_init {state}": legal for state, legal in FROM_INIT.items()},
    **{f"to_keeper {state}": legal for state, legal in TO_KEEPER.items()},
    "from_keeper": FROM_KEEPER,
    "to_leader": TO_LEADER,
    "from_leader": FROM_LEADER,
}
KINDS = sorted({kind for legal in TABLES.values() for kind in legal} | {"", "unheard_of"})
MANY = wire.DESCRIPTORS  # descriptors: more than any message brings


def message(kind: str) -> dict[str, Any]:
    return {kind: 1, "op_": 1} if kind in OF_A_LEADER else {"op": kind, "serial": 1}


def illegal(legal: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """Every kind that *legal* does not name, and each that it does with a number of descriptors that it does not."""
    return [(kind, 0) for kind in KINDS if kind not in legal] + [(kind, MANY) for kind in legal]


def cases(prefix: str) -> list[Any]:
    return [
        pytest.param(name.removeprefix(prefix).strip(), kind, count, id=f"{name}-{kind}-{count}")
        for name, legal in TABLES.items()
        if name.startswith(prefix)
        for kind, count in illegal(legal)
    ]


@contextlib.contextmanager
def told(kind: str, count: int) -> Iterator[socket.socket]:
    """One end of a connection on which a message has come; nothing of it is left behind."""
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.setblocking(False)
        wire.send(theirs, message(kind), [theirs.fileno()] * count)
        before = len(open_descriptors())
        yield ours
        assert len(open_descriptors()) == before


# --- the border itself


@pytest.mark.parametrize("name", TABLES)
def test_what_is_legal_is_heard_and_nothing_else(name: str) -> None:
    legal = TABLES[name]
    for kind, counts in legal.items():
        for count in counts:
            with told(kind, count) as sock:
                heard = wire.hear(sock, legal)
                assert heard is not None
                said, fds = heard
                assert (wire.kind_of(said), len(fds)) == (kind, count)
                for fd in fds:
                    os.close(fd)
    for kind, count in illegal(legal):
        with told(kind, count) as sock, pytest.raises(wire.WireBroken, match="may not be sent now"):
            wire.hear(sock, legal)


@pytest.mark.parametrize("strange", [{}, {"op": None}, {"op": ["greet"]}, {"op": {"greet": 1}}, {"op": 1}])
def test_a_message_of_no_kind_is_refused(strange: dict[str, Any]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send(theirs, strange)
        with pytest.raises(wire.WireBroken):
            wire.hear(ours, TO_INIT["waiting"])


def test_the_end_of_the_peer_is_heard_in_every_state() -> None:
    for legal in TABLES.values():
        ours, theirs = wire.pair()
        with ours:
            theirs.close()
            assert wire.hear(ours, legal) is None


@pytest.mark.parametrize(
    ("performed", "legal"),
    [
        (init_main.BEFORE_BIRTH, [TO_INIT["waiting"], TO_INIT["moved"]]),
        (init_main.SERVED, [TO_INIT["serving"]]),
        (keeper_pool.NEWS, [FROM_INIT["asked"], FROM_INIT["idle"]]),
        (keeper_inside.ORDERS, TO_KEEPER.values()),
        (keeper.NEWS, [FROM_KEEPER]),
        (running.NEWS, [FROM_LEADER]),
    ],
)
def test_whatever_is_legal_in_some_state_is_performed(performed: Mapping[str, Any], legal: Any) -> None:
    assert performed.keys() == {kind for each in legal for kind in each}


# --- the init


@pytest.mark.parametrize("moved", [0, 1])
def test_an_init_refuses_before_its_birth(moved: int) -> None:
    for kind, count in illegal(TO_INIT["moved" if moved else "waiting"]):
        refuse_before_birth(moved, kind, count)


def refuse_before_birth(moved: int, kind: str, count: int) -> None:
    with told(kind, count) as sock:
        unborn = Unborn(sock)
        unborn._prepared.flags = moved
        with pytest.raises(wire.WireBroken):
            unborn.wait_spec()


@pytest.mark.parametrize("kind", [kind for kind, count in illegal(TO_INIT["serving"]) if not count])
async def test_an_init_that_serves_ends_at_what_it_does_not_serve(kind: str) -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world:
        await world.run("/bin/true")
        wire.send(world.init._interpreter.sock, message(kind))
        with trio.fail_after(5):
            await world.init.wait_exited()


@pytest.mark.parametrize(("state", "kind", "count"), cases("from_init"))
async def test_the_broker_refuses_of_an_init(state: str, kind: str, count: int) -> None:
    with told(kind, count) as sock:
        if state in {"asked", "idle"}:
            heard = Keepers(sock)
            heard._asked.extend([(None, None)] if state == "asked" else [])  # type: ignore[list-item]  # nobody gets it
            heard.refresh()
            assert heard.gone
        else:
            with sock.dup() as own, pytest.raises(BirthFailed, match="may not be sent now"):
                await Interpreter(0, own, -1, 0).hear(state)  # type: ignore[call-overload]  # each of them


async def test_a_spare_that_says_what_it_may_not_on_its_way_is_of_no_use() -> None:
    for kind, count in illegal(FROM_INIT["moving"]):
        with told(kind, count) as sock, sock.dup() as own:
            assert Interpreter(0, own, -1, 1).exited()


# --- the keeper


@pytest.mark.parametrize("state", TO_KEEPER)
def test_a_keeper_refuses(state: str) -> None:
    """In a process of its own, because it takes over the handling of signals."""
    refused = illegal(TO_KEEPER[state])
    script = f"""
import json, os, sys
sys.path.append({str(ROOT)!r})
from sandbox import wire
from sandbox.inside.keeper.keeper import Keeper
def refused(message, count):
    ours, theirs = wire.pair()
    keeper = Keeper(theirs, abi=0, tasks_room=9, scoped=False, grouped={state != "alone"}, spawns=False)
    keeper._entry = {0 if state == "holding" else -1}
    assert keeper._state == {state!r}, keeper._state
    wire.send(ours, message, [0] * count)
    try:
        return keeper._obey()
    except wire.WireBroken:
        return "refused"
print(json.dumps([refused(*each) for each in json.loads(sys.argv[1])]))
"""
    told_to_it = json.dumps([(message(kind), count) for kind, count in refused])
    done = subprocess.run([sys.executable, "-I", "-c", script, told_to_it], capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout) == ["refused"] * len(refused)


async def test_a_keeper_that_is_told_what_it_may_not_be_ends_its_tree() -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.run, "/bin/sleep", "900")
        await eventually(lambda: [slot for slot in world.pool._busy if slot.launched])
        (slot,) = world.pool._busy
        wire.send(slot.sock, {"op": "ready", "serial": slot.serial})
        await eventually(lambda: slot.gone)


@pytest.mark.parametrize(("state", "kind", "count"), cases("from_keeper"))
def test_the_broker_refuses_of_a_keeper(state: str, kind: str, count: int) -> None:
    assert not state
    with told(kind, count) as sock:
        slot = Slot(0, sock)
        slot.read_news()
        assert (slot.gone, slot.serial, slot.launch) == (True, 0, None)


# --- the leader


@pytest.mark.parametrize(("kind", "count"), illegal(TO_LEADER))
def test_a_leader_refuses(kind: str, count: int) -> None:
    """Forked or spawned: neither begins, and what was spawned says why."""
    script = f"""
import json, os, sys
os.chdir("/")
sys.path.append({str(ROOT)!r})
from sandbox import wire
from sandbox.inside.keeper import forked
from sandbox.inside.keeper.spawned import Spawn
from sandbox.kernel import process
process.prctl(process.SET_NO_NEW_PRIVS, 1)
told, count = json.loads(sys.argv[1])
ours, theirs = wire.pair()
wire.send(ours, told, [0] * count)
pid = os.fork()
if pid == 0:
    try:
        forked.main(theirs.fileno(), abi=0, tasks_room=9, keeper_pid=os.getppid())
    finally:
        os._exit(forked.EXIT_NOT_STARTED)
status = os.waitpid(pid, 0)[1]
ours, theirs = wire.pair()
poked, poke = os.pipe()
wire.send(ours, told, [0] * count)
spawn = Spawn(theirs, {ABI}, lambda: os.write(poke, b"!"))
os.read(poked, 1)
print(json.dumps([os.waitstatus_to_exitcode(status), spawn.pid, wire.receive(ours)[0]["why"]]), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, json.dumps([message(kind), count])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=20,
    )
    assert json.loads(done.stdout) == [EXIT_NOT_STARTED, 0, "a message came that may not be sent now"]


@pytest.mark.parametrize(("state", "kind", "count"), cases("from_leader"))
async def test_the_broker_refuses_of_a_leader(state: str, kind: str, count: int) -> None:
    assert not state
    ours, theirs = wire.pair()
    with ours, theirs, told(kind, count) as sock:
        command = Command(Slot(os.getpid(), ours), sock.dup(), Streams(None, 10))
        try:
            with pytest.raises(wire.WireBroken):
                command._read_launch()
            assert (command.pid, command.failure) == (0, None)
        finally:
            command.close()


# --- the sniffer


async def test_the_broker_refuses_of_a_sniffer() -> None:
    for state, legal in FROM_SNIFFER.items():
        for first in (READY, UNABLE, b"?"):
            code = f"import socket; socket.socket(fileno={spare.SOCKET_FD}).send({first + b'word'!r})"
            child = start_interpreter(code)
            try:
                if first in legal:
                    assert await sniffing._hear(child, state) == first + b"word"
                else:
                    with pytest.raises(ConnectionResetError):
                        await sniffing._hear(child, state)
            finally:
                assert await child.end()
