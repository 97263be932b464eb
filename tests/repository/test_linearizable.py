"""The checker of histories against a brute-force oracle, and against violations that it must find."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations, permutations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import historymodels as model
from tests.support import linearizable
from tests.support.historymodels import FREE, Content
from tests.support.linearizable import Op, State, Step, TooHard, by_key, check

START = Content(0, 0)


def history(*rows: tuple[Hashable, float, float] | tuple[Hashable, float]) -> list[Op]:
    """Operations of one key: act, invocation, return; without a return, one that is not known."""
    return [
        Op(
            key="k",
            who=f"c{n}",
            act=row[0],
            invoked=row[1],
            returned=row[2] if len(row) > 2 else math.inf,
            known=len(row) > 2,
        )
        for n, row in enumerate(rows)
    ]


# --- the oracle: every order of everything that may have happened


def explained(ops: Sequence[Op], initial: State, step: Step) -> bool:
    """Whether an order explains the operations, found by trying all."""
    must, may = [op for op in ops if op.known], [op for op in ops if not op.known]
    chosen = (extra for count in range(len(may) + 1) for extra in combinations(may, count))
    return any(_runs(order, initial, step) for extra in chosen for order in _orders([*must, *extra]))


def _orders(ops: Sequence[Op]) -> Iterator[tuple[Op, ...]]:
    for order in permutations(ops):
        pairs = combinations(order, 2)
        if all(later.returned >= earlier.invoked for earlier, later in pairs):
            yield order


def _runs(order: Sequence[Op], initial: State, step: Step) -> bool:
    states = {initial}
    for op in order:
        states = {after for state in states for after in step(state, op.act)}
    return bool(states)


small = st.integers(0, 2)
heads = st.builds(Content, small, small)
register_acts = st.one_of(
    st.builds(model.Write, small),
    st.builds(model.Read, heads),
    st.builds(model.Edit, small, small, st.one_of(st.just(""), heads.map(lambda content: content.sha256))),
    st.builds(model.Unlike, small),
    st.builds(model.Digest, heads.map(lambda content: content.sha256)),
)
at = st.integers(0, 1)
what = st.sampled_from(["a", "b"])
seen = st.one_of(st.none(), what)
name_acts = st.one_of(
    st.builds(model.Put, at, what, st.booleans()),
    st.builds(model.Move, at, at, st.booleans()),
    st.builds(model.Delete, at),
    st.builds(model.Look, at, seen),
    st.builds(model.Taken, at),
    st.builds(model.LookAtAll, st.tuples(seen, seen)),
)
token = st.integers(1, 2)
slot_acts = st.one_of(
    *(st.builds(act, token) for act in (model.Reserve, model.Enter, model.GiveUp, model.Use, model.Close, model.Leave)),
    *(st.builds(act) for act in (model.Absent, model.InUse)),
)
entries = st.sampled_from(["x", "y", "z"])
log_acts = st.one_of(
    st.builds(model.Append, entries), st.builds(model.Entries, st.lists(entries, max_size=3).map(tuple))
)
MODELS = {
    "register": (register_acts, START, model.register),
    "names": (name_acts, (None, "a"), model.names),
    "slot": (slot_acts, FREE, model.slot),
    "log": (log_acts, 0, model.log(("x", "y"))),
}


@st.composite
def histories(draw: st.DrawFn, acts: st.SearchStrategy[Hashable]) -> list[Op]:
    ops = []
    for number in range(draw(st.integers(1, 5))):
        invoked = draw(st.integers(0, 6))
        known = draw(st.booleans() if number % 2 else st.just(True))
        returned = draw(st.integers(invoked, 8)) if known else draw(st.sampled_from([math.inf, invoked + 2]))
        ops.append(Op(key="k", who=str(number), act=draw(acts), invoked=invoked, returned=returned, known=known))
    return ops


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=200)
@given(data=st.data())
def test_the_checker_says_what_trying_every_order_says(name: str, data: st.DataObject) -> None:
    acts, initial, step = MODELS[name]
    ops = data.draw(histories(acts))
    violation = check(ops, initial, step)
    assert (violation is None) == explained(ops, initial, step)
    if violation is not None:
        assert not explained(violation.ops, violation.state, step) or violation.others


@st.composite
def lived(draw: st.DrawFn, acts: st.SearchStrategy[Hashable], initial: State, step: Step) -> list[Op]:
    """A history that did happen: each act at its moment, told with a window around it, or not told."""
    state, ops = initial, []
    for moment in range(draw(st.integers(1, 30))):
        act = draw(acts)
        if not (after := list(step(state, act))):
            continue
        state = draw(st.sampled_from(after))
        early, late, known = draw(st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([True, True, False])))
        ops.append(Op(key="k", who="c", act=act, invoked=moment - early / 2, returned=moment + late / 2, known=known))
    return draw(st.permutations(ops))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=100)
@given(data=st.data())
def test_what_happened_is_never_refused(name: str, data: st.DataObject) -> None:
    acts, initial, step = MODELS[name]
    assert check(data.draw(lived(acts, initial, step)), initial, step) is None


# --- violations that must be found, each beside a history that differs in one answer and is fine


EDIT_TWICE = ((model.Edit(0, 1), 1, 4), (model.Edit(0, 2), 2, 3))
PLANTED = {
    "a lost update": (history(*EDIT_TWICE), START, model.register),
    "a lost write": (
        history((model.Write(1), 1, 2), (model.Write(2), 3, 4), (model.Read(Content(1, 1)), 5, 6)),
        START,
        model.register,
    ),
    "a stale read": (history((model.Write(1), 1, 2), (model.Read(START), 3, 4)), START, model.register),
    "a torn read": (history((model.Write(1), 1, 4), (model.Read(Content(1, 0)), 2, 3)), START, model.register),
    "a write that is seen, then not, then again": (
        history(
            (model.Write(1), 1), *((model.Read(Content(n, n)), 2 * at, 2 * at + 1) for at, n in enumerate((1, 0, 1), 1))
        ),
        START,
        model.register,
    ),
    "a write that appears after its bound": (
        [
            attrs.evolve(history((model.Write(1), 1))[0], returned=4),
            *history((model.Read(START), 5, 6), (model.Read(Content(1, 1)), 7, 8)),
        ],
        START,
        model.register,
    ),
    "an edit refused for a reason that never was": (
        history((model.Write(1), 1, 2), (model.Unlike(1), 3, 4)),
        START,
        model.register,
    ),
    "a lost append": (history((model.Append("x"), 1, 2), (model.Append("y"), 1, 2)), 0, model.log(("y",))),
    "an append twice": (
        history((model.Append("x"), 1, 2), (model.Entries(("x", "x")), 3, 4)),
        0,
        model.log(("x", "x")),
    ),
    "appends against the order of time": (
        history((model.Append("x"), 1, 2), (model.Append("y"), 3, 4), (model.Entries(("y", "x")), 5, 6)),
        0,
        model.log(("y", "x")),
    ),
    "a name at two places": (
        history((model.Move(0, 1, over=False), 1, 2), (model.LookAtAll(("a", "a")), 3, 4)),
        ("a", None),
        model.names,
    ),
    "a name nowhere": (
        history((model.Move(0, 1, over=False), 1, 2), (model.LookAtAll((None, None)), 3, 4)),
        ("a", None),
        model.names,
    ),
    "a deleted name that reappears": (
        history((model.Delete(0), 1, 2), (model.Look(0, None), 3, 4), (model.Look(0, "a"), 5, 6)),
        ("a", None),
        model.names,
    ),
    "two who moved the same": (
        history((model.Move(0, 1, over=True), 1, 4), (model.Move(0, 1, over=True), 2, 3)),
        ("a", None),
        model.names,
    ),
    "two winners of one id": (
        history(*((act(n), 1, 5) for n in (1, 2) for act in (model.Reserve, model.Enter))),
        FREE,
        model.slot,
    ),
    "a killed session that answers": (
        history(
            (model.Reserve(1), 1, 2),
            (model.Enter(1), 1, 2),
            (model.Close(7), 3, 4),
            (model.Leave(7), 3, 4),
            (model.Use(1), 5, 6),
        ),
        FREE,
        model.slot,
    ),
    "an id that stays taken": (
        history(
            (model.Reserve(1), 1, 2),
            (model.Enter(1), 1, 2),
            (model.Close(7), 3, 4),
            (model.Leave(7), 3, 4),
            (model.InUse(), 5, 6),
        ),
        FREE,
        model.slot,
    ),
}
FINE = {
    "two who kill one, and one who is born between their answers": (
        history(
            (model.Reserve(1), 1, 2),
            (model.Enter(1), 1, 2),
            *((act(killer), 3, 4 + 6 * killer) for killer in (0, 1) for act in (model.Close, model.Leave)),
            (model.Reserve(2), 5, 6),
            (model.Enter(2), 5, 6),
            (model.Use(2), 11, 12),
        ),
        FREE,
        model.slot,
    ),
    "an edit after an edit": (history((model.Edit(0, 1), 1, 4), (model.Edit(1, 2), 2, 3)), START, model.register),
    "a read beside a write": (history((model.Write(1), 1, 4), (model.Read(START), 2, 3)), START, model.register),
    "a write of which nobody knows, seen late": (
        history((model.Write(1), 1), (model.Read(START), 2, 3), (model.Read(Content(1, 1)), 4, 5)),
        START,
        model.register,
    ),
    "an append of which nobody knows, never seen": (history((model.Append("x"), 1)), 0, model.log(())),
    "a name that moved on": (
        history((model.Move(0, 1, over=False), 1, 6), (model.Look(0, "a"), 2, 3), (model.Look(1, "a"), 4, 5)),
        ("a", None),
        model.names,
    ),
    "an id taken by one who was born and died": (
        history((model.Reserve(1), 1), (model.GiveUp(1), 1), (model.InUse(), 2, 3), (model.Reserve(2), 4, 5)),
        FREE,
        model.slot,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    ops, initial, step = PLANTED[name]
    violation = check(ops, initial, step)
    assert violation is not None
    assert all(str(op.act) in str(violation) for op in violation.ops)


@pytest.mark.parametrize("name", FINE)
def test_what_looks_like_one_and_is_none_passes(name: str) -> None:
    assert check(*FINE[name]) is None


def test_a_violation_among_many_operations_is_told_without_the_others() -> None:
    calm = history(*((model.Write(n), 2 * n, 2 * n + 1) for n in range(10, 60)))
    (found,) = [
        check([*calm, *history((model.Edit(59, 1), 130, 140), (model.Edit(59, 2), 130, 140))], START, model.register)
    ]
    assert found is not None
    assert [op.act for op in found.ops] == [model.Edit(59, 1), model.Edit(59, 2)]
    assert (found.state, found.others) == (Content(59, 59), 0)


def test_many_writes_of_which_nobody_knows_are_no_obstacle() -> None:
    unknown = history(*((model.Write(n), n) for n in range(1, 25)))
    reads = history(*((model.Read(Content(n, n)), 100 + 2 * n, 101 + 2 * n) for n in range(1, 25)))
    assert check([*unknown, *reads], START, model.register) is None
    assert check([*unknown, *reads, *history((model.Read(START), 200, 201))], START, model.register) is not None


def test_keys_are_checked_apart() -> None:
    ops = [attrs.evolve(op, key=key) for key in "ab" for op in history(EDIT_TWICE[0])]
    assert set(by_key(ops)) == {"a", "b"}
    assert all(check(part, START, model.register) is None for part in by_key(ops).values())
    assert check(ops, START, model.register) is not None


def test_a_question_that_is_too_hard_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizable, "MAX_LOOKS", 3)
    with pytest.raises(TooHard):
        check(history(*((model.Write(n), 1, 9) for n in range(4))), START, model.register)
