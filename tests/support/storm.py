"""A storm: clients that all work on the same files, names and session ids of one broker while it is struck.

What they were told is recorded with stamps of one clock, for `linearizable` to judge by `historymodels`. Blows are a
step like any other: SIGKILL of some process of the broker's, `kill_session` of somebody's session, calls cancelled
and connections dropped at any moment. Each life of the broker ends by a signal in the middle of the work; its files
stay for the next. Choices are made by the seed; what meets what is the scheduler's.
"""

from __future__ import annotations

import base64
import itertools
import math
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import attrs
import httpx2
import psutil
import trio
from mcp.shared.exceptions import MCPError

from bench.client import Connection, ConnectionLost, ToolFailed
from tests.support import historymodels as model
from tests.support.historymodels import FREE, Content, content_of
from tests.support.linearizable import Op, State, Step, Violation, by_key, check
from tests.support.live import ERAS, Answer, LiveBroker, broker_in, call, connect, live_folder, write_config

REGISTERS = ("register-0", "register-1")
LOGS = ("log-0",)
NAMES = ("name-0", "name-1", "name-2")
SLOTS = ("slot-0", "slot-1")
START = Content(0, 0)
UNKNOWN = frozenset({"SESSION_CLOSED", "CALL_CANCELLED", "FILE_OUTCOME_UNKNOWN", "FILE_TIMEOUT"})
"""Errors that do not say whether the change was made."""
NO_SESSION = frozenset({"SESSION_CLOSED", "SESSION_NOT_FOUND"})
REFUSALS = frozenset(
    {
        "SESSION_NOT_FOUND",
        "SESSION_CREATION_FAILED",
        "FILE_NOT_FOUND",
        "FILE_EXISTS",
        "FILE_EDIT_MISMATCH",
        "FILE_CHANGED",
        "FILE_BUSY",
        "FILE_WRITE_ERROR",
        "TRANSFER_NOT_FOUND",
    }
)
"""Errors that say that nothing was changed, and that this storm may bring."""
LOST = (
    *(httpx2.HTTPError, MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError),  # of the SDK's client
    *(OSError, trio.BrokenResourceError, ConnectionLost, ToolFailed),
)
"""What a client meets that leaves, or whose broker has ended."""
CANCELLED_OF = 16
"""One call of so many is cancelled at some moment."""
MOMENT_S = 0.03
EDITS_IN_A_ROW = 4


@attrs.frozen(kw_only=True)
class Plan:
    """`calls`: of all clients in each life, of which `lives` says how each ends.

    `only`: names of the steps, if not all. `answer_s`: bound of each answer.
    """

    seed: int
    clients: int = 6
    calls: int = 300
    lives: tuple[signal.Signals, ...] = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    only: tuple[str, ...] = ()
    answer_s: float = 25

    @property
    def steps(self) -> Sequence[Callable[[Hand], Awaitable[object]]]:
        """Each as often as its weight says."""
        return [step for step, weight in STEPS if not self.only or step.__name__ in self.only for _ in range(weight)]


@attrs.define(eq=False)
class Told:
    """What one operation was found to have done: nothing that is known, as long as nobody says so."""

    acts: tuple[Hashable, ...] | None = None
    maybe: tuple[Hashable, ...] = ()
    is_over: bool = False
    """Whatever it may have done, it did before its answer."""

    def as_refused(self, answer: Answer, reasons: Mapping[str, Hashable]) -> None:
        """Keep what a refusal tells of the state, if anything; an error that tells nothing changes nothing here."""
        if answer.is_error and answer.data["error_name"] not in UNKNOWN:
            reason = reasons.get(answer.data["error_name"])
            self.acts = () if reason is None else (reason,)


