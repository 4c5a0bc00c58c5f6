# From book/320-dockerfile.md. Edit there and tangle, or here and tangle --back.

# %% Dockerfile: lines to instructions
"""Parse a Dockerfile: the syntax of each instruction, its flags and arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from minidocker.errors import DockerfileError, MinidockerError, did_you_mean
from minidocker.forms import (
    Form,
    health,
    json_or_text,
    json_or_words,
    one_text,
    only_json,
    pairs,
    plain_words,
    quoted_words,
)
from minidocker.lines import (
    SEPARATOR,
    Directive,
    Heredoc,
    LogicalLine,
    directives,
    heredoc_mark,
    logical_lines,
    physical_lines,
    point,
    printable,
    raise_all,
    shown_at,
    strip,
    take_flags,
)
from minidocker.records import Enum, Record


# %% The nouns
class Word(Enum):
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


# %% The nouns
class Instruction(Record):
    """One instruction of a Dockerfile, before any variable is expanded.

    ``args``: for ENV and LABEL name, value, name, value...; for the shell form of
    RUN, CMD and ENTRYPOINT one text; for HEALTHCHECK ``NONE``, or ``CMD`` and then as
    CMD has them; for ONBUILD the text of the trigger; otherwise words. ``json`` says
    that they came as a JSON list. ``text`` is the whole logical line, ``line`` where
    it began.
    """

    word: Word
    args: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]
    json: bool
    line: int
    text: str
    where: str
    source: LogicalLine
    heredocs: tuple[Heredoc, ...] = ()
    trigger: Instruction | None = None

    def flag(self, name: str) -> str | None:
        """Return the value of ``--name=value``; the last one wins."""
        return dict(self.flags).get(name)

    def flag_all(self, name: str) -> tuple[str, ...]:
        """Return the values of a flag that may be repeated, in order."""
        return tuple(value for flag, value in self.flags if flag == name)

    def is_on(self, name: str) -> bool:
        """Say whether a flag such as ``--link`` is given, and not as ``=false``."""
        return self.flag(name) == "true"

    def heredoc(self, arg: str) -> Heredoc | None:
        """Return the here-document that an argument of COPY or ADD announces."""
        mark = None if self.json else heredoc_mark(arg)
        named = (h for h in self.heredocs if mark and h.name == mark.name)
        return next(named, None)


class Dockerfile(Record):
    """A parsed Dockerfile: its name for messages, instructions, escape character."""

    name: str
    instructions: tuple[Instruction, ...]
    escape: str
    directives: tuple[Directive, ...] = ()


# %% Flags
class Kind(Enum):
    """What a flag takes."""

    TEXT = "a text"
    SWITCH = "true or false"
    LIST = "a text, and may be repeated"


class Flag(Record):
    """A flag of an instruction; ``choices`` are its values where they are few."""

    name: str
    kind: Kind = Kind.TEXT
    choices: tuple[str, ...] = ()


def flag_value(flag: Flag, value: str | None) -> str:
    """Return what a flag is set to; refuse what it does not take."""
    where = f"--{flag.name}"
    if flag.kind is Kind.SWITCH:
        value = "true" if value is None else value.lower()
    if not value:
        raise DockerfileError(f"{where} needs a value: {where}=VALUE", word=where)
    choices = ("true", "false") if flag.kind is Kind.SWITCH else flag.choices
    if choices and value not in choices:
        hint = did_you_mean(value, choices, other=" or ".join(choices))
        raise DockerfileError(f'bad value "{value}" of {where}', hint=hint, word=where)
    return value


def check_flags(
    known: tuple[Flag, ...], given: list[tuple[str, str | None]]
) -> tuple[tuple[str, str], ...]:
    """Return the flags with their values; refuse those that are not ``known``."""
    table = {flag.name: flag for flag in known}
    seen: list[tuple[str, str]] = []
    for name, value in given:
        where = f"--{name}"
        if name not in table:
            hint = did_you_mean(where, [f"--{flag}" for flag in table])
            raise DockerfileError(f'unknown flag "{where}"', hint=hint, word=where)
        if table[name].kind is not Kind.LIST and name in dict(seen):
            raise DockerfileError(f"{where} is given twice", word=where)
        seen.append((name, flag_value(table[name], value)))
    return tuple(seen)


# %% The syntax of each word
class Syntax(Record):
    """How the rest of an instruction is read: form, least and most words, flags."""

    form: Form
    least: int
    most: int
    flags: tuple[Flag, ...] = ()


MANY = 1_000_000


# %% The syntax of each word
FILES = (
    Flag("chown"),
    Flag("chmod"),
    Flag("link", Kind.SWITCH),
    Flag("exclude", Kind.LIST),
)
COPYING = (*FILES, Flag("from"), Flag("parents", Kind.SWITCH))
ADDING = (
    *FILES,
    Flag("checksum"),
    Flag("keep-git-dir", Kind.SWITCH),
    Flag("unpack", Kind.SWITCH),
)
RUNNING = (
    Flag("mount", Kind.LIST),
    Flag("device", Kind.LIST),
    Flag("network", choices=("default", "none", "host")),
    Flag("security", choices=("sandbox", "insecure")),
)
PERIODS = ("interval", "timeout", "start-period", "start-interval")


# %% The syntax of each word
SYNTAX: dict[Word, Syntax] = {
    Word.FROM: Syntax(plain_words, 1, 3, (Flag("platform"),)),
    Word.ARG: Syntax(quoted_words, 1, MANY),
    Word.ENV: Syntax(pairs, 2, MANY),
    Word.LABEL: Syntax(pairs, 2, MANY),
    Word.MAINTAINER: Syntax(one_text, 1, 1),
    Word.COPY: Syntax(json_or_words, 2, MANY, COPYING),
    Word.ADD: Syntax(json_or_words, 2, MANY, ADDING),
    Word.RUN: Syntax(json_or_text, 1, MANY, RUNNING),
    Word.CMD: Syntax(json_or_text, 0, MANY),
    Word.ENTRYPOINT: Syntax(json_or_text, 0, MANY),
    Word.SHELL: Syntax(only_json, 1, MANY),
    Word.USER: Syntax(one_text, 1, 1),
    Word.WORKDIR: Syntax(one_text, 1, 1),
    Word.VOLUME: Syntax(json_or_words, 1, MANY),
    Word.EXPOSE: Syntax(plain_words, 1, MANY),
    Word.STOPSIGNAL: Syntax(one_text, 1, 1),
    Word.HEALTHCHECK: Syntax(health, 1, MANY, (*map(Flag, PERIODS), Flag("retries"))),
    Word.ONBUILD: Syntax(one_text, 1, 1),
}


# %% What else is checked
STAGE_NAME = r"[a-z][a-z0-9_.-]*"


def check_from(it: Instruction) -> None:
    """Refuse what is neither ``IMAGE`` nor ``IMAGE AS NAME``, and a bad name."""
    if len(it.args) == 1:
        return
    if len(it.args) == 2 or it.args[1].upper() != "AS":
        what = "FROM takes an image, or: IMAGE AS NAME"
        raise DockerfileError(what, word=it.args[1])
    if not re.fullmatch(STAGE_NAME, it.args[2].lower()):
        what = f'bad name for a stage: "{it.args[2]}"'
        hint = "a letter, then letters, digits, and _ . -"
        raise DockerfileError(what, hint=hint, word=it.args[2])


def check_documents(it: Instruction) -> None:
    """Refuse a here-document that becomes a file and has no file's name."""
    for doc in it.heredocs:
        is_file = it.word is not Word.RUN or doc.content.startswith("#!")
        if is_file and ("/" in doc.name or doc.name in {".", ".."}):
            what = f'"{doc.name}" cannot be the name of a file'
            hint = "name the here-document, and say where it goes at the end"
            raise DockerfileError(what, hint=hint, word=doc.name)


