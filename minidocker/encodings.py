# From book/141-encodings.md. Edit there and tangle, or here and tangle --back.

# %% Encodings: how a branch lies on a disk
"""Two encodings of a union's branch on a disk: AUFS's names, overlayfs's marks.

A DiskBranch is a branch of the model that lies in a directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.errors import UnsupportedError
from minidocker.overlayfs import is_whiteout
from minidocker.records import Enum
from minidocker.trees import copy_attributes, copy_node, kept, remove_path
from minidocker.union import (
    WHITEOUT,
    Branch,
    BranchKind,
    Kind,
    Node,
    Place,
    description,
    failure,
    joined,
    parent,
)


# %% The two, side by side
class Notation(Enum):
    """How a branch writes down its marks."""

    OVERLAYFS = "overlayfs"
    USERXATTR = "overlayfs,userxattr"
    AUFS = "aufs"

    @property
    def prefix(self) -> str:
        """Return what the attributes of overlayfs's marks begin with."""
        first = "user" if self is Notation.USERXATTR else "trusted"
        return f"{first}.overlay."


WH = ".wh."
OPAQUE_MARK = ".wh..wh..opq"
LETTERS = {
    Kind.DIRECTORY: "d", Kind.SYMLINK: "l", Kind.PIPE: "p", Kind.SOCKET: "s",
    Kind.DEVICE: "c",
}  # fmt: skip


def on_disk(branch: Branch, notation: Notation) -> list[str]:
    """Return the files that a branch is on a disk: a letter as of `ls -l`, a path."""
    aufs, lines = notation is Notation.AUFS, []
    for path, node in description(branch).items():
        if node.kind is Kind.WHITEOUT:
            name = path.rpartition("/")[2]
            hidden = f"- {joined(parent(path), WH + name)}"
            lines.append(hidden if aufs else f"c {path}  0:0")
            continue
        marks = []
        if not aufs:
            marks += [f'{notation.prefix}opaque="y"'] if node.opaque else []
            if node.redirect:
                marks += [f'{notation.prefix}redirect="{node.redirect}"']
        line = f"{LETTERS.get(node.kind, '-')} {path}"
        lines.append("  ".join([line, *marks]))
        lines += [f"- {path}/{OPAQUE_MARK}"] if node.opaque and aufs else []
    return lines


# %% What one file is
def xattrs_at(path: str) -> tuple[tuple[str, bytes], ...]:
    """Return the attributes of a file that travel with it; none where none can be."""
    try:
        names = sorted(filter(kept, os.listxattr(path, follow_symlinks=False)))
    except OSError as why:
        if why.errno != errno.ENOTSUP:
            raise
        names = []
    return tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names)


def attribute(path: str, name: str) -> str:
    """Return the text of one attribute, "" if there is none."""
    try:
        return os.fsdecode(os.getxattr(path, name, follow_symlinks=False))
    except OSError as why:
        if why.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            raise
        return ""


# %% What one file is
def node_at(path: str, st: os.stat_result) -> Node:
    """Return what lies at a path of the disk, without marks or a file's contents."""
    form, data, kind = stat.S_IFMT(st.st_mode), b"", Kind.FILE
    if form == stat.S_IFLNK:
        kind, data = Kind.SYMLINK, os.fsencode(os.readlink(path))
    elif form == stat.S_IFDIR:
        kind = Kind.DIRECTORY
    elif form in (stat.S_IFIFO, stat.S_IFSOCK):
        kind = Kind.PIPE if form == stat.S_IFIFO else Kind.SOCKET
    elif form in (stat.S_IFCHR, stat.S_IFBLK):
        letter = "c" if form == stat.S_IFCHR else "b"
        numbers = f"{os.major(st.st_rdev)} {os.minor(st.st_rdev)}"
        kind, data = Kind.DEVICE, f"{letter} {numbers}".encode()
    return Node(
        kind,
        data,
        stat.S_IMODE(st.st_mode),
        st.st_uid,
        st.st_gid,
        int(st.st_mtime),
        xattrs_at(path),
    )


