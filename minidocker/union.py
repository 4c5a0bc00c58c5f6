# From book/135-union.md. Edit there and tangle, or here and tangle --back.

# %% Union: one tree from many branches
"""A model of a union file system: branches in memory, one tree to see.

Branches are listed top-first. A path inside the union is absolute ("/etc/hosts") or
relative to its root ("etc/hosts"); inside a branch it is relative, and "" is the root.

Failures are OSError with the errno that Linux's overlayfs gives.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from minidocker.records import Enum, Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    import graphviz


# %% The nouns
class Kind(Enum):
    """What a node is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    PIPE = "pipe"
    SOCKET = "socket"
    DEVICE = "device"
    WHITEOUT = "whiteout"
    LINK = "link"


Xattrs = tuple[tuple[str, bytes], ...]


class Node(Record):
    """An inode. ``data`` is a file's contents, or where a symbolic link points.

    A DEVICE has its letter and numbers there, b"c 1 3". LINK is found only in a
    description of a branch: one more name of the inode at the path that ``data``
    gives. ``mtime`` is in seconds; None: it was changed while the union was in use.
    ``xattrs`` are sorted by name. ``redirect`` is a name in the same directory of
    the branches below, or a path from their roots ("/usr/lib").
    """

    kind: Kind
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int | None = 0
    xattrs: Xattrs = ()
    opaque: bool = False
    redirect: str = ""


WHITEOUT = Node(Kind.WHITEOUT, mode=0)


# %% The nouns
def file(data: str | bytes = b"", mode: int = 0o644) -> Node:
    """Return a file with these contents."""
    return Node(Kind.FILE, os.fsencode(data), mode)


def directory(mode: int = 0o755, *, opaque: bool = False, redirect: str = "") -> Node:
    """Return a directory."""
    return Node(Kind.DIRECTORY, mode=mode, opaque=opaque, redirect=redirect)


def symlink_to(target: str) -> Node:
    """Return a symbolic link."""
    return Node(Kind.SYMLINK, os.fsencode(target), 0o777)


def link_to(path: str) -> Node:
    """Return, for a description, one more name of the file at ``path``."""
    return Node(Kind.LINK, os.fsencode(path), 0)


# %% The nouns
class BranchKind(Enum):
    """The permission of a branch, as AUFS's mount options spell it."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"
    WHITEOUT_ABLE = "ro+wh"


# %% The nouns
def parent(path: str) -> str:
    """Return the path of the directory that ``path`` is in.

    >>> parent("etc/ssl/certs"), parent("etc")
    ('etc/ssl', '')
    """
    return path.rpartition("/")[0]


def joined(directory: str, name: str) -> str:
    """Return the path of a name in a directory.

    >>> joined("etc", "hosts"), joined("", "etc")
    ('etc/hosts', 'etc')
    """
    return f"{directory}/{name}" if directory else name


def inside(path: str, top: str) -> bool:
    """Whether ``path`` lies below ``top``, which is not below itself.

    >>> inside("etc/hosts", "etc"), inside("etcetera", "etc"), inside("etc", "")
    (True, False, True)
    """
    return path != top and (not top or path.startswith(top + "/"))


# %% A branch
class Branch(ABC):
    """One member directory of a union. It knows nothing of others, checks nothing."""

    name: str
    kind: BranchKind

    @abstractmethod
    def get(self, path: str) -> Node | None:
        """Return what lies at ``path``, a whiteout too; None if nothing does.

        A file may come without its contents, which ``contents`` has.
        """

    @abstractmethod
    def contents(self, path: str) -> bytes:
        """Return the bytes of a file."""

    @abstractmethod
    def number(self, path: str) -> int | None:
        """Return the inode number of ``path``, the same for all names of a file."""

    @abstractmethod
    def children(self, path: str) -> list[str]:
        """Return the names in a directory, sorted, whiteouts among them."""

    @abstractmethod
    def put(self, path: str, node: Node) -> None:
        """Let ``path`` name a new inode, in place of a file or whiteout there."""

    @abstractmethod
    def adopt(self, path: str, place: Place) -> None:
        """Copy what lies at another branch's ``place``; no time of a parent changes."""

    @abstractmethod
    def change(self, path: str, **fields: object) -> None:
        """Change fields of the inode that ``path`` names: under all of its names."""

    @abstractmethod
    def link(self, old: str, new: str) -> None:
        """Let ``new`` name the inode of ``old``, in place of a whiteout."""

    @abstractmethod
    def move(self, old: str, new: str) -> None:
        """Give ``old``, and all below it, names that start with ``new``.

        What was at ``new``, and below, is gone.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Take ``path`` away, and all below it; nothing if there is none."""

    @abstractmethod
    def hide(self, path: str) -> None:
        """Put a whiteout in the place of ``path``, and of all below it."""

    def describe(self, tree: Mapping[str, Node]) -> None:
        """Add what a description says, and missing directories above."""
        lines = sorted(tree.items())
        for path, node in sorted(lines, key=lambda line: line[1].kind is Kind.LINK):
            above = parent(path)
            if above and self.get(above) is None:
                self.describe({above: directory()})
            if node.kind is Kind.LINK:
                self.link(os.fsdecode(node.data), path)
            else:
                self.put(path, node)