# %% What else is checked
def no_variables(value: str) -> tuple[str, str]:
    """Return what to say of variables in ``from=``, and the hint."""
    named = f'"FROM {value} AS name"'
    return (
        f'variables are not expanded in from="{value}"',
        f"give the stage a name, {named}, and an ARG before the first FROM",
    )


def check_files(it: Instruction) -> None:
    """Refuse what cannot be: variables in ``--from``, a here-document that is odd."""
    if "$" in (origin := it.flag("from") or ""):
        what, hint = no_variables(origin)
        raise DockerfileError(what, hint=hint, word=origin)
    if it.heredoc(it.args[-1]):
        hint = "the last word says where the files go"
        what = "a here-document cannot be the destination"
        raise DockerfileError(what, hint=hint, word=it.args[-1])
    check_documents(it)


# %% What else is checked
DURATION = r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)"
NANOSECONDS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9,
    "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip


def duration(text: str) -> int:
    """Return the nanoseconds of a duration.

    >>> duration("1m30s"), duration("1.5h"), duration("0")
    (90000000000, 5400000000000, 0)
    """
    parts = list(re.finditer(DURATION, text)) if len(text) <= 64 else []
    whole = "".join(part[0] for part in parts) == text and bool(parts)
    total: int = sum(
        int((p[1] + (p[2] or "")) or 0) * NANOSECONDS[p[3]] // 10 ** len(p[2] or "")
        for p in parts
    )
    exact = whole and all(p[1] or p[2] for p in parts) and total < 2**63
    if text != "0" and not exact:
        hint = "such as 30s or 1m30s"
        raise DockerfileError(f'bad duration "{text}"', hint=hint, word=text)
    return total