@attrs.define(eq=False, kw_only=True)
class World:
    """What all clients share."""

    plan: Plan
    base: Path
    ops: list[Op] = attrs.field(factory=list)
    odd: list[str] = attrs.field(factory=list)
    """Answers that none of this should bring."""
    told: Counter[str] = attrs.field(factory=Counter)
    life: int = 0
    sessions: dict[str, str] = attrs.field(factory=dict)
    clock: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    calls: int = 0
    ending: trio.Event = attrs.field(factory=trio.Event)

    @property
    def ws(self) -> Path:
        return self.base / "ws"

    @contextmanager
    def recorded(self, key: str, who: str, *maybe: Hashable) -> Iterator[Told]:
        """One operation, from its invocation to its return; *maybe* it did, as long as nobody tells."""
        told, invoked = Told(maybe=maybe), next(self.clock)
        try:
            yield told
        finally:
            known = told.acts is not None
            returned = next(self.clock) if known or told.is_over else math.inf
            for act in told.maybe if told.acts is None else told.acts:
                op = Op(key=key, who=who, act=act, invoked=invoked, returned=returned, known=known)
                self.ops.append(op)

    def seal(self, first: int) -> None:
        """Say that whatever the operations from *first* on may have done, they have done by now."""
        now = next(self.clock)
        self.ops[first:] = [attrs.evolve(op, returned=min(op.returned, now)) for op in self.ops[first:]]

    def file(self, name: str, text: str) -> str:
        """A file of the workspace that any session may read and move, made from outside."""
        path = self.ws / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o666)
        return str(path)

    def look(self) -> None:
        """See from outside what is there while nobody works."""
        for name in REGISTERS:
            with self.recorded(name, "the disk") as told:
                told.acts = (model.Read(content_of((self.ws / name).read_text(encoding="utf-8"))),)
        for name in LOGS:
            with self.recorded(name, "the disk") as told:
                told.acts = (model.Entries(self.entries(name)),)
        with self.recorded("names", "the disk") as told:
            told.acts = (model.LookAtAll(tuple(_text(self.ws / "names" / name) for name in NAMES)),)

    def entries(self, name: str) -> tuple[str, ...]:
        """What a log holds."""
        return tuple((_text(self.ws / name) or "").split("\n")[:-1])


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


# --- clients


class Caller(Protocol):
    """Calls a tool."""

    async def __call__(self, tool: str, arguments: Mapping[str, Any], /) -> Answer: ...


@asynccontextmanager
async def real_client(broker: LiveBroker, era: str) -> AsyncIterator[Caller]:
    """The SDK's own client."""
    async with connect(broker, era) as client:

        async def ask(tool: str, arguments: Mapping[str, Any]) -> Answer:
            return await call(client, tool, **arguments)

        yield ask


@asynccontextmanager
async def quick_client(broker: LiveBroker) -> AsyncIterator[Caller]:
    """One that costs so little that calls meet in the broker; to cancel a call it hangs up, and dials again."""
    line: tuple[trio.SocketStream, Connection] | None = None
    async with AsyncExitStack() as streams:

        async def ask(tool: str, arguments: Mapping[str, Any]) -> Answer:
            nonlocal line
            if line is None:
                stream = await streams.enter_async_context(await trio.open_tcp_stream(broker.host, broker.port))
                line = stream, Connection(host=f"{broker.host}:{broker.port}", stream=stream)
            (stream, connection), line = line, None
            try:
                data = await connection.call(tool, **arguments)
                line = stream, connection
            finally:
                if line is None:
                    stream.socket.close()
            return Answer(is_error="error_code" in data, data=data, text="")

        yield ask


CLIENTS: Sequence[Callable[[LiveBroker], AbstractAsyncContextManager[Caller]]] = (
    *(partial(real_client, era=era) for era in ERAS),
    quick_client,
    quick_client,
    quick_client,
    quick_client,
)


