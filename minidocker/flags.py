# From book/618-flags.md. Edit there and tangle, or here and tangle --back.

# %% Flags: a command line as a table
"""Commands and flags as tables; parse a command line, write help.

The rules are those of Go's pflag, as in Docker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from minidocker.errors import (
    MinidockerError,
    UsageError,
    WordFault,
    did_you_mean,
    nearest,
)
from minidocker.records import Enum, Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
PROGRAM = "minidocker"


class Takes(Enum):
    """What follows a flag. The value is its word in the help."""

    NOTHING = ""
    TEXT = "string"
    LIST = "list"
    NUMBER = "int"


class Flag(Record):
    """A flag: ``--name``, perhaps ``-s``. LIST may be given many times.

    ``other`` is an older name, which the help does not show. What is ``refused`` is
    known from Docker, and cannot be had here for the reason said.
    """

    name: str
    help: str
    short: str = ""
    takes: Takes = Takes.NOTHING
    default: str = ""
    other: str = ""
    refused: str = ""


# %% The nouns
class Command(Record):
    """A command. ``usage`` is what follows its name.

    ``least`` and ``most`` count its arguments. ``greedy``: the first argument ends the
    flags. ``run`` gets what was given and returns an exit status. ``rare`` returns
    further flags, and is called only for a name that ``flags`` do not have.
    """

    name: str
    usage: str
    help: str
    run: Callable[[Given], int]
    flags: tuple[Flag, ...] = ()
    least: int = 0
    most: int | None = None
    greedy: bool = False
    example: str = ""
    rare: Callable[[], tuple[Flag, ...]] = tuple

    @property
    def every_flag(self) -> tuple[Flag, ...]:
        """All flags, those that few people give as well."""
        return (*self.flags, *self.rare())


class Given(Record):
    """What was given on a command line: flags by name, and the arguments."""

    flags: Mapping[str, Any]
    args: tuple[str, ...] = ()

    def on(self, name: str) -> bool:
        """Whether a switch was given."""
        return bool(self.flags.get(name))

    def text(self, name: str) -> str:
        """Return the text of a flag, or its default."""
        return str(self.flags.get(name, ""))

    def list(self, name: str) -> tuple[str, ...]:
        """Return the texts of a flag that may be repeated, in order."""
        return tuple(self.flags.get(name, ()))

    def number(self, name: str) -> int | None:
        """Return the number of a flag, or None."""
        found = self.flags.get(name)
        return None if found is None else int(found)


# %% The nouns
TEXT, LIST, NUMBER = Takes.TEXT, Takes.LIST, Takes.NUMBER


def refused(name: str, why: str, takes: Takes = Takes.TEXT) -> Flag:
    """Return a flag of Docker's that is known here, and refused with a reason."""
    return Flag(name, f"Not here: {why}", takes=takes, refused=why)


FORMAT = Flag("format", "Format the output: json, or a template", takes=TEXT)
MAX_SIZE = Flag(
    "max-size", "Most bytes of files to unpack (default: what fits)", takes=TEXT
)
QUIET = Flag("quiet", "Only show IDs", "q")
NO_TRUNC = Flag("no-trunc", "Don't truncate output")
FILTER = Flag("filter", "Filter output based on conditions provided", "f", LIST)


# %% The nouns
def default_root() -> str:
    """Return the store's root when none is given."""
    if given := os.environ.get("MINIDOCKER_ROOT"):
        return given
    if os.geteuid() == 0:
        return "/var/lib/minidocker"
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{home}/minidocker"


# %% The nouns
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def size(given: Given, flag: str) -> int:
    """Return the bytes of a flag such as ``64m``; 0 when it was not given.

    >>> size(Given({"memory": "1.5g"}), "memory"), size(Given({}), "memory")
    (1610612736, 0)
    """
    text = given.text(flag).strip().lower()
    if text in ("", "-1"):
        return int(text or 0)
    number = text.removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:].isalpha() else ""
    digits = number.removesuffix(unit).strip()
    if unit not in UNITS or not digits.replace(".", "", 1).isdecimal():
        hint = "a number, and b, k, m or g"
        raise wrong(f"--{flag}", given.text(flag), "invalid size", hint)
    return int(float(digits) * (1 << UNITS[unit]))


