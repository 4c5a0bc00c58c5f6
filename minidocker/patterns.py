# From book/303-patterns.md. Edit there and tangle, or here and tangle --back.

# %% Patterns: many files by one line
"""Wildcards, and the lines of .dockerignore: which paths do they mean?"""

from __future__ import annotations

import posixpath
import re

from minidocker.errors import DockerfileError
from minidocker.records import Record


# %% The noun: a line
class Pattern(Record):
    """A line of .dockerignore: what it matches, and whether it takes back in.

    ``where`` is its ``file:line``.
    """

    text: str
    keeps: bool
    regex: re.Pattern[str]
    where: str = ""


# %% Wildcards
def glob_regex(glob: str, *, deep: bool, below: bool = False) -> re.Pattern[str]:
    """Translate a wildcard pattern; ``deep`` gives ``**`` its meaning.

    With ``below`` it matches what is below a match too.

    >>> bool(glob_regex("**/*.log", deep=True).match("var/log/a.log"))
    True
    >>> bool(glob_regex("*.log", deep=False).match("var/a.log"))
    False
    """
    pieces = {"*": "[^/]*", "?": "[^/]"}
    token = re.compile(r"(\*\*/?)|(\\.)|(\[\^?\]?(?:\\.|[^\]\\])*\])|(.)", re.DOTALL)
    out = ""
    for found in token.finditer(glob):
        stars, escaped, chosen, one = found.groups()
        if stars and deep:
            out += ".*" if found.end() == len(glob) else "(?:.*/)?"
        elif stars:
            out += "[^/]*" + stars[2:]
        elif one == "[":
            raise DockerfileError(f'no closing "]" in "{glob}"', word=glob)
        else:
            out += chosen or pieces.get(one or "") or re.escape((escaped or one)[-1])
    try:
        return re.compile(out + (r"(?:/.*)?\Z" if below else r"\Z"), re.DOTALL)
    except re.error as why:
        raise DockerfileError(f'bad pattern "{glob}"', word=glob) from why


def has_wildcards(path: str) -> bool:
    """Say whether an unescaped ``*``, ``?`` or ``[`` is in ``path``."""
    return re.search(r"(?:^|[^\\])(?:\\\\)*[*?\[]", path) is not None


# %% .dockerignore
def read_patterns(text: str, where: str = ".dockerignore") -> tuple[Pattern, ...]:
    """Read the text of a .dockerignore: comments, blanks, ``!``, path cleaning."""
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        glob = line.strip()
        if not glob or line.startswith("#"):
            continue
        keeps, glob = glob.startswith("!"), glob.removeprefix("!").strip()
        if not glob:
            raise DockerfileError('"!" without a pattern', where=f"{where}:{number}")
        glob = posixpath.normpath(glob).lstrip("/").strip() or "."
        try:
            regex = glob_regex(glob, deep=True, below=True)
        except DockerfileError as why:
            raise DockerfileError(why.what, where=f"{where}:{number}") from why
        patterns.append(Pattern(glob, keeps, regex, f"{where}:{number}"))
    return tuple(patterns)


def deciding_pattern(path: str, patterns: tuple[Pattern, ...]) -> Pattern | None:
    """Return the last pattern that matches ``path`` or a directory above it."""
    matching = (one for one in reversed(patterns) if one.regex.match(path))
    return next(matching, None)


def is_ignored(path: str, patterns: tuple[Pattern, ...]) -> bool:
    """Say whether .dockerignore keeps ``path`` (relative) out of the build.

    >>> lines = read_patterns("*.md\\n!README.md")
    >>> is_ignored("notes.md", lines), is_ignored("README.md", lines)
    (True, False)
    """
    found = deciding_pattern(path, patterns)
    return found is not None and not found.keeps