# %% What one file is
def make_at(path: str, node: Node) -> None:
    """Make a node of the model at a free path of the disk."""
    if node.kind is Kind.DIRECTORY:
        os.mkdir(path)
    elif node.kind is Kind.SYMLINK:
        os.symlink(os.fsdecode(node.data), path)
    elif node.kind in (Kind.PIPE, Kind.SOCKET):
        form = stat.S_IFIFO if node.kind is Kind.PIPE else stat.S_IFSOCK
        os.mknod(path, form | 0o600)
    elif node.kind is Kind.DEVICE:
        letter, major, minor = node.data.decode().split()
        form = stat.S_IFCHR if letter == "c" else stat.S_IFBLK
        os.mknod(path, form | 0o600, os.makedev(int(major), int(minor)))
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as out:
            out.write(node.data)


# %% What one file is
def set_fields(path: str, fields: dict[str, object]) -> None:
    """Change what is known of a file: mode, owner, attributes, contents, time."""
    is_link = os.path.islink(path)
    if isinstance(data := fields.get("data"), bytes) and not is_link:
        with open(path, "wb") as out:
            out.write(data)
    uid, gid = fields.get("uid", -1), fields.get("gid", -1)
    if isinstance(uid, int) and isinstance(gid, int) and (uid, gid) != (-1, -1):
        os.chown(path, uid, gid, follow_symlinks=False)
    if isinstance(mode := fields.get("mode"), int) and not is_link:
        os.chmod(path, mode)
    if isinstance(wanted := fields.get("xattrs"), tuple) and not is_link:
        for name in {name for name, _ in xattrs_at(path)} - {
            name for name, _ in wanted
        }:
            os.removexattr(path, name)
        for name, value in wanted:
            os.setxattr(path, name, value)
    if "mtime" in fields:
        date(path, fields["mtime"])


def date(path: str, mtime: object) -> None:
    """Set the time of modification, in seconds; None is now."""
    times = (mtime, mtime) if isinstance(mtime, int) else None
    os.utime(path, times, follow_symlinks=False)


# %% A branch in a directory
class Marks:
    """How a directory's whiteouts and marks are read and written, in one notation."""

    def __init__(self, root: str, notation: Notation) -> None:
        self.root, self.notation = root, notation
        self.aufs = notation is Notation.AUFS

    def where(self, path: str) -> str:
        """Return the path on the disk. Raises EPERM for a name that is reserved."""
        if self.aufs and path.rpartition("/")[2].startswith(WH):
            raise failure(errno.EPERM, path)
        return f"{self.root}/{path}" if path else self.root

    def hidden(self, path: str) -> str:
        """Return where AUFS has the whiteout of ``path``."""
        return f"{self.where(parent(path))}/{WH}{path.rpartition('/')[2]}"

    def is_hidden(self, path: str) -> bool:
        """Whether AUFS's notation has a whiteout of ``path``."""
        return self.aufs and bool(path) and os.path.lexists(self.hidden(path))

    def beside(self, path: str) -> str:
        """Return a name on the disk, in the same directory, for what is half done."""
        return f"{self.where(parent(path))}/{WH}{WH}half"

    def hide(self, path: str) -> None:
        """Put a whiteout in the place of ``path``, which then is removed."""
        half = self.beside(path)
        remove_path(half)
        if self.aufs:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            os.close(os.open(self.hidden(path), flags, 0o444))
        if os.path.isdir(self.where(path)) or self.aufs:
            with suppress(FileNotFoundError):
                os.rename(self.where(path), half)
                remove_path(half)
        if not self.aufs:
            os.mknod(half, stat.S_IFCHR, 0)
            os.rename(half, self.where(path))

    def unhide(self, path: str) -> None:
        """Take a whiteout of AUFS's away; nothing if there is none."""
        if self.aufs and self.is_hidden(path):
            os.unlink(self.hidden(path))

    def marks(self, path: str) -> dict[str, object]:
        """Return what a directory is marked with."""
        full = self.where(path)
        if self.aufs:
            return {"opaque": os.path.lexists(f"{full}/{OPAQUE_MARK}")}
        prefix = self.notation.prefix
        return {
            "opaque": attribute(full, f"{prefix}opaque") == "y",
            "redirect": attribute(full, f"{prefix}redirect"),
        }

    def mark(self, path: str, opaque: bool, redirect: str) -> None:
        """Mark a directory. Raises UnsupportedError for what AUFS has no words for."""
        full = self.where(path)
        if redirect and self.aufs:
            what = "AUFS's notation has no redirects"
            raise UnsupportedError(what, where=full)
        if opaque and self.aufs:
            os.close(os.open(f"{full}/{OPAQUE_MARK}", os.O_CREAT | os.O_CLOEXEC, 0o444))
        elif opaque:
            os.setxattr(full, f"{self.notation.prefix}opaque", b"y")
        if redirect:
            name = f"{self.notation.prefix}redirect"
            os.setxattr(full, name, os.fsencode(redirect))


