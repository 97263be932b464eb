"""The tools for editing, searching and arranging files, end to end through the gateway: what they are for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.contract.names import shown_path
from tests.support.whole import Whole, open_whole


@attrs.frozen
class Desk:
    """A session in its working directory, and that directory as the test sees it."""

    whole: Whole
    sid: str

    @property
    def work(self) -> Path:
        return self.whole.work

    async def ok(self, tool: str, **arguments: object) -> dict[str, Any]:
        return await self.whole.ok(tool, session_id=self.sid, **arguments)

    async def failure(self, tool: str, **arguments: object) -> str:
        return await self.whole.failure(tool, session_id=self.sid, **arguments)

    async def message(self, tool: str, **arguments: object) -> str:
        answer = await self.whole.answer(tool, session_id=self.sid, **arguments)
        assert answer.is_error
        return str(answer.structured["error_message"])

    def plant(self, **files: str) -> None:
        """Files with their folders (`__` is a slash, `_DOT_` a dot), owned by the session user."""
        for name, content in files.items():
            self.put(name.replace("__", "/").replace("_DOT_", "."), content.encode())

    def put(self, name: str, content: bytes = b"") -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.give()
        return path

    def give(self) -> None:
        """All that is in the working directory belongs to the session user."""
        if os.geteuid() == 0:
            user = self.whole.foundation.user
            with suppress(FileNotFoundError):  # where a test swaps names while it runs
                for path in self.work.rglob("*"):
                    os.chown(path, user.uid, user.gid, follow_symlinks=False)

    def tree(self) -> set[str]:
        return {str(path.relative_to(self.work)) for path in self.work.rglob("*")}


@asynccontextmanager
async def open_desk(tmp_path: Path, **fields: str) -> AsyncIterator[Desk]:
    async with open_whole(tmp_path, **fields) as whole:
        made = await whole.ok("create_session", working_dir=str(whole.work))
        yield Desk(whole, made["session_id"])


# --- edit_file


async def test_an_edit_replaces_exactly_and_shows_the_difference(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        path = desk.put("a.py", b"one\ntwo\nthree\n")
        path.chmod(0o640)
        done = await desk.ok("edit_file", path="a.py", old_text="two\n", new_text="zwei\nmehr\n")
        assert path.read_text() == "one\nzwei\nmehr\nthree\n"
        assert done["diff"] == "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,4 @@\n one\n-two\n+zwei\n+mehr\n three\n"
        assert done["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_mode & 0o777 == 0o640
        again = await desk.ok(
            "edit_file",
            path="a.py",
            old_text="e",
            new_text="E",
            expected_count=5,
            expected_sha256=done["sha256"].upper(),
        )
        assert again["replacements"] == 5


async def test_an_edit_that_is_not_what_was_expected_changes_nothing(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        path = desk.put("a", b"x\r\nx\r\nend")
        for arguments, why in (
            ({"old_text": "x", "new_text": "y"}, "occurs 2 times, not 1 (lines 1, 2)"),
            ({"old_text": "x\nx", "new_text": "y"}, "CRLF"),
            ({"old_text": "absent", "new_text": "y"}, "occurs 0 times"),
        ):
            answer = await desk.whole.answer("edit_file", session_id=desk.sid, path="a", **arguments)
            assert answer.structured["error_name"] == "FILE_EDIT_MISMATCH"
            assert why in answer.structured["error_message"]
        wrong = {"old_text": "end", "new_text": "y", "expected_sha256": "0" * 64}
        assert await desk.failure("edit_file", path="a", **wrong) == "FILE_CHANGED"
        assert await desk.failure("edit_file", path="a", old_text="end", new_text="end") == "INVALID_ARGUMENTS"
        assert await desk.failure("edit_file", path="none", old_text="a", new_text="b") == "FILE_NOT_FOUND"
        assert await desk.failure("edit_file", path="a", old_text="end", new_text="y" * 9000) == "FILE_TOO_LARGE"
        assert path.read_bytes() == b"x\r\nx\r\nend"
        assert desk.tree() == {"a"}


async def test_what_an_edit_is_about_is_not_in_the_audit(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("a", b"very secret words")
        await desk.ok("edit_file", path="a", old_text="very secret", new_text="other hidden")
        record = desk.whole.records()[-1]
        assert record["event_type"] == "FILE_EDIT"
        assert record["sha256"]
        assert "secret" not in str(record)
        assert "hidden" not in str(record)


# --- search_files, find_files


async def test_a_search_finds_lines_with_their_context(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(src__a_DOT_py="import os\n\ndef needle():\n    pass\n", src__b_DOT_txt="needle\n", x_DOT_py="no\n")
        found = await desk.ok("search_files", pattern=r"def \w+", include=["*.py"], context_lines=1)
        (match,) = found["matches"]
        assert (match["path"], match["line"], match["column"]) == ("src/a.py", 3, 1)
        assert (match["before"], match["text"], match["after"]) == ([""], "def needle():", ["    pass"])
        assert (found["files_searched"], found["files_with_matches"], found["truncated"]) == (2, 1, False)
        assert (await desk.ok("read_file", path=match["path"]))["content"].startswith("import os")


async def test_a_search_knows_literals_case_globs_and_single_files(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(a_DOT_txt="A.B\naxb\n", _DOT_hidden="a.b\n", deep__er__c_DOT_txt="a.b", skip__d_DOT_txt="a.b")
        desk.put("binary", b"a.b\0")

        async def paths(**arguments: object) -> list[str]:
            found = await desk.ok("search_files", **arguments)
            return [f"{m['path']}:{m['line']}" for m in found["matches"]]

        assert await paths(pattern="a.b", exclude=["skip"]) == ["a.txt:2", "deep/er/c.txt:1"]
        assert await paths(pattern="a.b", literal=True) == ["deep/er/c.txt:1", "skip/d.txt:1"]
        assert await paths(pattern="a.b", literal=True, case_sensitive=False, include=["/*.txt"]) == ["a.txt:1"]
        assert await paths(pattern="a.b", include_hidden=True, include=[".*"]) == [".hidden:1"]
        assert await paths(pattern="x", path="a.txt") == ["a.txt:2"]
        assert await paths(pattern="^$", path="deep") == []
        assert await desk.failure("search_files", pattern="(") == "INVALID_ARGUMENTS"
        assert await desk.failure("search_files", pattern="a", include=["{a"]) == "INVALID_ARGUMENTS"
        assert await desk.failure("search_files", pattern="a", path="none") == "FILE_NOT_FOUND"


async def test_a_search_stops_at_its_limits_and_says_which(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("many", b"line\n" * 1000)
        by_count = await desk.ok("search_files", pattern="line", max_matches=10)
        assert (len(by_count["matches"]), by_count["truncated"], by_count["stopped_by"]) == (10, True, "count")
        exactly = await desk.ok("search_files", pattern="line", max_matches=1000)
        assert (len(exactly["matches"]), exactly["truncated"], exactly["stopped_by"]) == (1000, False, None)
        by_size = await desk.ok("search_files", pattern="line", max_matches=1000, max_bytes=2048)
        assert by_size["stopped_by"] == "size"


async def test_a_long_line_is_cut_around_its_match(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("long", b"x" * 100_000 + b"needle" + b"y" * 100_000)
        (match,) = (await desk.ok("search_files", pattern="needle"))["matches"]
        assert match["column"] == 100_001
        assert "needle" in match["text"]
        assert len(match["text"]) <= 500
        assert match["text_truncated"]


async def test_an_expression_that_never_ends_is_ended_and_stalls_nothing(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("0", b"found first\n")
        desk.put("evil", b"a" * 60 + b"b\n")
        stuck = await desk.ok("search_files", pattern=r"first|^(a+)+$", timeout_seconds=0.5)
        assert (stuck["stopped_by"], stuck["truncated"]) == ("time", True)
        assert (await desk.ok("read_file", path="0"))["content"] == "found first\n"


async def test_files_are_found_by_globs(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(a_DOT_py="1", src__b_DOT_py="22", src__deep__c_DOT_py="", src__c_DOT_txt="", _DOT_h__d_DOT_py="")
        (desk.work / "src/link").symlink_to("b.py")

        async def paths(**arguments: object) -> list[str]:
            return [entry["path"] for entry in (await desk.ok("find_files", **arguments))["entries"]]

        assert await paths(pattern="*.py") == ["a.py", "src/b.py", "src/deep/c.py"]
        assert await paths(pattern="src/*.{py,txt}") == ["src/b.py", "src/c.txt"]
        assert await paths(pattern="src/**/*.py") == ["src/b.py", "src/deep/c.py"]
        assert await paths(pattern="*", type="directory") == ["src", "src/deep"]
        assert await paths(pattern="*", type="symlink") == ["src/link"]
        assert await paths(pattern="**/d.py", include_hidden=True) == [".h/d.py"]
        assert await paths(pattern="*.py", exclude=["deep"], path="src") == ["src/b.py"]
        limited = await desk.ok("find_files", pattern="*.py", max_matches=1)
        assert (len(limited["entries"]), limited["stopped_by"]) == (1, "count")
        (entry,) = (await desk.ok("find_files", pattern="b.py"))["entries"]
        assert (entry["type"], entry["size_bytes"]) == ("file", 2)
        assert entry["modified_at"].endswith("Z")


# --- stat_path, make_directory


async def test_a_path_is_told_about_with_or_without_following(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        path = desk.put("f", b"abc")
        path.chmod(0o604)
        os.utime(path, (0, 86_400))
        (desk.work / "link").symlink_to("f")
        told = await desk.ok("stat_path", path="link", checksum=True)
        assert (told["type"], told["size_bytes"], told["mode"], told["link_count"]) == ("file", 3, "0604", 1)
        assert told["modified_at"] == "1970-01-02T00:00:00.000Z"
        assert told["sha256"] == hashlib.sha256(b"abc").hexdigest()
        link = await desk.ok("stat_path", path="link", follow_symlinks=False)
        assert (link["type"], link["link_target"], link["path"]) == ("symlink", "f", str(desk.work / "link"))
        assert await desk.failure("stat_path", path="none") == "FILE_NOT_FOUND"
        assert await desk.failure("stat_path", path="none", follow_symlinks=False) == "FILE_NOT_FOUND"


async def test_directories_are_made_one_or_all(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        assert (await desk.ok("make_directory", path="a"))["created"]
        assert (await desk.ok("make_directory", path="a/b/c", parents=True))["created"]
        assert not (await desk.ok("make_directory", path="a/b", parents=True))["created"]
        desk.put("file")
        assert await desk.failure("make_directory", path="a") == "FILE_EXISTS"
        assert await desk.failure("make_directory", path="file") == "FILE_EXISTS"
        assert await desk.failure("make_directory", path="x/y") == "FILE_NOT_FOUND"
        assert await desk.failure("make_directory", path="file", parents=True) == "FILE_EXISTS"
        assert await desk.failure("make_directory", path="file/x", parents=True) in ("FILE_NOT_FOUND", "FILE_EXISTS")
        assert desk.tree() == {"a", "a/b", "a/b/c", "file"}


# --- move_path, copy_path, delete_path


async def test_moving_renames_and_replaces_only_when_told(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(a="1", b="2", d__x="3")
        await desk.ok("move_path", source="a", destination="c")
        assert await desk.failure("move_path", source="c", destination="b") == "FILE_EXISTS"
        assert await desk.failure("move_path", source="c", destination="d", overwrite=True) == "FILE_EXISTS"
        await desk.ok("move_path", source="c", destination="b", overwrite=True)
        await desk.ok("move_path", source="d", destination="e")
        assert await desk.failure("move_path", source="e", destination="e/f") == "INVALID_ARGUMENTS"
        assert await desk.failure("move_path", source="none", destination="f") == "FILE_NOT_FOUND"
        assert desk.tree() == {"b", "e", "e/x"}
        assert (desk.work / "b").read_text() == "1"


async def test_copying_keeps_modes_links_and_holes(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(d__run="#!", d__deep__f="content")
        (desk.work / "d/run").chmod(0o4755)
        (desk.work / "d/link").symlink_to("/etc/passwd")
        os.mkfifo(desk.work / "d/fifo")
        desk.give()
        assert await desk.failure("copy_path", source="d", destination="e") == "FILE_ACCESS_DENIED"
        done = await desk.ok("copy_path", source="d", destination="e", recursive=True)
        assert (done["files_copied"], done["bytes_copied"], done["skipped_count"]) == (2, 9, 1)
        assert done["skipped"] == [{"path": "fifo", "reason": "it is no file, directory or link"}]
        assert os.readlink(desk.work / "e/link") == "/etc/passwd"
        assert (desk.work / "e/run").stat().st_mode & 0o7777 == 0o755
        await desk.ok("copy_path", source="d/deep/f", destination="g")
        assert await desk.failure("copy_path", source="d/deep/f", destination="g") == "FILE_EXISTS"
        await desk.ok("copy_path", source="d/run", destination="g", overwrite=True)
        assert (desk.work / "g").read_text() == "#!"
        assert await desk.failure("copy_path", source="d", destination="d/e", recursive=True) == "INVALID_ARGUMENTS"
        assert await desk.failure("copy_path", source="d", destination="e", recursive=True) == "FILE_EXISTS"


async def test_a_file_that_is_larger_than_may_be_written_is_not_copied(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("d/large", b"x" * 9000)
        assert await desk.failure("copy_path", source="d/large", destination="e") == "FILE_TOO_LARGE"
        assert await desk.failure("copy_path", source="d", destination="e", recursive=True) == "FILE_TOO_LARGE"
        assert desk.tree() == {"d", "d/large"}


async def test_deleting_a_tree_must_be_confirmed(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(d__a="1", d__deep__b="2", f="3")
        (desk.work / "link").symlink_to("d")
        (desk.work / "empty").mkdir()
        desk.give()
        assert await desk.failure("delete_path", path="d") == "FILE_ACCESS_DENIED"
        assert await desk.failure("delete_path", path="d", recursive=True) == "POLICY_CONFIRMATION_REQUIRED"
        assert await desk.failure("delete_path", path="f", recursive=True) == "POLICY_CONFIRMATION_REQUIRED"
        assert len(desk.tree()) == 7
        assert (await desk.ok("delete_path", path="link"))["entries_deleted"] == 1
        assert (await desk.ok("delete_path", path="empty"))["entries_deleted"] == 1
        assert desk.tree() == {"d", "d/a", "d/deep", "d/deep/b", "f"}
        assert (await desk.ok("delete_path", path="d", recursive=True, confirm=True))["entries_deleted"] == 4
        assert (await desk.ok("delete_path", path="f", confirm=True))["entries_deleted"] == 1
        assert desk.tree() == set()
        assert await desk.failure("delete_path", path="f") == "FILE_NOT_FOUND"
        for own in (".", "~", str(desk.work), str(desk.work.parent)):
            name = await desk.failure("delete_path", path=own, recursive=True, confirm=True)
            assert name == "POLICY_PATH_VIOLATION"


# --- list_directory, read_file: what was added


async def test_a_listing_goes_on_at_its_cursor(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        for i in range(25):
            (desk.work / f"f{i:02}").touch()
        names, cursor = [], None
        while True:
            page = await desk.ok("list_directory", max_entries=10, **({"cursor": cursor} if cursor else {}))
            names += [entry["name"] for entry in page["entries"]]
            assert page["total_count"] == 25
            assert page["truncated"] == (page["next_cursor"] is not None)
            if not (cursor := page["next_cursor"]):
                break
        assert names == [f"f{i:02}" for i in range(25)]
        assert await desk.failure("list_directory", cursor="nonsense!") == "INVALID_ARGUMENTS"


async def test_a_tree_is_listed_to_its_depth_page_by_page(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(a__x="1", a__y__z="2", a_DOT_b="3", c="4")
        (desk.work / "loop").symlink_to(".")
        whole = await desk.ok("list_directory", depth=2)
        assert [e["name"] for e in whole["entries"]] == ["a", "a/x", "a/y", "a.b", "c", "loop"]
        assert (whole["total_count"], whole["truncated"]) == (6, False)
        names, cursor = [], None
        for _ in range(10):
            page = await desk.ok("list_directory", depth=9, max_entries=2, **({"cursor": cursor} if cursor else {}))
            names += [entry["name"] for entry in page["entries"]]
            if not (cursor := page["next_cursor"]):
                break
        assert names == ["a", "a/x", "a/y", "a/y/z", "a.b", "c", "loop"]


@pytest.mark.long
@pytest.mark.once
@pytest.mark.bounded(180)  # making them takes a while on a busy machine
async def test_a_hundred_thousand_entries_are_listed(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        (desk.work / "d").mkdir()
        fd = os.open(desk.work / "d", os.O_RDONLY)
        for i in range(100_000):
            os.mknod(f"n{i:05}", 0o100644, dir_fd=fd)
        os.close(fd)
        names, cursor, pages = 0, None, 0
        while pages == 0 or cursor:
            page = await desk.ok("list_directory", path="d", **({"cursor": cursor} if cursor else {}))
            names, cursor, pages = names + len(page["entries"]), page["next_cursor"], pages + 1
        assert (names, pages) == (100_000, 10)
        found = await desk.ok("find_files", path="d", pattern="n9999?")
        assert len(found["entries"]) == 10


async def test_a_name_that_is_no_utf_8_is_shown_and_can_be_used(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        odd = desk.put(os.fsdecode(b"caf\xe9 \x1b.txt"), b"odd")
        ((name, _),) = [(e["name"], e["type"]) for e in (await desk.ok("list_directory"))["entries"]]
        assert name == "caf\\xe9 \x1b.txt"
        assert (await desk.ok("read_file", path=name))["content"] == "odd"
        assert [m["path"] for m in (await desk.ok("search_files", pattern="odd"))["matches"]] == [name]
        assert [e["path"] for e in (await desk.ok("find_files", pattern="*.txt"))["entries"]] == [name]
        assert (await desk.ok("stat_path", path=name))["path"] == shown_path(str(odd))
        await desk.ok("move_path", source=name, destination="caf\\xff")
        assert os.listdir(os.fsencode(desk.work)) == [b"caf\xff"]
        await desk.ok("copy_path", source="caf\\xff", destination="plain")
        await desk.ok("delete_path", path="caf\\xff")
        assert desk.tree() == {"plain"}


async def test_lines_are_read_from_the_front_and_from_the_back(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        lines = [f"line {i}\n" for i in range(1, 101)]
        desk.put("f", "".join(lines).encode())

        async def read(**arguments: int) -> tuple[str, Any, Any]:
            part = await desk.ok("read_file", path="f", **arguments)
            return part["content"], part["start_line"], part["line_count"]

        assert await read(start_line=3, line_count=2) == ("line 3\nline 4\n", 3, 2)
        assert await read(line_count=1) == ("line 1\n", 1, 1)
        assert await read(start_line=99) == ("line 99\nline 100\n", 99, 2)
        assert await read(start_line=-2) == ("line 99\nline 100\n", None, 2)
        assert await read(start_line=-3, line_count=1) == ("line 98\n", None, 1)
        assert await read(start_line=500) == ("", 500, 0)
        assert (await read(start_line=-500))[1] == 1
        part = await desk.ok("read_file", path="f", start_line=10, line_count=3)
        assert part["truncated"]
        rest = await desk.ok("read_file", path="f", offset=part["next_offset"], limit=8)
        assert rest["content"] == "line 13\n"
        assert await desk.failure("read_file", path="f", start_line=0) == "INVALID_ARGUMENTS"
        assert await desk.failure("read_file", path="f", start_line=2, offset=5) == "INVALID_ARGUMENTS"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "latin-1", "shift_jis", "gb18030", "euc-jp"])
async def test_a_declared_encoding_is_read_in_parts(tmp_path: Path, encoding: str) -> None:
    text = "abc é üx" * 9 if encoding == "latin-1" else "日本語 text テキスト" * 9
    async with open_desk(tmp_path) as desk:
        data = text.encode(encoding)
        desk.put("f", b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16" else data)
        pieces, offset = [], 0
        while offset is not None:
            part = await desk.ok("read_file", path="f", encoding=encoding, offset=offset, limit=5)
            assert part["encoding"] == encoding
            pieces.append(part["content"])
            offset = part["next_offset"]
        assert "".join(pieces) == text


async def test_a_wrong_encoding_is_an_error_and_binary_is_always_base64(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.put("f", b"abc\xff\xff")
        assert "byte 3" in await desk.message("read_file", path="f", encoding="utf-8")
        assert await desk.failure("read_file", path="f", encoding="ascii") == "INVALID_ARGUMENTS"
        assert (await desk.ok("read_file", path="f", encoding="latin-1"))["content"] == "abcÿÿ"
        binary = await desk.ok("read_file", path="f", encoding="binary", limit=2)
        assert (binary["content"], binary["is_binary"], binary["encoding"]) == ("YWI=", True, None)
        assert await desk.failure("read_file", path="f", encoding="utf-16", start_line=1) == "INVALID_ARGUMENTS"
