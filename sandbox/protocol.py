"""Messages between the broker and the processes of a session: a name and a type for each, and what is legal when.

Both sides read this file. The types exist for the type checker alone (importing typing costs each session half a
megabyte); the constants and the tables of what is legal are there at run time. `wire.py` carries the messages as JSON,
which makes a list of every tuple.

A message is of the kind that its `op` names, or its first key where it has no `op`. A table says, for each state of
whoever receives, which kinds are legal and how many descriptors may come with each. `wire.hear` refuses the rest.
What comes from inside the walls is said by a process that a session may have taken over: the broker looks at it first.
"""

from __future__ import annotations

import struct
from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, NotRequired, Required, TypedDict

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

# --- opener and worker: what both sides must know

MAX_DEPTH = 150
"""Directories above the deepest that a walk through a tree enters: it has a descriptor open for each."""

# --- opener and worker: what is legal when; the rest is refused with EPROTO

TO_OPENER: Legal = MappingProxyType(
    {
        **dict.fromkeys(("resolve", "place", "entry", "discard", "worker"), (0,)),
        **dict.fromkeys(("append", "part", "list", "make", "remove", "sweep"), (1,)),
        **dict.fromkeys(("commit", "rename"), (2,)),
    }
)
"""At any time, but `commit` of a part file with a hidden name only from its `part` to its `discard`, and once."""
TO_WORKER: Mapping[str, Legal] = MappingProxyType(
    {
        "new": {
            **dict.fromkeys(("judge_names", "aftermath"), (0,)),
            **dict.fromkeys(("search", "find", "list", "survey", "remove", "sweep", "hash"), (1,)),
            **dict.fromkeys(("copy_file", "copy_tree", "move_tree", "pack", "unpack"), (2,)),
        },
        "hashing": {"until": (0,)},
    }
)
"""In every other state a message, whatever it is, is taken for the wish that the worker stop."""

# --- opener and worker: the messages

