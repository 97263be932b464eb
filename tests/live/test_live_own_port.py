"""The broker's own port, asked by commands that may use the network: refused and audited, as everybody else is served.

The client program is one and the same inside and outside, so what is refused is where it runs.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import psutil
import pytest
from mcp.client.client import Client

from tests.live.test_live_walls import PYTHON, as_each
from tests.support.live import COMMANDS, LiveBroker, broker_in, connect, live_folder, new_session, ok, run, write_config
from tests.support.live_plain_user import PlainUser, plain_user

pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]  # each starts a broker
NETWORK = {"python3": {"executable": PYTHON, "network": "allow"}}

ASK = """
import ctypes, os, select, socket, sys, threading
host, port, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
REQUEST = b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n"
libc = ctypes.CDLL(None, use_errno=True)

def ask(connection):
    connection.sendall(REQUEST)
    said = b""
    while data := connection.recv(65536):
        said += data
    return said.split()[1].decode() if said else "nothing"

def connect():
    connection = socket.create_connection((host, port), timeout=20)
    connection.settimeout(None)
    return connection

def in_child(work):
    # Answers through a pipe, because a daemon outlives its parents.
    ours, theirs = os.pipe()
    if os.fork() == 0:
        try:
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        return pipe.read() or "nothing"

def daemon():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == parent_of_daemon():
                pass
            os.write(theirs, ask(connect()).encode())
        os._exit(0)
    os.wait()
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        return pipe.read() or "nothing"

def parent_of_daemon():
    return os.getsid(0)

def own_files():
    # A thread with a table of descriptors of its own, which /proc/PID/fd does not show.
    said = []
    def work():
        assert libc.unshare(0x400) == 0, os.strerror(ctypes.get_errno())
        said.append(ask(connect()))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return said[0]

def hidden():
    assert libc.prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE: not even its user may look into it
    return ask(connect())

def inherited():
    connection = connect()
    os.set_inheritable(connection.fileno(), True)
    code = ("import socket, sys; c = socket.socket(fileno=int(sys.argv[1])); c.sendall(%r); s = b'';" % REQUEST
        + "exec('while d := c.recv(65536): s += d'); print(s.split()[1].decode())")
    os.execv(sys.executable, [sys.executable, "-c", code, str(connection.fileno())])

def in_flight():
    # In nobody's table: only the queue of a unix socket holds it while the broker looks.
    connection = connect()
    connection.sendall(REQUEST)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    socket.send_fds(left, [b"x"], [connection.fileno()])
    watch = select.epoll()
    watch.register(connection, select.EPOLLIN)  # no table's entry, and goes on when the last of those is closed
    connection.close()
    watch.poll()
    _, (fd,), _, _ = socket.recv_fds(right, 1, 1)
    said = socket.socket(fileno=fd).recv(65536)
    return said.split()[1].decode() if said else "nothing"

ways = {"plain": lambda: ask(connect()), "child": lambda: in_child(lambda: ask(connect())), "daemon": daemon,
        "passed to a child": lambda: (c := connect()) and in_child(lambda: ask(c)), "threads": own_files,
        "hidden": hidden, "exec": inherited, "in flight": in_flight}
try:
    print(ways[way]())
except OSError as error:
    print(error)
