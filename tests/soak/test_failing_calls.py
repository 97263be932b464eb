"""Each system call of broker, init, opener, keeper and a session's birth fails once, under every tool.

First the calls that each process makes under each tool are counted; then each of them is made to fail, at each of its
first times, with what the kernel might say. The answer must be true (the folder is as before, or as after, as it says),
nothing may leak, and the next call works. As many as fit into the session's time are tried, in the order of a
fixed seed; `FAILING_CALLS=all` tries every one, which takes ten minutes on two cores that are idle.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio
from mcp.client.client import Client

from tests.support.faulting import ERRORS, Fault, calls_in, happened, injection, session_processes, traced, why_not
from tests.support.live import Answer, LiveBroker, call, connect, running_broker

WHY_NOT = "root alone may trace what runs as another user" if os.geteuid() else why_not()
pytestmark = [pytest.mark.failing, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
SHARES = 2  # one for each core
SAMPLE_S = 60  # of each share
WHOLE = os.environ.get("FAILING_CALLS") == "all"
SEED = 11
FIRST_TIMES = 3
ANSWER_BOUND_S = 14  # above TAKE_S of a pool, below ANSWER_S of an exchange: whoever waits for that is found
SETTLE_BOUND_S = 3
SLACK = 6  # descriptors: a session may have two keepers more than the one before it; what leaks adds up to more
OF_KEEPERS = ("socket", "anon_inode", "pipe")
BEFORE: Mapping[str, str] = {"f": "old text\n", "other": "else\n", "d/": "", "d/inner": "inner\n"}
MAY_BE_DONE = frozenset({"SESSION_005", "CMD_003", "FILE_010"})
"""Errors that promise nothing of what was under way: the session or the command ended, or the outcome is unknown."""
NOT_KNOWN = re.compile(r"not known|unknown|in part|may be|may still")
THREADS_OF_BROKER = frozenset({"fsync", "pwrite64", "fstatfs", "pread64", "ftruncate", "fallocate", "write"})
"""What the broker does in threads above all: then each of its threads may fail once."""

State = dict[str, str]


@attrs.frozen(kw_only=True)
class First:
    """A call that makes what another one is about; of its answer that one gets the field *gives*."""

    tool: str
    arguments: Callable[[str], dict[str, Any]]
    gives: str
    ended_by: str

    @classmethod
    def command(cls, *argv: str, gives: str = "command_id", **more: Any) -> First:
        """A command that goes on after the call."""
        how = {"argv": list(argv), **(more or {"background": True})}
        return cls(tool="execute_command", arguments=lambda _: how, gives=gives, ended_by="signal_command")

    @classmethod
    def transfer(cls, direction: str) -> First:
        """A URL."""
        return cls(
            tool="open_transfer",
            arguments=lambda d: {"direction": direction, "path": f"{d}/f"},
            gives="transfer_id",
            ended_by="cancel_transfer",
        )


@attrs.frozen
class Then:
    """A look, at the command that a call was about, and what it must say."""

    tool: str
    says: Callable[[Answer], bool]


def has_ended(answer: Answer) -> bool:
    return answer.is_error or not answer["running"]  # a command that was killed is an error


@attrs.frozen(kw_only=True)
class Trial:
    """A call, what the folder is after it, and what a success must say."""

    tool: str
    arguments: Callable[[str], dict[str, Any]]
    after: Mapping[str, str | None] = attrs.field(factory=dict)
    """What changes: None is gone."""
    says: Callable[[Answer], bool] = lambda _: True
    in_session: bool = True
    first: First | None = None
    """What there must be before: nothing fails there."""
    then: Then | None = None
    """What must be so after a success."""

    def done(self) -> State:
        changed = {**BEFORE, **self.after}
        return {name: content for name, content in changed.items() if content is not None}


TRIALS = {
    "write": Trial(tool="write_file", arguments=lambda d: {"path": f"{d}/f", "content": "new\n"}, after={"f": "new\n"}),
    "write a new one": Trial(
        tool="write_file", arguments=lambda d: {"path": f"{d}/n", "content": "new\n"}, after={"n": "new\n"}
    ),
    "append": Trial(
        tool="write_file",
        arguments=lambda d: {"path": f"{d}/f", "content": "more\n", "mode": "append"},
        after={"f": "old text\nmore\n"},
    ),
    "edit": Trial(
        tool="edit_file",
        arguments=lambda d: {"path": f"{d}/f", "old_text": "old", "new_text": "new"},
        after={"f": "new text\n"},
    ),
    "make": Trial(tool="make_directory", arguments=lambda d: {"path": f"{d}/m"}, after={"m/": ""}),
    "move": Trial(
        tool="move_path",
        arguments=lambda d: {"source": f"{d}/f", "destination": f"{d}/n"},
        after={"f": None, "n": "old text\n"},
    ),
    "copy": Trial(
        tool="copy_path",
        arguments=lambda d: {"source": f"{d}/f", "destination": f"{d}/n"},
        after={"n": "old text\n"},
    ),
    "copy a tree": Trial(
        tool="copy_path",
        arguments=lambda d: {"source": f"{d}/d", "destination": f"{d}/n", "recursive": True},
        after={"n/": "", "n/inner": "inner\n"},
    ),
    "delete": Trial(tool="delete_path", arguments=lambda d: {"path": f"{d}/f"}, after={"f": None}),
    "upload": Trial(
        tool="upload_file",
        arguments=lambda d: {"path": f"{d}/f", "chunk_data": "bmV3Cg==", "is_last": True},
        after={"f": "new\n"},
    ),
    "download": Trial(
        tool="download_file",
        arguments=lambda d: {"path": f"{d}/f"},
        says=lambda a: a["chunk_data"] == "b2xkIHRleHQK",
    ),
    "read": Trial(
        tool="read_file", arguments=lambda d: {"path": f"{d}/f"}, says=lambda a: a["content"] == "old text\n"
    ),
    "stat": Trial(
        tool="stat_path",
        arguments=lambda d: {"path": f"{d}/f", "checksum": True},
        says=lambda a: a["size_bytes"] == len("old text\n"),
    ),
    "list": Trial(
        tool="list_directory",
        arguments=lambda d: {"path": d},
        says=lambda a: [entry["name"] for entry in a["entries"]] == ["d", "f", "other"],
    ),
    "search": Trial(
        tool="search_files",
        arguments=lambda d: {"path": d, "pattern": "inner"},
        says=lambda a: len(a["matches"]) + a["skipped_unreadable"] > 0 or a["truncated"],
    ),
    "find": Trial(
        tool="find_files",
        arguments=lambda d: {"path": d, "pattern": "inner"},
        says=lambda a: len(a["entries"]) + a["skipped_unreadable"] > 0 or a["truncated"],
    ),
    "execute": Trial(
        tool="execute_command",
        arguments=lambda d: {"argv": ["sh", "-c", f"echo new > {d}/n; echo said"]},
        after={"n": "new\n"},
        says=lambda a: (a["exit_code"], a["stdout"]) == (0, "said\n"),
    ),
    "execute on a terminal": Trial(
        tool="execute_command",
        arguments=lambda _: {"argv": ["echo", "said"], "terminal": {"rows": 5, "columns": 50}},
        says=lambda a: (a["exit_code"], a["stdout"]) == (0, "said\r\n"),
    ),
    "wait": Trial(
        tool="wait_command",
        arguments=lambda _: {"wait_seconds": 5},
        first=First.command("echo", "said"),
        says=lambda a: (a["exit_code"], a["stdout"]) == (0, "said\n"),
    ),
    "give input": Trial(
        tool="write_stdin",
        arguments=lambda _: {"data": "said\n"},
        first=First.command("cat"),
        says=lambda a: a["bytes_written"] == len("said\n"),
        then=Then("read_output", lambda a: a["data"] == "said\n"),
    ),
    "read output": Trial(
        tool="read_output",
        arguments=lambda _: {"wait_seconds": 5},
        first=First.command("sh", "-c", "echo said; exec sleep 60"),
        says=lambda a: a["data"] == "said\n",
    ),
    "search output": Trial(
        tool="search_output",
        arguments=lambda _: {"pattern": "sa.d"},
        first=First.command("echo", "said", wait_seconds=5),
        says=lambda a: [match["text"] for match in a["matches"]] == ["said"],
    ),
    "signal": Trial(
        tool="signal_command", arguments=lambda _: {}, first=First.command("cat"), then=Then("wait_command", has_ended)
    ),
    "kill a process": Trial(
        tool="kill_process",
        arguments=lambda _: {"signal": 9},
        first=First.command("cat", gives="pid"),
        then=Then("wait_command", has_ended),
    ),
    "resize": Trial(
        tool="resize_terminal",
        arguments=lambda _: {"rows": 7, "columns": 70},
        first=First.command("cat", background=True, terminal={"rows": 5, "columns": 50}),
    ),
    "stat of a transfer": Trial(
        tool="stat_transfer",
        arguments=lambda _: {},
        first=First.transfer("download"),
        says=lambda a: (a["state"], a["size_bytes"]) == ("open", len("old text\n")),
    ),
    "finish": Trial(
        tool="finish_transfer",
        arguments=lambda _: {},
        first=First.transfer("upload"),
        after={"f": ""},
        says=lambda a: a["state"] == "complete",
    ),
    "cancel": Trial(
        tool="cancel_transfer",
        arguments=lambda _: {},
        first=First.transfer("upload"),
        says=lambda a: a["state"] == "cancelled",
    ),
    "open": Trial(tool="open_transfer", arguments=lambda d: {"direction": "download", "path": f"{d}/f"}),
    "commands": Trial(tool="list_commands", arguments=lambda _: {}),
    "processes": Trial(tool="get_process_list", arguments=lambda _: {}),
    "system": Trial(tool="get_system_info", arguments=lambda _: {}, in_session=False),
    "create": Trial(tool="create_session", arguments=lambda _: {}, in_session=False),
    "kill": Trial(tool="kill_session", arguments=lambda _: {"force": True}),
}


def lay_out(folder: Path) -> None:
    """Make the folder what it is before each trial."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in BEFORE.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
            path.chmod(0o777)
        else:
            path.write_text(content)
            path.chmod(0o666)


