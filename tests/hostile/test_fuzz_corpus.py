"""What is kept of fuzzing, through every target once; and that the targets notice what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import INPUTS
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
MAX_BYTES = 1_000_000


def inputs(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_kept_breaks_nothing(target: str) -> None:
    kept = inputs(target)
    assert kept
    for data in kept:
        TARGETS[target](data)


def test_each_folder_of_the_corpus_has_its_target_and_all_are_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*TARGETS} == {*INPUTS}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < MAX_BYTES


def _but(first: Any) -> Any:
    """Anything, but what *first* says."""
    return lambda *_, **__: first


def _breaks(target: Callable[[bytes], None], data: bytes) -> bool:
    try:
        target(data)
    except (AssertionError, AttributeError, TypeError, UnicodeEncodeError):
        return True
    return False


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        ("bulk", "from_json", lambda data: data),
        ("request_head", "_framing_fault", _but(None)),
        ("transfer_head", "wanted_range", lambda _, size, __: (0, size + 1)),
        ("tar", "_members", _but([("other", False, 0, 0)])),
        ("git_configuration", "is_plain_configuration", _but(True)),
        ("text", "safe_text", lambda text: text),
        ("ansi", "strip_ansi", lambda text: text.replace("\x1b", "")),
        ("redaction", "redact_text", lambda text: text * 3000),
        ("secret_words", "without_secrets", lambda script, _: (script[1:], [])),
        ("yaml_document", "_LOADER", targets.yaml.BaseLoader),
        ("path_pattern", "matched_depths", _but(())),
        ("tree_glob", "compile_globs", lambda globs: lambda path: path in globs),
    ],
)
def test_a_target_notices_a_parser_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, target: str, name: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(targets, name, broken)
    assert any(_breaks(TARGETS[target], data) for data in inputs(target))
