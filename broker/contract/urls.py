"""The path space of raw transfers, and the curl lines that a client is told. Pure."""

from __future__ import annotations

import posixpath
import shlex

from broker.contract.encode import printable

TRANSFERS_PATH = "/transfers/"
_PUT = "curl --globoff --fail-with-body --silent --show-error --upload-file"


def curl_line(method: str, path: str, url: str, archive: str | None = None) -> str:
    """A line for a shell; the local file has the name of the other one, in the current directory.

    Of an *archive*, a directory of that name is packed on its way up; a download becomes a file with that ending.
    """
    name = posixpath.basename(path.rstrip("/")) or "file"
    if archive is not None and method == "PUT":
        return f"{_pack_line(name, archive)} | {_PUT} - {shlex.quote(url)}"
    if archive is not None:
        name = f"{name}.{archive}"
    # Behind ./ no name is an option, and "-" is no standard input; quoted, none is anything else.
    local = shlex.quote(f"./{printable(name)}")
    if method == "GET":
        return f"curl --globoff --fail --silent --show-error --output {local} {shlex.quote(url)}"
    return f"{_PUT} {local} {shlex.quote(url)}"


def _pack_line(name: str, archive: str) -> str:
    gzip = "--gzip " if archive == "tar.gz" else ""
    return f"tar --create {gzip}--file=- --directory={shlex.quote(f'./{printable(name)}')} ."
