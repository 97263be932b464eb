"""Messages of the processes that make a session and its commands: init, keeper, leader and sniffer.

A message is of the kind that its `op` names, or its first key where it has no `op`. A table says, for each state of
its receiver, which kinds are legal and how many descriptors may come with each. `wire.hear` refuses the rest.
"""

from __future__ import annotations

import struct
from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, NotRequired, Required, TypedDict

    Legal = Mapping[str, tuple[int, ...]]
    """By kind of a message, the numbers of descriptors that may come with it."""
    Stream = Literal["stdout", "stderr"]

# --- init and keeper: what both sides must know

RETRY_S = 0.05
"""Seconds until the kernel is asked again for what it refused: a process, a descriptor."""
EXIT_NOT_STARTED = 127
"""Exit code of a leader that did not become its command."""
NO_ROOM = "keeper_limits"
"""The stage at which a keeper has no room for a process within the limits it lives in."""
BAD_PATTERN = 2
"""Exit code of a search whose pattern is no regular expression; it has written `PatternRefused`."""
FRAME_HEADER = struct.Struct("<I")
"""In front of each piece in the log of a command's output: its length, and STREAM_BIT where it is stderr's."""
STREAM_BIT = 1 << 31
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
"""By whether STREAM_BIT is set."""

# --- sniffer: packets of bytes without JSON. In: the beginning of a file. Out: one of these two, then text.

PACKET_BYTES = 64 * 1024
READY, UNABLE = b"+", b"-"
"""First byte of what the sniffer says: there are answers (a type, or none for an empty one), or why there are none."""
FROM_SNIFFER: Mapping[str, tuple[bytes, ...]] = MappingProxyType({"starting": (READY, UNABLE), "asked": (READY,)})

# --- init and keeper: what is legal when

TO_INIT: Mapping[str, Legal] = MappingProxyType(
    {
        "waiting": {"greet": (0,), "ahead": (0,), "birth": (1,)},
        "moved": {"greet": (0,), "birth": (1,)},
        "serving": {"keeper": (0, 1)},
    }
)
"""`moved`: into the namespaces of the session-to-be."""
FROM_INIT: Mapping[str, Legal] = MappingProxyType(
    {
        "moving": {"ahead": (1,), "failed": (0,)},
        "greeted": {"greet": (0,), "failed": (0,)},
        "being_born": {"born": (0, 1), "failed": (0,)},
        "asked": {"keeper": (2,), "short": (0,)},
        "idle": {},
    }
)
"""By what the broker waits for; `idle`: no keeper is on its way."""
TO_KEEPER: Mapping[str, Legal] = MappingProxyType(
    {
        "alone": {"signal": (0,), "kill": (0,)},
        "wanting": {"leaf": (1,), "signal": (0,), "kill": (0,)},
        "holding": {"signal": (0,), "kill": (0,)},
    }
)
"""`alone`: without control groups; with them, `holding`: it has the way into the next leader's group already."""
FROM_KEEPER: Legal = MappingProxyType({"ready": (1, 2), "short": (0,), "ended": (0,), "empty": (0,)})
"""At any time: a leader that waits may end, and a tree may be gone, before the broker has heard of either."""
TO_LEADER: Legal = MappingProxyType({"program": (0, 1, 2, 3)})
"""Once: it becomes the command or ends."""
FROM_LEADER: Legal = MappingProxyType({"started": (1,), "stage": (0,)})
"""Once, or never: exec closes the socket silently."""

