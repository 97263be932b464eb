"""The closed lists of Host and Origin, as pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.http.origins import host_rules

RULES = host_rules("192.0.2.7", ["Box", "only.example:8443", "fd00::1"], ["https://a.example", "http://b.example:*"])


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:1", "127.0.0.1:65535", "[::1]", "[::1]:80"),
        *("192.0.2.7:8080", "box", "BOX:5", "only.example:8443", "[fd00::1]:9"),
    ],
)
def test_hosts_on_the_list_are_allowed_in_any_case(host: str) -> None:
    assert RULES.canonical_host(host) == host.lower()


@pytest.mark.parametrize(
    "host",
    [
        *("", ":", "localhost:", "localhost:*", "localhost:x", "localhost.", "a.localhost", "localhost@evil"),
        *(
            "only.example",
            "only.example:80",
            "fd00::1",
            "[::1",
            "::1",
            "127.0.0.1:1:1",
            "localhost:1 ",
            "local\u017fhost",
        ),
    ],
)
def test_other_hosts_are_not(host: str) -> None:
    assert RULES.canonical_host(host) is None


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("HTTP://[::1]:1", True),
        ("https://a.example", True),
        ("https://a.example:443", False),
        ("http://a.example", False),
        ("http://b.example", True),
        ("http://b.example:81", True),
        ("http://b.example:81.evil", False),
        ("http://b.example:", False),
        ("ftp://localhost", False),
        ("null", False),
        ("", False),
    ],
)
def test_origins_are_matched_whole(origin: str, allowed: bool) -> None:  # noqa: FBT001 - pytest names it
    assert RULES.origin_allowed(origin) is allowed


def test_a_wildcard_address_is_no_name() -> None:
    for wildcard in ("0.0.0.0", "::"):  # noqa: S104
        rules = host_rules(wildcard, [], [])
        assert rules.canonical_host("0.0.0.0:80") is None
        assert rules.canonical_host("[::]:80") is None


@pytest.mark.parametrize(
    ("hosts", "origins"),
    [(["http://x"], []), (["a b"], []), (["x:99x"], []), (["0.0.0.0/0"], []), ([], ["a.example"]), ([], ["https://"])],
)
def test_an_entry_that_is_none_is_named(hosts: list[str], origins: list[str]) -> None:
    with pytest.raises(ValueError, match="write"):
        host_rules("127.0.0.1", hosts, origins)


@given(st.text(max_size=40))
def test_only_listed_names_are_ever_allowed(text: str) -> None:
    if RULES.canonical_host(text) is not None:
        assert any(text.lower().startswith(name) for name in (*RULES.names, *RULES.names_with_port))


@given(st.sampled_from(sorted(RULES.names)), st.integers(0, 65535))
def test_the_sdks_own_check_agrees(name: str, port: int) -> None:
    patterns = RULES.host_patterns()
    assert name in patterns
    assert f"{name}:*" in patterns
    assert RULES.canonical_host(f"{name}:{port}")