def state_of(folder: Path) -> State:
    """Everything in the folder, hidden part files too."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[f"{name}/" if path.is_dir() else name] = "" if path.is_dir() else path.read_text()
    return found


@attrs.define(eq=False)
class Bench:
    """One broker on which one fault after the other is tried, with one session."""

    broker: LiveBroker
    findings: list[str]
    client: Client = attrs.field(init=False)
    session_id: str = ""
    where: str = "counting"
    answer: Answer | None = None
    at_first: Counter[str] = attrs.field(factory=Counter)
    tried: int = 0

    @property
    def folder(self) -> Path:
        return self.broker.workspace

    async def renew(self) -> None:
        """Have one session, ready for commands, and a spare for the next."""
        if self.session_id:
            await call(self.client, "kill_session", session_id=self.session_id, force=True)
        for _ in range(3):  # a spare may have been hit before it was taken
            created = await call(self.client, "create_session")
            if not created.is_error:
                break
        self.session_id = created["session_id"]
        ran = await call(self.client, "execute_command", session_id=self.session_id, argv=["true"])
        assert not ran.is_error, ran.data
        with trio.fail_after(SETTLE_BOUND_S * 3):
            while not {"spare", "opener", "keeper"} <= set(session_processes(self.broker.process.pid)):
                await trio.sleep(0.02)

    async def prepare(self, trial: Trial) -> Answer | None:
        """What the call is about, if it needs something; what an earlier fault left may cost a session."""
        if trial.first is None:
            return None
        for _ in range(2):
            arguments = trial.first.arguments(str(self.folder))
            made = await call(self.client, trial.first.tool, session_id=self.session_id, **arguments)
            if not made.is_error:
                return made
            await self.renew()
        raise AssertionError(made.data)

    async def clear(self, trial: Trial, made: Answer | None) -> None:
        """End what `prepare` made, if the session is still there."""
        if trial.first is not None and made is not None:
            name = "transfer_id" if trial.first.tool == "open_transfer" else "command_id"
            await call(self.client, trial.first.ended_by, session_id=self.session_id, **{name: made[name]})

    async def ask(self, trial: Trial, made: Answer | None) -> Answer | None:
        """The answer to the call about what was *made*, or None where there was none in time."""
        arguments = trial.arguments(str(self.folder))
        if trial.first is not None and made is not None:
            arguments[trial.first.gives] = made[trial.first.gives]
        if trial.in_session:
            arguments["session_id"] = self.session_id
        with trio.move_on_after(ANSWER_BOUND_S):
            return await call(self.client, trial.tool, **arguments)
        return None

    async def kinds(self, name: str) -> dict[tuple[str, str], int]:
        """How often each process makes each system call under a tool."""
        trial, found = TRIALS[name], {}
        for kind in ("broker", "init", "opener", "keeper", "spare"):
            if (kind == "spare") != (trial.tool == "create_session") and kind != "broker":
                continue
            lay_out(self.folder)
            made = await self.prepare(trial)
            pid = session_processes(self.broker.process.pid)[kind]
            async with traced(pid, (), threads=kind == "broker") as log:
                answer = await self.ask(trial, made)
            assert answer is not None
            await self.clear(trial, made)
            found |= {(kind, each): count for each, count in calls_in(log).items() if each in ERRORS}
            if trial.tool in {"create_session", "kill_session"}:
                await self._forget(answer)
        return found

    async def count(self, names: list[str]) -> list[tuple[str, Fault]]:
        """Each of these tools with every fault that may happen under it."""
        return [(name, fault) for name in names for fault in faults_of(await self.kinds(name))]

    async def _forget(self, answer: Answer) -> None:
        """Go back to one session after one more or one less."""
        if "session_id" in answer.data and answer["session_id"] != self.session_id:
            await call(self.client, "kill_session", session_id=answer["session_id"], force=True)
        await self.renew()

    def find(self, finding: str) -> None:
        """Note what is not as it should be."""
        self.findings.append(finding)
        if WHOLE:
            print(finding, flush=True)  # noqa: T201  a long run is watched as it goes

    async def attempt(self, name: str, fault: Fault) -> None:
        """Let one call fail under one tool, and look at everything: in the main thread, or else in any."""
        threads = fault.process == "broker" and fault.call in THREADS_OF_BROKER
        if not await self._happens(name, fault, threads=threads) and fault.process == "broker" and not threads:
            await self._happens(name, fault, threads=True)

    async def _happens(self, name: str, fault: Fault, *, threads: bool) -> bool:
        """Whether the call was made, and so failed."""
        trial, broker_pid = TRIALS[name], self.broker.process.pid
        self.where = f"{name}: {fault.process} {fault.call} #{fault.nth} {fault.error}"
        lay_out(self.folder)
        self.at_first = before = self.at_first or self._held()
        pids = session_processes(broker_pid)
        if fault.process not in pids:  # the one before ended it, and the next call did not need it
            await self.renew()
            pids = session_processes(broker_pid)
        made = await self.prepare(trial)
        pid = session_processes(broker_pid).get(fault.process, pids[fault.process])
        async with traced(pid, injection(fault), threads=threads) as log:
            answer = await self.ask(trial, made)
        self.answer = answer
        if happened(log):
            self.tried += 1
            self._judge(trial, answer)
            await self._look(trial, made, answer)
        await self.clear(trial, made)
        if not happened(log):
            await self._ready_again(trial, answer)
            return False
        await self._next_works(trial, answer)
        await self._nothing_leaks(before)
        return True

    def _judge(self, trial: Trial, answer: Answer | None) -> None:
        if answer is None:
            self.find(f"{self.where}: no answer within {ANSWER_BOUND_S} s")
            return
        state = state_of(self.folder)
        if not answer.is_error:
            if state != trial.done() or not trial.says(answer):
                self.find(f"{self.where}: success, but {difference(state, trial.done())} {answer.data}")
            return
        said = f"{answer['error_code']} {answer['error_message']}"
        if answer["error_code"] == "SYS_999":
            self.find(f"{self.where}: an incident")
        not_told = answer["error_code"] in MAY_BE_DONE or NOT_KNOWN.search(said)
        if state != BEFORE and not (state == trial.done() and not_told):
            self.find(f"{self.where}: {said}, but {difference(state, BEFORE)}")

    async def _look(self, trial: Trial, made: Answer | None, answer: Answer | None) -> None:
        """Whether what a success promises is so."""
        if trial.then is None or made is None or answer is None or answer.is_error:
            return
        arguments = {"session_id": self.session_id, "command_id": made["command_id"], "wait_seconds": SETTLE_BOUND_S}
        seen = await call(self.client, trial.then.tool, **arguments)
        if not trial.then.says(seen):
            self.find(f"{self.where}: success, but {trial.then.tool} says {seen.data}")

    async def _ready_again(self, trial: Trial, answer: Answer | None) -> None:
        """Have a session for the next one: this one killed it, or found that the one before had."""
        if answer is None or (answer.is_error and answer["error_code"].startswith("SESSION")):
            await self.renew()
        elif trial.tool in {"create_session", "kill_session", "open_transfer"}:
            await self._forget(answer)

    async def _next_works(self, trial: Trial, answer: Answer | None) -> None:
        """The same call again, in this session or, if it says that this one is over, in another."""
        if trial.tool in {"create_session", "kill_session", "open_transfer"} or answer is None:
            if answer is not None:
                await self._forget(answer)
            else:
                await self.renew()
            return
        lay_out(self.folder)
        made = await self.prepare(trial)
        again = await self.ask(trial, made)
        await self.clear(trial, made)
        if again is not None and again.is_error and again["error_code"] == "SESSION_005":
            await self.renew()
            return
        if again is None or again.is_error or state_of(self.folder) != trial.done():
            self.find(f"{self.where}: the next call fails: {again and again.data}")
            await self.renew()

    def _held(self) -> Counter[str]:
        """The broker's descriptors by kind, but for those of its clients, and of what commands said."""
        pid = self.broker.process.pid
        links = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            except FileNotFoundError:
                continue
        held = Counter(kind_of(link) for link in links if not link.startswith(f"{self.broker.base}/data/output/"))
        held["socket"] -= len(psutil.Process(pid).net_connections("tcp"))
        return held

    async def _nothing_leaks(self, before: Counter[str]) -> None:
        programs: list[str] = []
        with trio.move_on_after(SETTLE_BOUND_S):
            while True:
                programs = [each for each in map(command_of, self.broker.family()) if each and "python" not in each]
                more = self._held() - before
                varying = sum(more.pop(kind, 0) for kind in OF_KEEPERS)
                if not programs and not more and varying <= SLACK:
                    return
                await trio.sleep(0.02)
        self.find(f"{self.where}: left: {programs}, {dict(self._held() - before)}")
        await self.renew()
        self.at_first = Counter()  # one leak is one finding


