"""One row for each key of policy.yaml; see live_settings_server.py."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp.client.client import Client

from sandbox.cgroup.layer import look
from sandbox.plan.plan import SandboxSettings
from tests.support.archiving import plant
from tests.support.live import (
    RESOURCE_LIMITS,
    Answer,
    LiveBroker,
    call,
    connect,
    new_session,
    ok,
    refused_start,
    run,
    running_broker,
)
from tests.support.live_settings_server import Brokers, Row, at_once, cgroup_layer, in_both, in_session
from tests.support.live_urls import Desk, ask
from tests.support.tarbytes import END, content, header
from tests.support.whole import open_whole

MIB = 1024 * 1024
OVERRIDE = {"memory_max": 300 * MIB, "pids_max": 40, "file_size_max": 2 * MIB, "open_files_max": 50}
CHANGED_LIMITS = {"memory_max": 400 * MIB, "pids_max": 60, "file_size_max": 3 * MIB, "open_files_max": 70}
PROC_NAMES = {
    "memory_max": "Max data size",
    "pids_max": "Max processes",
    "file_size_max": "Max file size",
    "open_files_max": "Max open files",
}
CHANGED_POLICY: Mapping[str, Any] = {
    "allowed_commands": {
        "echo": {"executable": "/bin/echo", "max_args": 3},
        "false": {"executable": "/bin/true"},
        "remote": {"executable": "/bin/echo", "allowed_prefixes": ["get url"]},
        "cat": {"executable": "/bin/cat", "resource_override": OVERRIDE},
        "head": {"executable": "/usr/bin/head", "denied_args": ["--bytes"]},
        "ls": {"executable": "/bin/ls", "allowed_flags": ["-a"]},
        "env": {"executable": "/usr/bin/env", "max_args": 1, "env": {"FROM_THE_RULE": "yes"}},
        "pwd": {"executable": "/bin/pwd", "requires_confirmation": True},
        "sh": {"executable": "/bin/sh", "may_run": ["/bin/cat", "/bin/sleep"]},
    },
    "blocked_paths": ["**/.ssh/**", "**/private/**"],
    "denied_env": ["SECRET_*"],
    "file_limits": {
        "max_read_size": 1000,
        "max_write_size": 2000,
        "max_session_bytes": 5000,
        "blocked_extensions": [".so"],
    },
    "resource_limits": CHANGED_LIMITS,
}


async def executable(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "false"))
    assert (usual["exit_code"], changed["exit_code"]) == (1, 0)


async def max_args(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "echo", "1", "2", "3"))
    assert usual["stdout"] == "1 2 3\n"
    assert changed.error[0] == "POLICY_001"


async def allowed_prefixes(brokers: Brokers) -> None:
    async with connect(brokers.changed) as client:
        session_id = await new_session(client)
        assert (await run(client, session_id, "remote", "get", "url", "x"))["exit_code"] == 0
        for words in (["set"], ["get"], ["get", "urls"], [], ["-v", "get", "url"]):
            assert (await run(client, session_id, "remote", *words)).error[0] == "POLICY_001", words
        await ok(client, "kill_session", session_id=session_id)


async def requires_confirmation(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "pwd"))
    assert usual["exit_code"] == 0
    assert changed.error[0] == "POLICY_004"


def proc_limits(answer: Answer) -> dict[str, int]:
    """The soft limits of /proc/self/limits that we set, by our names."""
    lines = answer["stdout"].splitlines()
    found = {ours: next(line for line in lines if line.startswith(name)) for ours, name in PROC_NAMES.items()}
    return {ours: int(found[ours].removeprefix(name).split()[0]) for ours, name in PROC_NAMES.items()}


async def _limits(brokers: Brokers, *argv: str) -> tuple[dict[str, int], dict[str, int]]:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, *argv))
    return proc_limits(usual), proc_limits(changed)


def _check_limit(name: str, seen: int, wanted: int, other: int) -> None:
    """Processes count per user, so there is room for those that were there before; the others are exact."""
    if name == "pids_max":
        assert wanted <= seen != other
    else:
        assert seen == wanted


def override(name: str) -> Row:
    async def row(brokers: Brokers) -> None:
        usual, changed = await _limits(brokers, "cat", "/proc/self/limits")
        _check_limit(name, changed[name], OVERRIDE[name], usual[name])

    return row


def limit(name: str) -> Row:
    async def row(brokers: Brokers) -> None:
        usual, changed = await _limits(brokers, "sh", "-c", "cat /proc/self/limits")
        _check_limit(name, changed[name], CHANGED_LIMITS[name], usual[name])
        _check_limit(name, usual[name], RESOURCE_LIMITS[name], changed[name])

    return row


async def denied_args(brokers: Brokers) -> None:
    for word in ("--bytes=1", "--bytes"):
        usual, changed = await in_both(brokers, partial(_head, word))
        assert not usual.is_error
        assert changed.error[0] == "POLICY_001"


async def _head(word: str, client: Client, session_id: str) -> Answer:
    return await run(client, session_id, "head", word, "1")


async def allowed_flags(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "ls", "-l"))
    assert usual["exit_code"] == 0
    assert changed.error[0] == "POLICY_001"
    assert (await in_session(brokers.changed, lambda client, session_id: run(client, session_id, "ls", "-a")))[
        "success"
    ]


async def rule_env(brokers: Brokers) -> None:
    usual, changed = await in_both(brokers, lambda client, session_id: run(client, session_id, "env"))
    assert "FROM_THE_RULE=yes" in changed["stdout"]
    assert "FROM_THE_RULE" not in usual["stdout"]


async def may_run(brokers: Brokers) -> None:
    usual, changed = await in_both(
        brokers, lambda client, session_id: run(client, session_id, "sh", "-c", "/usr/bin/head -n 0")
    )
    assert usual["exit_code"] == 0
    assert changed["exit_code"] == 126


async def description(brokers: Brokers) -> None:
    """A sentence of the operator about the command reaches who asks for it and is told no."""
    policy = {
        "allowed_commands": {"echo": {"executable": "/bin/echo", "max_args": 1, "description": "Only a newline."}}
    }
    with running_broker(policy=policy) as broker:
        refused = await in_session(broker, lambda client, session_id: run(client, session_id, "echo", "x"))
        assert "Only a newline." in refused.text


def examples_allow(_brokers: Brokers) -> None:
    assert "curl" in refused_start(policy=_with_examples({"allow": ["ls curl --nonsense" + " x" * 30]}))


def examples_deny(_brokers: Brokers) -> None:
    assert "ls" in refused_start(policy=_with_examples({"deny": ["ls -l"]}))


def _with_examples(examples: Mapping[str, object]) -> dict[str, object]:
    return {"allowed_commands": {"ls": {"executable": "/bin/ls", "examples": examples}}}


async def allowed_paths(brokers: Brokers) -> None:
    async def read(client: Client, session_id: str) -> Answer:
        return await call(client, "read_file", session_id=session_id, path="/etc/hostname")

    assert (await in_session(brokers.usual, read)).error[0] == "POLICY_002"
    with running_broker(policy={"allowed_paths": ["~/**", "/etc/hostname", "/tmp/**"]}) as broker:
        assert not (await in_session(broker, read)).is_error


async def blocked_paths(brokers: Brokers) -> None:
    for broker in (brokers.usual, brokers.changed):
        (broker.workspace / "private").mkdir(exist_ok=True)
        (broker.workspace / "private" / "f").write_text("x")
    usual, changed = await in_both(
        brokers, lambda client, session_id: call(client, "read_file", session_id=session_id, path="private/f")
    )
    assert usual["content"] == "x"
    assert changed.error[0] == "POLICY_002"


async def denied_env(brokers: Brokers) -> None:
    for broker, denied in ((brokers.usual, False), (brokers.changed, True)):
        async with connect(broker) as client:
            created = await call(client, "create_session", environment={"SECRET_THING": "x"})
            assert created.is_error is denied
            await call(client, "kill_session", session_id=created.data.get("session_id", "none"))


async def allowed_env(_brokers: Brokers) -> None:
    with running_broker(policy={"allowed_env": ["ONLY_*"]}) as broker:
        async with connect(broker) as client:
            assert not (await call(client, "create_session", environment={"ONLY_THIS": "x"})).is_error
            assert (await call(client, "create_session", environment={"OTHER": "x"})).is_error


async def max_read_size(brokers: Brokers) -> None:
    for broker in (brokers.usual, brokers.changed):
        (broker.workspace / "long").write_text("x" * 5000)
    usual, changed = await in_both(
        brokers, lambda client, session_id: call(client, "read_file", session_id=session_id, path="long")
    )
    assert (len(usual["content"]), usual["truncated"]) == (5000, False)
    assert (len(changed["content"]), changed["truncated"], changed["next_offset"]) == (1000, True, 1000)


async def max_write_size(brokers: Brokers) -> None:
    usual, changed = await in_both(
        brokers,
        lambda client, session_id: call(client, "write_file", session_id=session_id, path="w", content="x" * 2001),
    )
    assert usual["bytes_written"] == 2001
    assert changed.error[0] == "FILE_003"


async def blocked_extensions(brokers: Brokers) -> None:
    usual, changed = await in_both(
        brokers,
        lambda client, session_id: call(client, "write_file", session_id=session_id, path="lib.so", content="x"),
    )
    assert usual["bytes_written"] == 1
    assert changed.error[0] == "POLICY_002"


CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).close()"


def network(place: str) -> Row:
    """Whether a command reaches a port of this machine, by what the policy or its rule says."""

    async def row(_brokers: Brokers) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            words = ("python3", "-I", "-c", CONNECT, str(server.getsockname()[1]))
            for said in ("allow", "deny"):
                rule = {"executable": "/usr/bin/python3"} | ({"network": said} if place == "rule" else {})
                policy = {"allowed_commands": {"python3": rule}} | ({"network": said} if place == "policy" else {})
                with running_broker(policy=policy) as broker:
                    ended = await in_session(broker, lambda client, session_id: run(client, session_id, *words))
                    assert (ended["exit_code"] == 0) is (said == "allow"), ended["stderr"]

    return row


def archive_cap(cap: Mapping[str, int], sizes: Mapping[str, int]) -> Row:
    """Both ways: what holds more is neither packed nor unpacked."""
    archive = b"".join(header(name.encode(), content_bytes=n) + content(b"x" * n) for name, n in sizes.items()) + END

    async def move(broker: LiveBroker) -> tuple[int, int]:
        folder = f"{len(sizes)} files"
        plant(broker.workspace / folder, {name: b"x" * n for name, n in sizes.items()})
        async with connect(broker) as client:
            session_id = await new_session(client, working_dir=str(broker.workspace))
            desk = Desk(broker=broker, client=client, session_id=session_id)
            down = await ask("GET", (await desk.open("download", folder, archive="tar"))["url"])
            up = await ask("PUT", (await desk.open("upload", f"new {folder}", archive="tar"))["url"], archive)
            await ok(client, "kill_session", session_id=session_id)
            return down.status, up.status

    async def row(brokers: Brokers) -> None:
        assert await move(brokers.usual) == (200, 200)
        with running_broker(policy={"file_limits": cap}) as capped:
            assert await move(capped) == (413, 413)

    return row


GROUPED = {
    "memory_swap_max": (8192, "memory.swap.max", "8192"),
    "cpu_max": (0.5, "cpu.max", "50000 100000"),
    "io_weight": (77, "io.weight", "default 77"),
}
GROUPED_SERVER = "server: {sandbox: {enable_cgroups: true}}"
LOOK = "read group </proc/self/cgroup; group=${group#0::}; exec cat /sys/fs/cgroup"


def grouped(name: str, *, override: bool) -> Row:
    """A limit that only a control group has: read where the kernel keeps it, the command's own or its session's."""
    value, file, text = GROUPED[name]
    script = f"{LOOK}{'$group' if override else '${group%/*}'}/{file}"
    rule = {"executable": "/bin/sh", "may_run": ["/bin/cat"]}
    own = {"allowed_commands": {"sh": {**rule, "resource_override": {name: value}}}}
    general = {"allowed_commands": {"sh": rule}, "resource_limits": {name: value}}
    policy = yaml.safe_dump({"policy": {"allowed_paths": ["~/**"], **(own if override else general)}})

    async def row(_brokers: Brokers) -> None:
        settings = SandboxSettings(
            unprivileged_user="",
            cgroup_base="",
            enable_cgroups=True,
            enable_namespaces=False,
            private_tmp=True,
            private_tmp_bytes=1 << 28,
            require=(),
        )
        place = look(settings, frozenset())
        if place.base is None:
            pytest.skip(f"test_whole_cgroup_guest.py shows this in a guest; here: {place.report.detail}")
        with tempfile.TemporaryDirectory() as folder:
            # In this process: a broker of its own could not move us out of the group it would use.
            async with open_whole(Path(folder), policy.replace("{", "{{").replace("}", "}}"), GROUPED_SERVER) as whole:
                session = await whole.ok("create_session")
                assert cgroup_layer(session["isolation"])["state"] == "enforced"
                argv = ["sh", "-c", script]
                seen = await whole.ok("execute_command", session_id=session["session_id"], argv=argv)
                assert seen["stdout"].strip() == text

    return row


async def max_session_bytes(brokers: Brokers) -> None:
    async def four(client: Client, session_id: str) -> Answer:
        for name in ("a", "b"):
            await ok(client, "write_file", session_id=session_id, path=name, content="x" * 2000)
        return await call(client, "write_file", session_id=session_id, path="c", content="x" * 1001)

    usual, changed = await in_both(brokers, four)
    assert usual["bytes_written"] == 1001
    assert changed.error[0] == "POLICY_003"
    details = {name: changed["error_details"][name] for name in ("needed_bytes", "used_bytes", "limit_bytes")}
    assert details == {"needed_bytes": 1001, "used_bytes": 4000, "limit_bytes": 5000}


async def min_free_bytes(brokers: Brokers) -> None:
    async def write(client: Client, session_id: str) -> Answer:
        return await call(client, "write_file", session_id=session_id, path="w", content="x")

    with running_broker(policy={"file_limits": {"min_free_bytes": 1 << 60}}) as broker:
        refused = await in_session(broker, write)
    assert refused.error[0] == "FILE_004"
    assert refused["error_details"]["reserve_bytes"] == 1 << 60
    assert not (await in_session(brokers.usual, write)).is_error


COMMAND = "policy.allowed_commands.<name>"
ROWS: Mapping[str, Row] = {
    f"{COMMAND}.executable": executable,
    f"{COMMAND}.max_args": max_args,
    f"{COMMAND}.allowed_prefixes": allowed_prefixes,
    f"{COMMAND}.requires_confirmation": requires_confirmation,
    **{f"{COMMAND}.resource_override.{name}": override(name) for name in OVERRIDE},
    **{f"{COMMAND}.resource_override.{name}": grouped(name, override=True) for name in GROUPED},
    f"{COMMAND}.denied_args": denied_args,
    f"{COMMAND}.allowed_flags": allowed_flags,
    f"{COMMAND}.env": rule_env,
    f"{COMMAND}.may_run": may_run,
    f"{COMMAND}.network": network("rule"),
    f"{COMMAND}.description": description,
    f"{COMMAND}.examples.allow": at_once(examples_allow),
    f"{COMMAND}.examples.deny": at_once(examples_deny),
    "policy.allowed_paths": allowed_paths,
    "policy.blocked_paths": blocked_paths,
    "policy.denied_env": denied_env,
    "policy.allowed_env": allowed_env,
    "policy.network": network("policy"),
    "policy.file_limits.max_read_size": max_read_size,
    "policy.file_limits.max_write_size": max_write_size,
    "policy.file_limits.max_session_bytes": max_session_bytes,
    "policy.file_limits.min_free_bytes": min_free_bytes,
    "policy.file_limits.archive_max_entries": archive_cap({"archive_max_entries": 3}, dict.fromkeys("abcd", 0)),
    "policy.file_limits.archive_max_bytes": archive_cap({"archive_max_bytes": 6000}, {"a": 6000}),
    "policy.file_limits.blocked_extensions": blocked_extensions,
    **{f"policy.resource_limits.{name}": limit(name) for name in CHANGED_LIMITS},
    **{f"policy.resource_limits.{name}": grouped(name, override=False) for name in GROUPED},
}