def check_health(it: Instruction) -> None:
    """Refuse a duration under a millisecond, and retries that are no number."""
    for name in PERIODS:
        text = it.flag(name)
        if text is not None and 0 < duration(text) < NANOSECONDS["ms"]:
            what = f"--{name} must be 0 or at least 1ms"
            raise DockerfileError(what, word=f"--{name}")
    retries = it.flag("retries")
    if retries is not None and not re.fullmatch("[0-9]{1,9}", retries):
        what = f'--retries must be a number, not "{retries}"'
        raise DockerfileError(what, word="--retries")


CHECKS: dict[Word, Callable[[Instruction], None]] = {
    Word.FROM: check_from,
    Word.COPY: check_files,
    Word.ADD: check_files,
    Word.RUN: check_documents,
    Word.HEALTHCHECK: check_health,
}


# %% From a logical line to an instruction
def known_word(text: str) -> Word:
    """Return the word, in any case; refuse an unknown one with a near one."""
    try:
        return Word(text.upper())
    except ValueError:
        hint = did_you_mean(text.upper(), [w.value for w in Word])
        what = f'unknown instruction "{text}"'
        raise DockerfileError(what, hint=hint, word=text) from None


def check_count(word: Word, args: tuple[str, ...]) -> None:
    """Refuse a wrong number of arguments."""
    syntax = SYNTAX[word]
    if len(args) < syntax.least:
        few = "an argument" if syntax.least == 1 else "at least two arguments"
        raise DockerfileError(f"{word.value} needs {few}")
    if len(args) > syntax.most:
        what = f"{word.value} has too many arguments"
        raise DockerfileError(what, word=args[syntax.most])


NO_TRIGGER = (Word.ONBUILD, Word.FROM, Word.MAINTAINER)


