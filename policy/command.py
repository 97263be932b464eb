"""The decision whether an argv may run. The gates of one rule, in the order in which a person would ask them.

argv[0] names a rule by its key, or by the absolute path that a rule pins; there is no search, so neither a
PATH nor a file in the working directory can change what runs. Every gate must pass; confirmation is asked
last and opens no other gate. Where several rules pin the same program, its path gets the strictest answer.

Also here: the proof of a policy's examples by the same decision, when the policy loads.
"""

from __future__ import annotations

import difflib
import posixpath
import shlex
from typing import TYPE_CHECKING

import attrs

from policy.arguments import first_denial
from policy.decision import Allow, CommandDecision, Confirm, Deny, Run, shown, strictness
from policy.git import hardened
from policy.known import may_run_of, may_use_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from policy.rules import CommandRule, Example, Policy

NAMED_COMMANDS = 40  # of the allowed ones in a refusal: an agent needs the list, a log does not need pages

COMPARED_CHARACTERS = 64


def decide_command(
    policy: Policy, argv: Sequence[str], *, confirm: bool, programs: Mapping[str, str]
) -> CommandDecision:
    """Decide about one command line.

    Args:
        policy: the rules.
        argv: what was asked, word by word; no shell reads it.
        confirm: the caller confirmed; only a rule that asks for confirmation looks at it.
        programs: real path by absolute path, for the executables of this machine (they may be missing).
    """
    words = tuple(argv)
    if not words or not words[0]:
        return Deny(rule="argv", reason="argv is empty: its first word must name an allowed command.")
    for number, word in enumerate(words):
        if "\0" in word:
            return Deny(
                rule="argv",
                reason=f"argv[{number}] {shown(word)} holds a NUL character, which no program can receive: "
                "leave it out.",
            )
    names = _rules_named(policy, words[0], programs)
    if not names:
        return _unknown(policy, words[0])
    return max((_decide_by(policy, name, words, confirm=confirm) for name in names), key=strictness)


