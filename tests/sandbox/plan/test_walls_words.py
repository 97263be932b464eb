"""What `isolation` says is true in every combination of what a machine gives, an operator says and a policy allows.

Who may connect where, in each of them, is tried in test_walls_births.py; here stands that the words go with it.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import trio

from sandbox.kernel import namespaces
from sandbox.machine.capabilities import Capabilities, Feature
from sandbox.plan.spaces import Spaces, choose_spaces
from tests.sandbox.init.test_sandbox_births import PLAIN, open_world, plan_for
from tests.sandbox.init.test_walls_births import CONNECT, PYTHON, detail_of, needs_namespaces
from tests.support.live import COMMANDS, connect, new_session, ok, run, running_broker

WHY_NO_NAMESPACES, WHY_NO_NETWORK, WHY_NO_FILTER = "nobody may unshare", "no network is given", "no filters are given"


def machine(*, root: bool, spaces: bool, network: bool, filters: bool, abi: int) -> Capabilities:
    return Capabilities(
        landlock_abi=abi,
        landlock_detail=f"ABI {abi}",
        is_root=root,
        may_switch_user=root,
        seccomp=Feature(present=filters, detail="filters" if filters else WHY_NO_FILTER),
        namespaces=Feature(present=spaces, detail="tried" if spaces else WHY_NO_NAMESPACES),
        network_namespace=Feature(
            present=network, detail="tried" if network else WHY_NO_NETWORK if spaces else WHY_NO_NAMESPACES
        ),
        own_task_count=spaces and not root,
    )


def combinations() -> list[tuple[Capabilities, dict[str, Any], Spaces]]:
    found = []
    flags = itertools.product([True, False], repeat=6)
    for root, spaces, network, filters, enabled, private_tmp in flags:
        for abi, use in itertools.product((0, 5, 6), ("none", "some", "all")):
            capabilities = machine(root=root, spaces=spaces, network=network and spaces, filters=filters, abi=abi)
            asked = {"enabled": enabled, "private_tmp": private_tmp, "network": use}
            found.append((capabilities, asked, choose_spaces(capabilities, **asked)))  # type: ignore[arg-type]
    return found


ALL = combinations()


def test_a_reason_is_one_and_names_what_is_missing() -> None:
    for capabilities, asked, spaces in ALL:
        for name, (state, detail) in spaces.layers:
            assert not re.search(r"\b(tried|filters)\b(?! are given)", detail), (name, detail)
            if state == "unavailable" and name != "network":
                assert ("switched off" in detail) is not asked["enabled"]
        if not asked["enabled"]:
            assert WHY_NO_NAMESPACES not in str(spaces.layers)
        if capabilities.seccomp.present:
            assert WHY_NO_FILTER not in str(spaces.layers)


def test_the_network_layer_says_who_has_it_and_nothing_else() -> None:
    for capabilities, asked, spaces in ALL:
        state, detail = dict(spaces.layers)["network"]
        own = bool(spaces.ahead & namespaces.NET)
        assert ("a network of its own" in detail) is own
        assert ("to every command" in detail) is (asked["network"] == "all")
        assert ("to some command lines" in detail) is (asked["network"] == "some")
        filtered = asked["network"] != "all" and capabilities.seccomp.present and not own
        assert ("no internet sockets" in detail) is filtered
        assert ("all commands get no internet sockets" in detail) is (filtered and asked["network"] == "none")
        assert (state == "unavailable") is not (own or filtered)
        assert ("have a path" in detail) is (filtered and not spaces.ahead)
        assert ("abstract" in detail) is (filtered and capabilities.landlock_abi < 6)
        assert (state == "partial") is ("have a path" in detail or "abstract" in detail)


def test_the_layers_of_namespaces_are_enforced_only_with_namespaces() -> None:
    for capabilities, asked, spaces in ALL:
        layers = dict(spaces.layers)
        given = asked["enabled"] and capabilities.namespaces.present
        assert bool(spaces.ahead) is given
        assert (layers["pid_namespace"][0] == "enforced") is given
        assert (layers["mount_namespace"][0] == "enforced") is (given and asked["private_tmp"])
        assert (layers["mount_namespace"][0] == "unavailable") is not given


@needs_namespaces
async def test_one_that_has_the_network_can_do_it_for_another_as_the_layer_says() -> None:
    """Why `some` says so: the same machine's network is there for both, and a socket can be handed over."""
    give = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); c, _ = s.accept()\n"
    give += "given = socket.socket(); socket.send_fds(c, [b'x'], [given.fileno()])"
    take = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\n"
    take += "while s.connect_ex(sys.argv[1]): time.sleep(0.01)\nprint(len(socket.recv_fds(s, 1, 1)[1]))"
    async with open_world(plan=plan_for(network="some")) as world:
        path = str(world.home / "s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.run(PYTHON, "-I", "-c", give, path, network=True))
            taken = await world.run(PYTHON, "-I", "-c", take, path, network=False)
        assert taken.stdout.data == b"1\n"
        alone = await world.run(PYTHON, "-I", "-c", CONNECT, "1", network=False)
        assert alone.stdout.data == b"PermissionError\n"
        assert "have one of those do it for them" in detail_of(world, "network")


@pytest.mark.bounded(90)
@pytest.mark.long
async def test_a_rule_whose_program_is_not_there_opens_no_network() -> None:
    """Beside it, the control: the same rule with a program that is there."""
    for executable, words in (("/nowhere/fetch", "a network of its own"), (PYTHON, "to some command lines")):
        commands = {**COMMANDS, "fetch": {"executable": executable, "network": "allow"}}
        with running_broker(policy={"allowed_commands": commands}) as broker:
            async with connect(broker) as client:
                layers = {each["name"]: each for each in (await ok(client, "get_system_info"))["isolation"]}
                if layers["pid_namespace"]["state"] != "enforced":
                    pytest.skip("this machine gives no namespaces")
                sid = await new_session(client)
                assert (await run(client, sid, "true"))["exit_code"] == 0
                assert words in layers["network"]["detail"]


async def test_where_namespaces_are_switched_off_the_layers_say_so() -> None:
    async with open_world(plan=plan_for(**PLAIN)) as world:
        for name in ("pid_namespace", "mount_namespace"):
            assert detail_of(world, name).startswith("switched off")
