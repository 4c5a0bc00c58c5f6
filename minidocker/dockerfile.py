# From book/30-dockerfile.md. Edit there and tangle, or here and tangle --back.

# %% Dockerfile: text to instructions
"""Parse a Dockerfile: logical lines, directives, forms of arguments, flags."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterator

from minidocker.errors import DockerfileError, did_you_mean
from minidocker.records import Record


# %% The nouns
class Word(enum.Enum):
    """The words that may begin an instruction."""

    FROM = "FROM"
    ARG = "ARG"
    ENV = "ENV"
    LABEL = "LABEL"
    MAINTAINER = "MAINTAINER"
    COPY = "COPY"
    ADD = "ADD"
    RUN = "RUN"
    CMD = "CMD"
    ENTRYPOINT = "ENTRYPOINT"
    SHELL = "SHELL"
    USER = "USER"
    WORKDIR = "WORKDIR"
    VOLUME = "VOLUME"
    EXPOSE = "EXPOSE"
    STOPSIGNAL = "STOPSIGNAL"
    HEALTHCHECK = "HEALTHCHECK"
    ONBUILD = "ONBUILD"


class Instruction(Record):
    """One instruction of a Dockerfile, before any variable is expanded.

    ``args``: for ENV and LABEL name, value, name, value...; for the shell form of
    RUN, CMD and ENTRYPOINT one text; otherwise words. ``json`` says that they came
    as a JSON list. ``text`` is the whole logical line, ``line`` where it began.
    """

    word: Word
    args: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]
    json: bool
    line: int
    text: str
    where: str

    def flag(self, name: str) -> str | None:
        """Return the value of ``--name=value``; the last one wins."""
        return dict(self.flags).get(name)


class Dockerfile(Record):
    """A parsed Dockerfile: its name for messages, instructions, escape character."""

    name: str
    instructions: tuple[Instruction, ...]
    escape: str


# %% Physical lines
LONGEST_LINE = 65_535


def physical_lines(text: bytes | str, name: str) -> list[str]:
    """Split into lines without their ends; refuse what no Dockerfile contains.

    >>> physical_lines(b"\\xef\\xbb\\xbfFROM a\\r\\nRUN b\\n", "Dockerfile")
    ['FROM a', 'RUN b']
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    lines = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{name}:{number}"
        if b"\0" in line:
            raise DockerfileError("a NUL byte in the text", where=where)
        if len(line) > LONGEST_LINE:
            raise DockerfileError("the line is longer than 64 KiB", where=where)
        try:
            lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as why:
            raise DockerfileError("the line is not UTF-8", where=where) from why
    return lines[:-1] if lines[-1] == "" else lines


# %% Directives
DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")


def escape_character(lines: list[str], name: str) -> str:
    """Return what the directives at the top make the escape character.

    >>> escape_character(["# syntax=docker/dockerfile:1", "# escape=`"], "Dockerfile")
    '`'
    """
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        found = DIRECTIVE.match(line.strip())
        key = found[1].lower() if found else ""
        if not found or key not in {"escape", "syntax", "check"}:
            break
        where = f"{name}:{number}"
        if key in seen:
            raise DockerfileError(f'a second "{key}" directive', where=where)
        if key == "escape" and found[2] not in {"\\", "`"}:
            hint = "the escape character is \\ or `"
            raise DockerfileError(f'bad escape "{found[2]}"', where=where, hint=hint)
        seen[key] = found[2]
    return seen.get("escape", "\\")