# %% From a logical line to an instruction
def read_instruction(
    text: str, source: LogicalLine, name: str, escape: str, *, trigger: bool = False
) -> Instruction:
    """Parse the text of an instruction, or of a trigger within one."""
    head, *tail = SEPARATOR.split(text, maxsplit=1)
    word = known_word(head)
    if trigger and word in NO_TRIGGER:
        raise DockerfileError(f"{word.value} may not be a trigger", word=head)
    given, rest = take_flags(strip(tail[0]) if tail else "")
    flags = check_flags(SYNTAX[word].flags, given)
    args, is_json = SYNTAX[word].form(rest, escape)
    check_count(word, args)
    inner = None
    if word is Word.ONBUILD:
        inner = read_instruction(rest, source, name, escape, trigger=True)
    found = Instruction(
        word, args, flags, is_json, source.line, text, f"{name}:{source.line}", source,
        source.heredocs, inner,
    )  # fmt: skip
    if word in CHECKS:
        CHECKS[word](found)
    return found


# %% From a logical line to an instruction
def check_begin(found: list[Instruction]) -> None:
    """Refuse the last instruction if it stands before the first FROM."""
    if any(it.word is not Word.ARG for it in found[:-1]):
        return
    if found[-1].word not in {Word.ARG, Word.FROM}:
        hint = 'begin with "FROM image" or "FROM scratch"'
        what = f"{found[-1].word.value} before the first FROM"
        raise DockerfileError(what, hint=hint)


def read_all(lines: Iterator[LogicalLine], name: str, escape: str) -> list[Instruction]:
    """Parse all the lines; raise all that is wrong at once."""
    found: list[Instruction] = []
    faults: list[DockerfileError] = []
    try:
        for it in lines:
            try:
                found.append(read_instruction(it.text, it, name, escape))
                if not faults:
                    check_begin(found)
            except DockerfileError as why:
                faults.append(point(why, it, name))
    except DockerfileError as why:  # a here-document that took the rest of the file
        faults.append(why)
    raise_all(faults)
    return found


def parse(text: bytes | str, name: str = "Dockerfile") -> Dockerfile:
    """Parse a Dockerfile; ``name`` stands in messages.

    Raises DockerfileError, with ``name:line``; its ``more`` holds what is wrong
    besides.
    """
    lines = physical_lines(text, name)
    told = directives(lines, name)
    escape = next((it.value for it in told if it.name == "escape"), "\\")
    found = read_all(logical_lines(lines, escape, name), name, escape)
    if all(it.word is Word.ARG for it in found):
        raise DockerfileError("the file has no FROM instruction", where=name)
    return Dockerfile(name, tuple(found), escape, told)


# %% Errors of later chapters
def blamed(why: MinidockerError, it: Instruction) -> str:
    """Return the word of an instruction that an error is about, or nothing."""
    carried = why.word if isinstance(why, DockerfileError) else ""
    quoted = re.findall('"([^"]+)"', why.what)
    named = (word for word in it.args if f" {word}:" in why.what)
    words = (word for word in (carried, *quoted, *named) if word)
    return next((word for word in words if word in it.source.text), "")


def place(why: MinidockerError, it: Instruction) -> None:
    """Give an error its line, and the excerpt where a word is to blame."""
    why.where, why.what = it.where, printable(why.what)
    word = blamed(why, it) if it.text == it.source.text else ""
    if word and not why.excerpt:
        line, why.excerpt = shown_at(it.source, word)
        why.where = f"{it.where.rpartition(':')[0] or it.where}:{line}"


# %% Triggers, there and back
def trigger_text(it: Instruction) -> str:
    """Return the text of an ONBUILD's trigger as an image stores it."""
    docs = (f"\n{doc.content}{doc.name}" for doc in it.heredocs)
    return it.args[0] + "".join(docs)


def parse_trigger(text: str, where: str) -> Instruction:
    """Parse the trigger that an image has stored; ``where`` names the image."""
    lines = logical_lines(physical_lines(text, where), "\\", where)
    found = [read_instruction(it.text, it, where, "\\", trigger=True) for it in lines]
    if len(found) != 1:
        raise DockerfileError(f'bad ONBUILD trigger "{text}"', where=where)
    return found[0].replace(where=where)
