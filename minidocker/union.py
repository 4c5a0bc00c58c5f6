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
from collections.abc import Iterable, Mapping
from enum import Enum

from minidocker.records import Record


# %% The nouns
class Kind(Enum):
    """What a node is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    WHITEOUT = "whiteout"
    LINK = "link"


class Node(Record):
    """An inode. ``data`` is a file's contents or where a symbolic link points.

    LINK is found only in a description of a branch: one more name of the inode at the
    path that ``data`` gives.
    """

    kind: Kind
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    opaque: bool = False


WHITEOUT = Node(Kind.WHITEOUT, mode=0)


# %% The nouns
def file(data: str | bytes = b"", mode: int = 0o644) -> Node:
    """Return a file with these contents."""
    return Node(Kind.FILE, os.fsencode(data), mode)


def directory(mode: int = 0o755, *, opaque: bool = False) -> Node:
    """Return a directory."""
    return Node(Kind.DIRECTORY, mode=mode, opaque=opaque)


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


# %% A branch
def parent(path: str) -> str:
    """Return the path of the directory that ``path`` is in.

    >>> parent("etc/ssl/certs"), parent("etc")
    ('etc/ssl', '')
    """
    return path.rpartition("/")[0]


def inside(path: str, top: str) -> bool:
    """Whether ``path`` lies below ``top``, which is not below itself.

    >>> inside("etc/hosts", "etc"), inside("etcetera", "etc"), inside("etc", "")
    (True, False, True)
    """
    return path != top and (not top or path.startswith(top + "/"))


# %% A branch
class Branch:
    """One member directory of a union: names, inode numbers, inodes.

    It knows nothing of other branches, and checks nothing. ``tree`` describes it.
    """

    def __init__(
        self,
        name: str,
        kind: BranchKind = BranchKind.READ_ONLY,
        tree: Mapping[str, Node] | None = None,
    ) -> None:
        self.name, self.kind = name, kind
        self.numbers = {"": 0}
        self.inodes = {0: directory()}
        lines = sorted((tree or {}).items())
        for path, node in sorted(lines, key=lambda line: line[1].kind is Kind.LINK):
            self.describe(path, node)

    def describe(self, path: str, node: Node) -> None:
        """Add what one line of a description says, and missing directories above."""
        above = parent(path)
        if above not in self.numbers:
            self.describe(above, directory())
        if node.kind is Kind.LINK:
            self.numbers[path] = self.numbers[os.fsdecode(node.data)]
        else:
            self.put(path, node)

    def get(self, path: str) -> Node | None:
        """Return the inode that ``path`` names, if any."""
        return self.inodes.get(self.numbers.get(path, -1))

    def put(self, path: str, node: Node) -> None:
        """Let ``path`` name a new inode; its other names keep the old one."""
        self.numbers[path] = number = max(self.inodes) + 1
        self.inodes[number] = node

    def set(self, path: str, node: Node) -> None:
        """Change the inode that ``path`` names: under all of its names."""
        self.inodes[self.numbers[path]] = node

    def children(self, path: str) -> list[str]:
        """Return the names in a directory, whiteouts among them."""
        paths = (p for p in self.numbers if p and parent(p) == path)
        return sorted(p.rpartition("/")[2] for p in paths)

    def remove(self, path: str) -> None:
        """Take ``path`` away, and all below it."""
        for name in [p for p in self.numbers if p == path or inside(p, path)]:
            del self.numbers[name]

    def move(self, old: str, new: str) -> None:
        """Give ``old``, and all below it, names that start with ``new``."""
        for name in [p for p in self.numbers if p == old or inside(p, old)]:
            self.numbers[new + name[len(old) :]] = self.numbers.pop(name)


# %% A branch
def description(branch: Branch) -> dict[str, Node]:
    """Return the dictionary from which an equal branch can be made.

    Of hard links the first name, in sorted order, has the inode.
    """
    found: dict[str, Node] = {}
    first: dict[int, str] = {}
    for path, number in sorted(branch.numbers.items()):
        if number in first:
            found[path] = link_to(first[number])
        elif path:
            first[number] = path
            found[path] = branch.inodes[number]
    return found


# %% What shows through
def visible(path: str, branches: Iterable[Branch]) -> list[Branch]:
    """Return those of ``branches``, top-first, whose node is seen at ``path``.

    None: there is no such name. One: a file, a link, or a directory of one branch
    alone, a *pure* one. More: a *merged* directory.
    """
    found: list[Branch] = []
    for branch in branches:
        node = branch.get(path)
        has_marks = branch.kind is not BranchKind.READ_ONLY
        if node is None or (node.kind is Kind.WHITEOUT and not has_marks):
            continue
        if node.kind is not Kind.DIRECTORY:
            hides = found or node.kind is Kind.WHITEOUT
            return found if hides else [branch]
        found.append(branch)
        if node.opaque and has_marks:
            break
    return found


# %% What shows through
class Lookup:
    """The reading half of a union."""

    def __init__(self, branches: Iterable[Branch]) -> None:
        self.branches = tuple(branches)
        if any(b.kind is BranchKind.READ_WRITE for b in self.branches[1:]):
            raise ValueError("only the top branch of a union is written to")

    def stack(self, path: str) -> list[Branch]:
        """Return the branches that are seen at ``path``, top-first.

        Only those that show the directory above are asked.
        """
        if not path:
            return list(self.branches)
        return visible(path, self.stack(parent(path)))

    def node(self, path: str) -> Node | None:
        """Return what is seen at ``path``, which passes no symbolic link."""
        stack = self.stack(path)
        return stack[0].get(path) if stack else None

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        """Return what is seen at ``path``; ``follow`` a symbolic link at its end.

        Raises ENOENT, ENOTDIR, ELOOP.
        """
        return need(self, resolve(self, path, follow=follow))

    def read(self, path: str) -> bytes:
        """Return the contents of a file. Raises EISDIR, and what lookup raises."""
        node = self.lookup(path)
        if node.kind is Kind.DIRECTORY:
            raise failure(errno.EISDIR, path)
        return node.data

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
    found = {name for branch in stack for name in branch.children(path)}
    return sorted(n for n in found if visible(f"{path}/{n}".lstrip("/"), stack))


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
        there = f"{here}/{name}".lstrip("/")
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


# %% Writing: copy-up
class CopyUp(Lookup):
    """Changes to what is there already."""

    def writable(self, path: str) -> Branch:
        """Return the branch that takes changes. Raises EROFS where none does."""
        if self.branches and self.branches[0].kind is BranchKind.READ_WRITE:
            return self.branches[0]
        raise failure(errno.EROFS, path)

    def copy_up(self, path: str) -> Branch:
        """Make the top branch hold what is seen at ``path``; idempotent."""
        upper = self.writable(path)
        if upper.get(path) is None:
            self.copy_up(parent(path))
            upper.put(path, need(self, path).replace(opaque=False))
        return upper

    def change(self, path: str, **changes: object) -> None:
        """Copy up, and replace fields of the inode. ``path`` passes no link."""
        need(self, path)
        upper = self.copy_up(path)
        upper.set(path, need(self, path).replace(**changes))

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits. Follows symbolic links."""
        self.change(resolve(self, path), mode=mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set the owner; of a symbolic link, its own."""
        self.change(resolve(self, path, follow=False), uid=uid, gid=gid)

    def truncate(self, path: str, size: int = 0) -> None:
        """Cut a file to ``size`` bytes, or fill it up with zeros. Raises EISDIR."""
        data = self.read(path)[:size]
        self.change(resolve(self, path), data=data.ljust(size, b"\0"))


# %% Creating
class Creation(CopyUp):
    """New names."""

    def create(self, path: str, node: Node) -> None:
        """Put a new node at ``path``, which passes no link and is free.

        A directory in the place of a whiteout is opaque.
        """
        upper = self.copy_up(parent(path))
        opaque = node.kind is Kind.DIRECTORY and upper.get(path) is not None
        upper.put(path, node.replace(opaque=opaque))

    def free(self, path: str) -> str:
        """Return ``path``, resolved. Raises EEXIST where something is seen."""
        path = resolve(self, path, follow=False)
        if self.node(path) is not None:
            raise failure(errno.EEXIST, path)
        self.writable(path)
        return path

    def write(self, path: str, data: str | bytes) -> None:
        """Make or replace the contents of a file. Raises EISDIR.

        As open(2) with O_CREAT and O_TRUNC, a symbolic link to nowhere is followed.
        """
        path = resolve(self, path)
        node = self.node(path)
        if node is None:
            self.create(path, file(data))
        elif node.kind is Kind.DIRECTORY:
            raise failure(errno.EISDIR, path)
        else:
            self.change(path, data=os.fsencode(data))

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory. Raises EEXIST."""
        self.create(self.free(path), directory(mode))

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link. Raises EEXIST."""
        self.create(self.free(path), symlink_to(target))

    def link(self, old: str, new: str) -> None:
        """Give a file one more name. Raises EEXIST; EPERM for a directory."""
        old = resolve(self, old, follow=False)
        node = need(self, old)
        new = self.free(new)
        if node.kind is Kind.DIRECTORY:
            raise failure(errno.EPERM, old)
        upper = self.copy_up(old)
        self.copy_up(parent(new))
        upper.numbers[new] = upper.numbers[old]


# %% Deleting
class Removal(Creation):
    """Names that go away."""

    def hide(self, path: str) -> None:
        """Take ``path`` out of sight."""
        upper = self.copy_up(parent(path))
        upper.remove(path)
        if visible(path, self.stack(parent(path))):
            upper.put(path, WHITEOUT)

    def unlink(self, path: str) -> None:
        """Delete a name of a file or link. Raises EISDIR."""
        path = resolve(self, path, follow=False)
        self.writable(path)
        if need(self, path).kind is Kind.DIRECTORY:
            raise failure(errno.EISDIR, path)
        self.hide(path)

    def rmdir(self, path: str) -> None:
        """Delete an empty directory. Raises ENOTDIR, ENOTEMPTY; EBUSY for the root."""
        path = resolve(self, path, follow=False)
        if not path:
            raise failure(errno.EBUSY, path)
        self.writable(path)
        if need(self, path).kind is not Kind.DIRECTORY:
            raise failure(errno.ENOTDIR, path)
        if names(self, path):
            raise failure(errno.ENOTEMPTY, path)
        self.hide(path)


# %% Renaming
class Union(Removal):
    """A union file system. Branches are top-first; the top one takes the changes."""

    def rename(self, old: str, new: str) -> None:
        """Give ``old`` the name ``new``, and replace what is there.

        Raises EXDEV for a directory that a lower branch has a part of; EINVAL to move
        one into itself; EISDIR, ENOTDIR, ENOTEMPTY for what ``new`` is. Two names of
        one inode stay as they are. Source: rename(2).
        """
        old = resolve(self, old, follow=False)
        new = resolve(self, new, follow=False)
        if not old or not new:
            raise failure(errno.EBUSY, old)
        upper = self.writable(old)
        node = need(self, old)
        if may_replace(self, old, new):
            self.copy_up(old)
            self.copy_up(parent(new))
            merged = len(self.stack(parent(new))) > 1
            upper.remove(new)
            upper.move(old, new)
            self.hide(old)
            if node.kind is Kind.DIRECTORY and merged:
                upper.set(new, node.replace(opaque=True))


# %% Renaming
def may_replace(union: Union, old: str, new: str) -> bool:
    """Whether a rename has anything to do; the checks in the kernel's order."""
    if inside(new, old):
        raise failure(errno.EINVAL, old)
    if inside(old, new):
        raise failure(errno.ENOTEMPTY, new)
    node, target, upper = need(union, old), union.node(new), union.branches[0]
    numbers = [upper.numbers.get(path) for path in (old, new)]
    if old == new or (target and numbers[0] and numbers[0] == numbers[1]):
        return False
    is_directory = node.kind is Kind.DIRECTORY
    if target and is_directory != (target.kind is Kind.DIRECTORY):
        raise failure(errno.ENOTDIR if is_directory else errno.EISDIR, new)
    if is_directory and union.stack(old) != [upper]:
        raise failure(errno.EXDEV, old)
    if is_directory and target and names(union, new):
        raise failure(errno.ENOTEMPTY, new)
    return True


# %% What lies on the disk
class Notation(Enum):
    """How a branch writes down its marks."""

    OVERLAYFS = "overlayfs"
    AUFS = "aufs"


LETTERS = {Kind.DIRECTORY: "d", Kind.SYMLINK: "l"}


def on_disk(branch: Branch, notation: Notation) -> list[str]:
    """Return the files that a branch is on a disk: a letter as of `ls -l`, a path."""
    aufs, lines = notation is Notation.AUFS, []
    for path, node in description(branch).items():
        above, slash, name = path.rpartition("/")
        if node.kind is Kind.WHITEOUT:
            lines.append(f"- {above}{slash}.wh.{name}" if aufs else f"c {path}  0:0")
        elif node.opaque and not aufs:
            lines.append(f'd {path}  trusted.overlay.opaque="y"')
        else:
            lines.append(f"{LETTERS.get(node.kind, '-')} {path}")
            lines += [f"- {path}/.wh..wh..opq"] if node.opaque else []
    return lines