@attrs.define(eq=False, kw_only=True)
class Hand:
    """One client with a session of its own, which it replaces when it has ended."""

    world: World
    name: str
    connect: Callable[[LiveBroker], AbstractAsyncContextManager[Caller]]
    dice: random.Random
    broker: LiveBroker
    client: Caller | None = None

    async def work(self) -> None:
        """Connect, work, leave in the middle of a call, and again until the broker ends."""
        while not self.world.ending.is_set():
            presence = trio.CancelScope()
            try:
                with presence:
                    async with self.connect(self.broker) as self.client:
                        await self._stay(presence)
            except* LOST as lost:
                if not (self.world.ending.is_set() or presence.cancel_called):
                    self.world.odd.append(f"{self.name}: {lost.exceptions!r}")

    async def _stay(self, presence: trio.CancelScope) -> None:
        for _ in range(self.dice.randint(10, 40)):
            if self.world.ending.is_set():
                return
            await self.step()
        presence.deadline = trio.current_time() + self.dice.uniform(0, MOMENT_S)
        await self.step()

    async def step(self) -> None:
        """Do something, chosen by the dice."""
        await self.dice.choice(self.world.plan.steps)(self)

    async def ask(self, tool: str, **arguments: Any) -> Answer | None:
        """Call a tool in our session, or in the one that is named; None when we did not wait for the answer."""
        world = self.world
        if "session_id" not in arguments and tool != "create_session":
            arguments["session_id"] = await self.session()
        assert self.client is not None
        is_cancelled = self.dice.randrange(CANCELLED_OF) == 0
        bound_s = self.dice.uniform(0, MOMENT_S) if is_cancelled else world.plan.answer_s
        answer = None
        with trio.move_on_after(bound_s) as scope:
            answer = await self.client(tool, arguments)
        if answer is None:
            if scope.cancelled_caught and not is_cancelled:
                world.odd.append(f"{self.name}: no answer to {tool} in {bound_s:g} s")
            return None
        self._count(tool, arguments, answer)
        return answer

    def _count(self, tool: str, arguments: Mapping[str, Any], answer: Answer) -> None:
        world = self.world
        world.calls += 1
        if world.calls >= world.plan.calls:
            world.ending.set()
        error = answer.data["error_name"] if answer.is_error else ""
        world.told[f"{tool} {error}".strip()] += 1
        if error and error not in UNKNOWN | REFUSALS:
            world.odd.append(f"{self.name}: {tool}: {answer.data}")
        if error in NO_SESSION and world.sessions.get(self.name) == arguments.get("session_id"):
            world.sessions.pop(self.name, None)

    async def session(self) -> str:
        """Our session; a new one where the last has ended."""
        sessions = self.world.sessions
        while self.name not in sessions:
            answer = await self.ask("create_session", working_dir=str(self.world.ws))
            if answer is not None and not answer.is_error:
                sessions[self.name] = answer["session_id"]
            elif self.world.ending.is_set():
                await trio.sleep_forever()  # until the life's end cancels us
        return sessions[self.name]

    def number(self) -> int:
        """One that nobody had."""
        return next(self.world.numbers)


# --- steps on registers


async def read_register(hand: Hand) -> None:
    name = hand.dice.choice(REGISTERS)
    with hand.world.recorded(name, hand.name) as told:
        answer = await hand.ask("read_file", path=name)
        if answer is not None and not answer.is_error:
            told.acts = (model.Read(content_of(answer["content"])),)


async def download_register(hand: Hand) -> None:
    name = hand.dice.choice(REGISTERS)
    with hand.world.recorded(name, hand.name) as told:
        answer = await hand.ask("download_file", path=name)
        if answer is not None and not answer.is_error:
            text = base64.b64decode(answer["chunk_data"]).decode()
            told.acts = (model.Read(content_of(text), "download_file"),)


async def copy_register(hand: Hand) -> None:
    name, copy = hand.dice.choice(REGISTERS), f"own/{hand.number()}"
    with hand.world.recorded(name, hand.name) as told:
        answer = await hand.ask("copy_path", source=name, destination=copy)
        if answer is not None and not answer.is_error:
            text = (hand.world.ws / copy).read_text(encoding="utf-8")
            told.acts = (model.Read(content_of(text), "copy_path"),)


async def write_register(hand: Hand) -> None:
    name, value = hand.dice.choice(REGISTERS), hand.number()
    how = hand.dice.choice(("write_file", "copy_path", "move_path"))
    text, arguments = Content(value, value).text, dict[str, Any]()
    if how == "write_file":
        arguments = {"path": name, "content": text}
    else:
        source = hand.world.file(f"own/{value}", text)
        arguments = {"source": source, "destination": name, "overwrite": True}
    await hand.session()
    with hand.world.recorded(name, hand.name, model.Write(value, how)) as told:
        answer = await hand.ask(how, **arguments)
        if answer is not None:
            told.as_refused(answer, {})
            if not answer.is_error:
                told.acts = told.maybe


