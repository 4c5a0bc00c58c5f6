# From book/910-tangle.md. Edit there and tangle, or here and tangle --back.

# %% Appendix: from chapters to modules
"""Tangle: write the code cells of chapters into modules, and carry edits back.

    python -m minidocker.tangle              book/*.md -> minidocker/*.py
    python -m minidocker.tangle --check      say what is out of step, and fail
    python -m minidocker.tangle --back       minidocker/*.py -> book/*.md

Names of modules after the option keep it to those: ``tangle --back union``.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    NotFoundError,
    UsageError,
    did_you_mean,
)
from minidocker.records import Enum, Record


# %% The nouns: a cell, a pair
class Cell(Record):
    """One code cell: lines ``start`` to ``end`` of its chapter, options left out."""

    heading: str
    tags: frozenset[str]
    start: int
    end: int
    source: str

    @property
    def demo(self) -> bool:
        """Whether only the book runs this cell."""
        return "demo" in self.tags


class Pair(Record):
    """A chapter and the module that it is."""

    chapter: Path
    module: Path

    @property
    def name(self) -> str:
        """The module's name in the package: ``union``."""
        return self.module.stem


class Mode(Enum):
    """What to do with a pair that is out of step."""

    WRITE = ""
    CHECK = "--check"
    BACK = "--back"


# %% Reading a chapter
FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
TAGS = re.compile(r"^(?::tags: ?|tags: ?)\[(.*)\]")


def cells(text: str) -> Iterator[Cell]:
    """Yield the code cells of a chapter, in order.

    >>> text = "# T\\n```{code-cell} ipython3\\n:tags: [demo]\\n\\nx = 1\\n```\\n"
    >>> [(c.heading, c.source, c.demo) for c in cells(text)]
    [('T', 'x = 1', True)]
    """
    lines, heading, at = text.splitlines(), "", 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if fence := FENCE.match(line):
            end = fence_end(lines, at, fence["fence"])
            if fence["info"].startswith("{code-cell}"):
                yield read_cell(heading, lines, at, end)
            at = end + 1


# %% Reading a chapter
def fence_end(lines: list[str], at: int, fence: str) -> int:
    """Return the index of the line that closes ``fence``, from line ``at`` on."""
    closing = re.compile(re.escape(fence) + fence[0] + "*")
    while at < len(lines) and not closing.fullmatch(lines[at].rstrip()):
        at += 1
    return at


def read_cell(heading: str, lines: list[str], start: int, end: int) -> Cell:
    """Return the cell between two fences, without its options."""
    body = start
    if lines[start:end][:1] == ["---"]:
        body = lines.index("---", start + 1) + 1
    else:
        while body < end and re.match(r":[\w-]+:", lines[body]):
            body += 1
    found = [tags[1] for line in lines[start:body] if (tags := TAGS.match(line))]
    names = frozenset(tag.strip() for tag in ",".join(found).split(",") if tag.strip())
    while body < end and not lines[body].strip():
        body += 1
    return Cell(heading, names, body, end, "\n".join(lines[body:end]))


# %% Writing a module
HEADER = "# From {chapter}. Edit there and tangle, or here and tangle --back.\n"


def module_text(chapter: str, text: str) -> str:
    """Return the module that a chapter is; empty if it has no package cells."""
    parts = [f"# %% {c.heading}\n{c.source}\n" for c in cells(text) if not c.demo]
    if not parts:
        return ""
    return HEADER.format(chapter=chapter) + "\n" + "\n\n".join(parts)


# %% Writing a module
def carry_back(text: str, code: str) -> str:
    """Return the chapter ``text`` with its package cells as in the module ``code``.

    Raises IntegrityError where the two have not the same number of cells.
    """
    parts = re.split(r"^# %% ", code, flags=re.MULTILINE)[1:]
    edited = [part.partition("\n")[2].strip("\n") for part in parts]
    into = [c for c in cells(text) if not c.demo]
    if len(edited) != len(into):
        raise IntegrityError(
            f"{len(edited)} cells in the module, {len(into)} in the chapter",
            hint="add and remove cells in the chapter",
        )
    lines = text.splitlines()
    for c, source in reversed(list(zip(into, edited, strict=True))):
        lines[c.start : c.end] = source.splitlines()
    return "\n".join(lines) + "\n"


# %% The command
def chapters(root: Path) -> list[Pair]:
    """Return the chapters of the book below ``root``, in order."""
    found = sorted((root / "book").glob("[0-9]*-*.md"))
    package = root / "minidocker"
    return [
        Pair(c, package / (c.stem.partition("-")[2].replace("-", "_") + ".py"))
        for c in found
    ]


def chosen(pairs: Iterable[Pair], names: list[str]) -> list[Pair]:
    """Return the pairs that ``names`` name, or all; NotFoundError for another name."""
    by_name = {pair.name: pair for pair in pairs}
    for name in names:
        if name not in by_name:
            hint = did_you_mean(name, by_name)
            raise NotFoundError(f'no chapter is the module "{name}"', hint=hint)
    return [by_name[name] for name in names or by_name]


# %% The command
def tangle(root: Path, mode: Mode = Mode.WRITE, names: list[str] | None = None) -> int:
    """Bring chapters and modules in step; return how many files were not."""
    stale = 0
    for pair in chosen(chapters(root), names or []):
        goal, now, new = wanted(root, pair, mode)
        if now == new:
            continue
        stale += 1
        show_or_write(goal, goal.relative_to(root).as_posix(), now, new, mode)
    return stale


def wanted(root: Path, pair: Pair, mode: Mode) -> tuple[Path, str, str]:
    """Return the file to write, its text now, and what its text should be."""
    text = pair.chapter.read_text()
    old = pair.module.read_text() if pair.module.exists() else ""
    name = pair.chapter.relative_to(root).as_posix()
    if mode is Mode.BACK:
        try:
            return pair.chapter, text, carry_back(text, old)
        except IntegrityError as why:
            why.where = pair.module.relative_to(root).as_posix()
            raise
    check_syntax(name, text)
    return pair.module, old, module_text(name, text)


def check_syntax(name: str, text: str) -> None:
    """Raise IntegrityError with the chapter's line for a cell that is not Python."""
    for c in cells(text):
        try:
            ast.parse(c.source)
        except SyntaxError as why:
            line = c.start + (why.lineno or 1)
            hint = "is the fence of the cell closed?" if "```" in c.source else None
            what = f"{why.msg}: {(why.text or '').strip()}"
            raise IntegrityError(what, where=f"{name}:{line}", hint=hint) from why


def show_or_write(goal: Path, name: str, now: str, new: str, mode: Mode) -> None:
    """Print the difference, or write ``new`` to the file ``goal`` and say so."""
    if mode is not Mode.CHECK:
        goal.write_text(new)
        print(f"wrote {name}")
        return
    before, after = now.splitlines(), new.splitlines()
    diff = difflib.unified_diff(
        before, after, name, "what the chapter says", lineterm=""
    )
    print("\n".join(diff))


# %% The command
def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        option = arguments[0] if arguments and arguments[0].startswith("-") else ""
        if option not in [mode.value for mode in Mode]:
            raise UsageError(f'unknown option "{option}"', hint="--check or --back")
        mode = Mode(option)
        stale = tangle(Path.cwd(), mode, [a for a in arguments if a != option])
    except MinidockerError as why:
        print(why, file=sys.stderr)
        return why.status
    if stale and mode is Mode.CHECK:
        print(
            f"{stale} out of step; run `python -m minidocker.tangle`", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__" and __spec__ is not None:
    raise SystemExit(main(sys.argv[1:]))
