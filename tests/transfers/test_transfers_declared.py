"""What was declared of an upload is what is put in place, or nothing is. The machine alone."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from transfers.upload_state import Acknowledge, Commit, Declared, Refuse, State, Sync, Upload, Why, Write

contents = st.binary(max_size=40)


def send(upload: Upload, data: bytes, cuts: list[int]) -> Acknowledge | Refuse:
    """Offer *data* in pieces, then say that this was all; the answer to the last step."""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        step = upload.offer(start, data[start:stop], is_last=False)
        if isinstance(step, Write):
            step = upload.wrote(step, step.digest_after())
        if isinstance(step, Refuse):
            return step
    step = upload.offer(upload.received_bytes, b"", is_last=True)
    if isinstance(step, Sync):
        step = upload.synced()
        assert isinstance(step, Commit)
        step = upload.committed()
    assert isinstance(step, Acknowledge | Refuse)
    return step


@given(contents, contents, st.sets(st.sampled_from(["size", "sha256"])), st.data())
def test_only_what_was_declared_is_committed(data: bytes, meant: bytes, told: set[str], draw: st.DataObject) -> None:
    size, sha256 = "size" in told, "sha256" in told
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=4)))
    declared = Declared(
        size_bytes=len(meant) if size else None, sha256=hashlib.sha256(meant).hexdigest() if sha256 else None
    )
    upload = Upload(max_bytes=100, declared=declared)
    answer = send(upload, data, cuts)
    fits = (not size or len(data) == len(meant)) and (not sha256 or data == meant)
    assert (upload.state is State.COMPLETE) == fits
    if fits:
        assert answer == Acknowledge(received_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    else:
        assert isinstance(answer, Refuse)
        assert answer.why in {Why.BEYOND, Why.SHORT, Why.DIGEST}
        assert (upload.state is State.BROKEN) == (answer.why is Why.DIGEST)


def test_what_is_too_short_can_go_on() -> None:
    upload = Upload(max_bytes=100, declared=Declared(size_bytes=4))
    assert send(upload, b"ab", []) == Refuse(why=Why.SHORT, expected_offset=2)
    step = upload.offer(2, b"cd", is_last=True)
    assert isinstance(step, Write)
    assert isinstance(upload.wrote(step, step.digest_after()), Sync)


def test_what_goes_beyond_the_declared_size_with_a_later_piece_is_refused() -> None:
    upload = Upload(max_bytes=100, declared=Declared(size_bytes=4))
    assert send(upload, b"abcde", [3]) == Refuse(why=Why.BEYOND, expected_offset=3)