async def upload_register(hand: Hand) -> None:
    """In pieces; the last is sent again when we did not wait for its answer."""
    name, value = hand.dice.choice(REGISTERS), hand.number()
    data, transfer_id, offset = Content(value, value).text.encode(), "", 0
    session = await hand.session()
    pieces = [data[:1500], data[1500:3000], data[3000:]]
    for piece in pieces[:-1]:
        answer = await _send(hand, session, name, transfer_id, offset, piece)
        if answer is None or answer.is_error:
            return
        transfer_id, offset = answer["transfer_id"], offset + len(piece)
    with hand.world.recorded(name, hand.name, model.Write(value, "upload_file")) as told:
        last = (hand, session, name, transfer_id, offset, pieces[-1])
        answer = await _send(*last, is_last=True)
        is_first = answer is not None
        answer = answer or await _send(*last, is_last=True)
        if answer is not None and not answer.is_error:
            told.acts = told.maybe
        elif answer is not None and is_first:
            told.as_refused(answer, {})


async def _send(
    hand: Hand, session: str, path: str, transfer_id: str, offset: int, piece: bytes, *, is_last: bool = False
) -> Answer | None:
    return await hand.ask(
        "upload_file",
        session_id=session,
        path=path,
        transfer_id=transfer_id,
        chunk_offset=offset,
        chunk_data=base64.b64encode(piece).decode(),
        is_last=is_last,
    )


async def edit_register(hand: Hand) -> None:
    """Read, then replace what was read, some times: the compare-and-swap of files, where the others do it too."""
    for _ in range(EDITS_IN_A_ROW):
        await _read_and_edit(hand, REGISTERS[0], hand.number())


async def _read_and_edit(hand: Hand, name: str, new: int) -> None:
    with hand.world.recorded(name, hand.name) as told:
        answer = await hand.ask("read_file", path=name)
        if answer is None or answer.is_error:
            return
        seen = content_of(answer["content"])
        told.acts = (model.Read(seen),)
    if isinstance(seen, str):
        return
    digest = hand.dice.choice(("", seen.sha256))
    texts = {"old_text": f"head {seen.head}\n", "new_text": f"head {new}\n"}
    expected = {"expected_sha256": digest} if digest else {}
    await hand.session()
    with hand.world.recorded(name, hand.name, model.Edit(seen.head, new, digest)) as told:
        answer = await hand.ask("edit_file", path=name, **texts, **expected)
        if answer is None:
            return
        reasons: dict[str, Hashable] = {"FILE_EDIT_MISMATCH": model.Unlike(seen.head)}
        if answer.is_error and "sha256" in answer["error_details"]:
            reasons["FILE_CHANGED"] = model.Digest(answer["error_details"]["sha256"])
        told.as_refused(answer, reasons)
        if not answer.is_error:
            told.acts = told.maybe


# --- steps on logs


async def append_entry(hand: Hand) -> None:
    name, entry = hand.dice.choice(LOGS), f"{hand.name}-{hand.number()}"
    await hand.session()
    with hand.world.recorded(name, hand.name, model.Append(entry)) as told:
        answer = await hand.ask("write_file", path=name, content=f"{entry}\n", mode="append")
        if answer is not None:
            told.as_refused(answer, {})
            if not answer.is_error:
                told.acts = told.maybe


async def read_log(hand: Hand) -> None:
    name = hand.dice.choice(LOGS)
    with hand.world.recorded(name, hand.name) as told:
        answer = await hand.ask("read_file", path=name)
        if answer is not None and not answer.is_error:
            told.acts = (model.Entries(tuple(answer["content"].split("\n")[:-1])),)
        elif answer is not None:
            told.as_refused(answer, {"FILE_NOT_FOUND": model.Entries(())})


