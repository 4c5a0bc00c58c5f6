# From book/315-lines.md. Edit there and tangle, or here and tangle --back.

# %% Lines: what a line of a Dockerfile is
"""Cut a Dockerfile's text: physical and logical lines, directives, words, heredocs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from minidocker.errors import DockerfileError, MinidockerError
from minidocker.records import Record, parse_json


# %% The nouns
class Heredoc(Record):
    """A here-document: ``<<name`` on a line, and the lines that follow it.

    ``content`` has the line ends of the file, and no leading tabs when ``strip_tabs``
    (``<<-``). ``expands`` says that no part of the name was quoted. ``descriptor`` is
    the number before ``<<``, 0 without one.
    """

    name: str
    content: str
    expands: bool
    strip_tabs: bool
    descriptor: int = 0


class Piece(Record):
    """What a physical line gave; its first character is at ``start`` of the text."""

    start: int
    line: int
    source: str


# %% The nouns
class LogicalLine(Record):
    """An instruction's text on one line; it spans ``line`` to ``end`` of the file.

    ``empty`` are the numbers of the empty lines within it.
    """

    text: str
    line: int
    end: int
    pieces: tuple[Piece, ...]
    empty: tuple[int, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()


class Directive(Record):
    """A comment at the top that speaks to the parser: ``# name=value``."""

    name: str
    value: str
    line: int
    source: str


# %% The nouns
BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
SEPARATOR = re.compile(r"[\t\v\f\r ]+")


def strip(text: str) -> str:
    """Take the blanks off both ends.

    >>> strip("\\xa0 a\\t")
    'a'
    """
    return text.strip(BLANKS)


def bare(line: str) -> str:
    """Return a physical line without its end."""
    return line.rstrip("\r\n")


def is_comment(line: str) -> bool:
    """Say whether a physical line is a comment."""
    return strip(line).startswith("#")


# %% Pointing at a word
WINDOW = 100


def width(char: str) -> int:
    """Return how many columns a character takes on a terminal."""
    from unicodedata import combining, east_asian_width

    return 0 if combining(char) else 1 + (east_asian_width(char) in "WF")


def printable(text: str) -> str:
    """Replace what a terminal would obey.

    >>> printable("a\\tb\\x1b[2J")
    'a\\tb\ufffd[2J'
    """
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def excerpt(source: str, line: int, column: int, length: int) -> str:
    """Return a physical line with a caret under ``length`` characters of it.

    >>> print(excerpt("FORM a", 7, 0, 4))
       7 | FORM a
         | ^~~~
    """
    cut = max(0, column - WINDOW // 2) if len(source) > WINDOW else 0
    text = printable(source[cut : cut + WINDOW])
    before, word = text[: column - cut], text[column - cut :][:length]
    pad = "".join("\t" if c == "\t" else " " * width(c) for c in before)
    mark = "^" + "~" * (sum(map(width, word)) - 1)
    return f"{f'{line:4} | {text}'.rstrip()}\n     | {pad}{mark}"


# %% Pointing at a word
def word_at(text: str, word: str) -> tuple[int, int]:
    """Return where ``word`` begins in ``text``, and its length; else the first word's.

    >>> word_at("COPY --form=x form", "form"), word_at("COPY a", "")
    ((14, 4), (0, 4))
    """
    whole = re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text) if word else None
    at = whole.start() if whole else text.find(word) if word else -1
    if at < 0:
        return 0, len(SEPARATOR.split(text, maxsplit=1)[0])
    return at, len(word)


def shown_at(logical: LogicalLine, word: str) -> tuple[int, str]:
    """Return the number of the line that has a word, and the excerpt."""
    at, length = word_at(logical.text, word)
    piece = next(p for p in reversed(logical.pieces) if p.start <= at)
    return piece.line, excerpt(piece.source, piece.line, at - piece.start, length)