# %% The nouns
def is_address(text: str) -> bool:
    """Say whether a text is an address."""
    from minidocker.rtnetlink import packed

    try:
        packed(text)
    except (OSError, ValueError):
        return False
    return True


def check_host(text: str) -> str:
    """Return ``NAME:ADDRESS``; the address may be ``host-gateway``."""
    name, colon, address = text.partition(":")
    if not colon or not name:
        raise wrong("--add-host", text, f'bad format for add-host: "{text}"')
    if address != "host-gateway" and not is_address(address):
        raise wrong("--add-host", text, f'invalid IP address in add-host: "{address}"')
    return text


def ulimit_text(text: str) -> str:
    """Return ``NAME=SOFT:HARD`` for an ``--ulimit``, whole.

    >>> ulimit_text("nofile=1024")
    'nofile=1024:1024'
    """
    from minidocker.program import ULIMITS

    name, equals, values = text.partition("=")
    names = [known for known in ULIMITS.split() if known != "as"]
    if not equals:
        raise UsageError(f"invalid ulimit argument: {text}", hint="NAME=SOFT[:HARD]")
    if name not in names:
        hint = did_you_mean(name, names, other=", ".join(names))
        raise UsageError(f"invalid ulimit type: {name}", hint=hint)
    soft, colon, hard = values.partition(":")
    pair = (soft, hard if colon else soft)
    if not all(n.removeprefix("-").isdecimal() and int(n) >= -1 for n in pair):
        raise UsageError(f"invalid ulimit value: {values}")
    low, high = (int(n) for n in pair)
    if high != -1 and (low > high or low == -1):
        what = "ulimit soft limit must be less than or equal to hard limit"
        raise UsageError(f"{what}: {low} > {high}")
    return f"{name}={low}:{high}"


# %% The nouns
PROCESS = (
    Flag("env", "Set environment variables", "e", LIST),
    Flag("env-file", "Read in a file of environment variables", takes=LIST),
    Flag("interactive", "Keep STDIN open", "i"),
    Flag("tty", "Allocate a pseudo-TTY", "t"),
    Flag("user", "Username or UID (format: <name|uid>[:<group|gid>])", "u", TEXT),
    Flag("workdir", "Working directory inside the container", "w", TEXT),
)


def need_terminal(given: Given) -> None:
    """Refuse a terminal where there is none to be had."""
    attached = given.on("interactive") and not given.on("detach")
    if given.on("tty") and attached and not os.isatty(0):
        raise MinidockerError("the input device is not a TTY", hint="leave out -t")


# %% The nouns
def env_lines(given: Given) -> tuple[str, ...]:
    """Return ``--env-file`` and ``--env`` as NAME=value.

    A name alone takes its value from our own environment, and is left out when it has
    none there.
    """
    found = lines_of(given, "env-file")
    found += given.list("env")
    for line in found:
        if line.startswith("=") or not line:
            raise UsageError(f'invalid environment variable: "{line}"')
    own = ((e, os.environ.get(e)) for e in found if "=" not in e)
    extra = {name: f"{name}={value}" for name, value in own if value is not None}
    return tuple(extra.get(e, e) for e in found if "=" in e or e in extra)


def lines_of(given: Given, flag: str) -> list[str]:
    """Return the lines of the files of a flag, without comments and empty ones."""
    lines: list[str] = []
    for path in given.list(flag):
        try:
            with open(path, encoding="utf-8-sig") as file:
                lines += [line.lstrip().rstrip("\r\n") for line in file]
        except (OSError, UnicodeDecodeError) as why:
            what = getattr(why, "strerror", None) or "contains invalid utf8 bytes"
            raise UsageError(f"cannot be read: {what}", where=path) from why
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        name = line.partition("=")[0]
        if name.split() != [name]:
            raise UsageError(f"variable '{name}' contains whitespaces or is empty")
    return lines


