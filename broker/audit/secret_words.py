"""Which words of a command line are secrets: by their own name, by the option before them, by whose option that is.

Pure. Knows how common programs are told passwords (`curl -u`, `mysql -p...`, `sshpass -p`); what nobody has listed is
shown. A program counts wherever its name stands, since others start it (`timeout 5 mysql -pX`), and none ends what is
known of those before it: a word may be a program's name by chance (`curl -o ab -u user:password`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType

import attrs

_SECRET_PARTS = frozenset(
    {"auth", "cookie", "cookies", "cred", "creds", "dsn", "jwt", "otp", "pass", "pat", "pin", "pwd"}
)
_SECRET_WORDS = re.compile(
    r"password|passwd|passphrase|(?:pg|db|user|admin|root|ssh|smtp)pass|secret|token|credential|authorization|bearer"
    r"|(?:api|access|private|signing)key"
)
_KEY = re.compile(r"(?:^|[_.-])keys?$")
_WORKING_DIRS = frozenset({"pwd", "oldpwd"})


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable or option of this name is probably a secret."""
    low = name.lower()
    if low in _WORKING_DIRS:
        return False
    parts = re.split(r"[_.-]", low)
    squeezed = "".join(parts)
    return not _SECRET_PARTS.isdisjoint(parts) or bool(_SECRET_WORDS.search(squeezed) or _KEY.search(low))


@attrs.frozen(kw_only=True)
class _Habits:
    """How a program is told secrets: options with a secret, with `user:secret`, and with one in the same word."""

    secrets: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset()
    attached: tuple[str, ...] = ()

    def and_of(self, other: _Habits) -> _Habits:
        """Those of either of two programs."""
        return _Habits(
            secrets=self.secrets | other.secrets,
            logins=self.logins | other.logins,
            attached=self.attached + other.attached,
        )