# --- steps on names


async def put_name(hand: Hand) -> None:
    at, content = hand.dice.randrange(len(NAMES)), f"content {hand.number()}"
    over, how = hand.dice.choice((True, False)), hand.dice.choice(("write_file", "copy_path"))
    if how == "write_file":
        over, arguments = True, {"path": _name(at), "content": content}
    else:
        source = hand.world.file(f"own/{content}", content)
        arguments = {"source": source, "destination": _name(at), "overwrite": over}
    await _change_names(hand, model.Put(at, content, over), {"FILE_EXISTS": model.Taken(at)}, how, **arguments)


async def move_name(hand: Hand) -> None:
    source, target = hand.dice.sample(range(len(NAMES)), 2)
    over = hand.dice.choice((True, False))
    reasons = {"FILE_NOT_FOUND": model.Look(source, None), "FILE_EXISTS": model.Taken(target)}
    paths = {"source": _name(source), "destination": _name(target), "overwrite": over}
    await _change_names(hand, model.Move(source, target, over), reasons, "move_path", **paths)


async def delete_name(hand: Hand) -> None:
    at = hand.dice.randrange(len(NAMES))
    reasons = {"FILE_NOT_FOUND": model.Look(at, None)}
    await _change_names(hand, model.Delete(at), reasons, "delete_path", path=_name(at))


async def _change_names(
    hand: Hand, act: Hashable, reasons: Mapping[str, Hashable], tool: str, **arguments: Any
) -> None:
    await hand.session()
    with hand.world.recorded("names", hand.name, act) as told:
        answer = await hand.ask(tool, **arguments)
        if answer is not None:
            told.as_refused(answer, reasons)
            if not answer.is_error:
                told.acts = (act,)


async def look_at_name(hand: Hand) -> None:
    at = hand.dice.randrange(len(NAMES))
    with hand.world.recorded("names", hand.name) as told:
        answer = await hand.ask("read_file", path=_name(at))
        if answer is not None and not answer.is_error:
            told.acts = (model.Look(at, answer["content"]),)
        elif answer is not None:
            told.as_refused(answer, {"FILE_NOT_FOUND": model.Look(at, None)})


def _name(at: int) -> str:
    return f"names/{NAMES[at]}"


# --- steps on session ids


def _slot(hand: Hand) -> tuple[str, str]:
    """A session id, and its history: one for each life, since none outlives the broker."""
    slot = hand.dice.choice(SLOTS)
    return slot, f"{slot} of life {hand.world.life}"


async def create_slot(hand: Hand) -> None:
    (slot, key), token = _slot(hand), hand.number()
    home = hand.world.ws / "homes" / str(token)
    home.mkdir()
    home.chmod(0o755)
    hand.world.file(f"homes/{token}/who", str(token))
    reserve, enter, give_up = model.Reserve(token), model.Enter(token), model.GiveUp(token)
    with hand.world.recorded(key, hand.name, reserve, enter, give_up) as told:
        answer = await hand.ask("create_session", id=slot, working_dir=str(home))
        if answer is None:
            return
        if not answer.is_error:
            told.acts = (reserve, enter)
        elif answer.data["error_name"] == "SESSION_CREATION_FAILED":
            if "in use" in answer["error_message"]:
                told.acts = (model.InUse(),)
            else:
                told.is_over = True  # it had the id while it was being born


async def use_slot(hand: Hand) -> None:
    slot, key = _slot(hand)
    with hand.world.recorded(key, hand.name) as told:
        answer = await hand.ask("read_file", session_id=slot, path="who")
        if answer is not None and not answer.is_error:
            told.acts = (model.Use(int(answer["content"])),)
        elif answer is not None and answer["error_name"] in NO_SESSION:
            told.acts = (model.Absent(),)


async def kill_slot(hand: Hand) -> None:
    (slot, key), killer = _slot(hand), hand.number()
    acts = (model.Close(killer), model.Leave(killer))
    with hand.world.recorded(key, hand.name, *acts) as told:
        answer = await hand.ask("kill_session", session_id=slot, force=hand.dice.choice((True, False)))
        if answer is not None and not answer.is_error:
            told.acts = acts
        elif answer is not None and answer["error_name"] in NO_SESSION:
            told.acts = (model.Absent(),)


