"""What files, names and sessions promise, as models for `linearizable`: acts, and what each makes of a state. Pure.

- A register is a file that is read, replaced as a whole (written, uploaded, copied or moved over) and edited.
- A log is a file that is only appended to.
- Names are those of one directory: at each there is a content or nothing.
- A slot is a session id that anybody may create, use and kill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable

import attrs

from tests.support.linearizable import State

BODY_LINES = 7


# --- a register: its head, which edits change, and its body, which they leave


@attrs.frozen
class Content:
    """What a register holds. No two writes or edits bring the same head."""

    head: int
    body: int

    @property
    def text(self) -> str:
        body = f"body {self.body} ".ljust(600, ".") + "\n"
        return f"head {self.head}\n{body * BODY_LINES}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def content_of(text: str) -> Content | str:
    """What a read file holds; one that is torn is none of ours and stays a text."""
    head, _, rest = text.partition("\n")
    try:
        content = Content(int(head.removeprefix("head ")), int(rest.split(" ", 2)[1]))
    except (ValueError, IndexError):
        return text
    return content if content.text == text else text


@attrs.frozen
class Write:
    """Replace it."""

    value: int
    how: str = ""


@attrs.frozen
class Read:
    """See it whole."""

    seen: Content | str
    how: str = ""


@attrs.frozen
class Edit:
    """Replace the head *old* by *new*; `sha256` is the whole that was expected, or empty."""

    old: int
    new: int
    sha256: str = ""


@attrs.frozen
class Unlike:
    """Have an edit refused because the head is another."""

    old: int


@attrs.frozen
class Digest:
    """Have an edit refused because the whole has this SHA-256."""

    sha256: str


def register(state: State, act: Hashable) -> Iterable[State]:
    """A file with one content at a time."""
    assert isinstance(state, Content)
    match act:
        case Write(value=value):
            return (Content(value, value),)
        case Edit(old=old, new=new, sha256=sha256):
            fits = state.head == old and sha256 in ("", state.sha256)
            return (attrs.evolve(state, head=new),) if fits else ()
        case Read(seen=seen):
            return (state,) if seen == state else ()
        case Unlike(old=old):
            return (state,) if state.head != old else ()
        case Digest(sha256=sha256):
            return (state,) if state.sha256 == sha256 else ()
        case _:
            raise TypeError(act)


# --- a log


@attrs.frozen
class Append:
    """Add an entry."""

    entry: str


@attrs.frozen
class Entries:
    """See all of them."""

    seen: tuple[str, ...]


def log(final: tuple[str, ...]) -> Callable[[State, Hashable], Iterable[State]]:
    """A file that only grows, and at the end was seen to hold *final*: a state is how much of that is there."""

    def step(state: State, act: Hashable) -> Iterable[State]:
        assert isinstance(state, int)
        match act:
            case Append(entry=entry):
                return (state + 1,) if final[state : state + 1] == (entry,) else ()
            case Entries(seen=seen):
                return (state,) if seen == final[:state] else ()
            case _:
                raise TypeError(act)

    return step


# --- names


@attrs.frozen
class Put:
    """Have a content at a name, which is free unless *over* says that it may be taken."""

    name: int
    content: str
    over: bool


@attrs.frozen
class Move:
    """Give what is at one name another."""

    source: int
    target: int
    over: bool


@attrs.frozen
class Delete:
    """Free a name."""

    name: int


@attrs.frozen
class Look:
    """See what is at a name; None: nothing."""

    name: int
    seen: str | None


@attrs.frozen
class Taken:
    """Be refused because something is there."""

    name: int


@attrs.frozen
class LookAtAll:
    """See what is at all of them, at once."""

    seen: tuple[str | None, ...]


def names(state: State, act: Hashable) -> Iterable[State]:
    """The names of a directory: a tuple of what is at each."""
    assert isinstance(state, tuple)
    match act:
        case Put(name=name, content=content, over=over):
            return (_with(state, name, content),) if over or state[name] is None else ()
        case Move(source=source, target=target, over=over):
            fits = state[source] is not None and (over or state[target] is None)
            return (_with(_with(state, source, None), target, state[source]),) if fits else ()
        case Delete(name=name):
            return (_with(state, name, None),) if state[name] is not None else ()
        case Look(name=name, seen=seen):
            return (state,) if state[name] == seen else ()
        case Taken(name=name):
            return (state,) if state[name] is not None else ()
        case LookAtAll(seen=seen):
            return (state,) if state == seen else ()
        case _:
            raise TypeError(act)


def _with(state: tuple[str | None, ...], name: int, content: str | None) -> tuple[str | None, ...]:
    return (*state[:name], content, *state[name + 1 :])


# --- a slot: (what it is doing, whose, who waits for the end of whom)


FREE = ("free", 0, frozenset[tuple[int, int]]())


@attrs.frozen
class Reserve:
    """Begin a birth under the id."""

    token: int


@attrs.frozen
class Enter:
    """Complete it."""

    token: int


@attrs.frozen
class GiveUp:
    """Abandon it: nobody waits for it any more."""

    token: int


@attrs.frozen
class Close:
    """Begin, or join in, the end of who lives there; *killer* is a number of its own."""

    killer: int


@attrs.frozen
class Leave:
    """Complete the end that *killer* has joined in, if nobody else has."""

    killer: int


@attrs.frozen
class Use:
    """Be answered by the session of this token."""

    token: int


@attrs.frozen
class Absent:
    """Be told that no session lives there."""


@attrs.frozen
class InUse:
    """Be told that the id is taken."""


def slot(state: State, act: Hashable) -> Iterable[State]:
    """A session id, which is free, being born into, lived in, or ending."""
    assert isinstance(state, tuple)
    phase, whose, killers = state
    match act:
        case Reserve(token=token):
            return (("born", token, killers),) if phase == "free" else ()
        case Enter(token=token):
            return (("lives", token, killers),) if (phase, whose) == ("born", token) else ()
        case GiveUp(token=token):
            return (("free", 0, killers),) if (phase, whose) == ("born", token) else ()
        case Close(killer=killer):
            return (("ends", whose, killers | {(killer, whose)}),) if phase in {"lives", "ends"} else ()
        case Leave(killer=killer):
            return _leave(phase, whose, killers, killer)
        case Use(token=token):
            return (state,) if (phase, whose) == ("lives", token) else ()
        case Absent():
            return (state,) if phase != "lives" else ()
        case InUse():
            return (state,) if phase != "free" else ()
        case _:
            raise TypeError(act)


def _leave(phase: str, whose: int, killers: frozenset[tuple[int, int]], killer: int) -> tuple[State, ...]:
    for mine in killers:
        if mine[0] == killer:
            is_over = phase != "ends" or mine[1] != whose
            return ((phase, whose, killers - {mine}) if is_over else ("free", 0, killers - {mine}),)
    return ()
