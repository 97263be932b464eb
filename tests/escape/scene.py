"""Where the attacks happen: folders inside and outside of what the policy allows, a victim, services, a secret.

Everything that an attack wants lies outside the walls and holds the secret, so that having the secret is having got
through. Each round has folders of its own: nothing that one leaves behind can make another one succeed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType

import attrs
import trio

from config.places import state_dir
from sandbox.machine.programs import resolve_program
from sandbox.plan.plan import SessionUser

from .attack import Attack

KIT = Path(__file__).parent / "kit.py"
IPC_CREAT, IPC_RMID = 0o1000, 0
PAYLOAD = "#!/bin/sh\necho ran >>{here}/ran\n"
AS_ROOT = os.geteuid() == 0


@attrs.frozen(kw_only=True)
class Ground:
    """What is there before the broker: the folders. `work` is allowed, `outside` and `neighbour` are not."""

    base: Path
    secret: str

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    @property
    def neighbour(self) -> Path:
        return self.base / "neighbour"

    @property
    def library(self) -> Path:
        """What the policy allows and the module search path leads into."""
        return self.base / "library"

    @property
    def suid(self) -> Path:
        return self.base / "suid"

    def words(self, round_name: str) -> dict[str, str]:
        """The places in braces that are known before anything runs."""
        here = self.work / round_name
        return {
            "here": str(here),
            "payload": str(here / "payload"),
            "outside": str(self.outside / round_name),
            "round": round_name,
            "neighbour": str(self.neighbour),
            "library": str(self.library),
            "person": "" if AS_ROOT else pwd.getpwuid(os.getuid()).pw_dir,
            "state": str(state_dir()),
            "secret": self.secret,
            "suid": str(self.suid),
            "loader": loader(),
            "shared_memory_device": str(os.stat("/dev/shm").st_dev if os.path.exists("/dev/shm") else 0),
            "policy_file": str(self.base / "config" / "policy.yaml"),
            "audit_file": str(self.base / "log" / "audit.log"),
        }


@attrs.frozen(kw_only=True)
class Scene:
    """The ground with everything that lives on it while attacks run."""

    ground: Ground
    user: SessionUser
    programs: Mapping[str, str]
    """What the names in command lines stand for."""
    services: Mapping[str, str]

    @property
    def ids(self) -> dict[str, int | list[int]]:
        """How a subprocess becomes the session's user."""
        if not AS_ROOT:
            return {}
        return {"user": self.user.uid, "group": self.user.gid, "extra_groups": list(self.user.groups)}

    @property
    def environment(self) -> dict[str, str]:
        """What every program needs, and nothing that would stop an attack."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.ground.base / "home-outside"),
            "LANG": "C.UTF-8",
            "USER": self.user.name,
        }


def round_name(attack: Attack, way: str) -> str:
    """A folder name for one round."""
    return f"{re.sub(r'[^a-z0-9]+', '-', attack.name.lower()).strip('-')}-{way}"


def filled(text: str, words: Mapping[str, str]) -> str:
    """Put the places into *text*; other braces stay."""
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def loader() -> str:
    """The dynamic loader of this machine's programs."""
    return next((path for path in resolve_program("/bin/cat").interpreters if "ld" in Path(path).name), "/lib/ld.so")


@contextmanager
def open_ground() -> Iterator[Ground]:
    """The folders, where every user can pass through; gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="escape-"))
    try:
        base.chmod(0o755)
        for name, mode in (("work", 0o777), ("outside", 0o777), ("neighbour", 0o755), ("config", 0o700)):
            (base / name).mkdir()
            (base / name).chmod(mode)
        ground = Ground(base=base, secret=f"secret-{secrets.token_hex(8)}")
        with _searched(ground.library):
            yield ground
    finally:
        shutil.rmtree(base)


@contextmanager
def _searched(library: Path) -> Iterator[None]:
    """Modules in a folder, by a link and in a folder that is not there, all of which the broker's search path names."""
    for name in ("code", "other", "real"):
        (library / name).mkdir(parents=True, mode=0o755)
    (library / "code" / "obeyed.py").touch(mode=0o644)
    (library / "link").symlink_to("real")
    before, added = list(sys.path), [str(library / name) for name in ("code", "link", "absent")]
    sys.path.extend(added)
    try:
        yield
    finally:
        sys.path[:] = before


@asynccontextmanager
async def open_scene(ground: Ground, user: SessionUser, programs: Mapping[str, str]) -> AsyncIterator[Scene]:
    """The services of a neighbour, what only root can leave lying about, and a home outside the walls."""
    home = ground.base / "home-outside"
    home.mkdir(mode=0o700)
    if AS_ROOT:
        os.chown(home, user.uid, user.gid)
        shutil.copy("/usr/bin/id", ground.suid)
        ground.suid.chmod(0o4755)
    async with _services(ground) as services:
        yield Scene(ground=ground, user=user, programs=programs, services=MappingProxyType(services))