def point(why: DockerfileError, logical: LogicalLine, name: str) -> DockerfileError:
    """Give an error its place, file and line, and the excerpt; return it."""
    line, why.excerpt = shown_at(logical, why.word)
    why.where, why.what = f"{name}:{line}", printable(why.what)
    why.hint = printable(why.hint or "")
    return why


# %% Pointing at a word
MOST_ERRORS = 10


def raise_all(found: Iterable[MinidockerError]) -> None:
    """Raise the errors as one, the first with the others, if there are any."""
    faults = list(found)
    if len(faults) > MOST_ERRORS:
        hidden = len(faults) - MOST_ERRORS
        faults[MOST_ERRORS:] = [MinidockerError(f"and {hidden} more")]
    if faults:
        faults[0].more = tuple(faults[1:])
        raise faults[0]


# %% Physical lines
LONGEST_LINE = 65_535


def fault_of(line: bytes) -> str:
    """Say what is wrong with a physical line; "" for nothing."""
    if b"\0" in line:
        return "a NUL byte in the text"
    if len(line) > LONGEST_LINE:
        return "the line is longer than 64 KiB"
    try:
        line.decode()
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    return ""


def physical_lines(text: bytes | str, name: str) -> list[str]:
    """Split into lines, which keep their ends; refuse what no Dockerfile contains.

    >>> physical_lines(b"\\xef\\xbb\\xbfFROM a\\r\\nRUN b", "Dockerfile")
    ['FROM a\\r\\n', 'RUN b']
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    found = ((n, fault_of(line.rstrip(b"\r"))) for n, line in enumerate(lines, 1))
    raise_all(DockerfileError(what, where=f"{name}:{n}") for n, what in found if what)
    *ended, last = (line.decode() for line in lines)
    return [f"{line}\n" for line in ended] + [last] * bool(last)


# %% Directives
DIRECTIVE = rf"#[{BLANKS}]*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+)\Z"
DIRECTIVES = ("escape", "syntax", "check")


def directive_error(
    it: Directive, name: str, what: str, hint: str = ""
) -> DockerfileError:
    """Return an error that points at a directive's value."""
    why = DockerfileError(what, hint=hint, word=it.value)
    pieces = (Piece(0, it.line, it.source),)
    return point(why, LogicalLine(it.source, it.line, it.line, pieces), name)


def check_directive(new: Directive, seen: list[Directive], name: str) -> None:
    """Refuse a second one of its name, and an escape character that is none."""
    if any(old.name == new.name for old in seen):
        raise directive_error(new, name, f'a second "{new.name}" directive')
    if new.name == "escape" and new.value not in {"\\", "`"}:
        hint = "the escape character is \\ or `"
        raise directive_error(new, name, f'bad escape "{new.value}"', hint)


def directives(lines: list[str], name: str) -> tuple[Directive, ...]:
    """Return the directives at the top of a file.

    >>> directives(["# Escape = `\\n", "FROM a\\n"], "Dockerfile")
    (Directive(name='escape', value='`', line=1, source='# Escape = `'),)
    """
    seen: list[Directive] = []
    for number, line in enumerate(lines, 1):
        text = strip(line)
        found = re.match(DIRECTIVE, text) if text.startswith("#") else None
        if not found or found[1].lower() not in DIRECTIVES:
            break
        new = Directive(found[1].lower(), found[2], number, bare(line))
        check_directive(new, seen, name)
        seen.append(new)
    return tuple(seen)


# %% Words, flags, JSON
def split_words(text: str, escape: str) -> tuple[str, ...]:
    """Split at blanks outside quotes; quotes and escapes stay in the words.

    >>> split_words('A="b c" D=e\\ f', "\\")
    ('A="b c"', 'D=e\\ f')
    """
    esc = re.escape(escape)
    piece = rf"""'[^']*'?|"(?:{esc}.|[^"{esc}])*"?|{esc}.|[^{BLANKS}{esc}]"""
    words = [""]
    for found in re.finditer(rf"(?P<word>{piece})|[{BLANKS}]+", text, re.DOTALL):
        if found["word"]:
            words[-1] += found["word"]
        else:
            words.append("")
    return tuple(word for word in words if word)