# %% Logical lines
def logical_lines(lines: list[str], escape: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, text) of each logical line."""
    esc = re.escape(escape)
    goes_on = re.compile(rf"(^|[^{esc}]){esc}[ \t]*$")
    text, start = "", 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not start:
            text, start = "", number
            line = line.lstrip()  # noqa: PLW2901
        text += goes_on.sub(r"\1", line)
        if not goes_on.search(line):
            yield start, text.strip()
            start = 0
    if start and text.strip():
        yield start, text.strip()


# %% Words, pairs, JSON
def split_words(text: str, escape: str) -> tuple[str, ...]:
    """Split at blanks outside quotes; quotes and escapes stay in the words.

    >>> split_words('A="b c" D=e\\\\ f', "\\\\")
    ('A="b c"', 'D=e\\\\ f')
    """
    esc = re.escape(escape)
    piece = rf"""'[^']*'?|"(?:{esc}.|[^"{esc}])*"?|{esc}.?|[^\s'"{esc}]"""
    return tuple(m[0] for m in re.finditer(rf"(?:{piece})+", text, re.DOTALL))


def json_list(text: str) -> tuple[str, ...] | None:
    """Return the strings of a JSON list, or None when the text is not one."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        return None
    return tuple(found)


# %% Words, pairs, JSON
Form = Callable[[str, str], tuple[tuple[str, ...], bool]]


def one_text(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read all of the rest as one argument."""
    return ((rest,) if rest else ()), False


