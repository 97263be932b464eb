"""Commands as jobs, through the gateway: what runs on, what is read later, what ends with whom."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio
import trio.testing

from broker.calls import Call
from tests.sandbox.init.test_sandbox_births import survivors
from tests.support.descriptors import open_descriptors
from tests.support.whole import Whole, open_whole

SERVER = """
server:
  sessions: {max_concurrent_commands: 4, max_session_age: 1}
  timeouts: {command_default: 20, command_max: 60, kill_grace: 0.3, output_drain: 0.1}
  output: {inline_bytes: 4096}
"""
ECHO = "import sys\nfor line in sys.stdin: print('got', line, end='', flush=True)"
PROMPT = "name = input('name? '); print('hello', name)"


@attrs.frozen(kw_only=True)
class Hands:
    """One session of a whole broker."""

    whole: Whole
    session_id: str

    async def ok(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.whole.ok(tool, session_id=self.session_id, **arguments)

    async def answer(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self.whole.answer(tool, session_id=self.session_id, **arguments)).structured

    async def python(self, script: str, **arguments: Any) -> dict[str, Any]:
        return await self.ok("execute_command", argv=["python3", "-c", script], **arguments)

    async def answer_to_python(self, script: str) -> None:
        await self.answer("execute_command", argv=["python3", "-c", script])

    async def start(self, script: str, **arguments: Any) -> str:
        begun = await self.python(script, background=True, **arguments)
        assert begun["running"] is True
        return str(begun["command_id"])

    async def hear(self, command_id: str, text: str) -> str:
        """Read until the command has said *text*."""
        heard, cursor = "", 0
        while text not in heard:
            page = await self.ok("read_output", command_id=command_id, cursor=cursor, wait_seconds=20)
            assert page["data"] or page["running"], heard
            heard, cursor = heard + page["data"], page["next_cursor"]
        return heard


@asynccontextmanager
async def hands(base: Path, server: str = SERVER) -> AsyncIterator[Hands]:
    async with open_whole(base, server=server) as whole:
        yield Hands(whole=whole, session_id=(await whole.ok("create_session"))["session_id"])


# --- the customer's way stays the customer's


async def test_a_plain_call_waits_and_has_all_the_old_fields(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        done = await own.python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
        assert {name: done[name] for name in ("success", "exit_code", "stdout", "stderr", "signal", "timed_out")} == {
            "success": False,
            "exit_code": 3,
            "stdout": "out\n",
            "stderr": "err\n",
            "signal": None,
            "timed_out": False,
        }
        assert (done["running"], done["command_id"], done["next_cursor"]) == (False, "c1", 8)
        assert (await own.python("print(input())", stdin_input="given"))["stdout"] == "given\n"
        assert (await own.ok("execute_command", argv=["cat"]))["stdout"] == ""  # an empty input, at once


async def test_a_timeout_still_carries_what_was_said(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        timed_out = await own.answer(
            "execute_command",
            argv=["python3", "-c", "import time; print('so far', flush=True); time.sleep(99)"],
            timeout_seconds=0.5,
        )
        assert (timed_out["error_code"], timed_out["stdout"], timed_out["timed_out"]) == ("CMD_002", "so far\n", True)


async def test_long_output_shows_both_ends_and_the_exact_count(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        done = await own.python("print('A' * 10_000, end=''); print('Z' * 10_000, end='')")
        omitted = 20_000 - 4096
        assert (done["stdout_omitted_bytes"], done["stdout_truncated"]) == (omitted, True)
        head, tail = done["stdout"].split(f"\n[... {omitted} bytes left out; read_output has them ...]\n")
        assert (head, tail) == ("A" * 2048, "Z" * 2048)
        page = await own.ok("read_output", command_id=done["command_id"], cursor=9_990, max_bytes=20)
        assert page["data"] == "A" * 10 + "Z" * 10


# --- running on


async def test_background_answers_at_once_and_the_command_goes_on(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        begun = await own.python("input(); print('end')", background=True)
        assert begun["running"] is begun["success"] is True
        assert psutil.pid_exists(begun["pid"])
        await own.ok("write_stdin", command_id=begun["command_id"], data="\n")
        done = await own.ok("wait_command", command_id=begun["command_id"])
        assert (done["running"], done["exit_code"], done["stdout"]) == (False, 0, "end\n")


async def test_wait_seconds_answers_when_done_or_with_what_there_is(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        assert (await own.python("print('quick')", wait_seconds=20))["running"] is False
        begun = await own.python("print('first', flush=True); input(); print('second')", wait_seconds=1)
        assert (begun["running"], begun["stdout"], begun["next_cursor"]) == (True, "first\n", 6)
        await own.ok("write_stdin", command_id=begun["command_id"], close=False, data="go\n")
        more = await own.ok("read_output", command_id=begun["command_id"], cursor=begun["next_cursor"], wait_seconds=20)
        assert more["data"] == "second\n"


async def test_what_cannot_start_is_told_in_background_too(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        argument = "x" * 131_071
        failed = await own.answer("execute_command", argv=["cat", *[argument] * 19], background=True)
        assert (failed["error_code"], failed["success"]) == ("CMD_001", False) or failed["running"]
        commands = (await own.ok("list_commands"))["commands"]
        assert commands[0]["state"] in {"failed", "running", "exited"}


async def test_a_background_command_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        command_id = await own.start("import time; time.sleep(99)", timeout_seconds=0.3)
        timed_out = await own.answer("wait_command", command_id=command_id)
        assert (timed_out["error_code"], timed_out["timed_out"]) == ("CMD_002", True)
        assert (await own.ok("list_commands"))["commands"][0]["state"] == "timed_out"


async def test_one_command_too_many_is_refused_clearly(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        ids = [await own.start("input()") for _ in range(4)]
        refused = await own.answer("execute_command", argv=["true"])
        assert refused["error_code"] == "POLICY_003"
        assert "max_concurrent_commands is 4" in refused["error_message"]
        await own.ok("signal_command", command_id=ids[0])
        assert (await own.ok("execute_command", argv=["true"]))["success"]


@pytest.mark.long
async def test_a_running_command_is_activity(tmp_path: Path) -> None:
    """The session here is idle after one second."""
    async with hands(tmp_path) as own:
        command_id = await own.start("import time; time.sleep(2.5); print('still here')")
        assert "still here" in await own.hear(command_id, "here")
        gone = own.whole
        with trio.fail_after(10):
            while (await gone.answer("list_commands", session_id=own.session_id)).structured["success"]:
                await trio.sleep(1.5)  # each call is activity: only a pause ends the session


# --- reading


async def test_every_byte_comes_back_exactly(tmp_path: Path) -> None:
    script = "import os\nfor i in range(700): os.write(1, bytes((i * 7 + j) % 256 for j in range(1000)))"
    whole = b"".join(bytes((i * 7 + j) % 256 for j in range(1000)) for i in range(700))
    async with hands(tmp_path) as own:
        command_id = await own.start(script)
        found, cursor, running, total = b"", 0, True, 0
        while running or cursor < total:
            page = await own.ok(
                "read_output",
                command_id=command_id,
                stream="stdout",
                cursor=cursor,
                max_bytes=9999,
                encoding="base64",
                wait_seconds=20,
            )
            found += base64.b64decode(page["data"])
            cursor, running, total = page["next_cursor"], page["running"], page["total_bytes"]
        assert hashlib.sha256(found).digest() == hashlib.sha256(whole).digest()


async def test_pages_of_text_never_split_a_character(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        text = "aé\u20ac\U0001f600" * 50
        done = await own.python(f"print({text!r}, end='')")
        found, cursor = "", 0
        while cursor < len(text.encode()):
            page = await own.ok("read_output", command_id=done["command_id"], cursor=cursor, max_bytes=5)
            found, cursor = found + page["data"], page["next_cursor"]
        assert found == text


async def test_the_end_can_be_read_from_the_end_and_colours_left_out(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        done = await own.python(r"print('\033[31mred\033[0m and plain', end='')", strip_ansi=True)
        assert done["stdout"] == "red and plain"
        tail = await own.ok("read_output", command_id=done["command_id"], cursor=-5)
        assert tail["data"] == "plain"
        page = await own.ok("read_output", command_id=done["command_id"], strip_ansi=True, max_bytes=6)
        assert (page["data"], page["next_cursor"]) == ("r", 6)


async def test_both_streams_keep_their_order(tmp_path: Path) -> None:
    script = "import os, time\nfor i in range(5): os.write(1 + i % 2, b'%d' % i); time.sleep(0.02)"
    async with hands(tmp_path) as own:
        done = await own.python(script)
        assert (done["stdout"], done["stderr"]) == ("024", "13")
        assert (await own.ok("read_output", command_id=done["command_id"]))["data"] == "01234"


async def test_a_client_that_lost_its_context_finds_its_commands_again(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        await own.python("print('done')")
        await own.start("input()")
        told = await own.ok("list_commands")
        assert [(c["command_id"], c["state"]) for c in told["commands"]] == [("c1", "exited"), ("c2", "running")]
        assert told["commands"][0]["argv"] == ["python3", "-c", "print('done')"]
        assert told["commands"][0]["stdout_bytes"] == 5
        assert told["commands"][0]["started_at"].endswith("Z")
        assert (told["running_count"], told["max_concurrent_commands"]) == (1, 4)


async def test_old_commands_are_forgotten_and_it_is_said(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        for _ in range(35):
            await own.ok("execute_command", argv=["true"])
        assert len((await own.ok("list_commands"))["commands"]) == 32
        lost = await own.answer("read_output", command_id="c1")
        assert lost["error_code"] == "CMD_004"
        assert "the 32 that ended last" in lost["error_message"]


# --- searching


async def test_a_search_finds_lines_with_context_and_cursors(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        done = await own.python("for i in range(30000): print('line', i, 'é' * 10)\nprint('error: Bad')\nprint('end')")
        found = await own.ok(
            "search_output", command_id=done["command_id"], pattern=r"^ERROR: (\w+)$", ignore_case=True, context=1
        )
        (match,) = found["matches"]
        assert (match["line"], match["text"], match["stream"]) == (30_001, "error: Bad", "stdout")
        assert (match["before"], match["after"]) == (["line 29999 " + "é" * 10], ["end"])
        page = await own.ok(
            "read_output", command_id=done["command_id"], stream="stdout", cursor=match["cursor"], max_bytes=10
        )
        assert (page["data"], found["complete"]) == ("error: Bad", True)


async def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        done = await own.python("for i in range(100): print('match' if i % 3 == 0 else 'other', i)")
        cursor, found, complete = 0, [], False
        while not complete:
            part = await own.ok(
                "search_output",
                command_id=done["command_id"],
                pattern="match",
                stream="stdout",
                cursor=cursor,
                max_matches=10,
                context=2,
            )
            found += [match["text"] for match in part["matches"]]
            cursor, complete = part["next_cursor"], part["complete"]
        assert found == [f"match {i}" for i in range(0, 100, 3)]


async def test_a_pattern_that_takes_for_ever_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.tools.output.SEARCH_S", 0.5)
    async with hands(tmp_path) as own:
        done = await own.python("print('a' * 60)")
        refused = await own.answer("search_output", command_id=done["command_id"], pattern="(a+)+$b")
        assert refused["error_code"] == "POLICY_003"
        wrong = await own.answer("search_output", command_id=done["command_id"], pattern="(")
        assert (wrong["error_code"], "regular expression" in wrong["error_message"]) == ("ARG_001", True)


# --- talking


async def test_a_prompt_is_answered(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        command_id = await own.start(PROMPT)
        await own.hear(command_id, "name? ")
        await own.ok("write_stdin", command_id=command_id, data="Bob\n")
        assert await own.hear(command_id, "Bob\n") == "name? hello Bob\n"


async def test_input_stays_open_until_it_is_closed(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        command_id = await own.start(ECHO)
        for word in ("one\n", "two\n"):
            await own.ok("write_stdin", command_id=command_id, data=word)
            await own.hear(command_id, word)
        await own.ok("write_stdin", command_id=command_id, close=True)
        assert (await own.ok("wait_command", command_id=command_id))["exit_code"] == 0
        refused = await own.answer("write_stdin", command_id=command_id, data="x")
        assert refused["error_code"] == "CMD_005"


async def test_input_that_nobody_reads_is_bounded(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        command_id = await own.start("import time; time.sleep(99)")
        waiting, refused = 0, None
        for _ in range(5):
            told = await own.answer("write_stdin", command_id=command_id, data="x" * 400_000)
            if not told["success"]:
                refused = told
                break
            waiting = told["waiting_bytes"]
        assert refused is not None
        assert (refused["error_code"], waiting <= 1 << 20) == ("CMD_005", True)


async def test_signals_by_name(tmp_path: Path) -> None:
    script = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nprint('up', flush=True)\n"
    async with hands(tmp_path) as own:
        command_id = await own.start(script + "signal.sigwait([signal.SIGUSR1])\nraise SystemExit(7)")
        await own.hear(command_id, "up")
        sent = await own.ok("signal_command", command_id=command_id, signal="SIGUSR1")
        assert sent["was_running"] is True
        assert (await own.ok("wait_command", command_id=command_id))["exit_code"] == 7
        assert (await own.ok("signal_command", command_id=command_id, signal="SIGINT"))["was_running"] is False


async def test_end_leaves_nothing_of_what_a_command_started(tmp_path: Path) -> None:
    token = f"token-{os.getpid()}"
    script = (
        "import os, signal, sys\n"
        "if os.fork() == 0:\n os.setsid()\n signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        " print('child', flush=True)\n signal.pause()\n"
        f"signal.pause()  # {token}"
    )
    async with hands(tmp_path) as own:
        command_id = await own.start(script)
        await own.hear(command_id, "child")
        assert len(survivors(token)) == 2
        await own.ok("signal_command", command_id=command_id, signal="END")
        with trio.fail_after(5):
            while survivors(token):
                await trio.lowlevel.checkpoint()


async def test_a_terminal_through_the_tools(tmp_path: Path) -> None:
    script = "import os; print(input('? '), os.get_terminal_size().columns)"
    async with hands(tmp_path) as own:
        command_id = await own.start(script, terminal={"rows": 30, "columns": 99})
        await own.hear(command_id, "? ")
        await own.ok("resize_terminal", command_id=command_id, rows=10, columns=44)
        await own.ok("write_stdin", command_id=command_id, data="ok\n")
        assert "ok 44" in (await own.ok("wait_command", command_id=command_id))["stdout"]
        plain = await own.start("input()")
        assert (await own.answer("resize_terminal", command_id=plain, rows=1, columns=1))["error_code"] == "CMD_005"


# --- who ends what


async def test_leaving_ends_a_foreground_command_and_not_a_job(tmp_path: Path) -> None:
    token = f"leaving-{os.getpid()}"
    async with hands(tmp_path) as own:
        for arguments, stays in (({}, False), ({"wait_seconds": 30}, True)):
            script = (
                f"print('up', flush=True); input()  # {token}" if stays else f"import time; time.sleep(99)  # {token}"
            )
            async with trio.open_nursery() as nursery:

                async def run(script: str = script, arguments: dict[str, Any] = arguments) -> None:
                    await own.python(script, **arguments)

                nursery.start_soon(run)
                while not survivors(token):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert bool(survivors(token)) == stays
        (job,) = [c for c in (await own.ok("list_commands"))["commands"] if c["state"] == "running"]
        await own.ok("write_stdin", command_id=job["command_id"], data="\n")
        assert (await own.ok("wait_command", command_id=job["command_id"]))["exit_code"] == 0


async def test_a_command_that_ended_with_its_call_can_be_asked_about(tmp_path: Path) -> None:
    token = f"asked-{os.getpid()}"
    async with hands(tmp_path) as own:
        other = await own.start("input()")
        with trio.CancelScope() as left:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    own.answer_to_python, f"import time; print('so far', flush=True); time.sleep(99)  # {token}"
                )
                while not survivors(token):
                    await trio.lowlevel.checkpoint()
                await own.hear("c2", "so far")
                left.cancel()
        killed = await own.answer("wait_command", command_id="c2")
        assert (killed["error_code"], killed["stdout"]) == ("CMD_003", "so far\n")
        assert killed["duration_ms"] == (await own.answer("wait_command", command_id="c2"))["duration_ms"]
        states = {c["command_id"]: c["state"] for c in (await own.ok("list_commands"))["commands"]}
        assert states == {other: "running", "c2": "failed"}


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"


async def leave(own: Hands, token: str, tool: str, **arguments: Any) -> None:
    """Call, and leave while the stubborn command is given its time to end."""
    with trio.CancelScope() as left:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await own.answer(tool, **arguments)

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert survivors(token)
            left.cancel()


async def test_who_leaves_while_a_session_ends_leaves_none_that_nobody_can_end(tmp_path: Path) -> None:
    token = f"stubborn-{os.getpid()}-kill"
    async with hands(tmp_path, SERVER.replace("kill_grace: 0.3", "kill_grace: 20")) as own:
        await own.hear(await own.start(f"{STUBBORN}  # {token}"), "up")
        await leave(own, token, "kill_session")
        while (await own.whole.answer("create_session", id=own.session_id)).is_error:
            await trio.lowlevel.checkpoint()  # the id is free as soon as nothing of the session is left
        assert not survivors(token)


async def test_who_leaves_while_a_command_ends_leaves_none_that_runs(tmp_path: Path) -> None:
    token = f"stubborn-{os.getpid()}-end"
    async with hands(tmp_path, SERVER.replace("kill_grace: 0.3", "kill_grace: 20")) as own:
        stubborn = await own.start(f"{STUBBORN}  # {token}")
        await own.hear(stubborn, "up")
        await leave(own, token, "signal_command", command_id=stubborn, signal="END")
        assert (await own.answer("wait_command", command_id=stubborn, wait_seconds=15))["signal"] == 9
        assert not survivors(token)


@pytest.mark.parametrize("force", [True, False])
async def test_jobs_die_with_their_session_and_the_audit_says_so(tmp_path: Path, *, force: bool) -> None:
    token = f"dies-{os.getpid()}-{force}"
    async with hands(tmp_path) as own:
        for _ in range(2):
            await own.start(f"import time; time.sleep(99)  # {token}")
        killed = await own.ok("kill_session", force=force)
        assert (killed["processes_ended"], killed["commands_ended"]) == (2, ["c1", "c2"])
        assert not survivors(token)
        ends = [r for r in own.whole.records() if r["event_type"] in {"SESSION_CLOSED", "SESSION_KILLED"}]
        assert [sorted(r["details"]["commands_ended"]) for r in ends] == [["c1", "c2"]] * 2
        failed = [r for r in own.whole.records() if r["event_type"] == "COMMAND_FAILED"]
        assert sorted(r["details"]["command_id"] for r in failed) == ["c1", "c2"]
        assert {r["error_code"] for r in failed} == ({"SESSION_005"} if force else {"CMD_003"})


@pytest.mark.parametrize("terminal", [None, pytest.param({}, marks=pytest.mark.long)], ids=["spawned", "forked"])
async def test_a_session_whose_commands_obey_is_gone_long_before_the_grace(
    tmp_path: Path, terminal: dict[str, int] | None
) -> None:
    """Its keeper gets ready for the next command when one has ended, and that is not to be waited for."""
    extra = {"background": True} if terminal is None else {"terminal": terminal, "wait_seconds": 0.05}
    async with hands(tmp_path, SERVER.replace("kill_grace: 0.3", "kill_grace: 60")) as own:
        for _ in range(20):
            other = Hands(whole=own.whole, session_id=(await own.whole.ok("create_session"))["session_id"])
            await other.ok("execute_command", argv=["sleep", "99"], **extra)
            assert (await other.ok("kill_session", force=False))["processes_ended"] == 1


async def test_the_audit_tells_the_end_of_what_outlived_its_call(tmp_path: Path) -> None:
    async with hands(tmp_path) as own:
        command_id = await own.start("input(); raise SystemExit(5)")
        await own.ok("write_stdin", command_id=command_id, data="\n")
        await own.ok("wait_command", command_id=command_id)
        own_records = [r for r in own.whole.records() if r["tool_name"] == "execute_command"]
        assert [r["event_type"] for r in own_records] == ["COMMAND_STARTED", "TOOL_COMPLETED", "COMMAND_COMPLETED"]
        assert own_records[1]["details"] == {"command_id": command_id}
        last = own_records[2]
        assert (last["exit_code"], last["principal"], last["request_id"]) == (5, "me", "7")
        assert last["arguments"]["argv"][0] == "python3"
        assert last["details"]["command_id"] == command_id


STATES = ("starting", "talking", "flooding", "waiting for input", "ended", "being read", "on a terminal")


async def at_rest(whole: Whole) -> int:
    """Count our descriptors once the next session's spare waits, with which nothing is under way any more.

    The audit's are not counted: each of its files has one more until it is synced.
    """
    launcher = whole.gateway._host.launcher
    while launcher._spare is None:
        await trio.lowlevel.checkpoint()
    await launcher._spare.wait_ahead()
    logs = str(whole.config.server.logging.audit_log.parent)
    return sum(not path.startswith(logs) for _, path in open_descriptors())


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("state", STATES)
async def test_a_kill_in_every_state_leaves_nothing(tmp_path: Path, state: str, *, force: bool) -> None:
    token = f"state-{os.getpid()}"
    flood = f"import os\nwhile True: os.write(1, b'x' * 65536)  # {token}"
    async with hands(tmp_path, SERVER) as own:
        inner = own.whole
        before = await at_rest(inner)
        other = Hands(whole=inner, session_id=(await inner.ok("create_session"))["session_id"])
        async with trio.open_nursery() as nursery:

            async def quietly(tool: str, **arguments: Any) -> None:
                await other.answer(tool, **arguments)

            match state:
                case "starting":
                    argv = ["python3", "-c", f"import time; time.sleep(99)  # {token}"]
                    nursery.start_soon(lambda: quietly("execute_command", argv=argv))
                    await trio.testing.wait_all_tasks_blocked()
                case "flooding":
                    command_id = await other.start(flood)
                    while (await other.ok("read_output", command_id=command_id))["total_bytes"] < 1_000_000:
                        await trio.lowlevel.checkpoint()
                case "ended":
                    await other.python("print('x' * 1_000_000)")
                case "being read":
                    command_id = await other.start(f"input()  # {token}")
                    nursery.start_soon(lambda: quietly("read_output", command_id=command_id, wait_seconds=60))
                    await trio.testing.wait_all_tasks_blocked()
                case "on a terminal":
                    await other.start(f"input()  # {token}", terminal={})
                case _:
                    command_id = await other.start(f"print('up', flush=True); input()  # {token}")
                    await other.hear(command_id, "up")
            await other.ok("kill_session", force=force)
        assert not survivors(token)
        assert await at_rest(inner) == before
        spilled = inner.config.base_dir / "data" / "output"
        assert not spilled.exists() or not list(spilled.iterdir())


# --- progress


async def test_progress_tells_the_newest_lines_and_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.tools.progress.INTERVAL_S", 0.05)
    monkeypatch.setattr("broker.tools.progress.HEARTBEAT_S", 0.15)
    told: list[tuple[float, str]] = []
    quiet = trio.Event()

    async def report(progress: float, message: str) -> None:
        await trio.lowlevel.checkpoint()
        told.append((progress, message))
        if "has been running" in message:
            quiet.set()

    script = "print('\\x1b[1mstep 1\\x1b[0m', flush=True); input(); print('step 2', flush=True); input()"
    async with hands(tmp_path) as own, trio.open_nursery() as nursery:
        call = Call(
            tool="execute_command",
            arguments={"session_id": own.session_id, "argv": ["python3", "-c", script], "wait_seconds": 20},
            principal="me",
            client="",
            request_id="1",
            report=report,
        )
        nursery.start_soon(own.whole.gateway.handle, call)
        await quiet.wait()
        await own.ok("write_stdin", command_id="c1", data="\n")
        while not any("step 2" in message for _, message in told):
            await trio.lowlevel.checkpoint()
        await own.ok("write_stdin", command_id="c1", data="\n")
    messages = [message for _, message in told]
    assert messages[0] == "step 1"
    assert "step 1\nstep 2" in messages
    assert [progress for progress, _ in told] == sorted({progress for progress, _ in told})


# --- the session's end takes from nobody what a command has said

SAYS = "import sys, time; print('so far', flush=True); print('so bad', file=sys.stderr, flush=True); time.sleep(99)"
ENDS = ("force", "gently", "stop")


async def end_session(own: Hands, how: str) -> None:
    if how == "stop":
        await own.whole.broker.supervisor.drain(20)
    else:
        await own.ok("kill_session", force=how == "force")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("wait", [{}, {"wait_seconds": 50}], ids=["plain call", "with wait_seconds"])
async def test_the_end_of_its_session_leaves_a_caller_the_output(
    tmp_path: Path, how: str, wait: dict[str, float]
) -> None:
    answers: list[dict[str, Any]] = []
    async with hands(tmp_path) as own, trio.open_nursery() as nursery:

        async def run() -> None:
            answers.append(await own.answer("execute_command", argv=["python3", "-c", SAYS], **wait))

        nursery.start_soon(run)
        while (listed := (await own.ok("list_commands"))["commands"]) == [] or not listed[0]["stderr_bytes"]:
            await trio.lowlevel.checkpoint()
        await end_session(own, how)
    (answer,) = answers
    assert answer["error_code"] in {"SESSION_005", "CMD_003"}
    assert (answer["stdout"], answer["stderr"]) == ("so far\n", "so bad\n")
    assert (answer["success"], answer["running"], answer["exit_code"]) == (False, False, None)


LAST_WORDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("goodbye", flush=True), sys.exit(3)))
print("so far", flush=True)
time.sleep(99)
"""


