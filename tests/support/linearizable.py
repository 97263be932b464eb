"""A checker of histories: is there one order of the operations that explains every answer? Pure.

Wing and Gong's search as Lowe has it ("Testing for linearizability", 2017): just in time, with a memory of what was
seen. An operation takes effect at one moment between its invocation and its return. One whose answer is not known may
take effect at any moment up to its bound, or never. Histories of different keys are checked one by one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeAlias

import attrs

MAX_LOOKS = 2_000_000
"""Steps tried for one history; beyond it the question is given up, which is neither yes nor no. As many again are
spent on making a violation small."""

State: TypeAlias = Hashable
Step: TypeAlias = Callable[[State, Hashable], Iterable[State]]
"""The states after an act in a state: none where it cannot happen, several where it does not say which."""
_Config: TypeAlias = tuple[State, int]
"""A state, and which of the open operations have taken effect in it, as bits."""


class TooHard(Exception):
    """The history has too many operations at once to be decided."""


@attrs.frozen(kw_only=True)
class Op:
    """One operation: what it did as its answer tells, or may have done when it is not *known*.

    `invoked` and `returned` are stamps of one clock. An operation that is not known may take effect until `returned`.
    """

    key: str
    who: str
    act: Hashable
    invoked: float
    returned: float = math.inf
    known: bool = True

    def __str__(self) -> str:
        end = f"{self.returned:.0f}" if self.returned < math.inf else "..."
        return f"{self.invoked:>6.0f} {end:>6}  {self.who:<10} {self.act}{'' if self.known else ' ?'}"


@attrs.frozen(kw_only=True)
class Violation:
    """Why a history has no order: operations that contradict each other.

    `state` is all that can have been the case before them, and nothing that the others did in their time explains them.
    """

    key: str
    state: State
    ops: tuple[Op, ...]
    others: int

    def __str__(self) -> str:
        lines = "\n".join(map(str, self.ops))
        others = f"whatever {self.others} others did in their time"
        return f"{self.key}: it was {self.state}, and no order explains what follows, {others}:\n{lines}"


def by_key(history: Iterable[Op]) -> dict[str, list[Op]]:
    """The operations of each key."""
    parts = defaultdict(list)
    for op in history:
        parts[op.key].append(op)
    return dict(parts)


def check(history: Sequence[Op], initial: State, step: Step) -> Violation | None:
    """Return None when the history of one key is linearizable, else a small part of it that is not.

    Raises:
        TooHard: it cannot be decided.
    """
    stuck = _find_stuck(history, initial, step, _Looks(MAX_LOOKS))
    if stuck is None:
        return None
    # What comes later explains nothing; what returns later may not have happened yet.
    begun = [op for op in stuck.rest if op.invoked <= stuck.op.returned]
    late = {"returned": math.inf, "known": False}
    begun = [attrs.evolve(op, **late) if op.returned > stuck.op.returned else op for op in begun]
    rest = _smaller(begun, stuck.state, step)
    told = tuple(sorted((op for op in rest if op.known), key=lambda op: op.invoked))
    return Violation(key=stuck.op.key, state=stuck.state, ops=told, others=len(rest) - len(told))


@attrs.define(eq=False)
class _Looks:
    """How many steps may still be tried."""

    left: int

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooHard("too many operations may have happened at any time")


def _smaller(history: list[Op], initial: State, step: Step) -> list[Op]:
    """As many as possible no longer known; what still has no order then has none in the whole either."""
    looks, size = _Looks(MAX_LOOKS), len(history)
    while size:
        for first in range(0, len(history), size):
            piece = [attrs.evolve(op, known=False) for op in history[first : first + size]]
            tried = [*history[:first], *piece, *history[first + size :]]
            if tried != history and _is_stuck(tried, initial, step, looks):
                history = tried
        size //= 2
    return history


def _is_stuck(history: Sequence[Op], initial: State, step: Step, looks: _Looks) -> bool:
    """Whether it surely has no order, found with a small part of the *looks* that are left."""
    some = _Looks(looks.left // 20)
    before = some.left
    try:
        return _find_stuck(history, initial, step, some) is not None
    except TooHard:
        return False
    finally:
        looks.left -= before - max(0, some.left)


@attrs.frozen(kw_only=True)
class _Stuck:
    """The first operation that returned and can have taken effect at no moment.

    Before it nothing but `state` can have been the case, with `rest` still to come.
    """

    op: Op
    state: State
    rest: list[Op]


def _find_stuck(history: Sequence[Op], initial: State, step: Step, looks: _Looks) -> _Stuck | None:
    search = _Search(history, step, looks)
    turns = list(_turns(history))
    seen = [_Seen(search.optional) for _ in turns]
    furthest, tried = 0, [search.until((initial, 0), *turns[0])] if turns else []
    while 0 < len(tried) <= len(turns):
        config = next(tried[-1], None)
        if config is None:
            tried.pop()
        elif len(tried) == len(turns):
            return None
        elif seen[len(tried)].is_new(config):
            furthest = max(furthest, len(tried))
            tried.append(search.until(config, *turns[len(tried)]))
    if not turns:
        return None
    stuck = history[turns[furthest][0]]
    for turn in range(furthest, 0, -1):
        is_before = history[turns[turn - 1][0]].returned < stuck.invoked
        if is_before and len(only := seen[turn].all()) == 1:
            ((state, done),) = only
            over = {index for index, _ in turns[:turn]}
            rest = [op for index, op in enumerate(history) if index not in over and not done >> index & 1]
            return _Stuck(op=stuck, state=state, rest=rest)
    return _Stuck(op=stuck, state=initial, rest=list(history))


def _turns(history: Sequence[Op]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Which operations return, in the order of time, and which are open then; operations that touch overlap."""
    events = [(op.invoked, False, index) for index, op in enumerate(history)]
    events += [(op.returned, True, index) for index, op in enumerate(history) if op.known or op.returned < math.inf]
    are_open = list[int]()
    for _, is_return, index in sorted(events):
        if is_return:
            yield index, tuple(are_open)
            are_open.remove(index)
        else:
            are_open.append(index)