# %% Words, flags, JSON
HALF_PAIR = "[\ud800-\udfff]"


def json_list(text: str) -> tuple[str, ...] | None:
    """Return the strings of a JSON list, or None when the text is not one.

    Raises DockerfileError for a list of something else than strings.

    >>> json_list('["a", "b c"]'), json_list("[a]")
    (('a', 'b c'), None)
    """
    if not text.startswith("["):
        return None
    try:
        found = parse_json(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(one, str) for one in found):
        raise DockerfileError("a JSON list may hold only strings", word=text)
    return tuple(re.sub(HALF_PAIR, "\ufffd", one) for one in found)


# %% Words, flags, JSON
SINGLE, DOUBLE = r"'((?:\\.|[^'\\])*)'?", r'"((?:\\.|[^"\\])*)"?'
PART = rf"""(?s:{SINGLE}|{DOUBLE}|((?:\\.|[^{BLANKS}'"\\])+))"""
FLAG = rf"--(?:{PART})*\\?"


def flag_text(word: str) -> str:
    """Take the quotes and escapes off a flag.

    >>> flag_text("--from='a b'")
    '--from=a b'
    """
    found = ("".join(m.groups("")) for m in re.finditer(PART, word))
    return "".join(re.sub(r"\\(.)|\\\Z", r"\1", part) for part in found)


def take_flags(rest: str) -> tuple[list[tuple[str, str | None]], str]:
    """Split the flags at the start from what follows; None is a flag without value.

    >>> take_flags("--from=build --link a b")
    ([('from', 'build'), ('link', None)], 'a b')
    """
    flags: list[tuple[str, str | None]] = []
    while rest.startswith("--") and (found := re.match(FLAG, rest)):
        rest = strip(rest[found.end() :])
        word = flag_text(found[0])
        if word == "--":
            break
        name, equals, value = word[2:].partition("=")
        flags.append((name, value if equals else None))
    return flags, rest


# %% Here-documents
QUOTED = r"""'[^']*'|"(?:\\.|[^"\\])*"|\\."""
LINE = rf"""(?s:(?:{QUOTED}|[^'"\\])*\\?)"""
WORD = rf"""(?s:(?:[0-9]*<<-?[ \t]*(?!<))?(?:{QUOTED}|[^{BLANKS}'"\\])+)"""
UNFINISHED = r"""(?s:(?:'[^']*'|\\.|[^'\\])*?\$\{(?:\}|[^}]*\Z))"""
MARK = r"([0-9]*)<<(?!-\Z)(-?)[ \t]*([^<]+)"
ABLE = r"(?i:(?:onbuild[\t\v\f\r ]+)?(?:run|copy|add)[\t\v\f\r ]+)"
NAME_QUOTES = r"""(?s:'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.))"""


def unquoted(name: str) -> str:
    """Take the quotes off a here-document's name.

    >>> unquoted("'a b'\\\\c")
    'a bc'
    """

    def one(found: re.Match[str]) -> str:
        double = re.sub(r'\\(["$\\])', r"\1", found[2] or "")
        return found[1] or double or found[3] or ""

    return re.sub(NAME_QUOTES, one, name)


def heredoc_mark(word: str) -> Heredoc | None:
    """Return the here-document that a word announces, still empty, or None.

    >>> heredoc_mark("3<<-'EOF'")
    Heredoc(name='EOF', content='', expands=False, strip_tabs=True, descriptor=3)
    """
    found = re.fullmatch(MARK, word)
    if not found or not unquoted(found[3]) or re.match(UNFINISHED, found[3]):
        return None
    quoted = any(m.lastindex != 3 for m in re.finditer(NAME_QUOTES, found[3]))
    number = int(found[1]) if 0 < len(found[1]) < 10 else 0
    return Heredoc(unquoted(found[3]), "", not quoted, bool(found[2]), number)


