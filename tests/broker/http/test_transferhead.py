"""Heads of requests on a transfer's URL: a range means what RFC 9110 says, and nothing is guessed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.contract.errors import BrokerError
from broker.contract.urls import curl_line
from broker.http.transfer_answer import file_headers
from broker.http.transfer_head import UnsatisfiableRange, UploadHead, upload_head, wanted_range

SIZE = 50
numbers = st.one_of(st.just(""), st.integers(0, 70).map(str))


def wanted(text: str, if_range: str | None = None) -> tuple[int, int] | None:
    headers = [(b"range", text.encode())]
    if if_range is not None:
        headers.append((b"if-range", if_range.encode()))
    return wanted_range(headers, SIZE, "tag")


@given(numbers, numbers)
def test_a_range_is_a_slice_or_nothing(first: str, last: str) -> None:
    data = bytes(range(SIZE))
    if not (first or last) or (first and last and int(last) < int(first)):
        assert wanted(f"bytes={first}-{last}") is None
        return
    expected = data[-int(last) :] if not first and int(last) else data[int(first or SIZE) :]
    if first and last:
        expected = data[int(first) : int(last) + 1]
    if not expected:
        with pytest.raises(UnsatisfiableRange):
            wanted(f"bytes={first}-{last}")
    else:
        span = wanted(f"bytes={first}-{last}")
        assert span is not None
        assert data[slice(*span)] == expected


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=20))
def test_any_text_for_a_range_is_answered(text: str) -> None:
    try:
        span = wanted_range([(b"range", text.encode("latin-1"))], SIZE, "tag")
    except UnsatisfiableRange:
        return
    assert span is None or 0 <= span[0] < span[1] <= SIZE


def test_a_range_of_another_version_is_no_range() -> None:
    assert wanted("bytes=1-2", '"tag"') == (1, 3)
    for other in ('"other"', "tag", 'W/"tag"', "Sun, 22 Nov 2026 20:00:00 GMT"):
        assert wanted("bytes=1-2", other) is None


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("PUT", {"content-length": "9"}, (0, None, 9, False)),
        ("PUT", {"transfer-encoding": "chunked"}, (0, None, None, False)),
        ("PUT", {"content-range": "bytes 5-8/9", "content-length": "4"}, (5, 9, 4, False)),
        ("PUT", {"content-range": "bytes 5-7/9", "content-length": "3"}, (5, 9, 3, True)),
        ("PUT", {"content-range": "bytes 5-8/*", "content-length": "4"}, (5, None, 4, True)),
        ("PUT", {"upload-offset": "5", "upload-complete": "?0", "content-length": "1"}, (5, None, 1, True)),
        ("PATCH", {"upload-offset": "5", "upload-complete": "?1", "content-length": "1"}, (5, None, 1, False)),
        ("PATCH", {"upload-offset": "5", "upload-length": "6", "content-length": "1"}, (5, 6, 1, True)),
    ],
)
def test_an_upload_says_where_it_goes_on(
    method: str, headers: dict[str, str], expected: tuple[int, int | None, int | None, bool]
) -> None:
    offset, total_bytes, body_bytes, is_part = expected
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert upload_head(method, raw) == UploadHead(
        offset=offset, total_bytes=total_bytes, body_bytes=body_bytes, is_part=is_part
    )


@given(st.dictionaries(st.sampled_from(["content-range", "upload-offset", "upload-complete"]), st.text(max_size=12)))
@example({"upload-offset": "0\x1f"})
@example({"upload-offset": " 0\t"})
def test_what_is_not_understood_is_refused_not_guessed(headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    with suppress(BrokerError):
        assert upload_head("PUT", raw).offset >= 0


@pytest.mark.parametrize("name", ['a"b\r\nX: y', "naïve.txt", "\udcff", "-", "x%41", "…"])
def test_no_name_of_a_file_leaves_its_header_or_its_word(name: str) -> None:
    headers = dict(file_headers(name, 1, "tag"))
    said = headers[b"content-disposition"]
    assert said.startswith(b"attachment; ")
    assert said.isascii()
    assert not set(said) & {*b"\r\n\0"}
    assert said.count(b'"') == 2
    assert "./" in curl_line("GET", f"/srv/{name}", "http://x/y")
    assert "\n" not in curl_line("GET", f"/srv/{name}", "http://x/y")