class Place(Record):
    """Where a node lies: a branch, and the path in it."""

    branch: Branch
    path: str

    @property
    def node(self) -> Node | None:
        """What lies there."""
        return self.branch.get(self.path)


# %% A branch
class MemoryBranch(Branch):
    """A branch of two dictionaries: names to numbers, numbers to inodes."""

    def __init__(
        self,
        name: str,
        kind: BranchKind = BranchKind.READ_ONLY,
        tree: Mapping[str, Node] | None = None,
    ) -> None:
        self.name, self.kind = name, kind
        self.numbers = {"": 0}
        self.inodes = {0: directory()}
        self.describe(tree or {})

    def get(self, path: str) -> Node | None:
        """Return the inode, contents and all."""
        return self.inodes.get(self.numbers.get(path, -1))

    def contents(self, path: str) -> bytes:
        """Return the bytes, which the inode has."""
        return self.inodes[self.numbers[path]].data

    def number(self, path: str) -> int | None:
        """Look in the first table."""
        return self.numbers.get(path)

    def children(self, path: str) -> list[str]:
        """Look for the paths that are one name longer."""
        paths = (p for p in self.numbers if p and parent(p) == path)
        return sorted(p.rpartition("/")[2] for p in paths)

    def put(self, path: str, node: Node) -> None:
        """Take the next number; other names of the old one keep it."""
        self.numbers[path] = number = max(self.inodes) + 1
        self.inodes[number] = node

    def adopt(self, path: str, place: Place) -> None:
        """Put an equal node; what marks it in its own branch does not come along."""
        node = place.node
        if node:
            self.put(path, node.replace(opaque=False, redirect=""))

    def change(self, path: str, **fields: object) -> None:
        """Put another inode under the same number."""
        number = self.numbers[path]
        self.inodes[number] = self.inodes[number].replace(**fields)

    def link(self, old: str, new: str) -> None:
        """Use the number once more."""
        self.numbers[new] = self.numbers[old]

    def remove(self, path: str) -> None:
        """Forget the names; an inode without one is lost."""
        for name in [p for p in self.numbers if p == path or inside(p, path)]:
            del self.numbers[name]

    def hide(self, path: str) -> None:
        """Take it away, and put the mark there."""
        self.remove(path)
        self.put(path, WHITEOUT)

    def move(self, old: str, new: str) -> None:
        """Rewrite the names."""
        self.remove(new)
        for name in [p for p in self.numbers if p == old or inside(p, old)]:
            self.numbers[new + name[len(old) :]] = self.numbers.pop(name)