# %% Here-documents
def without_arithmetic(text: str) -> str:
    """Blot out what stands in ``$(( ))``.

    >>> without_arithmetic("echo $((1 << 4)) $(( <<A")
    'echo _ $(( <<A'
    """
    first, *rest = text.split("$((")
    for part in rest:
        inner, closed, after = part.partition("))")
        first += f"_{after}" if closed else f"$(({inner}"
    return first


def heredoc_marks(text: str) -> list[Heredoc]:
    """Return the here-documents that a logical line announces, still empty.

    >>> [mark.name for mark in heredoc_marks("RUN <<A cat 3<<-'B' '<<C' <<<D")]
    ['A', 'B']
    """
    able = re.match(ABLE, text) if "<<" in text else None
    if not able or not re.fullmatch(LINE, text):
        return []
    try:
        if json_list(take_flags(text[able.end() :])[1]) is not None:
            return []
    except DockerfileError:
        return []
    words = re.finditer(WORD, without_arithmetic(text))
    return [mark for word in words if (mark := heredoc_mark(word[0]))]


# %% Here-documents
Numbered = Iterator[tuple[int, str]]


def read_heredoc(mark: Heredoc, numbered: Numbered) -> tuple[Heredoc, int]:
    """Take the lines up to the mark's name; return the document, and the last line."""
    content: list[str] = []
    for number, line in numbered:
        kept = line.lstrip("\t") if mark.strip_tabs else line
        if bare(kept) == mark.name:
            return mark.replace(content="".join(content)), number
        content.append(kept)
    raise DockerfileError(
        f'here-document "{mark.name}" is not closed',
        hint=f'close it with a line that is "{mark.name}" and nothing else',
        word=mark.name,
    )


def with_heredocs(it: LogicalLine, numbered: Numbered, name: str) -> LogicalLine:
    """Return the line with its here-documents, taken from what follows it."""
    try:
        found = [read_heredoc(mark, numbered) for mark in heredoc_marks(it.text)]
    except DockerfileError as why:
        raise point(why, it, name) from why
    heredocs = tuple(heredoc for heredoc, _ in found)
    return it.replace(heredocs=heredocs, end=found[-1][1] if found else it.end)


# %% Logical lines
def next_line(numbered: Numbered, empty: list[int]) -> tuple[int, str] | None:
    """Take the next line that is no comment; ``empty`` gets the lines passed over."""
    for number, line in numbered:
        if is_comment(line):
            continue
        if strip(line):
            return number, line
        empty.append(number)
    return None


def gather(begin: tuple[int, str], numbered: Numbered, escape: str) -> LogicalLine:
    """Join a line with those that continue it, which are taken from ``numbered``."""
    esc = re.escape(escape)
    goes_on = re.compile(rf"(\A|[^{esc}]){esc}[ \t]*\Z")
    text, pieces, empty = "", list[Piece](), list[int]()
    here: tuple[int, str] | None = begin
    while here:
        number, source = here[0], bare(here[1])
        pieces.append(Piece(len(text), number, source))
        text += (kept := goes_on.sub(r"\1", source))
        here = next_line(numbered, empty) if kept != source else None
    lead = len(text) - len(text.lstrip(BLANKS))
    moved = tuple(piece.replace(start=piece.start - lead) for piece in pieces)
    return LogicalLine(strip(text), begin[0], pieces[-1].line, moved, tuple(empty))


def logical_lines(lines: list[str], escape: str, name: str) -> Iterator[LogicalLine]:
    """Yield the logical lines of a file; ``name`` is for messages.

    Raises DockerfileError for a here-document that is not closed.
    """
    numbered = iter(enumerate(lines, 1))
    while begin := next_line(numbered, []):
        found = gather(begin, numbered, escape)
        if found.text:
            yield with_heredocs(found, numbered, name)