"""
OPEN_WAYS = ("plain", "child", "daemon", "passed to a child", "exec")
"""In which a process can be seen to hold its connection: so it is served, outside."""
WAYS = (*OPEN_WAYS, "threads", "hidden", "in flight")


@attrs.frozen(kw_only=True)
class Scene:
    """A broker, and how to run a program beside it as the user who started it."""

    broker: LiveBroker
    user: PlainUser | None

    def outside(self, host: str, way: str = "plain") -> str:
        """What the client program prints outside of all sessions."""
        python = (PYTHON,) if self.user is None else self.user.python
        command = [*python, "-c", ASK, host, str(self.broker.port), way]
        environment = None if self.user is None else dict(self.user.environment)
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return said.stdout.strip()

    async def inside(self, client: Client, session_id: str, host: str, way: str = "plain") -> str:
        """What it prints as a command."""
        done = await run(client, session_id, "python3", "-c", ASK, host, str(self.broker.port), way)
        assert done["exit_code"] == 0, done.data
        return str(done["stdout"]).strip()

    def refused(self) -> list[dict[str, Any]]:
        return [record for record in self.broker.audit() if record["event_type"] == "CONNECTION_REFUSED"]


@contextmanager
def scene(who: str, *, namespaces: bool = True, host: str = "127.0.0.1", **policy: Any) -> Iterator[Scene]:
    """A broker of root or of a plain user whose python3 may use the network."""
    with live_folder() as base:
        server: Mapping[str, Any] = {"sandbox": {"enable_namespaces": namespaces}}
        write_config(base, server, {"allowed_commands": {**COMMANDS, **NETWORK}, **policy})
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        args = ("--host", host, "--insecure-bind")
        with broker_in(base, args=args, **words) as broker:
            yield Scene(broker=broker, user=user)


@as_each
@pytest.mark.parametrize("namespaces", ["namespaces", "no namespaces"])
async def test_no_process_of_a_session_is_served(who: str, namespaces: str) -> None:
    with scene(who, namespaces=namespaces == "namespaces") as here:
        assert here.outside("127.0.0.1") == "200"
        async with connect(here.broker) as client:
            session_id = await new_session(client)
            for way in WAYS:
                assert await here.inside(client, session_id, "127.0.0.1", way) == "403", way
            for way in OPEN_WAYS:
                assert here.outside("127.0.0.1", way) == "200", f"{way}: outside it is served while sessions live"
        first = here.refused()[0]
        assert first["session_id"] == session_id
        assert first["details"]["pid"] > 0
        assert first["details"]["refused"] == 1
        assert "session's own processes" in first["details"]["why"]
        here.broker.stop()  # which records what the second did not
        assert sum(record["details"]["refused"] for record in here.refused()) == len(WAYS)


def addresses() -> list[str]:
    """Every way to name this machine that it has."""
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for interface in psutil.net_if_addrs().values():
        own |= {address.address for address in interface if address.family in {socket.AF_INET, socket.AF_INET6}}
    names = "127.0.0.1 127.3.2.1 0.0.0.0 ::1 :: ::ffff:127.0.0.1 localhost".split()
    return sorted({*names, *map(str, own)})


@as_each
async def test_no_address_leads_around_it(who: str) -> None:
    with scene(who, host="::") as here:
        async with connect(here.broker) as client:
            session_id = await new_session(client)
            for host in addresses():
                assert (host, here.outside(host)) == (host, "200")
                assert (host, await here.inside(client, session_id, host)) == (host, "403")


CALL = """
import json, socket, sys, time
host, port, stays = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stays"
meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "9"}}
body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "create_session",
        "arguments": {"id": sys.argv[4]}, "_meta": meta}}).encode()
head = ("POST /mcp HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\nContent-Type: application/json\\r\\n"
        "Accept: application/json, text/event-stream\\r\\nMcp-Protocol-Version: 2026-07-28\\r\\n"
        "Mcp-Method: tools/call\\r\\nMcp-Name: create_session\\r\\n\\r\\n" % len(body))
for attempt in range(1 if stays else 20):
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head.encode() + body)
        if stays:
            print(connection.recv(65536).split()[1].decode())
"""


@as_each
async def test_a_call_whose_sender_is_gone_has_no_effect(who: str) -> None:
    with scene(who) as here:
        python = (PYTHON,) if here.user is None else here.user.python
        command = [*python, "-c", CALL, "127.0.0.1", str(here.broker.port), "stays", "of-the-control"]
        assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout == "200\n"
        async with connect(here.broker) as client:
            session_id = await new_session(client)
            argv = ("python3", "-c", CALL, "127.0.0.1", str(here.broker.port), "leaves", "of-the-attack")
            assert (await run(client, session_id, *argv))["exit_code"] == 0
            assert here.outside("127.0.0.1") == "200"
        here.broker.stop()
        made = {r["session_id"] for r in here.broker.audit() if r["event_type"] == "SESSION_CREATED"}
        assert made == {"of-the-control", session_id}
        assert sum(record["details"]["refused"] for record in here.refused()) == 20


async def test_an_url_of_a_transfer_is_behind_the_same_door() -> None:
    get = "import urllib.request as u, sys\ntry: print(u.urlopen(sys.argv[1]).read())\nexcept OSError as e: print(e)"
    with scene("root") as here:
        (here.broker.workspace / "f").write_text("bytes")
        async with connect(here.broker) as client:
            session_id = await new_session(client, working_dir=str(here.broker.workspace))
            opened = await ok(client, "open_transfer", session_id=session_id, direction="download", path="f")
            inside = await run(client, session_id, "python3", "-c", get, opened["url"])
            assert "403" in inside["stdout"]
            outside = subprocess.run([PYTHON, "-c", get, opened["url"]], capture_output=True, text=True, check=True)
            assert outside.stdout == "b'bytes'\n"


async def test_where_no_command_has_the_network_there_is_nobody_to_keep_out() -> None:
    with scene("root", network="deny", allowed_commands={**COMMANDS, "python3": {"executable": PYTHON}}) as here:
        async with connect(here.broker) as client:
            session_id = await new_session(client)
            assert "refused" in await here.inside(client, session_id, "127.0.0.1")
            assert here.outside("127.0.0.1") == "200"
        assert here.refused() == []