_MYSQL = _Habits(attached=("-p",))
_PASSWORD_P = _Habits(secrets=frozenset({"-p"}))
_PASSWORD_W = _Habits(secrets=frozenset({"-w"}), attached=("-w",))
_PASSWORD_CAPITAL_P = _Habits(secrets=frozenset({"-P"}), attached=("-P",))
_ATTACHED_P = _Habits(attached=("-p",))
_SAMBA = _Habits(logins=frozenset({"-U", "--user"}))
_HTTPIE = _Habits(logins=frozenset({"-a", "--auth"}))
_HABITS: Mapping[str, _Habits] = MappingProxyType(
    {
        "curl": _Habits(
            secrets=frozenset({"--oauth2-bearer", "--pass", "--proxy-pass", "--tlspassword", "-b", "--cookie"}),
            logins=frozenset({"-u", "--user", "-U", "--proxy-user"}),
        ),
        "http": _HTTPIE,
        "https": _HTTPIE,
        "xh": _HTTPIE,
        "ab": _Habits(logins=frozenset({"-A", "-P"})),
        "smbclient": _SAMBA,
        "rpcclient": _SAMBA,
        "sshpass": _Habits(secrets=frozenset({"-p"}), attached=("-p",)),
        "redis-cli": _Habits(secrets=frozenset({"-a", "--pass"})),
        "openssl": _Habits(secrets=frozenset({"-passin", "-passout", "-pass", "-k"})),
        **dict.fromkeys(
            ("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlcheck", "mysqlshow", "mysqlbinlog"), _MYSQL
        ),
        **dict.fromkeys(("mariadb", "mariadb-dump", "mariadb-admin", "mariadb-import", "mariadb-check"), _MYSQL),
        **dict.fromkeys(
            ("mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "cqlsh"), _PASSWORD_P
        ),
        **dict.fromkeys(("ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami", "ldappasswd"), _PASSWORD_W),
        **dict.fromkeys(("zip", "unzip", "sqlcmd", "bcp"), _PASSWORD_CAPITAL_P),
        **dict.fromkeys(("7z", "7za", "7zr", "7zz", "rar", "unrar"), _ATTACHED_P),
    }
)
_LOGIN_COMMANDS = frozenset({"docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "oras", "crane", "az"})
"""Programs of which `login` alone is told a password, by -p, which means something else elsewhere."""
_HEADERS = frozenset({"-H", "--header", "--proxy-header"})
_NAMERS = frozenset({"--arg", "--argjson", "set", "config"})
"""Words that a name and then its value follow: `jq --arg token x`, `git config user.password x`."""
_LOGIN_CLUSTER = re.compile("-[A-Za-z#0-9]*[uU]")
_IN_CLUSTER = re.compile(r"-[A-Za-z#0-9]*?[uU](?P<value>[^\s:]+:.*)", re.DOTALL)
"""curl's -u in the middle of a word: -sSuuser:password."""
_TOKEN = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+|["']|\s+""")


class _Next(Enum):
    """Kind of the next word."""

    PLAIN = 0
    SECRET = 1
    LOGIN = 2
    HEADER = 3
    NAME = 4


@attrs.frozen
class Hidden:
    """Part of a word that may be shown, and the secret that follows in it."""

    shown: str
    secret: str


def hidden_in(words: Sequence[str]) -> list[Hidden | None]:
    """For each word of a command line what must be hidden in it, or None."""
    reader = _Reader()
    return [reader.read(word) for word in words]


def without_secrets(script: str, replacement: str) -> tuple[str, list[str]]:
    """A word that is itself a command line (`sh -c`), without its secrets, and these. Takes time linear in the text."""
    reader = _Reader()
    pieces: list[str] = []
    secrets: list[str] = []
    for match in _TOKEN.finditer(script):
        token = match[0]
        hidden = None if token.isspace() else reader.read(token.strip("\"'"))
        pieces.append(token if hidden is None else f"{hidden.shown}{replacement}")
        if hidden is not None:
            secrets.append(hidden.secret)
    return "".join(pieces), secrets


@attrs.define(eq=False)
class _Reader:
    """Reads a command line from left to right. `_login_option`: what tells a password where somebody logs in now."""

    _programs: set[str] = attrs.field(factory=set)
    _habits: _Habits = _Habits()
    _may_log_in: bool = False
    _login_option: str | None = None
    _next: _Next = _Next.PLAIN

    def read(self, word: str) -> Hidden | None:
        """Return what must be hidden in the next word."""
        this, self._next = self._next, _Next.PLAIN
        is_option = word.startswith("-")
        match this:
            case _Next.SECRET:
                if is_option and is_secret_name(word.lstrip("-")):  # of two such, whose value comes, nobody knows
                    self._next = _Next.SECRET
                return Hidden("", word)
            case _Next.LOGIN if not is_option:
                return _login("", word)
            case _Next.HEADER if not is_option:
                return _header("", word)
            case _Next.NAME:
                self._named(word)
                return None
        return self._expected_by_nobody(word)

    def _named(self, word: str) -> None:
        """Read the name whose value is the next word; options may stand before it."""
        if is_secret_name(word.lstrip("-")):
            self._next = _Next.SECRET
        elif word.startswith("-"):
            self._next = _Next.NAME

    def _expected_by_nobody(self, word: str) -> Hidden | None:
        name, equals, value = word.partition("=")
        if equals:
            return self._setting(f"{name}=", name, value)
        if word.startswith("-"):
            return self._option(word)
        self._plain(word)
        return None

    def _setting(self, shown: str, name: str, value: str) -> Hidden | None:
        if is_secret_name(name.lstrip("-")) or self._tells_secret(name):
            return Hidden(shown, value)
        if name in _HEADERS:
            return _header(shown, value)
        if name in self._habits.logins:
            return _login(shown, value)
        return self._attached(shown + value)

    def _plain(self, word: str) -> None:
        program = word.rpartition("/")[2]
        if program in _LOGIN_COMMANDS:
            self._may_log_in, self._login_option = True, None
        elif program in _HABITS and program not in self._programs:
            self._programs.add(program)
            self._habits = self._habits.and_of(_HABITS[program])
        elif word == "login" and self._may_log_in:
            self._login_option = "-p"
        if word in _NAMERS:
            self._next = _Next.NAME

    def _option(self, word: str) -> Hidden | None:
        if word in _HEADERS:
            self._next = _Next.HEADER
        elif self._tells_secret(word):
            self._next = _Next.SECRET
        elif word in self._habits.logins or ("curl" in self._programs and _LOGIN_CLUSTER.fullmatch(word)):
            self._next = _Next.LOGIN
        elif word in _NAMERS:
            self._next = _Next.NAME
        elif (hidden := self._attached(word)) is not None:
            return hidden
        elif is_secret_name(word.lstrip("-")):
            self._next = _Next.SECRET
        return None

    def _tells_secret(self, option: str) -> bool:
        return option in self._habits.secrets or option == self._login_option

    def _attached(self, word: str) -> Hidden | None:
        if word.startswith("--"):
            return None
        for option in self._habits.attached:
            if word.startswith(option) and word != option:
                return Hidden(option, word.removeprefix(option))
        if "curl" in self._programs and (found := _IN_CLUSTER.fullmatch(word)):
            return _login(word[: found.start("value")], found["value"])
        return None


def _login(shown: str, value: str) -> Hidden | None:
    """`user:password`, or Samba's `user%password`; without one, the program asks for it."""
    found = re.search("[:%]", value)
    return None if found is None else Hidden(shown + value[: found.end()], value[found.end() :])


def _header(shown: str, value: str) -> Hidden | None:
    name, colon, rest = value.partition(":")
    return Hidden(f"{shown}{name}: ", rest.strip()) if colon and is_secret_name(name.strip()) else None