# %% Parsing
HELP = Flag("help", "Print usage", "h")


def parse_flags(
    flags: tuple[Flag, ...],
    words: list[str],
    path: str,
    *,
    greedy: bool,
    rare: Callable[[], tuple[Flag, ...]] = tuple,
) -> Given:
    """Split words into flags and arguments. ``path`` names the command in errors.

    >>> switch, text = Flag("tty", "", "t"), Flag("name", "", "n", Takes.TEXT)
    >>> parse_flags((switch, text), ["-tn", "a", "sh", "-c"], "run", greedy=True)
    Given(flags={'tty': True, 'name': 'a'}, args=('sh', '-c'))
    """
    values: dict[str, Any] = {f.name: f.default for f in flags if f.default}
    args: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            args += rest
            break
        if word.startswith("--"):
            if not is_known(flags, word[2:]):
                flags, rare = (*flags, *rare()), tuple
            long_flag(flags, word[2:], rest, values, path)
        elif word.startswith("-") and word != "-":
            short_flags(flags, word[1:], rest, values, path)
        else:
            args.append(word)
            if greedy:
                args += rest
                break
    return Given(values, tuple(args))


# %% Parsing
def is_known(flags: tuple[Flag, ...], word: str) -> bool:
    """Say whether ``name`` or ``name=value`` is one of the flags."""
    name = word.partition("=")[0]
    return any(flag.name == name for flag in flags)


def long_flag(
    flags: tuple[Flag, ...],
    word: str,
    rest: list[str],
    values: dict[str, Any],
    path: str,
) -> None:
    """Take ``--name``, ``--name=value`` or ``--name value``."""
    name, equals, value = word.partition("=")
    flag = next((f for f in (*flags, HELP) if name and name in (f.name, f.other)), None)
    if flag is None:
        near = nearest(name, [f.name for f in flags])
        hint = f'did you mean "--{near}"?' if near else see(path)
        raise UsageError(f"unknown flag: --{name}", hint=hint)
    take(flag, value if equals else None, rest, values, f"--{name}")


def short_flags(
    flags: tuple[Flag, ...],
    word: str,
    rest: list[str],
    values: dict[str, Any],
    path: str,
) -> None:
    """Take ``-it``, ``-n value``, ``-nvalue`` or ``-n=value``."""
    while word:
        letter, word = word[0], word[1:]
        flag = next((f for f in (*flags, HELP) if f.short == letter), None)
        if flag is None:
            raise UsageError(f"unknown shorthand flag: '{letter}'", hint=see(path))
        if flag.takes is Takes.NOTHING and not word.startswith("="):
            take(flag, None, rest, values, f"-{letter}")
        else:
            value = word.removeprefix("=") if word else None
            take(flag, value, rest, values, f"-{letter}")
            return


def see(path: str) -> str:
    """Return the hint that points at the help."""
    return f"see `{PROGRAM} {path} --help`".replace("  ", " ")


# %% Parsing
BOOLEANS = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def take(
    flag: Flag,
    value: str | None,
    rest: list[str],
    values: dict[str, Any],
    shown: str,
) -> None:
    """Store the value of a flag, from the next word where it has none yet."""
    if flag.refused:
        raise UsageError(f"--{flag.name} cannot be had here", hint=flag.refused)
    if flag.takes is Takes.NOTHING:
        if value is not None and value.lower() not in BOOLEANS:
            raise wrong(pflag(flag), value, "true or false")
        values[flag.name] = True if value is None else BOOLEANS[value.lower()]
        return
    if value is None:
        if not rest:
            hint = f"{shown} {flag.takes.value}"
            raise UsageError(f"flag needs an argument: {shown}", hint=hint)
        value = rest.pop(0)
    if flag.takes is Takes.NUMBER and not value.removeprefix("-").isdecimal():
        raise wrong(pflag(flag), value, "a number is needed")
    if flag.takes is Takes.LIST:
        values[flag.name] = [*values.get(flag.name, []), value]
    else:
        values[flag.name] = value