# %% A branch
def description(branch: Branch) -> dict[str, Node]:
    """Return the dictionary from which an equal branch can be made.

    Of hard links the first name, in the order of a walk, has the inode.
    """
    found: dict[str, Node] = {}
    first: dict[int | None, str] = {}
    todo = [""]
    while todo:
        path = todo.pop()
        node, number = branch.get(path), branch.number(path)
        if node is None:
            continue
        marked = node.kind in (Kind.DIRECTORY, Kind.WHITEOUT)
        if not marked and first.setdefault(number, path) != path:
            found[path] = link_to(first[number])
        else:
            is_file = node.kind is Kind.FILE
            found[path] = node.replace(data=branch.contents(path)) if is_file else node
        if node.kind is Kind.DIRECTORY:
            todo += [joined(path, name) for name in branch.children(path)[::-1]]
    del found[""]
    return dict(sorted(found.items()))


# %% What shows through
def visible(
    name: str, above: Sequence[Place], branches: Sequence[Branch] = ()
) -> list[Place]:
    """Return the places that are seen under a name of a directory, top-first.

    ``above`` are the places of the directory. None: there is no such name. One: a
    file, a link, or a directory of one branch alone, a *pure* one. More: a *merged*
    directory. ``branches`` are all, for redirects to follow.
    """
    found: list[Place] = []
    while above:
        place = Place(above[0].branch, joined(above[0].path, name))
        node, above = place.node, above[1:]
        has_marks = place.branch.kind is not BranchKind.READ_ONLY
        if node is None or (node.kind is Kind.WHITEOUT and not has_marks):
            continue
        if node.kind is not Kind.DIRECTORY:
            hides = found or node.kind is Kind.WHITEOUT
            return found if hides else [place]
        found.append(place)
        if node.opaque and has_marks:
            break
        if node.redirect and has_marks:
            name = node.redirect.rpartition("/")[2]
            if node.redirect.startswith("/"):
                rest = branches[branches.index(place.branch) + 1 :]
                above = walk(parent(node.redirect[1:]), rest)
    return found


def walk(path: str, branches: Sequence[Branch]) -> list[Place]:
    """Return the places that are seen at ``path``, top-first, name by name."""
    places = [Place(branch, "") for branch in branches]
    for name in path.split("/") if path else []:
        places = visible(name, places, branches)
    return places


# %% What shows through
class Lookup:
    """The reading half of a union."""

    def __init__(self, branches: Iterable[Branch]) -> None:
        self.branches = tuple(branches)
        if any(b.kind is BranchKind.READ_WRITE for b in self.branches[1:]):
            raise ValueError("only the top branch of a union is written to")

    def stack(self, path: str) -> list[Place]:
        """Return the places that are seen at ``path``, which passes no link."""
        return walk(path, self.branches)

    def node(self, path: str) -> Node | None:
        """Return what is seen at ``path``, which passes no symbolic link."""
        stack = self.stack(path)
        return stack[0].node if stack else None

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        """Return what is seen at ``path``; ``follow`` a symbolic link at its end.

        Raises ENOENT, ENOTDIR, ELOOP.
        """
        return need(self, resolve(self, path, follow=follow))

    def read(self, path: str) -> bytes:
        """Return the contents of a file. Raises EISDIR, and what lookup raises."""
        path = resolve(self, path)
        kind = need(self, path).kind
        if kind is Kind.DIRECTORY:
            raise failure(errno.EISDIR, path)
        place = self.stack(path)[0]
        return place.branch.contents(place.path) if kind is Kind.FILE else b""

    def readdir(self, path: str = "/") -> list[str]:
        """Return the names in a directory, sorted. Raises ENOTDIR too."""
        path = resolve(self, path)
        if need(self, path).kind is not Kind.DIRECTORY:
            raise failure(errno.ENOTDIR, path)
        return names(self, path)


# %% What shows through
def names(union: Lookup, path: str) -> list[str]:
    """Return the names that a directory, whose path passes no link, shows."""
    stack = union.stack(path)
    found = {name for place in stack for name in place.branch.children(place.path)}
    return sorted(name for name in found if visible(name, stack, union.branches))


