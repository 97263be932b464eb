"""What a document leads to is there: its links with their headings, and the files it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # it reads files only

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = "bench|broker|config|docs|policy|sandbox|tests|transfers"
OLD = {"CHANGELOG.md"}  # what it names was there when it was written


def headings(text: str) -> set[str]:
    """Return the anchors that a forge gives to the headings."""
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def dead_links(document: Path, text: str) -> list[str]:
    """Return the relative links that lead nowhere."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if name.startswith(("http:", "https:")):
            continue
        other = document.parent / name if name else document
        if not other.exists() or (anchor and anchor not in headings(other.read_text())):
            dead.append(target)
    return dead


def missing_files(text: str) -> list[str]:
    """Return the files and folders of ours that the text names and that are not there; `*` may be in a name."""
    named = re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", text)
    return [name for name in named if not [*ROOT.glob(name.rstrip("/"))]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_every_file_named_is_there(document: Path) -> None:
    text = document.read_text()
    assert dead_links(document, text) == []
    assert document.name in OLD or missing_files(text) == []


def test_what_is_not_there_is_found() -> None:
    here = ROOT / "docs" / "x.md"
    assert dead_links(here, "[a](no.md) [b](audit.md#no) [c](#no) [d](../README.md)") == ["no.md", "audit.md#no", "#no"]
    assert missing_files("`broker/no.py` `sandbox/no/` `tests/test_*.pyx` `docs/audit.md`") == [
        "broker/no.py",
        "sandbox/no/",
        "tests/test_*.pyx",
    ]
    assert headings("# One `word`: two\n```\n# none\n```\n") == {"one-word-two"}


def test_every_decision_is_in_the_list() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text()
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert pages == re.findall(r"\]\((\d{4}-[a-z-]+\.md)\)", listed)