if TYPE_CHECKING:
    # Both ways.

    class Nothing(TypedDict):
        """A request that says nothing more than its name, and an answer that says no more than that it was done."""

    class Refusal(TypedDict):
        """The answer of an opener or a worker that did not do what it was asked for."""

        refused: str
        """Its kind, as `files/errors.py` knows it; "" for a system call that failed."""
        errno: int
        why: str
        """A clause for a person; "" for a system call that failed."""
        led_to: NotRequired[str]
        """From the opener: where the links of a path lead at which there is nothing."""

    # From the broker to the opener. Each request has a name and a number as well; the answer has the same number.

    class AnyRequest(TypedDict):
        """The part that is the same in every request. Where it has a path, that is what a refusal is about."""

        n: int
        op: str
        path: NotRequired[str]

    class Resolve(TypedDict):
        """`resolve`: pin what is at the end of a path; with `read`, open a file or directory for reading as well."""

        path: str
        read: bool

    class FindPlace(TypedDict):
        """`place`: find the directory and the last name to which a path leads, links followed, for writing there."""

        path: str

    class FindEntry(TypedDict):
        """`entry`: pin the directory of a path, and look at its last name without following it."""

        path: str

    class OpenAppend(TypedDict):
        """`append`: open a file for appending. With it: its directory."""

        name: str

    class StartPart(TypedDict):
        """`part`: make a part file for a name. With it: the directory."""

        name: str

    class CommitPart(TypedDict):
        """`commit`: give a part file its name. With it: the part file, the directory."""

        name: str
        hidden: str
        """What `part` answered."""
        replace: bool
        expect: Content | None
        """The only file that may be replaced; None: any."""

    class Content(TypedDict):
        """A file as it was when somebody read it. `mtime` in nanoseconds."""

        dev: int
        ino: int
        size: int
        mtime: int

    class DiscardPart(TypedDict):
        """`discard`: remove a part file, if it has a name. Also sent for a `part` that nobody waits for any more."""

        hidden: str

    class ListNames(TypedDict):
        """`list`: report at most `limit` names after the name `after`, in order. With it: the directory, for reading.

        `hidden`: also names that begin with a dot.
        """

        limit: int
        hidden: bool
        after: str

    class MakeDirectory(TypedDict):
        """`make`: make a directory, if it is not there. With it: the directory that it is to be in."""

        name: str

    class Rename(TypedDict):
        """`rename`: give what was decided on another name. With it: the directory it is in, the one it goes to."""

        name: str
        new_name: str
        identity: list[int]
        """Device and inode of what was decided on."""
        replace: bool

    class Remove(TypedDict):
        """`remove`: remove what was decided on, no directory or an empty one. With it: the directory it is in."""

        name: str
        identity: list[int]

    # `sweep`: remove what dead owners left in the directory that comes with it; Nothing.
    # `worker`: fork a worker; Nothing.

    # From the opener to the broker. Each answer has the number of its request.

    class AnyAnswer(TypedDict, total=False):
        """The part that any answer may have, and a refusal has."""

        n: int
        """The number; missing only from what came in pieces, for want of descriptors."""
        piece: list[Named]
        refused: str
        errno: int
        why: str
        led_to: str

    class Facts(TypedDict):
        """A file as the kernel knows it. Answers `append`, with the file open for appending."""

        path: str
        kind: str
        size_bytes: int
        mode: int
        nlink: int
        uid: int
        dev: int
        ino: int
        mtime_ns: int

    class Resolved(Facts):
        """Answers `resolve`. With it: the file or directory, pinned, or open for reading."""

        unreadable: NotRequired[int]
        """The errno for which it is only pinned, though it was to be read."""

    class PlaceFound(TypedDict):
        """Answers `place`. With it: the directory, pinned."""

        parent: Facts
        name: str
        existing: Facts | None

    class EntryFound(PlaceFound):
        """Answers `entry`. With it: the directory, pinned."""

        target: str | None
        """The text of a link."""

    class PartStarted(TypedDict):
        """Answers `part`. With it: the part file, open for reading and writing."""

        hidden: str
        """Its name until it gets its own; "" if it has none."""

    # `commit`, `rename` and `remove` are answered by Nothing, with the changed directories that can be flushed;
    # `discard` is answered by Nothing.

    class Pieces(TypedDict):
        """A part of the answer to `list`: goes before it, as often as there are names for."""

        piece: list[Named]

    class Listed(TypedDict):
        """Answers `list`. `total_count` is of all names of a directory, or of the first so many."""

        total_count: int
        counted_all: bool
        more: bool

    class DirectoryMade(TypedDict):
        """Answers `make`. With it: the directory, pinned, and the one that it is in, if that can be flushed."""

        facts: Facts
        created: bool

    class PartsLeft(TypedDict):
        """Answers `sweep`. `left` counts the part files that have an owner, or take a worker to remove."""

        left: int

    # `worker` is answered by Nothing, with the worker's socket and its pidfd.

    FromOpener = (
        Nothing
        | Refusal
        | Facts
        | Resolved
        | PlaceFound
        | EntryFound
        | PartStarted
        | Listed
        | DirectoryMade
        | PartsLeft
    )

    # From the broker to a worker: one job, and after that nothing but wishes, which only some jobs hear.

    class AnyJob(TypedDict):
        """The part that is the same in every job. Times in seconds."""

        op: str
        timeout_s: float
        grace_s: float
        max_items: NotRequired[int]
        max_bytes: NotRequired[int]

    class TreeRules(TypedDict):
        """The policy's rules about paths as data, see `policy/treefilter.py`."""

        allowed: str
        blocked_from_root: str
        blocked_anywhere: str
        guarded_from_root: str
        guarded_anywhere: str
        opened: str
        last_names: str
        blocked_extensions: Sequence[str]

    class OfTree(TypedDict):
        """The part that is the same in jobs about trees. `link_roots`: where other names of files are looked for."""

        rules: TreeRules
        link_roots: Sequence[str]

    class Search(OfTree):
        """`search`: report lines that match. With it: a directory, or one file, for reading."""

        pattern: str
        literal: bool
        case_sensitive: bool
        include: Sequence[str]
        exclude: Sequence[str]
        hidden: bool
        context: int
        max_items: int
        max_bytes: int

    class Find(OfTree):
        """`find`: report names that match. With it: the directory, for reading. `kind`: "" for any."""

        globs: Sequence[str]
        exclude: Sequence[str]
        kind: str
        hidden: bool
        depth: int
        max_items: int

    class ListTree(OfTree):
        """`list`: report at most `limit` names of a tree behind `after`. With it: the directory, for reading."""

        depth: int
        hidden: bool
        after: str
        limit: int

    class SurveyTree(OfTree):
        """`survey`: look for what stands against copying a tree to `new_path`. With it: the directory, for reading."""

        new_path: str
        leaves: bool
        """Whether it is to be moved there instead."""

    class RemoveTree(OfTree):
        """`remove`: remove a directory with all it holds. With it: the directory it is in."""

        name: str
        identity: list[int]

    class Bounds(TypedDict):
        """The most that one file may have, and what must stay free of a disk, in bytes."""

        max_file_bytes: int
        reserve_bytes: int

    class CopyFile(Bounds):
        """`copy_file`. With it: the file, for reading, and the directory of the copy."""

        name: str
        replace: bool
        keep_times: bool

    class IntoTree(SurveyTree, Bounds):
        """The part that is the same where a tree comes to be by copying. `max_total_bytes`: as many were surveyed."""

        max_total_bytes: int

    class CopyTree(IntoTree):
        """`copy_tree`. With it: the directory, for reading, and the one that the copy is to be in."""

        name: str

    class MoveTree(IntoTree):
        """`move_tree`, to another file system. With it: the directory it is in, the one it goes to."""

        name: str
        identity: list[int]
        aside: str
        """Its name while its paths must not lead there any more."""
        new_name: str

    class SweepTrees(TypedDict):
        """`sweep`: remove what dead owners left, trees as well. With it: the directory, for reading."""

        limit: int

    class JudgeNames(OfTree):
        """`judge_names`: find the other names of a file, and say what stands against it."""

        path: str
        dev: int
        ino: int

    class ArchiveLimits(TypedDict):
        """The most that an archive may have, and whether it is compressed."""

        max_entries: int
        max_bytes: int
        gzip: bool

    class Pack(OfTree, ArchiveLimits):
        """`pack`. With it: the directory, for reading, and the pipe that the archive goes to."""

    class UnpackAnywhere(Pack, Bounds):
        """`unpack`, before the name is known."""

        new_path: str
        mode: int | None
        replace_empty: bool

    class UnpackBounded(UnpackAnywhere):
        """`unpack`, with the bytes that its files may have in all."""

        max_content_bytes: int

    class Unpack(UnpackBounded):
        """`unpack`. With it: the directory it is to be in, and the pipe that the archive comes from."""

        name: str

    class FindClosedNames(TypedDict):
        """`aftermath`: report closed names that came to be after the session's birth, from the directory `first` on."""

        first: str
        max_items: int

    # `hash`: hash the file that comes with it, open for reading, wish after wish; Nothing.

    class Wish(TypedDict):
        """To a worker that hashes: hash up to so many bytes from the file's beginning."""

        until: int

    # From a worker to the broker.

    Matched = tuple[str, int, int, str, bool, list[str], list[str]]
    """Of `search`: path, line, column, text, whether that is a part of the line, lines before and after."""
    Named = tuple[str, str, int, int]
    """Of `find` and `list`: path or name, kind, size in bytes, mtime in nanoseconds."""
    Appeared = tuple[str, bool, str]
    """Of `aftermath`: path, whether it is a program, and the name that it was given, or ""."""

    Finding = Matched | Named | Appeared

    class Findings(TypedDict):
        """What was found since the last time, and what was counted until now. Sent while the job goes on."""

        piece: list[Finding]
        counts: dict[str, int]

    class Finished(TypedDict):
        """The last word of a job that was not refused."""

        done: Outcome
        """Nothing where it was stopped."""
        stopped: str
        """"" for all of it, else the limit that ended it: time, count, size or names; or left, which nobody hears."""

    class FromWorker(TypedDict, total=False):
        """Any message of a worker, before it is known which."""

        piece: list[Finding]
        counts: dict[str, int]
        done: Any
        stopped: str
        refused: str
        errno: int
        why: str
        at: int
        sha256: str

    class Counted(TypedDict):
        """Ends `list`."""

        counted_all: bool

    class Surveyed(TypedDict):
        """Ends `survey`: the first few paths that must not go there, and those where another file system begins."""

        blocked: list[str]
        mounted: list[str]

    class Copied(TypedDict):
        """Ends `copy_file`, with how much it was, and `copy_tree`, where the counts tell."""

        bytes: NotRequired[int]
        files: NotRequired[int]
        skipped: NotRequired[list[list[str]]]
        """Path and reason of the first few entries that were passed over."""

    Left = tuple[str, int, str] | tuple[()]

    class TreeMoved(TypedDict):
        """Ends `move_tree`: kind, errno and reason for which some of the source is still there; empty if none is."""

        left: Left

    class NamesJudged(TypedDict):
        """Ends `judge_names`: what stands against the file (closed, changing, unknown or ""), names found, names."""

        fault: str
        found: int
        names: int

    class Packed(TypedDict):
        """Ends `pack`, with path and reason of the first few entries that were left out, and `unpack`."""

        left_out: NotRequired[list[list[str]]]

    # The others end with Nothing; `hash` never ends by itself.

    Outcome = Nothing | Counted | Surveyed | Copied | TreeMoved | NamesJudged | Packed

    class Hashed(TypedDict):
        """The answer to a wish: how far the hash is, less far where the file ends there, and what it is there."""

        at: int
        sha256: str