class _Seen:
    """What was looked at, the fewest operations first.

    Of two that differ only in operations which need not have happened, the one with fewer allows all the other does.
    """

    def __init__(self, optional: int) -> None:
        self._optional = optional
        self._fewest = defaultdict[_Config, list[int]](list)

    def is_new(self, config: _Config) -> bool:
        """Whether to look on from here."""
        state, done = config
        optional, known = done & self._optional, self._fewest[state, done & ~self._optional]
        if any(fewer & optional == fewer for fewer in known):
            return False
        known.append(optional)
        return True

    def all(self) -> list[_Config]:
        """What was looked on from."""
        return [(state, done | optional) for (state, done), known in self._fewest.items() for optional in known]


class _Search:
    """What may be the case, as far as the returns so far demand it."""

    def __init__(self, history: Sequence[Op], step: Step, looks: _Looks) -> None:
        self._history = history
        self._step = step
        self.optional = sum(1 << index for index, op in enumerate(history) if not op.known)
        self._looks = looks

    def until(self, config: _Config, target: int, are_open: Sequence[int]) -> Iterator[_Config]:
        """Let open operations take effect until *target* has, as few as possible first.

        Without it first, where it may never have.
        """
        bit, seen = 1 << target, _Seen(self.optional)
        if not (self._history[target].known or config[1] & bit):
            yield config
        level = [config]
        while level:
            above = []
            for state, done in level:
                if done & bit:
                    yield state, done & ~bit
                else:
                    above += [after for after in self._after(state, done, are_open) if seen.is_new(after)]
            level = above

    def _after(self, state: State, done: int, are_open: Sequence[int]) -> Iterator[_Config]:
        for index in are_open:
            if not done >> index & 1:
                self._looks.take()
                for after in self._step(state, self._history[index].act):
                    yield after, done | 1 << index