def _rules_named(policy: Policy, word: str, programs: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys of the rules that argv[0] names: one by its key, or all that pin its path."""
    if "/" not in word:
        return (word,) if word in policy.allowed_commands else ()
    pinning = (name for name, rule in policy.allowed_commands.items() if _pins(rule, word, programs))
    return tuple(pinning)


def _pins(rule: CommandRule, path: str, programs: Mapping[str, str]) -> bool:
    if path == rule.executable:
        return True
    # /bin/git for /usr/bin/git where /bin is a link. The name must be the same: programs such as busybox are
    # one file under many names, and do what the name says.
    same_name = posixpath.basename(path) == posixpath.basename(rule.executable)
    real = programs.get(path)
    return same_name and real is not None and real == programs.get(rule.executable)


def _unknown(policy: Policy, word: str) -> Deny:
    names = sorted(policy.allowed_commands)
    advice = ""
    if "/" in word:
        advice = "A path works only when it is exactly the executable of an allowed command; use the name."
    # Comparing takes time in proportion to the word, which may be as long as a request.
    near = difflib.get_close_matches(posixpath.basename(word[-COMPARED_CHARACTERS:]), names, n=3)
    listed = ", ".join(names[:NAMED_COMMANDS]) or "none"
    more = f" and {len(names) - NAMED_COMMANDS} more" if len(names) > NAMED_COMMANDS else ""
    sentences = (
        f"Command {shown(word)} is not in the allowed whitelist.",
        advice,
        f"Did you mean {' or '.join(near)}?" if near else "",
        f"Allowed commands: {listed}{more}.",
    )
    return Deny(rule="allowed_commands", reason=" ".join(filter(None, sentences)))


def _with_description(denial: Deny, rule: CommandRule) -> Deny:
    """Add what the operator says of the command: it often tells what to do instead."""
    if not rule.description:
        return denial
    return Deny(rule=denial.rule, reason=f"{denial.reason} (Of this command: {rule.description})")


def _decide_by(policy: Policy, name: str, words: tuple[str, ...], *, confirm: bool) -> CommandDecision:
    rule = policy.allowed_commands[name]
    key = f"allowed_commands.{name}"
    denial = first_denial(key, rule, words)
    if denial:
        return _with_description(denial, rule)
    run = Run(
        rule_name=name,
        program=rule.executable,
        # A path in front becomes the pinned one: a program may act on the name it is given.
        argv=_as_run(rule, (rule.executable if "/" in words[0] else words[0], *words[1:])),
        env=rule.env,
        may_run=may_run_of(rule),
        network=may_use_network(policy, rule, words),
        resource_override=rule.resource_override,
    )
    if rule.requires_confirmation and not confirm:
        return Confirm(
            rule=f"{key}.requires_confirmation",
            reason=f"Command {shown(words[0])} runs only when it is confirmed: ask the person you work for, "
            "then repeat the call with confirm: true.",
            subject=run,
        )
    confirmed = ", and it was confirmed" if rule.requires_confirmation else ""
    return Allow(rule=key, reason=f"The rule for {name} allows these arguments{confirmed}.", subject=run)


def _as_run(rule: CommandRule, argv: tuple[str, ...]) -> tuple[str, ...]:
    return hardened(argv) if posixpath.basename(rule.executable) == "git" else argv


@attrs.frozen(kw_only=True)
class ExampleFault:
    """An example that the policy does not keep."""

    command: str  # the key in allowed_commands
    kind: str  # "allow" or "deny"
    number: int  # position in that list, from 0
    message: str

    @property
    def path(self) -> tuple[str | int, ...]:
        """Return the keys that lead to the example in the file."""
        return ("allowed_commands", self.command, "examples", self.kind, self.number)


def prove_examples(policy: Policy, programs: Mapping[str, str]) -> tuple[ExampleFault, ...]:
    """Return every example that the policy decides otherwise. Programs need not exist for it."""
    return tuple(_faults(policy, programs))


def executables(policy: Policy) -> tuple[str, ...]:
    """Return every program that some process of a session may execute (`X/**`: all beneath X), sorted."""
    found: set[str] = set()
    for rule in policy.allowed_commands.values():
        found.add(rule.executable)
        found.update(may_run_of(rule) or ())
    return tuple(sorted(found))


def _faults(policy: Policy, programs: Mapping[str, str]) -> Iterator[ExampleFault]:
    for name, rule in policy.allowed_commands.items():
        examples = rule.examples
        if examples is None:
            continue
        for kind, lines in (("allow", examples.allow), ("deny", examples.deny)):
            for number, line in enumerate(lines):
                message = _prove(policy, name, kind, line, programs)
                if message:
                    yield ExampleFault(command=name, kind=kind, number=number, message=message)


def _prove(policy: Policy, name: str, kind: str, line: Example, programs: Mapping[str, str]) -> str | None:
    """Return what is wrong with one example of the rule *name*; None: it holds."""
    try:
        argv = tuple(shlex.split(line)) if isinstance(line, str) else line
    except ValueError as error:
        return f"{shown(line if isinstance(line, str) else '')} is no shell-like line: {error}"
    names = {name, posixpath.basename(policy.allowed_commands[name].executable)}
    # By its last component, so that an example can show which paths are not the program.
    if not argv or posixpath.basename(argv[0]) not in names:
        return f"{_text(argv)} is no example of {name}: it must begin with {name}"
    # Confirmed in both cases: an example shows what the arguments may be, and confirming must not widen them.
    decision = decide_command(policy, argv, confirm=True, programs=programs)
    match kind, decision:
        case "allow", Deny():
            return f"{_text(argv)} must be allowed, but {decision.rule} denies it: {decision.reason}"
        case "deny", Allow():
            return f"{_text(argv)} must be denied, but {decision.rule} allows it"
        case _:
            return None


def _text(argv: tuple[str, ...]) -> str:
    return shown(shlex.join(argv))