# %% A branch in a directory
class DiskReader(Marks, Branch):
    """The reading half of a branch that lies in a directory.

    Contents stay on the disk: ``get`` has all of a file but those.
    """

    def get(self, path: str) -> Node | None:
        """Ask the disk, and translate the marks."""
        try:
            full = self.where(path)
            st = os.lstat(full)
        except OSError as why:
            if why.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EPERM):
                raise
            return WHITEOUT if self.is_hidden(path) else None
        if not self.aufs and is_whiteout(st):
            return WHITEOUT
        node = node_at(full, st)
        is_directory = node.kind is Kind.DIRECTORY
        return node.replace(**self.marks(path)) if is_directory else node

    def contents(self, path: str) -> bytes:
        """Read the file."""
        with open(self.where(path), "rb") as data:
            return data.read()

    def number(self, path: str) -> int | None:
        """Ask the disk; None if there is nothing."""
        try:
            return os.lstat(self.where(path)).st_ino
        except OSError as why:
            if why.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EPERM):
                raise
            return None

    def children(self, path: str) -> list[str]:
        """List the directory; of AUFS's own names, what they hide."""
        names = set(os.listdir(self.where(path)))
        if self.aufs:
            own = {name for name in names if name.startswith(WH)}
            hidden = {n[len(WH) :] for n in own if not n.startswith(WH + WH)}
            names = (names - own) | hidden
        return sorted(names)


# %% A branch in a directory
@contextmanager
def unchanged(directory: str) -> Iterator[None]:
    """Keep a directory's times over a change of what is in it."""
    st = os.lstat(directory)
    yield
    os.utime(directory, ns=(st.st_atime_ns, st.st_mtime_ns))


class DiskBranch(DiskReader):
    """A branch that lies in a directory. ``root`` is its path on the host."""

    def __init__(
        self,
        name: str,
        kind: BranchKind,
        root: str,
        notation: Notation = Notation.OVERLAYFS,
    ) -> None:
        Marks.__init__(self, root, notation)
        self.name, self.kind = name, kind

    def put(self, path: str, node: Node) -> None:
        """Make it, in place of a whiteout; without root it is ours."""
        if node.kind is Kind.WHITEOUT:
            self.hide(path)
            return
        full = self.where(path)
        with suppress(FileNotFoundError):
            os.unlink(full)
        make_at(full, node)
        if node.kind is Kind.DIRECTORY:
            self.mark(path, node.opaque, node.redirect)
        owner = ("uid", "gid") if os.geteuid() == 0 else ()
        known = (*owner, "mode", "xattrs", "mtime")
        set_fields(full, {name: getattr(node, name) for name in known})
        self.unhide(path)

    def adopt(self, path: str, place: Place) -> None:
        """Copy beside, and rename into place: nobody sees half a file."""
        if not isinstance(place.branch, DiskBranch):
            node = place.node
            if node:
                with unchanged(self.where(parent(path))):
                    self.put(path, node.replace(opaque=False, redirect=""))
            return
        source, above = place.branch.where(place.path), self.where(parent(path))
        st, half = os.lstat(source), self.beside(path)
        with unchanged(above):
            remove_path(half)
            copy_node(source, half, st)
            copy_attributes(source, half, st)
            os.rename(half, self.where(path))

    def change(self, path: str, **fields: object) -> None:
        """Change it on the disk."""
        set_fields(self.where(path), fields)
        opaque, redirect = fields.get("opaque") is True, fields.get("redirect")
        if opaque or redirect:
            self.mark(path, opaque, str(redirect or ""))

    def link(self, old: str, new: str) -> None:
        """Link it, in place of a whiteout."""
        if not self.aufs:
            self.remove(new)
        os.link(self.where(old), self.where(new), follow_symlinks=False)
        self.unhide(new)

    def remove(self, path: str) -> None:
        """Remove it, and all below."""
        remove_path(self.where(path))
        self.unhide(path)

    def move(self, old: str, new: str) -> None:
        """Rename it; a file is replaced in one step."""
        if os.path.isdir(self.where(old)):
            remove_path(self.where(new))
        os.rename(self.where(old), self.where(new))
        self.unhide(new)
