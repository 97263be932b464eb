"""What lies in /opt is nobody's to read unless the policy allows it, or names a program that came with it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.plan.walls import packages_of
from tests.live.test_live_walls import as_each, broker_of
from tests.support.live import COMMANDS, connect, new_session, run

OPT = Path("/opt")
MARK = secrets.token_hex(8)
pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]


@contextmanager
def packages() -> Iterator[tuple[Path, Path]]:
    """Two packages of the machine, each with a program and what that reads; all of it is everybody's to read."""
    if not os.access(OPT if OPT.exists() else "/", os.W_OK):
        pytest.skip("only who may write in /opt can try this")
    places = (OPT / f"named-{MARK}", OPT / f"other-{MARK}")
    try:
        for place in places:
            for folder in ("bin", "lib"):
                (place / folder).mkdir(parents=True, mode=0o755)
            shutil.copy("/bin/cat", place / "bin/show")
            for file in ("lib/data", ".env"):
                (place / file).write_text("told\n")
        yield places
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_a_program_in_opt_finds_what_it_came_with_and_nobody_finds_the_rest(
    who: str, *, namespaces: bool
) -> None:
    with packages() as (named, other):
        commands = {**COMMANDS, "show": {"executable": f"{named}/bin/show"}}
        server = {"sandbox": {"enable_namespaces": namespaces}}
        with broker_of(who, server, allowed_commands=commands) as broker:
            async with connect(broker) as client:
                sid = await new_session(client)
                own = await run(client, sid, "show", f"{named}/lib/data")
                assert (own["exit_code"], own["stdout"]) == (0, "told\n"), own
                for program in ("show", "cat"):
                    others = await run(client, sid, program, f"{other}/lib/data")
                    assert (others["exit_code"], others["stdout"]) == (1, ""), others


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_what_the_policy_allows_in_opt_can_be_read(who: str, *, namespaces: bool) -> None:
    """The control."""
    server = {"sandbox": {"enable_namespaces": namespaces}}
    with packages() as (_, other), broker_of(who, server, allowed_paths=["~/**", f"{other}/lib/**"]) as broker:
        async with connect(broker) as client:
            sid = await new_session(client)
            assert (await run(client, sid, "cat", f"{other}/lib/data"))["stdout"] == "told\n"
            assert (await run(client, sid, "cat", f"{other}/.env"))["stdout"] == ""


def test_a_package_is_the_folder_below_opt_that_holds_a_program() -> None:
    programs = ("/opt/a/bin/x", "/opt/a/y", "/opt/vendor/b/z", "/opt/alone", "/usr/bin/opt/c/d", "/optional/e/f")
    assert packages_of(programs) == ("/opt/a", "/opt/vendor")