if TYPE_CHECKING:
    Grant = tuple[str, int]
    """A path and the rights on it, or, of a mount, the rights that nobody has in it."""
    LayerState = Literal["enforced", "partial", "unavailable"]
    ProcessLimits = dict[str, int | None]
    """By a name of `rlimits.RESOURCES`, its limit; None: as it is."""

    # --- broker to init

    class Greet(TypedDict):
        """A question whether a spare is well, before it is taken for a session. No descriptors; answered in kind."""

        op: Literal["greet"]

    class GoAhead(TypedDict):
        """An order to move into new namespaces and prepare, right after the start. No descriptors.

        `flags`: of the namespaces; `patterns`: expressions that the birth will need.
        """

        op: Literal["ahead"]
        flags: int
        internet: bool
        patterns: Sequence[str]

    class BirthSpec(TypedDict):
        """An order to become a session's init: its walls as values. One descriptor: the opener's end of its socket.

        Attributes:
            abi: of Landlock; 0: there is none.
            switch_user: whether to become the user, which takes root.
            dedicated: root chose this user for the broker alone.
            own_task_count: RLIMIT_NPROC counts the tasks of a session by themselves.
            real_grants: those whose paths have no links.
            canary_granted: the policy grants everything, so that nothing shows whether Landlock holds.
            sockets: paths of services that stay closed.
            expected: of each layer, its state and detail as planned.
            cgroup: whether the init is in a control group of its session already.
            spawn_limits: of keepers that spawn, and of their commands; None: all commands are forked.
            besieged: whether the attacks of the doctor are to be at hand.
        """

        op: Literal["birth"]
        broker_pid: int
        abi: int
        switch_user: bool
        seccomp: bool
        internet: bool
        uid: int
        gid: int
        groups: Sequence[int]
        user_name: str
        account: AccountSpec
        dedicated: bool
        own_task_count: bool
        grants: Sequence[Grant]
        real_grants: Sequence[Grant]
        terminals: bool
        canary_granted: bool
        root: RootSpec
        close: CloseSpec
        sockets: Sequence[str]
        expected: Mapping[str, tuple[LayerState, str]]
        cgroup: bool
        spawn_limits: ProcessLimits | None
        besieged: bool

    class AccountSpec(TypedDict):
        """Part of a birth: the session's user as its /etc/passwd names it."""

        name: str
        uid: int
        gid: int
        home: str

    class RootSpec(TypedDict):
        """Part of a birth: the new root. See `RootPlan` in `sandbox/kernel/root.py`."""

        binds: Sequence[Grant]
        real: Sequence[str]
        private: Sequence[Grant]
        private_bytes: int

    class CloseSpec(TypedDict):
        """Part of a birth: what stays closed. See `Search` in `sandbox/inside/blocked_paths.py`.

        `blocked` and `guarded` are two expressions each: from the root, and anywhere in a path.
        """

        places: Sequence[str]
        roots: Sequence[str]
        writable: Sequence[str]
        uid: int
        sockets_in: Sequence[str]
        sockets_of: Sequence[str]
        blocked: Sequence[str]
        guarded: Sequence[str]
        last_names: str
        names: Sequence[str]
        folders: Sequence[str]
        opened: Sequence[str]
        system: Sequence[str]
        system_known: bool
        holes: Sequence[Grant]

    class KeeperWanted(TypedDict):
        """An order for one more keeper. One descriptor, with control groups: the way into its first command's.

        `spawns`: see `sandbox/inside/keeper/keeper.py`.
        """

        op: Literal["keeper"]
        spawns: bool

    # --- init to broker

    class Moved(TypedDict):
        """News that the init is process 1 of its namespaces. One descriptor: a pidfd of that process."""

        op: Literal["ahead"]

    class Greeted(TypedDict):
        """The answer to `Greet`. No descriptors."""

        op: Literal["greet"]

    class Born(TypedDict):
        """The answer to `BirthSpec`: what holds. One descriptor, with namespaces: what makes terminals in there."""

        op: Literal["born"]
        layers: Sequence[LayerFound]

    class LayerFound(TypedDict):
        """Part of `Born`: one layer of the walls, as probes from inside found it."""

        name: str
        state: LayerState
        detail: str

    class NotBorn(TypedDict):
        """News, at any time before `Born`, that a stage failed and the process ends. No descriptors."""

        op: Literal["failed"]
        stage: str
        why: str
        errno: int | None

    class KeeperForked(TypedDict):
        """A keeper that was asked for, in the order of asking. Two descriptors: its socket and its pidfd."""

        op: Literal["keeper"]

    class Short(TypedDict):
        """News, once, that the kernel refuses a process or a descriptor; it is asked again. No descriptors.

        An init says it of a keeper that was asked for, a keeper of its next leader.
        """

        op: Literal["short"]
        why: str

    # --- broker, or init for the first one, to keeper

    class WayIn(TypedDict):
        """A control group for the next leader. One descriptor: the file that a process enters it by."""

        op: Literal["leaf"]

    class SignalOrder(TypedDict):
        """An order to signal the process group of a command, obeyed while that is current. No descriptors."""

        op: Literal["signal"]
        serial: int
        signal: int

    class KillOrder(TypedDict):
        """An order to end the whole tree of a command, obeyed while that is current. No descriptors."""

        op: Literal["kill"]
        serial: int

    # --- keeper to broker

    class Ready(TypedDict):
        """News that the next leader waits. Descriptors: its launch socket, and its pidfd if it is a process already."""

        op: Literal["ready"]
        serial: int

    class LeaderEnded(TypedDict):
        """News, once for each command, of how its leader ended. No descriptors.

        `status`: as wait(2) has it; `empty`: nothing of the tree is left either.
        """

        op: Literal["ended"]
        serial: int
        status: int
        empty: bool

    class TreeGone(TypedDict):
        """News that nothing of a command is left, where `LeaderEnded` has not said so. No descriptors."""

        op: Literal["empty"]
        serial: int

    # --- broker to leader, over its launch socket, and back

    class CommandSpec(TypedDict):
        """An order to become a command. One descriptor for each number in `fds`.

        Attributes:
            exec_paths: what its tree may execute; None: what the session may.
            room: of a session with its own count of tasks, see `rlimits.room_beside`.
            search, attack: what is done instead of a program.
        """

        program: str
        argv: list[str] | tuple[str, ...]
        env: Mapping[str, str]
        cwd: str
        exec_paths: Sequence[str] | None
        internet: bool
        limits: ProcessLimits
        fds: Sequence[int]
        terminal: bool
        search: SearchSpec | None
        attack: Attack | None
        room: tuple[int, int | None] | None

    class Started(TypedDict):
        """News that a spawned command runs; one that is forked says nothing. One descriptor: its pidfd."""

        started: Literal[True]

    class NotStarted(TypedDict):
        """News that a stage failed, and no program runs. No descriptors."""

        stage: str
        errno: int | None
        why: str

    # --- leader to broker, as lines of JSON on standard output, where it is a search or an attack

    SearchSpec = TypedDict(
        "SearchSpec",
        {
            "pattern": str,
            "ignore_case": bool,
            "stream": Literal["stdout", "stderr", "both"],
            "context": int,
            "max_matches": int,
            "from": int,
            "begin": int,
            "offsets": Sequence[int],
            "stop": int,
        },
    )
    """Part of `CommandSpec`: a search in the log that is its standard input, from byte `begin` to byte `stop`.

    `from`: the first cursor that a match may end at; `offsets`: the cursor of each of STREAMS at `begin`.
    """

    class SearchMatch(TypedDict):
        """One line that matches, with `context` lines `before` and `after` it. `cursor`: where it begins."""

        stream: Stream
        cursor: int
        line: int
        text: str
        before: list[str]
        after: list[str]

    class Searched(TypedDict):
        """The last line of a search: whether it came to the end, and else the cursors to go on from."""

        done: Literal[True]
        complete: bool
        cursors: dict[Stream, int]

    class PatternRefused(TypedDict):
        """The only line of a search that ends with BAD_PATTERN."""

        problem: str

    class Attack(TypedDict, total=False):
        """Part of `CommandSpec`, in the doctor's session alone: an attack on the walls, and what it needs.

        The same goes as an argument to a control process without walls (`control`), which becomes the user first.
        """

        attack: Required[str]
        control: bool
        path: str
        paths: Sequence[str]
        beside: str
        workspace: str
        program: str
        victim: int
        mark: str
        family: str
        address: str | list[str | int]
        count: int
        bytes: int
        processes: int
        switch_user: bool
        uid: int
        gid: int
        groups: Sequence[int]

    class AttackSaid(TypedDict):
        """One line of an attack: whether it went through, and what it did or what stopped it."""

        through: bool
        said: str

    class Laid(TypedDict):
        """In `said` of the attack `lay`, as JSON: the paths that were made, in order, and why others were not."""

        made: Sequence[str]
        failed: Mapping[str, str]

    class TrialVerdict(TypedDict):
        """The line of JSON that a trial of namespaces prints: which stage failed and why, or what was found out."""

        stage: NotRequired[str]
        why: NotRequired[str]
        own_task_count: NotRequired[bool]
