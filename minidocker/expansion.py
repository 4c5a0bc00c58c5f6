# From book/325-expansion.md. Edit there and tangle, or here and tangle --back.

# %% Expansion: variables and quotes
"""Expand the variables and take off the quotes of a Dockerfile's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from minidocker.dockerfile import Instruction, Word
from minidocker.errors import DockerfileError
from minidocker.lines import point, raise_all


# %% Patterns
TOKEN = re.compile(r"\\(.?)|.", re.DOTALL)
Parts = list[list[str]]


def parts_of(pattern: str) -> Parts:
    """Cut a pattern at its stars; a part is a list of regular expressions.

    >>> parts_of("v?*.tar")
    [['v', '.'], ['\\.', 't', 'a', 'r']]
    """
    parts: Parts = [[]]
    for found in TOKEN.finditer(pattern):
        char, escaped = found[0], found[1]
        if char == "*":
            parts.append([])
        elif escaped is not None and escaped not in {"*", "?", "\\", "/", "}"}:
            hint = "a backslash may stand before * ? \\ / and }"
            raise DockerfileError(f'bad escape in pattern "{pattern}"', hint=hint)
        else:
            parts[-1].append("." if char == "?" else re.escape(escaped or char))
    return parts


def end_of(parts: Parts, value: str, start: int, longest: bool) -> int | None:
    """Return where a match that begins at ``start`` ends; None without one."""
    first, *rest = (re.compile("".join(part), re.DOTALL) for part in parts)
    found = first.match(value, start)
    for number, part in enumerate(rest, 1):
        if not found:
            return None
        if longest and number == len(rest):
            last = re.compile(f".*{part.pattern}", re.DOTALL)
            found = last.match(value, found.end())
        else:
            found = part.search(value, found.end())
    return found.end() if found else None


# %% Patterns
def without_begin(value: str, pattern: str, longest: bool) -> str:
    """Return the value without a beginning that matches.

    >>> without_begin("a/b/c", "*/", False), without_begin("a/b/c", "*/", True)
    ('b/c', 'c')
    """
    return value[end_of(parts_of(pattern), value, 0, longest) or 0 :]


def without_end(value: str, pattern: str, longest: bool) -> str:
    """Return the value without an end that matches.

    >>> without_end("a.tar.gz", ".*", False), without_end("a.tar.gz", ".*", True)
    ('a.tar', 'a')
    """
    parts = [part[::-1] for part in parts_of(pattern)[::-1]]
    return value[: len(value) - (end_of(parts, value[::-1], 0, longest) or 0)]


def replaced(value: str, pattern: str, word: str, every: bool) -> str:
    """Return the value with ``word`` for the first longest match, or for each.

    >>> replaced("a-b-c", "-", "+", False), replaced("a-b-c", "-", "+", True)
    ('a+b-c', 'a+b+c')
    """
    parts = parts_of(pattern)
    first, text, at = re.compile("".join(parts[0]), re.DOTALL), "", 0
    for found in first.finditer(value):
        end = end_of(parts, value, found.start(), True) if found.start() >= at else at
        if end is None:
            break
        if end > at or not text:
            text, at = text + value[at : found.start()] + word, end
            if not every:
                break
    return text + value[at:]


# %% What an operator returns
def chosen(operator: str, name: str, value: str | None, word: str) -> str:
    """Return what ``-``, ``+`` or ``?`` makes of a value, None when there is none.

    >>> chosen("-", "a", None, "w"), chosen("+", "a", "v", "w")
    ('w', 'w')
    """
    if operator == "+":
        return "" if value is None else word
    if operator == "?" and value is None:
        hint = f"set it, with --build-arg {name}=... where there is an ARG for it"
        raise DockerfileError(f"{name}: {word or 'not set'}", hint=hint)
    return word if value is None else value


# %% The reader
NAME = re.compile(r"[^\W\d]\w*|\d+|[@*#?!$-]")
DEEPEST = 50


class Front:
    """A text of which one thing after another is taken off the front.

    ``unset`` collects the names that were asked for in vain.
    """

    __slots__ = "at", "escape", "quotes", "text", "unset", "variables"

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        escape: str,
        quotes: tuple[str, ...] = ("'", '"'),
    ) -> None:
        self.text, self.variables, self.escape = text, variables, escape
        self.quotes, self.at = quotes, 0
        self.unset: list[str] = []

    def take(self) -> str:
        """Take one character off the front; nothing at the end."""
        self.at += 1
        return self.text[self.at - 1 : self.at]

    def wrong(self, what: str, start: int, hint: str | None = None) -> DockerfileError:
        """Return the error of what was taken since ``start``."""
        word = self.text[start : self.at]
        return DockerfileError(f'{what} in "{self.text}"', hint=hint, word=word)

    def single_quoted(self) -> str:
        """Take what follows a single quote, and the closing one."""
        start = self.at
        text, quote, _ = self.text[start:].partition("'")
        self.at += len(text) + 1
        if not quote:
            raise self.wrong("no closing '", start - 1)
        return text

    def value(self, name: str) -> str:
        """Return the value of a variable, nothing for one that is not set."""
        if name not in self.variables:
            self.unset.append(name)
        return self.variables.get(name, "")


# %% The reader
class Reader(Front):
    """Read a text from its start to its end, expanding as it goes.

    ``raw`` keeps the escapes, as a pattern needs them. ``depth`` counts the braces
    that are open.
    """

    __slots__ = "depth", "raw"

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        escape: str,
        quotes: tuple[str, ...] = ("'", '"'),
    ) -> None:
        super().__init__(text, variables, escape, quotes)
        self.raw, self.depth = False, 0

    def until(self, stop: str, start: int = 0) -> list[tuple[str, bool]]:
        """Read up to ``stop``, and take it; return (text, was protected) pieces."""
        pieces: list[tuple[str, bool]] = []
        while self.at < len(self.text):
            one = self.take()
            if one == stop:
                return pieces
            if one == "$":
                pieces.append((self.dollar(), False))
            elif one == self.escape:
                pieces.append((one * self.raw + self.take(), True))
            elif one in self.quotes:
                quoted = self.single_quoted if one == "'" else self.double_quoted
                pieces.append((quoted(), True))
            else:
                pieces.append((one, False))
        if stop:
            raise self.wrong(f'no closing "{stop}"', start)
        return pieces

    def double_quoted(self) -> str:
        """Take what follows a double quote, expanded, and the closing one."""
        start, found, special = self.at - 1, "", ('"', "$", self.escape)
        while self.at < len(self.text):
            one = self.take()
            if one == '"':
                return found
            if one == "$":
                found += self.dollar()
            elif one == self.escape and self.text[self.at : self.at + 1] in special:
                found += one * self.raw + self.take()
            else:
                found += one
        raise self.wrong('no closing "', start)

    def dollar(self) -> str:
        """Take what follows a dollar; alone it stands for itself."""
        if self.text.startswith("{", self.at):
            return self.braced(self.at - 1)
        found = NAME.match(self.text, self.at)
        if not found:
            return "$"
        self.at = found.end()
        return self.value(found[0])

    def braced(self, start: int) -> str:
        """Take ``{name}``, or ``{name``, an operator and what belongs to it."""
        found = NAME.match(self.text, self.at + 1)
        self.at = found.end() if found else self.at + 2
        if not found:
            raise self.wrong("bad substitution", start)
        name, operator = found[0], self.take()
        if operator == "}":
            return self.value(name)
        if colon := operator == ":":
            operator = self.take()
        if operator in {"-", "+", "?"}:
            value, word = self.variables.get(name), self.word("}", start)
            return chosen(operator, name, value or None if colon else value, word)
        if operator in {"#", "%", "/"}:
            return self.matched(operator, self.value(name), start)
        if not operator:
            raise self.wrong('no closing "}"', start)
        hint = "there are - + ? with or without a colon, # ## % %% / and //"
        raise self.wrong("bad operator", start, hint)

    def matched(self, operator: str, value: str, start: int) -> str:
        """Take what follows ``#``, ``%`` or ``/``, and apply it to the value."""
        double = self.text.startswith(operator, self.at)
        self.at += double
        if operator == "/":
            pattern = self.word("/", start, raw=True)
            word = self.word("}", start, raw=True)
            return replaced(value, pattern, word, double)
        without = without_begin if operator == "#" else without_end
        return without(value, self.word("}", start, raw=True), double)

    def word(self, stop: str, start: int, raw: bool = False) -> str:
        """Take an expanded word up to ``stop``; ``start`` is where it all began."""
        before, self.raw, self.depth = self.raw, raw, self.depth + 1
        if self.depth > DEEPEST:
            raise self.wrong(f"more than {DEEPEST} braces within each other", start)
        pieces = self.until(stop, start)
        self.raw, self.depth = before, self.depth - 1
        return "".join(text for text, _ in pieces)


# %% The verbs
def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Expand ``text`` to one word, without its quotes.

    Raises DockerfileError for an open quote or brace and for an unknown modifier.

    >>> expand("${b:-/usr}/bin:'$b' $c", {"c": "d"})
    '/usr/bin:$b d'
    """
    return "".join(piece for piece, _ in Reader(text, variables, escape).until(""))


# %% The verbs
def expand_words(
    text: str, variables: Mapping[str, str], escape: str = "\\"
) -> list[str]:
    """Expand ``text`` and split it at the blanks that no quote protects.

    >>> expand_words("$p 'a b'", {"p": "80 443"})
    ['80', '443', 'a b']
    """
    words: list[str] = []
    open_word = False
    for piece, quoted in Reader(text, variables, escape).until(""):
        for number, part in enumerate([piece] if quoted else re.split(r"\s+", piece)):
            if number:
                open_word = False
            if part or quoted:
                words[-1:] = [words[-1] + part] if open_word else [*words[-1:], part]
                open_word = True
    return words


def expand_document(content: str, variables: Mapping[str, str]) -> str:
    """Expand the text of a here-document; its escape is always the backslash.

    >>> expand_document('say "$a" \\$a', {"a": "b"})
    'say "b" $a'
    """
    return "".join(text for text, _ in Reader(content, variables, "\\", ()).until(""))


def unset_in(
    text: str, variables: Mapping[str, str], escape: str | None = "\\"
) -> list[str]:
    """Return the names that ``text`` asks for in vain, without a word for that case.

    No escape means that it is the text of a here-document.

    >>> unset_in("$a ${b} ${c:-d} '$e'", {"a": ""})
    ['b']
    >>> unset_in("'$e'", {}, None)
    ['e']
    """
    reader = Reader(text, variables, escape or "\\", ("'", '"') if escape else ())
    reader.until("")
    return reader.unset


# %% Before anything runs
class Anything(Mapping[str, str]):
    """Variables that are all set."""

    def __getitem__(self, name: str) -> str:
        return "x"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


EXPANDED = {
    Word.FROM, Word.ARG, Word.ENV, Word.LABEL, Word.COPY, Word.ADD, Word.WORKDIR,
    Word.USER, Word.VOLUME, Word.EXPOSE, Word.STOPSIGNAL,
}  # fmt: skip
EXPANDED_FLAGS = {"platform", "chown", "chmod", "exclude", "checksum"}


# %% Before anything runs
def texts_of(it: Instruction) -> list[str]:
    """Return the words of an instruction in which variables are expanded."""
    if it.word not in EXPANDED:
        return []
    words = it.args[:1] if it.word is Word.FROM else it.args
    flags = (value for name, value in it.flags if name in EXPANDED_FLAGS)
    return [word for word in (*words, *flags) if not it.heredoc(word)]


def documents_of(it: Instruction) -> list[str]:
    """Return the texts of here-documents in which variables are expanded."""
    docs = it.heredocs if it.word in {Word.COPY, Word.ADD} else ()
    return [doc.content for doc in docs if doc.expands]


def check_words(instructions: Iterable[Instruction], escape: str) -> None:
    """Refuse the words that cannot be expanded, all of them at once."""
    faults: list[DockerfileError] = []
    for it in instructions:
        readers = [Reader(text, Anything(), escape) for text in texts_of(it)]
        readers += [Reader(text, Anything(), "\\", ()) for text in documents_of(it)]
        for reader in readers:
            try:
                reader.until("")
            except DockerfileError as why:
                faults.append(point(why, it.source, it.where.rpartition(":")[0]))
    raise_all(faults)
