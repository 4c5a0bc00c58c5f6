# From book/602-templates.md. Edit there and tangle, or here and tangle --back.

# %% Templates: asking a document for a leaf
"""Read Go's templates: from a text to a tree of nodes.

The part of text/template that Docker's formats use. Chapter `values` walks the tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator

from minidocker.errors import UsageError
from minidocker.records import Enum, Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Operand(Record):
    """Something that has a value. ``fields`` are looked up in it, in order."""

    kind: Sort
    value: Any = None
    fields: tuple[str, ...] = ()


class Sort(Enum):
    """What an operand is."""

    LITERAL = "literal"
    DOT = "dot"
    VARIABLE = "variable"
    FUNCTION = "function"
    PIPELINE = "pipeline"


class Pipeline(Record):
    """Commands, each one's value the last argument of the next.

    ``names`` are variables that get the value; ``declares`` makes them new ones.
    """

    commands: tuple[tuple[Operand, ...], ...]
    names: tuple[str, ...] = ()
    declares: bool = True


class Control(Record):
    """``{{if}}``, ``{{range}}`` or ``{{with}}``, up to its ``{{end}}``."""

    word: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    other: tuple[Node, ...] = ()


class Jump(Record):
    """``{{break}}`` or ``{{continue}}``: how the nearest ``range`` goes on."""

    word: str


Node = str | Pipeline | Control | Jump


# %% Tokens
ACTION = re.compile(
    r"""\{\{(-(?=\s))?
    (?:\s*/\*.*?\*/\s*|((?:"(?:\\.|[^"\\])*"|`[^`]*`|'(?:\\.|[^'\\])*'|[^"`'])*?))
    ((?<=\s)-)?\}\}""",
    re.DOTALL | re.VERBOSE,
)
TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)
    |(?P<rune>'(?:\\.|[^'\\])+')
    |(?P<number>[+-]?(?:0[xob][0-9a-fA-F]+|[0-9]+(?:\.[0-9]+)?))
    |(?P<field>\.[A-Za-z_]\w*)
    |(?P<variable>\$\w*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>:=|[=.|(),])""",
    re.VERBOSE,
)


class Token(Record):
    """A word of an action. ``tight``: no space before it."""

    kind: str
    text: str
    tight: bool


def broken(what: str) -> UsageError:
    """Return the error for a template that cannot be read."""
    hint = "{{.Field}}, {{json .}}, {{range .List}}...{{end}}, or json"
    return UsageError(f"template parsing error: template: :1: {what}", hint=hint)


# %% Tokens
def tokens_of(action: str) -> list[Token]:
    """Return the tokens of what is between the braces.

    >>> [token.text for token in tokens_of("index .Env 0")]
    ['index', '.Env', '0']
    """
    found: list[Token] = []
    at, tight = 0, False
    while at < len(action):
        match = TOKEN.match(action, at)
        if match is None:
            raise broken(f"unexpected {json.dumps(action[at])} in operand")
        at, kind = match.end(), match.lastgroup or ""
        if kind != "space":
            found.append(Token(kind, match[0], tight))
        tight = kind != "space"
    return found


def pieces_of(template: str) -> Iterator[str | list[Token]]:
    """Yield texts, and the tokens of actions, in order."""
    at, trim = 0, False
    for match in ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        yield text.rstrip() if match[1] else text
        if match[2] is not None:
            yield tokens_of(match[2].strip())
        at, trim = match.end(), bool(match[3])
    rest = template[at:].lstrip() if trim else template[at:]
    if "{{" in rest:
        raise broken("unclosed action")
    yield rest


# %% The tree
class Words:
    """The tokens of one action, read from the left."""

    def __init__(self, tokens: list[Token], functions: Container[str]) -> None:
        self.tokens, self.functions, self.at = tokens, functions, 0

    def peek(self, ahead: int = 0) -> Token:
        """Return a token that is still to come; a mark without text at the end."""
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("mark", "", False)

    def next(self) -> Token:
        """Take a token."""
        token = self.peek()
        self.at += 1
        return token

    def pipeline(self) -> Pipeline:
        """Take a pipeline, perhaps with ``$name :=`` or ``$key, $value :=`` before."""
        names: list[str] = []
        mark = self.peek(1).text
        if self.peek().kind == "variable" and mark in (":=", "=", ","):
            while self.peek().kind == "variable":
                names.append(self.next().text)
                mark = self.next().text
            if mark not in (":=", "="):
                raise broken(f"unexpected {json.dumps(mark)} in variable list")
        commands = [self.command()]
        while self.peek().text == "|":
            self.next()
            commands.append(self.command())
        return Pipeline(tuple(commands), tuple(names), mark != "=")

    def command(self) -> tuple[Operand, ...]:
        """Take a value, or a function and its arguments."""
        operands: list[Operand] = []
        while self.peek().text not in ("", "|", ")"):
            operands.append(self.operand())
        if not operands:
            raise broken("missing value for command")
        return tuple(operands)

    def operand(self) -> Operand:
        """Take one value, and the fields that follow it without a space."""
        token = self.next()
        if token.kind == "field":
            found = Operand(Sort.DOT, None, (token.text[1:],))
        elif token.text == "(":
            found = Operand(Sort.PIPELINE, self.pipeline())
            if self.next().text != ")":
                raise broken("unclosed left paren")
        else:
            found = simple_operand(token, self.functions)
        fields = list(found.fields)
        while self.peek().kind == "field" and self.peek().tight:
            fields.append(self.next().text[1:])
        return found.replace(fields=tuple(fields))


# %% The tree
CONSTANTS = {"true": True, "false": False, "nil": None}


def simple_operand(token: Token, functions: Container[str]) -> Operand:
    """Return the operand of one token."""
    text = token.text
    if text == ".":
        return Operand(Sort.DOT)
    if token.kind == "variable":
        return Operand(Sort.VARIABLE, text)
    if token.kind == "word" and text not in CONSTANTS:
        if text not in functions:
            raise broken(f'function "{text}" not defined')
        return Operand(Sort.FUNCTION, text)
    if token.kind in ("word", "text", "rune", "number"):
        return Operand(Sort.LITERAL, literal(token))
    raise broken(f"unexpected {json.dumps(text)} in operand")


def literal(token: Token) -> Any:
    """Return the value that a token writes down; a rune is its number."""
    text = token.text
    if token.kind == "word":
        return CONSTANTS[text]
    if token.kind == "number":
        return float(text) if "." in text else int(text, 0)
    if text.startswith("`"):
        return text[1:-1]
    try:
        found = json.loads(f'"{text[1:-1]}"')
    except ValueError as why:
        raise broken(f"invalid syntax: {text}") from why
    return ord(found) if token.kind == "rune" and len(found) == 1 else found


# %% The tree
class Parser:
    """The pieces of a template, made into nodes."""

    def __init__(self, template: str, functions: Container[str]) -> None:
        self.pieces, self.functions = pieces_of(template), functions
        self.ranges = 0  # that are open

    def nodes(self, inside: str = "") -> tuple[list[Node], Words | None]:
        """Take nodes up to ``else`` or ``end``, which is returned, or to the last."""
        found: list[Node] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                found.append(piece)
                continue
            words = Words(piece, self.functions)
            word = words.peek().text
            if word in ("else", "end"):
                if not inside:
                    raise broken(f"unexpected {{{{{word}}}}}")
                return found, words
            if word in ("if", "range", "with"):
                words.next()
                found.append(self.control(word, words))
            elif word in ("break", "continue"):
                found.append(self.jump(word, words))
            else:
                found.append(whole(words))
        if inside:
            raise broken("unexpected EOF")
        return found, None

    def jump(self, word: str, words: Words) -> Jump:
        """Take ``{{break}}`` or ``{{continue}}``, which stand alone in a ``range``."""
        words.next()
        if words.peek().text:
            raise broken(f"unexpected {json.dumps(words.peek().text)} in {word}")
        if not self.ranges:
            raise broken(f"{{{{{word}}}}} outside {{{{range}}}}")
        return Jump(word)

    def control(self, word: str, words: Words) -> Control:
        """Take what follows ``{{if}}`` and the others; ``else if`` is one more."""
        if not words.peek().text:
            raise broken(f"missing value for {word}")
        pipeline = whole(words)
        self.ranges += word == "range"
        body, last = self.nodes(word)
        self.ranges -= word == "range"
        other: list[Node] = []
        if last and last.next().text == "else":
            if last.peek().text in ("if", "with"):
                other = [self.control(last.next().text, last)]
            else:
                other, _ = self.nodes(word)
        return Control(word, pipeline, tuple(body), tuple(other))


def whole(words: Words) -> Pipeline:
    """Take a pipeline that is all that is left of an action."""
    found = words.pipeline()
    if words.peek().text:
        raise broken(f"unexpected {json.dumps(words.peek().text)} in command")
    return found


def parse_template(template: str, functions: Container[str]) -> tuple[Node, ...]:
    """Return the nodes of a template; ``functions`` are the names that it may call.

    Raises UsageError for what cannot be read.

    >>> parse_template("a {{- /* nothing */ -}} b", ())
    ('a', 'b')
    """
    return tuple(Parser(template, functions).nodes()[0])
