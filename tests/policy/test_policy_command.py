"""Commands: what is not allowed is denied, however it is spelled, and the denial says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.command import NAMED_COMMANDS, decide_command, executables, prove_examples
from policy.decision import Allow, CommandDecision, Confirm, Deny, strictness
from policy.explain import explain
from policy.git import INSERTED
from policy.rules import CommandRule, Examples, FileLimits, Policy, ResourceLimits, ResourceOverride

if TYPE_CHECKING:
    from collections.abc import Mapping

GIT = CommandRule(
    executable="/usr/bin/git", allowed_prefixes=("status", "log", "diff", "remote get-url", "fetch", "grep")
)
LS = CommandRule(executable="/bin/ls", max_args=10)
PYTHON = CommandRule(executable="/usr/bin/python3", requires_confirmation=True, denied_args=("-i",))
COMMANDS = {"git": GIT, "ls": LS, "python3": PYTHON}


def policy_of(commands: Mapping[str, CommandRule]) -> Policy:
    return Policy(
        allowed_commands=commands,
        blocked_paths=(),
        denied_env=(),
        file_limits=FileLimits(
            max_read_size=1,
            max_write_size=1,
            max_session_bytes=1,
            min_free_bytes=0,
            archive_max_entries=1,
            archive_max_bytes=1,
            blocked_extensions=(),
        ),
        resource_limits=ResourceLimits(memory_max=1, memory_swap_max=0, pids_max=1, file_size_max=1, open_files_max=1),
    )


POLICY = policy_of(COMMANDS)


def decide(*argv: str, confirm: bool = False, policy: Policy = POLICY) -> CommandDecision:
    return decide_command(policy, argv, confirm=confirm, programs={})


def denial(*argv: str, policy: Policy = POLICY, confirm: bool = True) -> Deny:
    decision = decide(*argv, policy=policy, confirm=confirm)
    assert isinstance(decision, Deny), decision
    return decision


def test_an_allowed_command_says_what_runs() -> None:
    rule = CommandRule(
        executable="/opt/tool/bin/tool",
        env={"A": "1"},
        may_run=("/opt/tool/**",),
        resource_override=ResourceOverride(memory_max=7),
    )
    decision = decide("tool", "x y", policy=policy_of({"tool": rule}))
    assert isinstance(decision, Allow)
    run = decision.subject
    assert (run.rule_name, run.program, run.argv) == ("tool", "/opt/tool/bin/tool", ("tool", "x y"))
    assert (dict(run.env), run.may_run, run.resource_override) == (
        {"A": "1"},
        ("/opt/tool/**",),
        ResourceOverride(memory_max=7),
    )
    assert decision.rule == "allowed_commands.tool"


def test_an_unknown_command_names_near_ones_and_the_allowed_ones() -> None:
    decision = denial("gti", "status")
    assert decision.rule == "allowed_commands"
    assert decision.reason == (
        "Command 'gti' is not in the allowed whitelist. Did you mean git? Allowed commands: git, ls, python3."
    )


@pytest.mark.parametrize(
    "word",
    [
        "./git",
        "git/",
        "../usr/bin/git",
        "/tmp/git",
        "/bin/git",
        "/usr/bin/../bin/git",
        "//usr/bin/git",
        "~/git",
        "/usr/bin/git/",
        "/usr/bin/./git",
        "GIT",
        "Git",
        " git",
        "git ",
        "git\n",
        "g\u200bit",
        "python3.11",
    ],
)
def test_only_the_name_or_the_pinned_path_names_a_command(word: str) -> None:
    assert denial(word, "status").rule == "allowed_commands"


def test_the_pinned_path_passes_the_same_gates_as_the_name() -> None:
    allowed = decide("/usr/bin/git", "status")
    assert isinstance(allowed, Allow)
    assert allowed.subject.program == "/usr/bin/git"
    assert denial("/usr/bin/git", "push").rule == "allowed_commands.git.allowed_prefixes"
    assert isinstance(decide("/usr/bin/python3", "x.py"), Confirm)


def test_a_path_to_the_same_file_under_the_same_name_is_the_pinned_one() -> None:
    facts = {"/usr/bin/git": "/usr/bin/git", "/bin/git": "/usr/bin/git", "/bin/ls": "/bin/busybox"}
    facts |= {"/bin/sh": "/bin/busybox"}
    allowed = decide_command(POLICY, ["/bin/git", "status"], confirm=False, programs=facts)
    assert isinstance(allowed, Allow)
    assert allowed.subject.argv[:2] == ("/usr/bin/git", "status")
    # one file, another name: busybox would be a shell
    assert isinstance(decide_command(POLICY, ["/bin/sh"], confirm=False, programs=facts), Deny)


def test_a_path_that_several_rules_pin_gets_the_strictest_answer() -> None:
    loose = CommandRule(executable="/usr/bin/python3")
    policy = policy_of({"py": loose, "python3": PYTHON})
    assert isinstance(decide("py", "x", policy=policy), Allow)
    assert isinstance(decide("/usr/bin/python3", "x", policy=policy), Confirm)
    assert isinstance(decide("/usr/bin/python3", "-i", policy=policy), Deny)


@pytest.mark.parametrize("argv", [(), ("",), ("", "status")])
def test_an_empty_command_is_denied(argv: tuple[str, ...]) -> None:
    assert denial(*argv).rule == "argv"


@pytest.mark.parametrize("argv", [("git\0", "status"), ("ls", "a\0b"), ("ls", "\0")])
def test_nul_is_denied_wherever_it_stands(argv: tuple[str, ...]) -> None:
    assert "NUL" in denial(*argv).reason


def test_other_control_characters_are_data_and_shown_escaped() -> None:
    program = "import os\nprint('\x1b[2J\u202e')\t"
    asked = ("python3", "-c", program)
    decision = decide(*asked, confirm=True)
    assert isinstance(decision, Allow)
    assert decision.subject.argv[2] == program
    text = explain(decision, asked)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\n" in text


def test_max_args_counts_the_name_of_the_program() -> None:
    assert isinstance(decide("ls", *"abcdefghi"), Allow)
    reason = denial("ls", *"abcdefghij").reason
    assert "11 words" in reason
    assert "at most 10" in reason


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("git",), "'git' alone is not allowed"),
        (("git", "push"), "'push' is not allowed"),
        (("git", "-c", "x=y", "status"), "Option '-c' stands in front"),
        (("git", "--no-pager", "status"), "Option '--no-pager' stands in front"),
        (("git", "remote"), "'remote' is not allowed"),
        (("git", "remote", "add", "o"), "'remote add' is not allowed"),
        (("git", "remote get-url"), "is not allowed"),
        (("git", "Status"), "is not allowed"),
        (("git", ""), "is not allowed"),
        (("git", "--", "status"), "stands in front"),
    ],
)
def test_the_first_words_are_those_of_a_prefix(argv: tuple[str, ...], words: str) -> None:
    decision = denial(*argv)
    assert decision.rule == "allowed_commands.git.allowed_prefixes"
    assert words in decision.reason
    assert "status, log, diff, remote get-url, fetch, grep" in decision.reason


def test_confirmation_is_asked_last_and_opens_nothing_else() -> None:
    assert isinstance(decide("python3", "x.py"), Confirm)
    assert isinstance(decide("python3", "x.py", confirm=True), Allow)
    assert denial("python3", "-i", confirm=False).rule == "allowed_commands.python3.denied_args"
    assert denial("python3", "-i").rule == "allowed_commands.python3.denied_args"
    assert isinstance(decide("python3", *["x"] * 20, confirm=True), Deny)


def test_what_is_known_of_a_program_holds_until_the_rule_gives_its_own_list() -> None:
    attack = ("git", "log", "--output=/tmp/x")
    assert denial(*attack).rule == "allowed_commands.git.denied_args"
    assert "the broker's own list" in denial(*attack).reason
    switched_off = policy_of({"git": attrs.evolve(GIT, denied_args=())})
    assert isinstance(decide(*attack, policy=switched_off), Allow)


def test_the_session_may_execute_what_the_rules_name_and_nothing_else() -> None:
    rules = {"ls": LS, "tool": CommandRule(executable="/opt/tool", may_run=("/opt/lib/**",))}
    assert executables(policy_of(rules)) == ("/bin/ls", "/opt/lib/**", "/opt/tool")
    assert "/usr/lib/git-core/**" in executables(POLICY)


def test_explain_says_why_an_option_in_front_is_denied() -> None:
    argv = ("git", "-c", "core.pager=sh", "log")
    assert explain(decide(*argv), argv) == (
        "asked:     ['git', '-c', 'core.pager=sh', 'log']\n"
        "decision:  deny\n"
        "rule:      allowed_commands.git.allowed_prefixes\n"
        "reason:    Option '-c' stands in front of the subcommand, which is not allowed: the words after 'git' "
        "must begin with one of: status, log, diff, remote get-url, fetch, grep.\n"
        "runs:      nothing"
    )


def test_explain_says_what_would_run() -> None:
    argv = ("python3", "-c", "a\nb")
    assert explain(decide(*argv), argv) == (
        "asked:     ['python3', '-c', 'a\\nb']\n"
        "decision:  confirm\n"
        "rule:      allowed_commands.python3.requires_confirmation\n"
        "reason:    Command 'python3' runs only when it is confirmed: ask the person you work for, then repeat "
        "the call with confirm: true.\n"
        "runs:      /usr/bin/python3 with argv ['python3', '-c', 'a\\nb']\n"
        "may start: any program that its session may execute\n"
        "network:   denied"
    )


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (Examples(allow=("git push",)), "'git push' must be allowed, but allowed_commands.git.allowed_prefixes"),
        (Examples(deny=("git status",)), "'git status' must be denied, but allowed_commands.git allows it"),
        (Examples(deny=(("got", "status"),)), "is no example of git"),
        (Examples(allow=("git 'log",)), "is no shell-like line"),
        (Examples(allow=("",)), "is no example of git"),
    ],
)
def test_an_example_that_does_not_hold_is_a_fault(examples: Examples, words: str) -> None:
    faults = prove_examples(policy_of({"git": attrs.evolve(GIT, examples=examples)}), {})
    assert [words in fault.message for fault in faults] == [True]
    assert faults[0].path[:3] == ("allowed_commands", "git", "examples")


def test_examples_of_a_confirmed_command_show_its_arguments() -> None:
    examples = Examples(allow=("python3 x.py",), deny=(("python3", "-i"),))
    assert prove_examples(policy_of({"python3": attrs.evolve(PYTHON, examples=examples)}), {}) == ()


# --- for all argv -------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["git", "ls", "python3", "/usr/bin/git", "/bin/ls", "status", "log", "-i", "--output=x", "-"]),
    st.sampled_from(["--", "-c", "remote", "get-url", "--outp", "-Ox", "--exec", "grep", "-xi", "\0", "a\nb"]),
)
ARGVS = st.lists(WORDS, max_size=12)
NAMED = {*COMMANDS, *(rule.executable for rule in COMMANDS.values())}


@given(argv=ARGVS, confirm=st.booleans())
def test_an_argv_that_names_no_rule_is_never_allowed(argv: list[str], *, confirm: bool) -> None:
    decision = decide(*argv, confirm=confirm)
    if not argv or argv[0] not in NAMED:
        assert isinstance(decision, Deny)
    if isinstance(decision, Allow | Confirm):
        assert decision.subject.program == COMMANDS[decision.subject.rule_name].executable
        given, inserted = argv[1:], set()
        for word in decision.subject.argv[1:]:
            if given[:1] == [word]:
                given = given[1:]
            else:
                inserted.add(word)
        assert given == [], "all that was asked is there, in its order"
        assert inserted <= {option for options in INSERTED.values() for option in options}
        assert not any("\0" in word for word in argv)


@given(ARGVS)
def test_confirming_turns_only_confirm_into_allow(argv: list[str]) -> None:
    before, after = decide(*argv), decide(*argv, confirm=True)
    if isinstance(before, Confirm):
        assert isinstance(after, Allow)
        assert after.subject == before.subject
    else:
        assert after == before


@given(ARGVS, st.sampled_from([*COMMANDS]), st.sampled_from(["-i", "--output", "--exec", "grep -O", "status", "-x"]))
def test_denying_an_argument_more_never_widens(argv: list[str], name: str, entry: str) -> None:
    rule = attrs.evolve(COMMANDS[name], denied_args=())
    before = policy_of({**COMMANDS, name: rule})
    after = policy_of({**COMMANDS, name: attrs.evolve(rule, denied_args=(entry,))})
    for confirm in (False, True):
        assert strictness(decide(*argv, policy=after, confirm=confirm)) >= strictness(
            decide(*argv, policy=before, confirm=confirm)
        )


@given(ARGVS, st.lists(st.sampled_from(["-i", "-c", "--output", "-NUM", "--exec*"])))
def test_listing_flags_never_widens(argv: list[str], flags: list[str]) -> None:
    listed = {name: attrs.evolve(rule, allowed_flags=tuple(flags)) for name, rule in COMMANDS.items()}
    assert strictness(decide(*argv, policy=policy_of(listed))) >= strictness(decide(*argv))


@given(ARGVS)
def test_every_denial_names_a_rule_and_says_something_printable(argv: list[str]) -> None:
    decision = decide(*argv)
    assert decision.rule
    assert decision.reason.endswith((".", "?"))
    assert decision.reason.isprintable()


def test_a_rule_that_lists_its_flags_denies_others_by_that_rule() -> None:
    policy = policy_of({"ls": attrs.evolve(LS, allowed_flags=("-l", "--color"))})
    assert isinstance(decide("ls", "-l", "--color=never", "x", policy=policy), Allow)
    denied = denial("ls", "-l", "-a", policy=policy)
    assert denied.rule == "allowed_commands.ls.allowed_flags"
    assert "'-a'" in denied.reason
    assert denial("ls", "-a", policy=policy_of({"ls": attrs.evolve(LS, allowed_flags=())})).rule.endswith(
        "allowed_flags"
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["git"], "alone"),
        (["git", "-C", "x", "status"], "'-C'"),  # what stands in the way
        (["git", "-C", "x", "push"], "'-C'"),
        (["git", "-x"], "'-x'"),
        (["git", "push", "status"], "'push'"),  # no option: it is the subcommand that is wrong
        (["git", "remote", "add", "x"], "'remote add'"),  # the longest prefix, where the first word is right
        (["git", "push", "origin", "x"], "'push'"),
    ],
    ids=str,
)
def test_a_denied_subcommand_is_named_by_what_is_wrong_with_it(argv: list[str], told: str) -> None:
    reason = denial(*argv).reason
    before_the_list = reason.partition(": the words")[0]
    assert told in before_the_list
    assert ("in front of the subcommand" in before_the_list) == (argv[1:2] == ["-C"] and "status" in argv)


def test_a_path_stands_for_a_rule_only_where_it_is_the_same_program_of_the_same_name() -> None:
    real = {"/bin/ls": "/usr/bin/busybox", "/usr/bin/ls": "/usr/bin/busybox", "/x/ls": "/x/ls", "/usr/bin/cat": "/x"}
    real["/bin/cat"] = "/usr/bin/busybox"

    def allowed(path: str) -> bool:
        return isinstance(decide_command(POLICY, [path], confirm=False, programs=real), Allow)

    assert allowed("/usr/bin/ls")
    assert not allowed("/x/ls"), "the name alone"
    assert not allowed("/bin/cat"), "the program alone"


def test_what_is_listed_in_a_refusal_is_bounded_and_counted() -> None:
    def reason(count: int) -> str:
        return denial("nothing", policy=policy_of({f"c{number:02}": LS for number in range(count)})).reason

    assert "none" in reason(0)
    assert "more" not in reason(NAMED_COMMANDS)
    assert "and 1 more" in reason(NAMED_COMMANDS + 1)
    assert "c39" in reason(NAMED_COMMANDS + 1)
    assert "c40" not in reason(NAMED_COMMANDS + 1)


def test_whether_it_was_confirmed_is_said_where_it_mattered() -> None:
    assert "confirmed" in decide("python3", "x", confirm=True).reason
    assert "confirmed" not in decide("ls", confirm=True).reason


def test_an_example_that_needs_confirmation_holds_and_a_rule_without_examples_stops_nothing() -> None:
    confirmed = attrs.evolve(PYTHON, examples=Examples(allow=("python3 x.py",), deny=("python3 -i",)))
    assert prove_examples(policy_of({"ls": LS, "python3": confirmed}), {}) == ()
    wrong = attrs.evolve(PYTHON, examples=Examples(allow=(), deny=("python3 x.py",)))
    assert [fault.command for fault in prove_examples(policy_of({"ls": LS, "python3": wrong}), {})] == ["python3"]


def test_an_explanation_says_all_that_would_happen() -> None:
    def lines(*argv: str, rule: CommandRule) -> dict[str, str]:
        text = explain(decide(*argv, policy=policy_of({"tool": rule})), argv)
        return {label: rest.strip() for label, _, rest in (line.partition(":") for line in text.splitlines())}

    rule = CommandRule(executable="/bin/tool", max_args=2)
    told = lines("tool", rule=rule)
    assert told["decision"] == "allow"
    assert told["runs"] == "/bin/tool with argv ['tool']"
    assert "any program" in told["may start"]
    assert {"sets", "limits"}.isdisjoint(told)
    told = lines("tool", "a", "b", rule=rule)
    assert (told["decision"], told["runs"]) == ("deny", "nothing")
    rule = attrs.evolve(rule, requires_confirmation=True, env={"B": "2", "A": "1"}, may_run=("/bin/a", "/bin/b"))
    rule = attrs.evolve(rule, resource_override=ResourceOverride(memory_max=7))
    told = lines("tool", rule=rule)
    assert (told["decision"], told["may start"]) == ("confirm", "/bin/a, /bin/b")
    assert told["sets"] == "A='1', B='2'"
    assert "7" in told["limits"]
    assert lines("tool", rule=attrs.evolve(rule, may_run=()))["may start"] == "no other program"


def test_no_more_than_three_names_are_offered_for_one_that_is_near() -> None:
    near = denial("lss", policy=policy_of(dict.fromkeys(("ls1", "ls2", "ls3", "ls4", "ls5"), LS))).reason
    assert near.partition("Allowed commands")[0].count(" or ") == 2