@pytest.mark.parametrize("how", ENDS)
async def test_the_end_of_its_session_leaves_who_waits_for_more_output_a_page(tmp_path: Path, how: str) -> None:
    answers: list[dict[str, Any]] = []
    async with hands(tmp_path) as own, trio.open_nursery() as nursery:
        command_id = await own.start(LAST_WORDS)
        await own.hear(command_id, "so far")

        async def wait() -> None:
            answers.append(await own.answer("read_output", command_id=command_id, cursor=7, wait_seconds=50))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await end_session(own, how)
    (answer,) = answers
    if answer["success"]:  # it heard the last words in time
        assert (how, answer["data"]) == ("gently", "goodbye\n")
        return
    assert (answer["error_code"], answer["running"], answer["cursor"]) == ("SESSION_005", False, 7)
    assert (answer["data"], answer["evicted_bytes"]) in {("", 0), ("goodbye\n", 0)}
    assert answer["next_cursor"] == answer["total_bytes"] == 7 + len(answer["data"])


@pytest.mark.parametrize("how", ENDS)
async def test_the_end_of_its_session_leaves_who_waits_for_a_command_the_output(tmp_path: Path, how: str) -> None:
    answers: list[dict[str, Any]] = []
    async with hands(tmp_path) as own, trio.open_nursery() as nursery:
        command_id = await own.start(SAYS)
        await own.hear(command_id, "so bad")

        async def wait() -> None:
            answers.append(await own.answer("wait_command", command_id=command_id, wait_seconds=50))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await end_session(own, how)
    (answer,) = answers
    assert answer["error_code"] in {"SESSION_005", "CMD_003"}
    assert (answer["stdout"], answer["stderr"]) == ("so far\n", "so bad\n")
