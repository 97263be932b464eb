"""Messages of the processes that work on a session's files: opener and worker."""

from __future__ import annotations

from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NotRequired, TypedDict

    from sandbox.protocol.commands import Legal

# --- opener and worker: what both sides must know

MAX_DEPTH = 150
"""Levels of a tree that a worker walks into: it has a descriptor open for each."""

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