# --- blows


async def kill_somebodys_session(hand: Hand) -> None:
    if others := sorted(hand.world.sessions.items()):
        await hand.ask("kill_session", session_id=hand.dice.choice(others)[1], force=True)


async def kill_some_process(hand: Hand) -> None:
    """The init, the opener or a keeper of some session, or the spare; which, the dice say."""
    await trio.lowlevel.checkpoint()
    for slot in SLOTS:
        killer = hand.number()
        with hand.world.recorded(
            f"{slot} of life {hand.world.life}", "SIGKILL", model.Close(killer), model.Leave(killer)
        ):
            pass  # whose process it is, nobody knows
    with suppress(IndexError, psutil.NoSuchProcess):
        hand.dice.choice(hand.broker.family()).kill()
        hand.world.told["SIGKILL"] += 1


STEPS: Sequence[tuple[Callable[[Hand], Awaitable[object]], int]] = (
    (read_register, 6),
    (download_register, 2),
    (copy_register, 2),
    (write_register, 6),
    (upload_register, 3),
    (edit_register, 10),
    (append_entry, 10),
    (read_log, 4),
    (put_name, 8),
    (move_name, 10),
    (delete_name, 3),
    (look_at_name, 6),
    (create_slot, 6),
    (use_slot, 6),
    (kill_slot, 4),
    (kill_somebodys_session, 1),
    (kill_some_process, 1),
)
"""What a client does next, and how often beside the others."""


# --- the storm


async def run_storm(plan: Plan) -> World:
    """Let the clients work through all lives of a broker, and return what they were told."""
    with live_folder() as base:
        write_config(base, {"sessions": {"max_concurrent": 200}})
        world = World(plan=plan, base=base)
        for folder in ("own", "names", "homes"):
            (world.ws / folder).mkdir()
            (world.ws / folder).chmod(0o777)
        for name in REGISTERS:
            world.file(name, START.text)
        world.look()
        for world.life, end in enumerate(plan.lives):
            first = len(world.ops)
            await _live(world, end)
            world.seal(first)
            world.look()
        return world


async def _live(world: World, end: signal.Signals) -> None:
    """One life of the broker, from its start to the end of its last process."""
    world.calls, world.ending, world.sessions = 0, trio.Event(), {}
    with broker_in(world.base) as broker:
        async with trio.open_nursery() as nursery:
            for number in range(world.plan.clients):
                name = f"client-{number}"
                dice = random.Random(f"{world.plan.seed} {world.life} {name}")  # noqa: S311  no secret
                connect_as = CLIENTS[number % len(CLIENTS)]
                hand = Hand(world=world, name=name, connect=connect_as, dice=dice, broker=broker)
                nursery.start_soon(hand.work)
            await world.ending.wait()
            await _end(broker, end)
            nursery.cancel_scope.cancel(reason="the life has ended")


async def _end(broker: LiveBroker, end: signal.Signals) -> None:
    """Send the signal, and return when the broker and all its processes are gone."""
    pidfds = []
    for process in broker.family():
        with suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(process.pid))
    broker.process.send_signal(end)
    await trio.to_thread.run_sync(broker.wait_ended)
    for pidfd in pidfds:
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)


def judge(ops: Sequence[Op]) -> list[Violation]:
    """What is wrong with the histories of all keys."""
    found = [check(part, *_model(key, part)) for key, part in by_key(ops).items()]
    return [violation for violation in found if violation is not None]


def _model(key: str, part: Sequence[Op]) -> tuple[State, Step]:
    """Where the history of a key begins, and what it promises."""
    if key in REGISTERS:
        return START, model.register
    if key in LOGS:
        (*_, last) = (op.act for op in part if op.who == "the disk")
        assert isinstance(last, model.Entries)
        return 0, model.log(last.seen)
    return ((None,) * len(NAMES), model.names) if key == "names" else (FREE, model.slot)
