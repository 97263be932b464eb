"""Run `async def` tests under trio: twelve lines instead of a plugin.

A test that asks for `autojump_clock` runs in virtual time (only without real IO: with a real process a
one-hour deadline would fire at once). Every async test is bounded; raise the bound with
`@pytest.mark.bounded(seconds)`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import hypothesis
import pytest
import trio
from trio.testing import MockClock

TEST_BOUND_S = 30
# No example has a deadline: on a loaded machine it would say how busy that is, and nothing of the code.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")
# Where the same lines must run each time: `--hypothesis-profile same`, as tests/branches.py does.
hypothesis.settings.register_profile(
    "same", hypothesis.settings.get_profile("unhurried"), max_examples=25, derandomize=True, database=None
)


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have usual commands forked, as where no limits hold a keeper."""
    monkeypatch.setattr("sandbox.plan.limits.KEEPER_BYTES", 1 << 60)


@pytest.fixture(params=["spawned", pytest.param("forked", marks=[pytest.mark.long, pytest.mark.once])])
def launched(request: pytest.FixtureRequest) -> None:
    """For a module's `pytestmark`: all its tests see commands of both kinds."""
    if request.param == "forked":
        request.getfixturevalue("forked")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):
        clock = pyfuncitem.funcargs.get("autojump_clock")
        marker = pyfuncitem.get_closest_marker("bounded")
        bound_s = marker.args[0] if marker else TEST_BOUND_S
        pyfuncitem.obj = functools.partial(_run, test, clock, bound_s)
    return (yield)


def _run(test: Any, clock: MockClock | None, bound_s: float, **arguments: Any) -> None:
    async def bounded() -> None:
        with trio.fail_after(float("inf") if clock else bound_s):
            await test(**arguments)

    trio.run(bounded, clock=clock)
