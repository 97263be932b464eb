"""Who is at the other end, told by the kernel of this machine: right for every address, and nothing of a closed end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.machine import netpeers
from sandbox.machine.holders import Holder, Holders
from sandbox.machine.netpeers import Gone, NetPeers, SocketOwner, choose_peers
from tests.support.door import needs_root

if TYPE_CHECKING:
    from sandbox.machine.netpeers import LookUp

ROOT = Path(__file__).parents[3]
HOLDERS = Holders(own_namespaces=True, filtered=True)
each_way = pytest.mark.parametrize("look_up", [netpeers._by_sock_diag, netpeers._by_proc])


@contextmanager
def connection(bind: str = "127.0.0.1", to: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end of a connection, and the server's."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with (
        socket.create_server((bind, 0), family=family, dualstack_ipv6=bind == "::") as listener,
        socket.create_connection((to, listener.getsockname()[1])) as client,
        listener.accept()[0] as server,
    ):
        yield client, server


def owner(peers: NetPeers, server: socket.socket) -> SocketOwner | None:
    return peers.owner(server.getpeername(), server.getsockname())


@each_way
@pytest.mark.parametrize(
    ("bind", "to"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.7", "127.0.0.7"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("::", "::ffff:127.0.0.1"),
    ],
)
def test_the_owner_of_an_open_end(look_up: LookUp, bind: str, to: str) -> None:
    with connection(bind, to) as (client, server):
        found = owner(NetPeers(look_up), server)
        assert found == SocketOwner(os.geteuid(), os.fstat(client.fileno()).st_ino)


@each_way
def test_a_closed_end_is_nobodys(look_up: LookUp) -> None:
    """After close() the kernel says uid 0, inode 0: that is not root."""
    with connection() as (client, server):
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(Gone):
            owner(NetPeers(look_up), server)
        client.close()
        with pytest.raises(Gone):
            owner(NetPeers(look_up), server)


@each_way
def test_the_listener_that_a_closed_end_leaves_behind_is_not_its_owner(look_up: LookUp) -> None:
    """Where there is no connection any more, the kernel answers with who listens on its port."""
    peer = ("127.0.0.1", 0)
    with socket.create_server(peer) as listener, pytest.raises(Gone):
        NetPeers(look_up).owner(listener.getsockname(), ("127.0.0.1", 9))


@each_way
def test_who_is_not_of_this_machine_has_no_owner_here(look_up: LookUp) -> None:
    peers = NetPeers(look_up)
    for there, here in (("192.0.2.7", "127.0.0.1"), ("2001:db8::7", "::1")):
        assert peers.owner((there, 40_000), (here, 9)) is None
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        with pytest.raises(Gone):
            peers.owner((host, 9), (host, 9))


WITHOUT_NETLINK = """
import ctypes, os, struct, sys
number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]  # socket
rules = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 16),  # AF_NETLINK
         (0x06, 0, 0, 0x00050000 | 1), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
if len(sys.argv) > 2:
    "localhost".encode("idna")  # loads what lies outside
    os.chroot(sys.argv[2])
"""
"""What runs next has no netlink, and with a second argument nothing of the file system but that folder."""
RESTRICTED = f"""
import sys
sys.path.insert(0, sys.argv[1])
from sandbox.machine.netpeers import PeersUnknown, choose_peers
{WITHOUT_NETLINK}
try:
    peers = choose_peers()
    print(peers._look_up.__name__, peers.owner(("192.0.2.7", 4), ("127.0.0.1", 9)))
except PeersUnknown as unknown:
    print(unknown)
"""


def restricted(*arguments: str) -> str:
    words = [sys.executable, "-c", RESTRICTED, str(ROOT), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_without_netlink_the_tables_are_read() -> None:
    assert choose_peers() == NetPeers(netpeers._by_sock_diag)
    assert restricted() == "_by_proc None"


@needs_root
def test_where_nothing_answers_that_is_said(tmp_path: Path) -> None:
    said = restricted(str(tmp_path))
    assert "sock_diag: " in said
    assert "/proc/net/tcp does not find our own connection" in said


# --- who holds it


def test_whoever_holds_it_outside_is_told_apart() -> None:
    with connection() as (client, _):
        inode = os.fstat(client.fileno()).st_ino
        assert HOLDERS.find(inode, (1, 999_999_999)) == Holder(os.getpid(), apart=True)
        assert HOLDERS.find_inside(inode) is None
        client.close()
        assert HOLDERS.find(inode) is None


HOLD = "import sys; print('ready', flush=True); sys.stdin.read()"


def test_a_descendant_comes_before_all_others() -> None:
    """We hold it as well; a socket that a session has is a session's."""
    with connection() as (client, _):
        fd = client.fileno()
        words = [sys.executable, "-c", HOLD]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, pass_fds=[fd]) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            inode = os.fstat(fd).st_ino
            assert HOLDERS.find_inside(inode) == child.pid
            assert HOLDERS.find(inode) == Holder(child.pid, apart=False)
            child.communicate()


RESTRAINED = """
import ctypes, os, socket, struct, sys
sys.path.insert(0, sys.argv[1])
from sandbox.machine.holders import Holders
holders = Holders(own_namespaces=False, filtered=sys.argv[2] == "filtered")
libc = ctypes.CDLL(None, use_errno=True)
left, right = socket.socketpair()
pid, ours = os.getpid(), os.pipe()
if os.fork() == 0:  # it outlives nobody's death: its parent, the holder, waits for it
    right.close()
    left.recv(1)
    left.close()
    found = holders.find(int(sys.argv[3]))
    os.write(ours[1], repr(found and (found.pid == pid, found.apart)).encode())
    os._exit(0)
left.close()
if sys.argv[4] != "free":
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if sys.argv[4] == "filter":
        assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow)), 0, 0) == 0
right.send(b"x")
os.wait()
print(os.read(ours[0], 100).decode())
"""


@pytest.mark.parametrize(
    ("sessions", "holder", "apart"),
    [
        ("filtered", "free", True),
        ("filtered", "no_new_privs", True),
        ("filtered", "filter", False),
        ("unfiltered", "free", True),
        ("unfiltered", "no_new_privs", False),
    ],
)
def test_without_namespaces_the_marks_of_a_session_count(sessions: str, holder: str, *, apart: bool) -> None:
    """Its keeper may be gone, and then its ancestors say nothing; what restrains it stays. The parent is the holder."""
    with connection() as (client, _):
        fd = client.fileno()
        inode = str(os.fstat(fd).st_ino)
        words = [sys.executable, "-c", RESTRAINED, str(ROOT), sessions, inode, holder]
        with subprocess.Popen(words, stdout=subprocess.PIPE, pass_fds=[fd]) as child:
            client.close()
            said, _ = child.communicate()
        assert said.decode() == f"(True, {apart})\n"
