"""Uploads and downloads over real files, struck anywhere: whoever dies, a file is the old or the new one, whole.

A Hypothesis state machine drives the real store over a real opener process, in a process of its own, and strikes at
a drawn step of the work: the call is cancelled, the opener is killed, the whole process is killed, as the broker
would be. The second machine does it on a disk so small that it is full at any moment. The model is what a client
knows: which bytes were acknowledged, and which name has which content. `docs/files.md` says what must hold.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.door import needs_root
from tests.support.mortal import SETTINGS, Mortal, Nursery, open_nursery

NAMES = st.sampled_from(["one", "two", "caf\udce9"])
LENGTHS = st.sampled_from([0, 5, 3000, 4096, 20_000])
STRUCK = st.tuples(st.sampled_from(["cancel", "cancel", "kill the opener", "kill"]), st.integers(1, 24))
FAULTS = st.one_of(st.just(("", 0)), st.just(("", 0)), STRUCK)
Fault = tuple[str, int]
FILLER = "filler"
PART_PREFIX = ".remote-broker-part-"


@attrs.define(eq=False)
class Sent:
    """An upload as its client knows it. `unsure`: the chunk whose answer was lost, to be sent once more."""

    name: str
    transfer_id: str
    received: bytes
    newest: tuple[int, bytes, bool] | None = None
    unsure: tuple[int, bytes, bool] | None = None


@attrs.define(eq=False)
class Taken:
    """A download as its client knows it: the content when it began, and how far it is."""

    name: str
    content: bytes
    offset: int


class Crashes(RuleBasedStateMachine):
    """See the module. A disk as large as the machine's."""

    nursery: Nursery  # of all examples
    in_place = False

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="crashes-")))
        self.content: dict[str, bytes] = {}
        self.uploads: list[Sent] = []
        self.downloads: list[Taken] = []
        self.marks = 0
        self.tmpfile = True
        self.mortal: Mortal | None = None

    @initialize(tmpfile=st.booleans())
    def begin(self, *, tmpfile: bool) -> None:
        self.tmpfile = tmpfile
        self.mortal = self.nursery.bear(self.folder, tmpfile=tmpfile, in_place=self.in_place)

    def teardown(self) -> None:
        if self.mortal is not None:
            self.mortal.leave()
        self.stack.close()

    # --- what a client does

    @rule(name=NAMES, length=LENGTHS, is_last=st.booleans(), fault=FAULTS)
    def start_upload(self, name: str, length: int, *, is_last: bool, fault: Fault) -> None:
        self._send(Sent(name, "", b""), (0, self._bytes(length), is_last), fault)

    @precondition(lambda self: self.uploads)
    @rule(which=st.integers(0, 9), length=LENGTHS, is_last=st.booleans(), fault=FAULTS)
    def send_next_chunk(self, which: int, length: int, *, is_last: bool, fault: Fault) -> None:
        sent = self.uploads[which % len(self.uploads)]
        chunk = sent.unsure or (len(sent.received), self._bytes(length), is_last)
        self._send(sent, chunk, fault)

    @precondition(lambda self: any(sent.newest and not sent.unsure for sent in self.uploads))
    @rule(which=st.integers(0, 9), fault=FAULTS)
    def send_a_chunk_again(self, which: int, fault: Fault) -> None:
        known = [sent for sent in self.uploads if sent.newest and not sent.unsure]
        sent = known[which % len(known)]
        assert sent.newest
        self._send(sent, sent.newest, fault)

    @rule(name=NAMES, length=LENGTHS, fault=FAULTS)
    def overwrite(self, name: str, length: int, fault: Fault) -> None:
        data = self._bytes(length)
        answer = self._ask("overwrite", fault, path=self._path(name), data=base64.b64encode(data).decode())
        done = answer is not None and "error" not in answer
        self._settle(name, data, sure=True if done else None)
        if answer is not None and "error" in answer and not fault[0]:
            assert answer["error"] == "NoSpace", answer
        self._go_on()

    @rule(name=NAMES, length=st.sampled_from([1, 3000, 50_000]), fault=FAULTS)
    def start_download(self, name: str, length: int, fault: Fault) -> None:
        self.downloads = [taken for taken in self.downloads if taken.name != name]
        self._take(Taken(name, self.content.get(name, b""), 0), length, fault)

    @precondition(lambda self: self.downloads)
    @rule(which=st.integers(0, 9), length=st.sampled_from([1, 3000, 50_000]), fault=FAULTS)
    def take_next_chunk(self, which: int, length: int, fault: Fault) -> None:
        self._take(self.downloads[which % len(self.downloads)], length, fault)

    # --- what happens around it

    @precondition(lambda self: self.content)
    @rule(which=st.integers(0, 9))
    def a_file_is_changed_in_place(self, which: int) -> None:
        name = sorted(self.content)[which % len(self.content)]
        self.content[name] = self._bytes(len(self.content[name]))
        path = self.folder / name
        path.write_bytes(self.content[name])
        os.utime(path, ns=(self.marks, self.marks))  # the kernel's clock may not tell two writes apart

    @rule()
    def the_process_is_killed(self) -> None:
        assert self.mortal
        self.mortal.kill()
        self._leave()
        self._go_on()

    @rule()
    def the_session_ends(self) -> None:
        self._leave()
        self._go_on()

    # --- what must hold

    @invariant()
    def every_file_is_the_one_that_the_client_knows(self) -> None:
        names = {path.name for path in self.folder.iterdir()}
        parts = {name for name in names if name.startswith(PART_PREFIX)}
        assert names - parts - {FILLER} == set(self.content)
        assert len(parts) <= (0 if self.tmpfile else len(self.uploads))
        for name, content in self.content.items():
            assert (self.folder / name).read_bytes() == content

    # --- how

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _bytes(self, length: int) -> bytes:
        """So many bytes that are in no other chunk."""
        self.marks += 1
        return (b"%x|" % self.marks * (length // 2 + 1))[:length]

    def _ask(self, op: str, fault: Fault, **fields: object) -> dict[str, Any] | None:
        """The answer, None if there was none; what cannot go on is gone by then, and changes nothing any more."""
        assert self.mortal
        answer = self.mortal.ask(op, fault=fault[0], step=fault[1], **fields)
        if answer is None:
            assert fault[0] == "kill"
        if answer is None or fault[0] == "kill the opener":
            self._leave()
        return answer

    def _send(self, sent: Sent, chunk: tuple[int, bytes, bool], fault: Fault) -> None:
        offset, data, is_last = chunk
        answer = self._ask(
            "upload",
            fault,
            path=self._path(sent.name),
            transfer_id=sent.transfer_id,
            offset=offset,
            data=base64.b64encode(data).decode(),
            is_last=is_last,
        )
        whole = sent.received[:offset] + data
        if answer is not None and "error" not in answer:
            self._acknowledged(sent, chunk, whole, answer)
        else:
            self._settle(sent.name, whole, sure=None if is_last and fault[0] else False)
            if answer is not None:
                self._refused(sent, chunk, answer["error"], fault)
        self._go_on()

    def _acknowledged(self, sent: Sent, chunk: tuple[int, bytes, bool], whole: bytes, answer: dict[str, Any]) -> None:
        """The client was told: what is complete is there, and what was received is remembered."""
        if sent in self.uploads:
            self.uploads.remove(sent)
        if answer["is_complete"]:
            assert answer["sha256"] == hashlib.sha256(whole).hexdigest()
            self._settle(sent.name, whole, sure=True)
            return
        received = whole if len(whole) > len(sent.received) else sent.received
        assert answer["received_bytes"] == len(received)
        newest = chunk if chunk[1] else sent.newest
        self.uploads.append(Sent(sent.name, answer["transfer_id"], received, newest))

    def _refused(self, sent: Sent, chunk: tuple[int, bytes, bool], error: str, fault: Fault) -> None:
        if error == "cancelled":
            if sent in self.uploads:
                sent.unsure = chunk
        elif fault[0] != "kill the opener":
            full = error in {"NoRoom", "NoSpace"}
            many = error == "TooManyTransfers" and len(self.uploads) >= SETTINGS.max_open
            behind = error == "OffsetMismatch" and chunk[2] and chunk[0] + len(chunk[1]) < len(sent.received)
            assert full or many or behind, error

    def _settle(self, name: str, new: bytes, *, sure: bool | None) -> None:
        """Find out what the disk holds; `sure` says whether the new content must, or must not, be there."""
        path, old = self.folder / name, self.content.get(name)
        actual = path.read_bytes() if path.exists() else None
        assert actual in {True: [new], False: [old], None: [old, new]}[sure]
        if actual is not None:
            self.content[name] = actual

    def _take(self, taken: Taken, length: int, fault: Fault) -> None:
        if taken in self.downloads:
            self.downloads.remove(taken)
        answer = self._ask("download", fault, path=self._path(taken.name), offset=taken.offset, length=length)
        if answer is not None and "error" not in answer:
            data = base64.b64decode(answer["data"])
            assert data == taken.content[taken.offset : taken.offset + length]
            if answer["is_complete"]:
                assert answer["sha256"] == hashlib.sha256(taken.content).hexdigest()
            else:
                self.downloads.append(Taken(taken.name, taken.content, taken.offset + len(data)))
        elif answer is not None and not fault[0]:
            missing = answer["error"] == "NotFound" and taken.name not in self.content
            changed = answer["error"] in {"SourceChanged", "OffsetBeyondEnd"}
            assert missing or (changed and self.content[taken.name] != taken.content), answer
        self._go_on()

    def _leave(self) -> None:
        assert self.mortal
        self.mortal.leave()
        self.mortal = None

    def _go_on(self) -> None:
        """The next start, if it needs one: what was under way is gone, and nothing of it is left."""
        if self.mortal is None:
            self.uploads, self.downloads = [], []
            self.mortal = self.nursery.bear(self.folder, tmpfile=self.tmpfile, in_place=self.in_place)
            assert not [path for path in self.folder.iterdir() if path.name.startswith(PART_PREFIX)]


class CrashesOnASmallDisk(Crashes):
    """As above, where the disk may be full at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.stack.enter_context(small_disk(self.folder))

    @rule(leave=st.sampled_from([0, 2000, 5000, 30_000]))
    def the_disk_fills(self, leave: int) -> None:
        """Another program takes what there is, but for about *leave* bytes."""
        room = os.statvfs(self.folder)
        rest = room.f_bavail * room.f_frsize - leave
        if rest > 0:
            with (self.folder / FILLER).open("ab") as file:
                file.write(bytes(rest // room.f_frsize * room.f_frsize))

    @rule()
    def there_is_room_again(self) -> None:
        (self.folder / FILLER).unlink(missing_ok=True)


class WritesInPlace(Crashes):
    """The control: uploads that write the destination itself."""

    in_place = True


def run(machine: type[Crashes], examples: int, steps: int) -> None:
    """Run *machine*, all its processes from one nursery."""
    with open_nursery() as nursery:
        machine.nursery = nursery
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # shrinking takes minutes, and the steps of a failure are short enough
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )


def test_a_crash_at_any_step_leaves_the_old_or_the_new_file() -> None:
    run(Crashes, examples=10, steps=25)


@needs_root
@pytest.mark.long
def test_a_crash_on_a_full_disk_at_any_step_leaves_the_old_or_the_new_file() -> None:
    run(CrashesOnASmallDisk, examples=10, steps=25)


def test_the_machine_sees_a_store_that_writes_in_place() -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run(WritesInPlace, examples=10, steps=10)


@pytest.mark.soak
def test_many_crashes() -> None:
    run(Crashes, examples=60, steps=40)


@needs_root
@pytest.mark.soak
def test_many_crashes_on_a_full_disk() -> None:
    run(CrashesOnASmallDisk, examples=60, steps=40)