@asynccontextmanager
async def _services(ground: Ground) -> AsyncIterator[dict[str, str]]:
    """Servers that tell the secret to whoever reaches them."""
    with contextlib.ExitStack() as stack:
        tcp, udp, named, abstract = (
            stack.enter_context(trio.socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_INET, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        )
        await tcp.bind(("127.0.0.1", 0))
        await udp.bind(("127.0.0.1", 0))
        await named.bind(str(ground.neighbour / "docker.sock"))
        await abstract.bind("\0" + str(ground.neighbour))
        (ground.neighbour / "docker.sock").chmod(0o777)
        key = stack.enter_context(_shared_memory(ground.secret))
        async with trio.open_nursery() as nursery:
            for listener in (tcp, named, abstract):
                listener.listen()
                nursery.start_soon(_tell_callers, listener, ground.secret)
            nursery.start_soon(_tell_senders, udp, ground.secret)
            yield {"tcp": str(tcp.getsockname()[1]), "udp": str(udp.getsockname()[1]), "shm_key": str(key)}
            nursery.cancel_scope.cancel()


async def _tell_callers(listener: trio.socket.SocketType, secret: str) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            connection, _ = await listener.accept()
            nursery.start_soon(_tell, trio.SocketStream(connection), secret)


async def _tell(stream: trio.SocketStream, secret: str) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):  # it has what it wanted, and left
            await stream.send_all(secret.encode() + b"\n")
            await stream.send_eof()
            while await stream.receive_some():  # or what it said would make the kernel take the secret back
                pass


async def _tell_senders(udp: trio.socket.SocketType, secret: str) -> None:
    while True:
        _, address = await udp.recvfrom(100)
        await udp.sendto(secret.encode(), address)


@contextmanager
def _shared_memory(secret: str) -> Iterator[int]:
    """System V shared memory with the secret, open to everybody; yields its key."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    key = secrets.randbelow(1 << 30) + 1
    identity = libc.shmget(key, 64, IPC_CREAT | 0o666)
    if identity < 0:  # a kernel without it: the control will say so
        yield key
        return
    address = libc.shmat(identity, None, 0)
    ctypes.memmove(address, secret.encode() + b"\0", len(secret) + 1)
    libc.shmdt(ctypes.c_void_p(address))
    try:
        yield key
    finally:
        libc.shmctl(identity, IPC_RMID, None)


@attrs.frozen(kw_only=True)
class Victim:
    """A process of the session's user outside the walls; SIGUSR1 stays pending in it, where it can be seen."""

    pid: int
    secret: str
    mark: str

    def signalled(self) -> bool:
        """Whether the signal waits in it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
        return any(bits >> 9 & 1 for bits in pending)  # SIGUSR1 is 10


@contextmanager
def open_victim(scene: Scene) -> Iterator[Victim]:
    """Start one; end it."""
    mark, secret = f"victim-{secrets.token_hex(8)}", f"victim-secret-{secrets.token_hex(8)}"
    process = subprocess.Popen(
        ["/usr/bin/env", "--block-signal=USR1", "/bin/sh", "-c", "echo up; read x", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**scene.environment, "VICTIM": secret},
        **scene.ids,  # type: ignore[call-overload]  # a dict of three keywords
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"up\n"
        try:
            yield Victim(pid=process.pid, secret=secret, mark=mark)
        finally:
            process.kill()
            process.wait()


def furnish(scene: Scene, attack: Attack, words: Mapping[str, str]) -> None:
    """Make the round's folders; raises CalledProcessError where its preparation fails."""
    here, outside = Path(words["here"]), Path(words["outside"])
    for folder in (here, outside):
        folder.mkdir()
        folder.chmod(0o777)
    (outside / "secret").write_text(f"{scene.ground.secret}\n")
    (outside / "secret").chmod(0o666)
    (outside / "own").write_text(f"{scene.ground.secret}\n")
    (outside / "link").symlink_to(scene.ground.secret)
    (here / "payload").write_text(PAYLOAD.format(here=here))
    (here / "payload").chmod(0o755)
    if attack.script is not None:
        shutil.copy(KIT, here / "kit.py")
        body = filled(attack.script, words)
        (here / "attack.py").write_text(f"import os; os.chdir({str(here)!r})\n{body}\n")
    if AS_ROOT:
        for path in (here, outside / "own", *here.iterdir()):
            os.chown(path, scene.user.uid, scene.user.gid)
    _prepare(scene, attack, words)


def _prepare(scene: Scene, attack: Attack, words: Mapping[str, str]) -> None:
    if attack.prepare:
        subprocess.run(
            ["/bin/sh", "-e", "-c", filled(attack.prepare, words)],
            cwd=words["here"],
            env=scene.environment,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            **scene.ids,  # type: ignore[call-overload]  # as above
        )


def python() -> str:
    """The interpreter that the shipped policy names, which the controls use too."""
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
