"""The command line: serve (default), check, explain, doctor. In a checkout it is `python -m broker` as well.

    oc-broker [serve] [--config-dir PATH] [--host ADDRESS] [--port PORT] [--insecure-bind] [--stdio]
    oc-broker check [--config-dir PATH]
    oc-broker explain [--config-dir PATH] [--confirm] -- ARGV
    oc-broker doctor [--config-dir PATH] [--json]

Exit status: 0 done, 1 denied (explain) or a layer does not hold (doctor), 2 the configuration or the arguments are
wrong, or the doctor can have no session, 3 this machine cannot enforce what is required, or has too little of
processes, open files or memory.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import resource
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from broker.grants import resolve_programs
from broker.logs import configure_logging
from broker.memory.heap import keep_freed_memory
from config.faults import ConfigFaults
from config.load import Config, load_config
from policy.command import decide_command
from policy.decision import Allow
from policy.explain import explain
from sandbox.machine.claims import Claims
from sandbox.shortage import shortage_of

if TYPE_CHECKING:
    from broker.wiring import Foundation

EXIT_DENIED = 1
EXIT_USAGE = 2
EXIT_HOST = 3

CONFIG_DIR_HELP = (
    "folder with server.yaml and policy.yaml (default: config in the checkout that the broker runs from, "
    "~/.config/remote-broker, /etc/remote-broker, the shipped defaults; never the current folder)"
)

log = logging.getLogger("broker")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    options = _parser().parse_args(_with_subcommand(list(sys.argv[1:] if argv is None else argv)))
    try:
        config = load_config(options.config_dir)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return EXIT_USAGE
    run = {"serve": _serve, "check": _check, "explain": _explain, "doctor": _doctor}[options.subcommand]
    try:
        return run(config, options)
    except (OSError, MemoryError, BaseExceptionGroup) as fault:
        if not (short := shortage_of(fault, of_own_file=True)):
            raise
        print(f"cannot run: {short}", file=sys.stderr)
        return EXIT_HOST


def _with_subcommand(argv: list[str]) -> list[str]:
    """Put the default subcommand in front of bare options."""
    named = argv and (not argv[0].startswith("-") or argv[0] in {"-h", "--help"})
    return argv if named else ["serve", *argv]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oc-broker", allow_abbrev=False)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    serve = subcommands.add_parser("serve", help="run the broker (the default)", allow_abbrev=False)
    check = subcommands.add_parser("check", help="validate the configuration", allow_abbrev=False)
    explain = subcommands.add_parser("explain", help="what the policy decides about a command", allow_abbrev=False)
    doctor = subcommands.add_parser("doctor", help="attack the walls of a session from inside", allow_abbrev=False)
    for each in (serve, check, explain, doctor):
        each.add_argument("--config-dir", type=Path, help=CONFIG_DIR_HELP)
    serve.add_argument("--host", help="bind address, instead of server.host")
    serve.add_argument("--port", type=int, help="bind port, instead of server.port; 0 takes a free one")
    serve.add_argument("--insecure-bind", action="store_true", help="allow a bind beyond loopback, unauthenticated")
    serve.add_argument("--stdio", action="store_true", help="speak MCP on standard input and output, not HTTP")
    explain.add_argument("--confirm", action="store_true", help="as if the call said confirm: true")
    doctor.add_argument("--json", action="store_true", help="say it as JSON")
    explain.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- ARGV")
    return parser


def _check(config: Config, _: argparse.Namespace) -> int:
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"ok: {_sources(config)}; {len(config.policy.allowed_commands)} commands allowed")
    return 0


def _sources(config: Config) -> str:
    return ", ".join(str(path) for path in config.sources) or "the shipped defaults"


def _explain(config: Config, options: argparse.Namespace) -> int:
    words = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    real_paths = {path: program.real_path for path, program in resolve_programs(config.policy).items()}
    decision = decide_command(config.policy, words, confirm=options.confirm, programs=real_paths)
    print(explain(decision, words))
    return 0 if isinstance(decision, Allow) else EXIT_DENIED


def _doctor(config: Config, options: argparse.Namespace) -> int:
    import trio  # noqa: PLC0415  as in _run

    from broker import wiring  # noqa: PLC0415  as in _run
    from broker.doctor import doctor  # noqa: PLC0415  as in _run

    diagnosis = None
    try:
        with Claims() as claims:
            foundation = wiring.lay_foundation(config, claims)
            for warning in foundation.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            diagnosis = trio.run(doctor.examine, config, foundation)
    except* (*wiring.CANNOT_START, *doctor.CANNOT_EXAMINE) as refused:
        print(f"cannot examine: {'; '.join(_reasons(refused))}", file=sys.stderr)
    if diagnosis is None:
        return EXIT_USAGE
    print(doctor.as_json(diagnosis) if options.json else "\n".join(doctor.spoken(diagnosis)))
    return 0 if diagnosis.holds else EXIT_DENIED


def _serve(config: Config, options: argparse.Namespace) -> int:
    configure_logging(config.server.logging.level, config.server.logging.format)
    log.info("configuration: %s; logs and data in %s", _sources(config), config.base_dir)
    for warning in config.warnings:
        log.warning("%s", warning)
    try:
        config = _overridden(config, options)
    except ValueError as fault:
        print(f"--host/--port: {fault}", file=sys.stderr)
        return EXIT_USAGE
    if not (options.stdio or options.insecure_bind or _is_loopback(config.server.host)):
        print(
            f"refusing to listen on {config.server.host}: beyond loopback everyone who can connect could run commands, "
            "since there is no authentication yet; bind 127.0.0.1 and tunnel, or add --insecure-bind",
            file=sys.stderr,
        )
        return EXIT_USAGE
    return _run(config, stdio=options.stdio)


def _run(config: Config, *, stdio: bool) -> int:
    import trio  # noqa: PLC0415  a faulty configuration answers without a second of imports

    from broker import app, wiring  # noqa: PLC0415  as above

    status = 0
    with Claims() as claims:
        try:
            foundation = wiring.lay_foundation(config, claims)
        except wiring.CANNOT_START as refused:
            print(f"cannot start: {refused}", file=sys.stderr)
            return EXIT_HOST
        _say_foundation(foundation)
        keep_freed_memory()
        _raise_open_files()
        try:
            if stdio:
                trio.run(app.run_stdio, config, foundation)
            else:
                trio.run(app.run_http, config, foundation, partial(print, "listening on", flush=True))
        except* app.CANNOT_SERVE as refused:
            print(f"cannot start: {'; '.join(_reasons(refused))}", file=sys.stderr)
            status = EXIT_HOST
    return status


def _raise_open_files() -> None:
    """Use as many descriptors as we may: the usual soft limit, 1024, is for programs that call select(2).

    Those run as commands, whose own limit (`resource_limits.open_files_max`) is set soft and hard.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # fs.nr_open was lowered below it: what we have must do
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _reasons(error: BaseException) -> Iterator[str]:
    """Yield each thing that went wrong in a group, however nested."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _reasons(part)
    else:
        yield str(error)


def _say_foundation(foundation: Foundation) -> None:
    user = foundation.user
    for warning in foundation.warnings:
        log.warning("%s", warning)
    log.info("commands run as %s (uid %d), home %s, their HOME %s", user.name, user.uid, user.home, user.own_home)
    for layer in foundation.plan.layers:
        log.info("layer %s: %s: %s", layer.name, layer.state, layer.detail)


def _overridden(config: Config, options: argparse.Namespace) -> Config:
    """The configuration with --host and --port put in; raises ValueError as the file's own values do."""
    given = {"host": options.host, "port": options.port}
    changes = {name: value for name, value in given.items() if value is not None}
    return attrs.evolve(config, server=attrs.evolve(config.server, **changes))


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may mean anything