def pflag(flag: Flag) -> str:
    """Return a flag's names as Go's pflag shows them."""
    return f"-{flag.short}, --{flag.name}" if flag.short else f"--{flag.name}"


def wrong(names: str, value: str, why: str, hint: str | None = None) -> UsageError:
    """Phrase as pflag does that a flag cannot have a value."""
    what = f'invalid argument "{value}" for "{names}" flag: {why}'
    return UsageError(what, hint=hint)


# %% Parsing
def parse_command(command: Command, words: list[str]) -> Given:
    """Return what was given to a command; WordFault when it is too much or little."""
    flags, greedy, rare = command.flags, command.greedy, command.rare
    given = parse_flags(flags, words, command.name, greedy=greedy, rare=rare)
    if given.on("help"):
        return given
    count, least, most = len(given.args), command.least, command.most
    if count >= least and (most is None or count <= most):
        return given
    wants = f"requires {counted(least, most)}" if most != 0 else "accepts no arguments"
    usage = f"usage: {PROGRAM} {command.name} {command.usage}"
    raise WordFault(f'"{PROGRAM} {command.name}" {wants}', hint=usage)


def counted(least: int, most: int | None) -> str:
    """Return how many arguments are wanted.

    >>> counted(1, None), counted(1, 2), counted(0, 1)
    ('at least 1 argument', 'at least 1 and at most 2 arguments', 'at most 1 argument')
    """
    last = least if most is None else most
    noun = "argument" if last == 1 else "arguments"
    if least == most:
        return f"exactly {least} {noun}"
    bounds = [f"at least {least}"] * bool(least)
    bounds += [f"at most {most}"] * (most is not None)
    return f"{' and '.join(bounds)} {noun}"


# %% Help
def flag_lines(flags: tuple[Flag, ...]) -> Iterator[str]:
    """Yield the lines of help for flags, in Docker's columns."""
    rows = []
    for flag in sorted(flags, key=lambda f: f.name):
        short = f"-{flag.short}, " if flag.short else "    "
        rows.append((f"  {short}--{flag.name} {flag.takes.value}".rstrip(), flag.help))
    width = max((len(left) for left, _ in rows), default=0) + 3
    for left, text in rows:
        yield left.ljust(width) + text


def command_help(command: Command) -> str:
    """Return what ``--help`` prints for a command."""
    lines = [f"Usage:  {PROGRAM} {command.name} {command.usage}", "", command.help]
    if flags := command.every_flag:
        lines += ["", "Options:", *flag_lines(flags)]
    if command.example:
        lines += ["", "Example:", f"  {command.example}"]
    return "\n".join(lines)


# %% Help
def table_lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return sorted lines of a name and its help."""
    found = sorted(rows)
    width = max((len(name) for name, _ in found), default=0) + 3
    return [f"  {name.ljust(width)}{text}" for name, text in found]


def program_help(
    commands: Mapping[str, Command],
    groups: Mapping[str, str],
    flags: tuple[Flag, ...],
) -> str:
    """Return what ``minidocker --help`` prints."""
    lines = [
        f"Usage:  {PROGRAM} [OPTIONS] COMMAND",
        "",
        "Build images and run containers, as Docker does",
        "",
        "Management Commands:",
        *table_lines(groups.items()),
        "",
        "Commands:",
        *table_lines((c.name, c.help) for c in commands.values() if " " not in c.name),
        "",
        "Options:",
        *flag_lines(flags),
        "",
        f"`{PROGRAM} COMMAND --help` tells more about a command.",
    ]
    return "\n".join(lines)


def group_help(
    group: str, text: str, names: Mapping[str, str], commands: Mapping[str, Command]
) -> str:
    """Return what a group alone prints; ``names`` says which command a name means."""
    rows = [
        (name.removeprefix(f"{group} "), commands[meant].help)
        for name, meant in names.items()
        if name.startswith(f"{group} ")
    ]
    lines = [f"Usage:  {PROGRAM} {group} COMMAND", "", text, "", "Commands:"]
    return "\n".join([*lines, *table_lines(rows)])
