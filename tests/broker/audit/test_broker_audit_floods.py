"""History is not pushed out by what is recorded: refusals are short and counted, files are kept by age as well."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.audit.audit import AuditSettings, Clocks, Event, EventType, open_audit
from broker.audit.redact import DIGEST_BYTES, REFUSED_CHARACTERS, redact_arguments
from broker.audit.refusals import CALLERS, IN_FULL, INTERVAL_S, NAMED_TOOLS, OTHERS, TOOL_CHARACTERS, Refusals
from tests.broker.audit.test_broker_audit import command, ids, kinds, opened, patient, records
from tests.live.test_live_audit_trouble import until_written

__all__ = ["patient"]  # a fixture for each test here too
LONG = [f"{number:03d}" + "x" * 509 for number in range(64)]


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    log = tmp_path / "log"
    return AuditSettings(audit_log=log / "audit.log", error_log=log / "errors.log", max_bytes=0, backup_count=0)


def refusal(principal: str = "me", code: str = "POLICY_001", tool: str = "execute_command") -> Event:
    return Event(event_type=EventType.COMMAND_FAILED, tool_name=tool, principal=principal, error="no", error_code=code)


# --- repeated refusals


def test_the_first_refusals_are_recorded_and_the_others_counted(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        for _number in range(IN_FULL + 500):
            audit.refuse(refusal())
        audit.refuse(refusal(code="POLICY_002"))
        audit.refuse(refusal(principal="other"))
    found = records(settings.audit_log)
    assert kinds(settings.audit_log) == ["COMMAND_FAILED"] * (IN_FULL + 2) + ["REFUSALS_COUNTED"]
    assert found[-1]["details"] == {"refused": 500, "tools": {"execute_command": 500}, "interval_s": INTERVAL_S}
    assert (found[-1]["principal"], found[-1]["error_code"]) == ("me", "POLICY_001")
    assert records(settings.error_log) == found


def test_a_count_is_recorded_when_its_interval_is_over_though_nobody_calls(settings: AuditSettings) -> None:
    now = [0.0]
    with open_audit(settings, clocks=Clocks(interval=lambda: now[0])) as audit:
        for _number in range(IN_FULL + 3):
            audit.refuse(refusal())
        assert "REFUSALS_COUNTED" not in kinds(settings.audit_log)
        now[0] = INTERVAL_S
        audit.settle()  # the thread looks at the clock again; a real one would have woken it
        audit.settle()
        assert kinds(settings.audit_log)[-1] == "REFUSALS_COUNTED"
        audit.refuse(refusal())
        assert kinds(settings.audit_log)[-1] == "COMMAND_FAILED", "a new interval"


async def test_a_count_is_recorded_by_itself_soon_after_its_interval(
    settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.audit.refusals.INTERVAL_S", 0.1)
    with opened(settings) as (audit, _):
        for _number in range(IN_FULL + 1):
            audit.refuse(refusal())
        await until_written(settings.audit_log, "REFUSALS_COUNTED")


def test_counting_is_bounded_whatever_a_client_makes_up() -> None:
    refusals = Refusals(lambda: 0.0)
    for number in range(IN_FULL + 100):
        refusals.in_full(refusal(tool=f"made-up-{number}"))
    (counted,) = refusals.due(all_of_them=True)
    assert counted.details is not None
    tools: Any = counted.details["tools"]
    assert len(tools) == NAMED_TOOLS + 1
    assert tools[OTHERS] == 100 - NAMED_TOOLS
    for number in range(CALLERS + 100):
        refusals.in_full(refusal(principal=f"p{number}"))
    assert sum(refusals.in_full(refusal(principal=f"q{number}")) for number in range(100)) == 0


def test_a_count_is_short_however_long_the_names_of_tools_are(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        for number in range(IN_FULL + NAMED_TOOLS):
            audit.refuse(refusal(tool=f"{number}" + "t" * 1_000_000))
    last = settings.audit_log.read_text(encoding="ascii").splitlines()[-1]
    assert json.loads(last)["details"]["tools"] == {OTHERS: NAMED_TOOLS}
    assert len(last) < 1000


def test_a_slow_stream_of_refusals_is_recorded_in_full() -> None:
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    for _number in range(5 * IN_FULL):
        assert refusals.in_full(refusal())
        now[0] += INTERVAL_S / IN_FULL


@attrs.define(eq=False)
class Counting:
    """Counts under a clock that stands still unless it is set."""

    now_s: float = 0.0
    refusals: Refusals = attrs.field()

    @refusals.default
    def _counted_by_this_clock(self) -> Refusals:
        return Refusals(lambda: self.now_s)

    def refuse(self, times: int, event: Event) -> list[bool]:
        """Whether each of them is recorded itself."""
        return [self.refusals.in_full(event) for _ in range(times)]

    def counted(self) -> list[Event]:
        """What would be recorded if the broker stopped now."""
        return list(self.refusals.due(all_of_them=True))

    def tools(self) -> object:
        """The tools of the one count there is."""
        (event,) = self.counted()
        assert event.details is not None
        return event.details["tools"]


def test_the_first_beyond_those_in_full_is_counted_and_none_before_it() -> None:
    counting = Counting()
    assert counting.refuse(IN_FULL, refusal()) == [True] * IN_FULL
    assert counting.counted() == []
    assert counting.refuse(IN_FULL + 1, refusal()) == [True] * IN_FULL + [False]
    (event,) = counting.counted()
    assert event.details == {"refused": 1, "tools": {"execute_command": 1}, "interval_s": INTERVAL_S}
    assert event.error is not None
    assert event.error.startswith("1 more refusals")


def test_a_tool_that_has_its_name_in_the_count_keeps_it_when_no_other_gets_one() -> None:
    counting = Counting()
    counting.refuse(IN_FULL, refusal())
    for number in range(NAMED_TOOLS + 1):
        counting.refuse(1, refusal(tool=f"t{number}"))
    counting.refuse(1, refusal(tool="t0"))
    assert counting.tools() == {"t0": 2, **{f"t{number}": 1 for number in range(1, NAMED_TOOLS)}, OTHERS: 1}


def test_a_name_of_a_tool_may_have_so_many_characters_and_no_more() -> None:
    counting = Counting()
    counting.refuse(IN_FULL, refusal())
    longest = "t" * TOOL_CHARACTERS
    counting.refuse(1, refusal(tool=longest))
    counting.refuse(1, refusal(tool=longest + "t"))
    assert counting.tools() == {longest: 1, OTHERS: 1}


def test_a_refusal_of_nobody_and_of_no_tool_is_counted_under_what_happened() -> None:
    counting = Counting()
    counting.refuse(IN_FULL + 1, Event(event_type=EventType.CONNECTION_REFUSED))
    (event,) = counting.counted()
    assert (event.principal, event.error_code) == (None, None)
    assert event.details is not None
    assert event.details["tools"] == {"CONNECTION_REFUSED": 1}


def test_so_many_callers_are_told_apart_and_the_next_is_one_of_the_others() -> None:
    counting = Counting()
    for number in range(CALLERS - 1):
        counting.refuse(1, refusal(principal=f"p{number}"))
    counting.refuse(IN_FULL + 1, refusal(principal="the last"))
    counting.refuse(IN_FULL + 2, refusal(principal="one too many"))
    counting.refuse(IN_FULL + 2, refusal(principal="p0"))  # 1 before
    told = {event.principal: event.details and event.details["refused"] for event in counting.counted()}
    assert told == {"the last": 1, OTHERS: 2, "p0": 3}


def test_a_count_whose_interval_is_over_goes_on_until_it_is_recorded() -> None:
    counting = Counting()
    counting.refuse(IN_FULL + 3, refusal())
    counting.now_s = INTERVAL_S
    assert counting.refuse(1, refusal()) == [False]
    (event,) = counting.refusals.due()
    assert event.details is not None
    assert event.details["refused"] == 4
    assert counting.refuse(1, refusal()) == [True], "a new interval"


def test_the_next_count_is_due_at_the_end_of_the_interval_that_ends_first() -> None:
    counting = Counting()
    counting.refuse(IN_FULL, refusal())
    assert counting.refusals.next_s() is None, "nothing is counted yet"
    counting.now_s = 10.0
    counting.refuse(IN_FULL + 1, refusal(principal="other"))
    assert counting.refusals.next_s() == INTERVAL_S
    counting.refuse(1, refusal())
    assert counting.refusals.next_s() == INTERVAL_S - 10
    assert counting.refusals.due() == ()
    counting.now_s = INTERVAL_S + 100
    assert counting.refusals.next_s() == 0.0
    assert len(counting.refusals.due()) == 2
    assert counting.refusals.next_s() is None


# --- a refusal is short


def argv_of(record: dict[str, Any]) -> list[Any]:
    argv: list[Any] = record["arguments"]["argv"]
    return argv


def test_a_long_refused_argv_is_cut_with_its_length_and_the_digest_of_the_whole(settings: AuditSettings) -> None:
    event = attrs.evolve(refusal(), arguments=redact_arguments({"session_id": "s", "argv": LONG}))
    with opened(settings) as (audit, _):
        audit.refuse(event)
        audit.end(event)
    short, full = records(settings.audit_log)
    assert argv_of(full) == LONG, "the control: of a call that was not refused"
    data = b"".join(word.encode() + b"\0" for word in LONG)
    assert argv_of(short)[-1] == f"... 64 in all, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    assert LONG[: len(argv_of(short)) - 1] == argv_of(short)[:-1]
    assert len(json.dumps(short["arguments"])) < 2 * REFUSED_CHARACTERS


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["curl", "--token", "hunter2", *LONG], id="an option"),
        pytest.param([*LONG, *LONG, "PASSWORD=hunter2"], id="behind those that are shown"),
        pytest.param([*LONG, "x" * 9000 + " password=hunter2 "], id="behind what is looked at"),
        pytest.param([*LONG, ["hunter2"]], id="no word"),
        pytest.param([*LONG, "sshpass", "-p", "hunter2"], id="by whose option it is"),
        pytest.param([*LONG, "glpat-hunter2-hunter2"], id="by its looks"),
        pytest.param([*LONG, "curl -u me:hunter2"], id="in a command line"),
    ],
)
def test_what_has_a_secret_in_it_has_no_digest(argv: list[object]) -> None:
    shown = json.dumps(redact_arguments({"argv": argv}).shortened().shown)
    assert "in all" in shown
    assert "sha256" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({f"unknown-{number}": "x" * 9000 for number in range(1000)}, id="unknown"),
        pytest.param({"environment": {f"N{number}": "x" * 9000 for number in range(1000)}}, id="environment"),
        pytest.param({"x" * 100_000: 1, "y" * 100_000: 2, "z" * 100_000: 3}, id="names"),
        pytest.param({"path": "p" * 100_000, "argv": LONG, "include": LONG, "exclude": LONG}, id="all"),
    ],
)
def test_whatever_is_refused_is_short(arguments: dict[str, object]) -> None:
    assert len(json.dumps(dict(redact_arguments(arguments).shortened().shown))) < 3 * REFUSED_CHARACTERS


def shortened(**arguments: object) -> dict[str, object]:
    return dict(redact_arguments(arguments).shortened().shown)


def filling(left: int) -> dict[str, object]:
    """Two arguments of which as much fits, counted with the quotes of their values, that *left* characters stay."""
    half = (REFUSED_CHARACTERS - len("session_id") - len("path") - 4) // 2
    return {"session_id": "s" * half, "path": "p" * (half - left)}


def test_what_fits_exactly_stays_and_what_follows_is_counted() -> None:
    assert shortened(**filling(0)) == filling(0)
    assert shortened(**filling(0), confirm=True) == {**filling(0), "...": "1 more"}
    assert shortened(**filling(0), confirm=True, offset=1) == {**filling(0), "...": "2 more"}


def test_what_does_not_fit_shows_how_long_it_is() -> None:
    assert shortened(**filling(1), confirm=True) == {**filling(1), "confirm": "... [4 characters]"}
    assert shortened(**filling(-1)) == {"session_id": filling(0)["session_id"], "path": "... [506 characters]"}
    assert shortened(**filling(1), content=["not shown"]) == {**filling(1), "content": "... [16 characters]"}


def test_half_of_what_is_left_is_for_the_first_items_of_a_list() -> None:
    word = "w" * (REFUSED_CHARACTERS // 8 - 2)  # four of them, with their quotes, are half
    short = shortened(argv=[word] * 9)
    data = (word.encode() + b"\0") * 9
    whole = f"... 9 in all, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    assert short == {"argv": [word] * 4 + [whole]}


@pytest.mark.parametrize(("more", "has_digest"), [(0, True), (1, False)])
def test_a_list_that_is_too_long_for_a_digest_has_none(more: int, *, has_digest: bool) -> None:
    words = ["x" * 511] * (DIGEST_BYTES // 512)
    assert sum(len(word) + 1 for word in words) == DIGEST_BYTES
    argv: Any = shortened(argv=[words[0] + "x" * more, *words[1:]])["argv"]
    assert argv[-1].startswith(f"... {len(words)} in all, {DIGEST_BYTES + more} bytes")
    assert ("sha256" in argv[-1]) == has_digest


# --- files are kept by age


DAY_S = 24 * 3600.0


@pytest.fixture
def small(settings: AuditSettings) -> AuditSettings:
    return attrs.evolve(settings, max_bytes=1000, backup_count=2, keep_s=DAY_S, most_backups=6)


def backups(settings: AuditSettings) -> list[str]:
    return sorted(path.name for path in settings.audit_log.parent.glob("audit.log.*"))


def names(*numbers: int) -> list[str]:
    return [f"audit.log.{number}" for number in numbers]


def test_young_files_stay_beyond_their_number_and_old_ones_do_not(small: AuditSettings) -> None:
    number = 0
    with opened(small) as (audit, complaints):
        while len(backups(small)) < 5:
            audit.end(command(number := number + 1))
        oldest = small.audit_log.with_name("audit.log.5")
        assert ids(oldest)[0] == "1", "nothing is lost"
        for name in names(3, 4, 5):
            os.utime(small.audit_log.with_name(name), (time.time() - 2 * DAY_S,) * 2)
        newest = small.audit_log.with_name("audit.log.1").stat().st_ino
        while small.audit_log.with_name("audit.log.1").stat().st_ino == newest:
            audit.end(command(number := number + 1))
        assert backups(small) == names(1, 2, 3)
        assert complaints == []
    assert "LOG_DROPPED" not in kinds(small.audit_log)


def test_a_flood_pushes_young_files_out_at_the_limit_alone_and_it_is_said(small: AuditSettings) -> None:
    with opened(small) as (audit, complaints):
        for number in range(100):
            audit.end(command(number))
        assert backups(small) == names(1, 2, 3, 4, 5, 6)
    everything = [r for path in small.audit_log.parent.glob("audit.log*") for r in records(path)]
    dropped = [record for record in everything if record["event_type"] == "LOG_DROPPED"]
    assert dropped
    assert dropped[0]["details"]["file"] == "audit.log.6"
    assert "keep_days" in complaints[0]