def command_of(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0] if process.cmdline() else ""
    except psutil.NoSuchProcess:
        return ""


def kind_of(link: str) -> str:
    """What a descriptor is; the name of a session's terminal changes with the end of its mounts."""
    return re.sub(r"^(/dev/pts)?/(ptmx|\d+)$", "terminal", link.split(":", maxsplit=1)[0])


def difference(state: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    return f"the folder has {sorted(set(state.items()) ^ set(wanted.items()))}"


def faults_of(counts: Mapping[tuple[str, str], int]) -> list[Fault]:
    return [
        Fault(process, each, error, nth)
        for (process, each), count in sorted(counts.items())
        for error in ERRORS[each]
        for nth in range(1, min(count, FIRST_TIMES) + 1)
    ]


KNOWN: tuple[tuple[str, str], ...] = (
    (r": broker read #. EIO: success", "a terminal says so that it is at its end, and no pipe does"),
    (r"^system: broker (read|openat|readlink) #. EIO: an incident", "no code says that /proc cannot be read, or mtab"),
    (r": (keeper|init) write #", "a pipe of the process to itself, by which a signal wakes it, does not fail so"),
)
"""What is found and not mended here: a pattern of the finding, and why it is so."""


@pytest.mark.bounded(5400)
@pytest.mark.parametrize("share", range(SHARES))
async def test_whatever_call_fails_the_answer_is_true_and_the_next_one_works(share: int) -> None:
    found: list[str] = []
    cases: list[tuple[str, Fault]] | None = None
    tried, until = 0, math.inf
    while cases is None or cases:
        with running_broker({"sessions": {"max_concurrent": 16}}) as broker:
            bench = Bench(broker, found)
            while (cases is None or cases) and broker.process.poll() is None:
                try:
                    async with connect(broker) as bench.client:
                        await bench.renew()
                        if cases is None:
                            cases = in_order(await bench.count(sorted(TRIALS)[share::SHARES]))
                            until = trio.current_time() + (math.inf if WHOLE else SAMPLE_S)
                        while cases and trio.current_time() < until:
                            await bench.attempt(*cases.pop())
                        cases.clear()
                except Exception as error:  # noqa: BLE001  the client's, or what is wrong with the bench: no fault may
                    bench.find(f"{bench.where}: {leaves(error)}")
            if cases:
                bench.find(f"{bench.where}: the broker ended: {broker.printed.lines[-40:]}")
            tried += bench.tried
    print(f"{tried} failing calls tried, {len(found)} findings")  # noqa: T201  of a session of its own
    assert tried > 10, "the control: calls failed"
    unknown = [each for each in found if not any(re.search(known, each) for known, _ in KNOWN)]
    assert not unknown, "\n".join(["", *unknown])


MENDED: tuple[tuple[str, Fault, str], ...] = (
    ("make", Fault("opener", "newfstatat", "EIO", 2), "FILE_010"),
    ("make", Fault("opener", "openat2", "ENOMEM", 2), "FILE_010"),
    ("write", Fault("opener", "sendmsg", "ENOBUFS", 3), "FILE_010"),
    ("read", Fault("opener", "sendmsg", "ENOBUFS", 1), "SYS_001"),
    ("read", Fault("opener", "recvmsg", "ENOMEM", 1), ""),
    ("read", Fault("broker", "recvmsg", "ENOMEM", 1), ""),
    ("search output", Fault("broker", "pwrite64", "EIO", 1), "FILE_004"),
    ("search output", Fault("broker", "openat", "EIO", 1), "FILE_004"),
    ("execute on a terminal", Fault("broker", "fchmod", "EPERM", 1), "CMD_001"),
    ("download", Fault("broker", "pread64", "EIO", 2), "FILE_002"),
)
"""Lies and ends of sessions that were found and mended, with the code of the answer now; of a success it is empty."""


@pytest.mark.bounded(120)
async def test_what_was_mended_stays_so_and_costs_no_session() -> None:
    found: list[str] = []
    with running_broker() as broker:
        bench = Bench(broker, found)
        async with connect(broker) as bench.client:
            await bench.renew()
            for name, fault, code in MENDED:
                session_id = bench.session_id
                await bench.attempt(name, fault)
                answer = bench.answer
                if answer is None or answer.data.get("error_code", "") != code or bench.session_id != session_id:
                    found.append(f"{bench.where}: {answer}, session {session_id}, then {bench.session_id}")
    assert not found, "\n".join(["", *found])
    assert bench.tried == len(MENDED), "the control: each call failed"


def in_order(cases: list[tuple[str, Fault]]) -> list[tuple[str, Fault]]:
    """The last ones are tried first: one of each call under each tool, drawn by the seed, then the second ones."""
    chance = random.Random(SEED)  # noqa: S311  a sample, no secret
    chance.shuffle(cases)
    seen: Counter[tuple[str, str, str]] = Counter()
    rounds: dict[int, list[tuple[str, Fault]]] = {}
    for name, fault in cases:
        kind = (name, fault.process, fault.call)
        rounds.setdefault(seen[kind], []).append((name, fault))
        seen[kind] += 1
    return [case for _, each in sorted(rounds.items(), reverse=True) for case in each]


def leaves(error: BaseException) -> list[str]:
    """What went wrong in a group."""
    return (
        [text for part in error.exceptions for text in leaves(part)]
        if isinstance(error, BaseExceptionGroup)
        else [repr(error)]
    )
