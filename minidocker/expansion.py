# From book/31-expansion.md. Edit there and tangle, or here and tangle --back.

# %% Expansion: variables and quotes
"""Expand the variables and take off the quotes of a Dockerfile's words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from minidocker.errors import DockerfileError


# %% The reader
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?!$-]")


class Reader:
    """Read a text from its start to its end, expanding as it goes."""

    __slots__ = ("at", "escape", "text", "variables")

    def __init__(self, text: str, variables: Mapping[str, str], escape: str) -> None:
        self.text, self.variables, self.escape, self.at = text, variables, escape, 0

    def take(self) -> str:
        """Take one character off the front; nothing at the end."""
        self.at += 1
        return self.text[self.at - 1 : self.at]

    def until(self, stop: str) -> list[tuple[str, bool]]:
        """Read up to ``stop``, and take it; return (text, was quoted) pieces."""
        pieces: list[tuple[str, bool]] = []
        while self.at < len(self.text):
            one = self.take()
            if one == stop:
                return pieces
            if one == "'":
                pieces.append((self.single_quoted(), True))
            elif one == '"':
                pieces.append((self.double_quoted(), True))
            elif one == self.escape:
                pieces.append((self.take(), True))
            elif one == "$":
                pieces.append((self.dollar(), False))
            else:
                pieces.append((one, False))
        if stop:
            raise DockerfileError(f'no closing "{stop}" in "{self.text}"')
        return pieces

    def single_quoted(self) -> str:
        """Take what follows a single quote, and the closing one."""
        text, quote, _ = self.text[self.at :].partition("'")
        if not quote:
            raise DockerfileError(f'no closing \' in "{self.text}"')
        self.at += len(text) + 1
        return text

    def double_quoted(self) -> str:
        """Take what follows a double quote, expanded, and the closing one."""
        found = ""
        while self.at < len(self.text):
            one = self.take()
            if one == '"':
                return found
            if one == "$":
                found += self.dollar()
            elif (
                one == self.escape and self.text[self.at : self.at + 1] in self.special
            ):
                found += self.take()
            else:
                found += one
        raise DockerfileError(f"no closing \" in '{self.text}'")

    @property
    def special(self) -> tuple[str, ...]:
        """What loses its escape inside of double quotes."""
        return ('"', "$", self.escape)

    def dollar(self) -> str:
        """Take what follows a dollar; alone it stands for itself."""
        if self.text[self.at : self.at + 1] == "{":
            self.at += 1
            return self.braced()
        found = NAME.match(self.text, self.at)
        if not found:
            return "$"
        self.at = found.end()
        return self.variables.get(found[0], "")

    def braced(self) -> str:
        """Take what follows ``${``, and the closing brace."""
        found = NAME.match(self.text, self.at)
        if not found:
            raise DockerfileError(f'bad substitution in "{self.text}"')
        self.at = found.end()
        value = self.variables.get(found[0])
        operator = self.take()
        if not operator:
            raise DockerfileError(f'no closing "}}" in "{self.text}"')
        if operator == "}":
            return value or ""
        if operator == ":":
            operator, value = self.take(), value or None
        if operator not in set("-+?"):
            raise DockerfileError(
                f'bad modifier in "{self.text}"', hint="there are :- :+ and :?"
            )
        word = "".join(text for text, _ in self.until("}"))
        if operator == "+":
            return "" if value is None else word
        if operator == "?" and value is None:
            raise DockerfileError(f"{found[0]}: {word or 'not set'}")
        return word if value is None else value


# %% The two verbs
def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Expand ``text`` to one word, without its quotes.

    Raises DockerfileError for an open quote or brace and for an unknown modifier.

    >>> expand("${b:-/usr}/bin:'$b' $c", {"c": "d"})
    '/usr/bin:$b d'
    """
    return "".join(piece for piece, _ in Reader(text, variables, escape).until(""))


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