def need(union: Lookup, path: str) -> Node:
    """Return what is seen at ``path``. Raises ENOENT."""
    node = union.node(path)
    if node is None:
        raise failure(errno.ENOENT, path)
    return node


def failure(code: int, path: str) -> OSError:
    """Return the error that a system call on ``path`` ends with."""
    return OSError(code, os.strerror(code), "/" + path.lstrip("/"))


# %% What shows through
MAX_LINKS = 40


def resolve(union: Lookup, path: str, *, follow: bool = True) -> str:
    """Return the path of the same file that passes no symbolic link.

    The last name need not exist. ``follow``: a link there is followed as well.
    Raises ENOENT or ENOTDIR for what stands in the way, ELOOP after 40 links.
    Source: path_resolution(7).
    """
    here, links = "", 0
    rest = [part for part in path.split("/") if part][::-1]
    while rest:
        name = rest.pop()
        if need(union, here).kind is not Kind.DIRECTORY:
            raise failure(errno.ENOTDIR, path)
        there = joined(here, name)
        node = None if name in (".", "..") else union.node(there)
        if node and node.kind is Kind.SYMLINK and (rest or follow):
            links += 1
            if links > MAX_LINKS:
                raise failure(errno.ELOOP, path)
            target = os.fsdecode(node.data)
            rest += [part for part in target.split("/") if part][::-1]
            here = "" if target.startswith("/") else here
        elif name != ".":
            here = parent(here) if name == ".." else there
    return here


# %% What shows through
def seen_in(union: Lookup, path: str = "") -> dict[str, list[Place]]:
    """Return every visible path below ``path``, with the places that are seen there."""
    found = {}
    for name in names(union, path):
        below = joined(path, name)
        found[below] = union.stack(below)
        if need(union, below).kind is Kind.DIRECTORY:
            found |= seen_in(union, below)
    return found


def cell(text: str, colour: str) -> str:
    """Return one cell of the table, as graphviz writes it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<TD BGCOLOR="{colour}">{text or " "}</TD>'


def note_of(node: Node) -> str:
    """Return what a picture says of a node's marks: " ✗" of a whiteout."""
    notes = {" ✗": node.kind is Kind.WHITEOUT, " (opaque)": node.opaque}
    notes[f" → {node.redirect}"] = bool(node.redirect)
    return "".join(note for note in notes if notes[note])


def cell_of(place: Place, seen: Iterable[Place]) -> str:
    """Return the cell of one name of one branch: green if seen, grey if hidden."""
    node = place.node
    if node is None:
        return cell("", "white")
    text = place.path.rpartition("/")[2] + note_of(node)
    return cell(text, "#cfe8cf" if place in seen else "#eeeeee")


# %% What shows through
def table_of(union: Lookup) -> str:
    """Return the table of branches, in rows, and paths, as graphviz writes it."""
    visible_paths = seen_in(union)
    paths = set(visible_paths)
    for branch in union.branches:
        paths |= set(description(branch))
    columns = sorted(paths)
    places = [place for stack in visible_paths.values() for place in stack]
    rows = [cell("union", "white") + "".join(
        cell(p, "#b7d3f2") if p in visible_paths else cell("", "white") for p in columns
    )]  # fmt: skip
    for b in union.branches:
        cells = [cell_of(Place(b, path), places) for path in columns]
        rows.append(cell(f"{b.name} ({b.kind.value})", "white") + "".join(cells))
    table = "".join(f"<TR>{row}</TR>" for row in rows)
    return f'<TABLE BORDER="0" CELLSPACING="2">{table}</TABLE>'


def picture(union: Lookup) -> graphviz.Digraph:
    """Draw branches as rows, paths as columns, and the union on top."""
    import graphviz

    dot = graphviz.Digraph(node_attr={"shape": "plain", "fontname": "sans"})
    dot.attr("node", fontsize="11")
    dot.node("union", f"<{table_of(union)}>")
    return dot
