# From book/142-playground.md. Edit there and tangle, or here and tangle --back.

# %% Playground: write operations, see the trees
"""A union to play with: operations as text, and the trees before and after."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

from minidocker.operations import Union
from minidocker.union import (
    WHITEOUT,
    Branch,
    BranchKind,
    Kind,
    MemoryBranch,
    Node,
    description,
    file,
    link_to,
    note_of,
    seen_in,
    symlink_to,
    table_of,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    import graphviz


# %% The language
Command = Callable[..., object]


def made_link(union: Union, *words: str) -> None:
    """Do ``ln OLD NEW`` or ``ln -s TARGET NEW``."""
    if words[:1] == ("-s",):
        union.symlink(*words[1:])
    else:
        union.link(*words)


def listed(union: Union, path: str = "/") -> str:
    """Do ``ls [DIRECTORY]``."""
    return " ".join(union.readdir(path))


def removed(union: Union, *words: str) -> None:
    """Do ``rm PATH`` or ``rm -r PATH``, depth first."""
    path = words[-1]
    if words[0] != "-r" or union.lookup(path, follow=False).kind is not Kind.DIRECTORY:
        union.unlink(path)
        return
    for name in union.readdir(path):
        removed(union, "-r", f"{path.rstrip('/')}/{name}")
    union.rmdir(path)


LANGUAGE: dict[str, tuple[str, Command]] = {
    "write": ("write PATH TEXT...", lambda u, p, *t: u.write(p, " ".join(t))),
    "cat": ("cat PATH", lambda u, p: os.fsdecode(u.read(p))),
    "ls": ("ls [DIRECTORY]", listed),
    "mkdir": ("mkdir PATH", lambda u, p: u.mkdir(p)),
    "rm": ("rm [-r] PATH", removed),
    "rmdir": ("rmdir PATH", lambda u, p: u.rmdir(p)),
    "mv": ("mv OLD NEW", lambda u, old, new: u.rename(old, new)),
    "ln": ("ln [-s] OLD NEW", made_link),
    "chmod": ("chmod MODE PATH", lambda u, mode, p: u.chmod(p, int(mode, 8))),
    "truncate": ("truncate SIZE PATH", lambda u, size, p: u.truncate(p, int(size))),
}


# %% The language
def perform(union: Union, line: str) -> str:
    """Do what a line says; return the answer: "ok", what was read, or the error."""
    try:
        name, *words = shlex.split(line)
    except ValueError:
        name, words = "", []
    usage, command = LANGUAGE.get(name, ("", None))
    if command is None:
        return f"there are: {', '.join(LANGUAGE)}"
    try:
        answer = command(union, *words)
    except OSError as why:
        return f"{why.strerror}: {why.filename}"
    except (TypeError, ValueError, IndexError):
        return f"usage: {usage}"
    return "ok" if answer is None else str(answer)


# %% Three trees
def tree_of(branch: Branch) -> list[str]:
    """Return a branch as lines: names, indented, with their marks."""
    nodes = description(branch)
    return [indented(path) + note_of(nodes[path]) for path in in_order(nodes)]


def merged_tree(union: Union) -> list[str]:
    """Return what is seen as lines, each with the branches that it comes from."""
    lines, seen = [], seen_in(union)
    for path in in_order(seen):
        sources = "+".join(place.branch.name for place in seen[path])
        lines.append(f"{indented(path)} ({sources})")
    return lines


def in_order(paths: Iterable[str]) -> list[str]:
    """Sort paths as a walk meets them: a directory, then all that is in it."""
    return sorted(paths, key=lambda path: path.split("/"))


def indented(path: str) -> str:
    """Return the last name of a path, as far to the right as it is deep.

    >>> indented("etc/ssl/certs")
    '    certs'
    """
    return "  " * path.count("/") + path.rpartition("/")[2]


# %% Three trees
def side_by_side(columns: Mapping[str, list[str]]) -> str:
    """Return columns of lines as text, each under its name.

    >>> print(side_by_side({"a": ["1", "2"], "b": ["333"]}))
    a    b
    1    333
    2
    """
    tables = [[name, *lines] for name, lines in columns.items()]
    widths = [max(map(len, table)) for table in tables]
    rows = zip_longest(*tables, fillvalue="")
    return "\n".join(
        "    ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def trees(union: Union) -> str:
    """Return the trees of the lower branches, the upper one, and what is seen."""
    upper, *lowers = union.branches
    columns = {branch.name: tree_of(branch) for branch in lowers[::-1]}
    columns[upper.name] = tree_of(upper)
    return side_by_side(columns | {"merged": merged_tree(union)})


# %% A world
LAYERS: tuple[dict[str, Node], ...] = (
    {
        "bin": symlink_to("usr/bin"),
        "etc/hosts": file("127.0.0.1 localhost"),
        "etc/motd": file("welcome"),
        "usr/bin/ls": file("ELF", 0o755),
        "usr/bin/dir": link_to("usr/bin/ls"),
    },
    {"etc/motd": WHITEOUT, "etc/issue": file("of the second layer")},
)


def world(
    layers: Iterable[Mapping[str, Node]] = LAYERS, *, redirects: bool = False
) -> Union:
    """Return a union of an empty branch over some layers, which are bottom-first."""
    names = [f"lower{n}" for n, _ in enumerate(layers, 1)]
    lowers = [
        MemoryBranch(name, BranchKind.WHITEOUT_ABLE, tree)
        for name, tree in zip(names, layers, strict=True)
    ]
    upper = MemoryBranch("upper", BranchKind.READ_WRITE)
    return Union([upper, *lowers[::-1]], redirects=redirects)


def play(text: str, union: Union | None = None) -> Union:
    """Do each line of ``text``; print its answer, and the trees at the end."""
    union = union or world()
    for line in text.strip().splitlines():
        print(f"{line.strip():32} # {perform(union, line)}")
    print()
    print(trees(union))
    return union


# %% Your turn
def converse(union: Union, ask: Callable[[str], str] = input) -> None:
    """Answer lines until an empty one; show the trees after each that changed them."""
    before = trees(union)
    print(before)
    while line := ask("$ ").strip():
        print(perform(union, line))
        after = trees(union)
        if after != before:
            print(after)
        before = after


# %% A film
def film(text: str, union: Union | None = None) -> graphviz.Digraph:
    """Draw the branches before and after each line of ``text``."""
    import graphviz

    union = union or world()
    dot = graphviz.Digraph(node_attr={"shape": "plain", "fontname": "sans"})
    dot.attr("node", fontsize="11")
    dot.attr("edge", fontname="mono", fontsize="11")
    dot.node("0", f"<{table_of(union)}>")
    for number, line in enumerate(text.strip().splitlines(), 1):
        answer = perform(union, line)
        label = f"  {line.strip()}" + ("" if answer == "ok" else f"\n  {answer}")
        dot.node(str(number), f"<{table_of(union)}>")
        dot.edge(str(number - 1), str(number), graphviz.escape(label))
    return dot