def plain_words(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read words between blanks; quotes mean nothing."""
    return tuple(rest.split()), False


def quoted_words(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read words that may hold quoted blanks."""
    return split_words(rest, escape), False


def pairs(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read ``name=value name=value``, or the old form ``name value with blanks``."""
    words = split_words(rest, escape)
    if words and "=" not in words[0]:
        name, *value = rest.split(None, 1)
        if not value:
            raise DockerfileError(f'no value for "{name}"', hint="write NAME=VALUE")
        return (name, *value), False
    flat: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise DockerfileError(f'"{word}" is not of the form NAME=VALUE')
        flat += [name, text]
    return tuple(flat), False


def json_or_words(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read a JSON list, or words between blanks."""
    found = json_list(rest)
    return (tuple(rest.split()), False) if found is None else (found, True)


def json_or_text(rest: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """Read a JSON list (the exec form), or one text (the shell form)."""
    found = json_list(rest)
    return one_text(rest, escape) if found is None else (found, True)


# %% The syntax of each word
class Syntax(Record):
    """How the rest of an instruction is read: form, least and most words, flags."""

    form: Form
    least: int
    most: int
    flags: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


MANY = 1_000_000
COPYING = ("link", "parents", "exclude", "checksum", "keep-git-dir", "unpack")
RUNNING = ("mount", "network", "security", "device")

SYNTAX: dict[Word, Syntax] = {
    Word.FROM: Syntax(plain_words, 1, 3, ("platform",)),
    Word.ARG: Syntax(quoted_words, 1, MANY),
    Word.ENV: Syntax(pairs, 2, MANY),
    Word.LABEL: Syntax(pairs, 2, MANY),
    Word.MAINTAINER: Syntax(one_text, 1, 1),
    Word.COPY: Syntax(json_or_words, 2, MANY, ("from", "chown", "chmod"), COPYING),
    Word.ADD: Syntax(json_or_words, 2, MANY, ("chown", "chmod"), COPYING),
    Word.RUN: Syntax(json_or_text, 1, MANY, (), RUNNING),
    Word.CMD: Syntax(json_or_text, 0, MANY),
    Word.ENTRYPOINT: Syntax(json_or_text, 0, MANY),
    Word.SHELL: Syntax(json_or_text, 1, MANY),
    Word.USER: Syntax(one_text, 1, 1),
    Word.WORKDIR: Syntax(one_text, 1, 1),
    Word.VOLUME: Syntax(json_or_words, 1, MANY),
    Word.EXPOSE: Syntax(plain_words, 1, MANY),
    Word.STOPSIGNAL: Syntax(one_text, 1, 1),
    Word.HEALTHCHECK: Syntax(
        json_or_text, 1, MANY, ("interval", "timeout", "start-period", "retries")
    ),
    Word.ONBUILD: Syntax(one_text, 1, 1),
}


# %% From a logical line to an instruction
FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")


def take_flags(rest: str) -> tuple[list[tuple[str, str]], str]:
    """Split the flags at the start from what follows them.

    >>> take_flags("--from=build --chown=1:1 a b")
    ([('from', 'build'), ('chown', '1:1')], 'a b')
    """
    flags = []
    while found := FLAG.match(rest):
        flags.append((found[1], found[2] or ""))
        rest = rest[found.end() :]
    if rest == "--" or rest.startswith("-- "):
        rest = rest[3:].lstrip()
    return flags, rest


def check_flags(word: Word, flags: list[tuple[str, str]]) -> None:
    """Refuse a flag that the word does not have, or without its value."""
    known = SYNTAX[word]
    for name, value in flags:
        if name in known.foreign:
            raise DockerfileError(
                f"{word.value} --{name} is BuildKit's and is not supported",
                hint="the classic builder has no such flag; leave it out",
            )
        if name not in known.flags:
            hint = did_you_mean(f"--{name}", [f"--{flag}" for flag in known.flags])
            raise DockerfileError(f'unknown flag "--{name}"', hint=hint)
        if not value:
            raise DockerfileError(f"--{name} needs a value: --{name}=VALUE")


# %% From a logical line to an instruction
def known_word(text: str) -> Word:
    """Return the word, in any case; refuse an unknown one with a near one."""
    try:
        return Word(text.upper())
    except ValueError:
        hint = did_you_mean(text.upper(), [w.value for w in Word])
        raise DockerfileError(f'unknown instruction "{text}"', hint=hint) from None


HEREDOC = re.compile(r"(?:^|\s)<<-?[\"']?[A-Za-z_]\w*")


def check_arguments(word: Word, args: tuple[str, ...], text: str) -> None:
    """Refuse a wrong number of arguments, and here-documents."""
    syntax = SYNTAX[word]
    if len(args) < syntax.least:
        few = "an argument" if syntax.least == 1 else "at least two arguments"
        raise DockerfileError(f"{word.value} needs {few}")
    if len(args) > syntax.most:
        raise DockerfileError(f"{word.value} has too many arguments")
    if (
        word is Word.FROM
        and len(args) > 1
        and [a.upper() for a in args[1:-1]] != ["AS"]
    ):
        raise DockerfileError("FROM takes an image, or: IMAGE AS NAME")
    if word in {Word.RUN, Word.COPY, Word.ADD} and HEREDOC.search(text):
        hint = "join the lines with && and a backslash"
        raise DockerfileError("here-documents are not supported", hint=hint)


# %% From a logical line to an instruction
def parse_instruction(text: str, line: int, name: str, escape: str) -> Instruction:
    """Parse one logical line that begins at line ``line`` of the file ``name``."""
    where = f"{name}:{line}"
    try:
        head, *tail = text.split(None, 1)
        word = known_word(head)
        flags, rest = take_flags(tail[0] if tail else "")
        check_flags(word, flags)
        args, is_json = SYNTAX[word].form(rest, escape)
        check_arguments(word, args, rest)
    except DockerfileError as why:
        raise DockerfileError(why.what, where=where, hint=why.hint) from why
    return Instruction(word, args, tuple(flags), is_json, line, text, where)


# %% From a logical line to an instruction
def check_begins_with_from(found: tuple[Instruction, ...], name: str) -> None:
    """Refuse an empty file, and an instruction outside of any stage."""
    for it in found:
        if it.word is Word.FROM:
            return
        if it.word is not Word.ARG:
            raise DockerfileError(
                f"{it.word.value} before the first FROM",
                where=it.where,
                hint='begin with "FROM image" or "FROM scratch"',
            )
    raise DockerfileError("the file has no FROM instruction", where=name)


def parse(text: bytes | str, name: str = "Dockerfile") -> Dockerfile:
    """Parse a Dockerfile; ``name`` stands in messages.

    Raises DockerfileError, with ``name:line``, at the first thing that is wrong.
    """
    lines = physical_lines(text, name)
    escape = escape_character(lines, name)
    found = tuple(
        parse_instruction(text, line, name, escape)
        for line, text in logical_lines(lines, escape)
    )
    check_begins_with_from(found, name)
    return Dockerfile(name, found, escape)
