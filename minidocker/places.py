# From book/153-places.md. Edit there and tangle, or here and tangle --back.

# %% Places: names below a root
"""Names of archives as lists of components; directories, opened and made by name."""

from __future__ import annotations

import errno
import os

from minidocker.errors import IntegrityError, UnsupportedError
from minidocker.headers import Entry, Kind
from minidocker.linux import Resolve, openat2
from minidocker.records import Record
from minidocker.trees import DIRECTORY, printable, set_xattrs


# %% The nouns: a place, a marker
class Place(Record):
    """An open directory below the root: its descriptor and its real path."""

    fd: int
    path: bytes

    def child(self, base: bytes) -> bytes:
        """Return the real path of ``base`` in this directory."""
        return self.path + b"/" + base if self.path else base


WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"


# %% The nouns: a place, a marker
def names_in(name: bytes) -> list[bytes]:
    """Return the components of an entry's name; an absolute one starts at the root.

    >>> names_in(b"/a/./b/")
    [b'a', b'b']
    """
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part and part != b"."]
    if b".." in parts:
        raise IntegrityError("the name climbs with ..", where=printable(name))
    return parts


def marker_of(entry: Entry, parts: list[bytes]) -> bytes | None:
    """Return what a whiteout hides, ``b""`` for an opaque marker, None for no marker.

    Raises IntegrityError for a marker that is malformed.
    """
    if WHITEOUT not in entry.name:
        return None
    if not any(part.startswith(WHITEOUT) for part in parts):
        return None
    base = parts[-1]
    hidden = base.removeprefix(WHITEOUT)
    if base == OPAQUE:
        hidden = b""
    elif hidden in (b"", b".", b"..") or hidden.startswith(WHITEOUT):
        hidden = base
    above = any(part.startswith(WHITEOUT) for part in parts[:-1])
    if above or hidden == base or entry.kind is not Kind.FILE or entry.size:
        what = "the whiteout is malformed: nothing is deleted"
        raise IntegrityError(what, where=printable(entry.name))
    return hidden


# %% The directories that are open
class Places:
    """Directories below a root, opened once each and never outside it."""

    MOST = 256

    def __init__(self, root: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.root = os.open(root, flags)
        self._top = os.readlink(b"/proc/self/fd/%d" % self.root).rstrip(b"/")
        self._open: dict[bytes, Place] = {}

    def forget(self, keep: Place | None = None) -> None:
        """Close all but ``keep``: something that was on the way has been removed."""
        for name, place in list(self._open.items()):
            if place is not keep:
                os.close(self._open.pop(name).fd)

    def close(self) -> None:
        """Close everything."""
        self.forget()
        os.close(self.root)

    def find(self, name: bytes) -> Place | None:
        """Open a directory by its name below the root; None when nothing is there.

        Symbolic links on the way mean what they mean inside the root. Raises
        IntegrityError when what is there is no directory, or links run in a circle.
        """
        if found := self._open.pop(name, None):
            self._open[name] = found  # the last one used is closed last
            return found
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        how = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
        try:
            fd = openat2(self.root, os.fsdecode(name) or ".", flags, resolve=how)
        except OSError as why:
            if why.errno == errno.ENOENT:
                return None
            raise
        if len(self._open) >= self.MOST:
            os.close(self._open.pop(next(iter(self._open))).fd)
        path = os.readlink(b"/proc/self/fd/%d" % fd)[len(self._top) + 1 :]
        self._open[name] = Place(fd, path)
        return self._open[name]


# %% The directories that are made
def ids_here() -> int:
    """Return how many users exist in our user namespace."""
    with open("/proc/self/uid_map", "rb") as file:
        return sum(int(line.split()[2]) for line in file)


# %% The directories that are made
class Directories:
    """The directories of one unpacking: found, made, and their times set at the end.

    ``times`` are set last, because making a file changes its directory's. ``born`` is
    with which owner a directory's files are born: ours, or with its group.
    """

    def __init__(self, root: str, *, ignore_owner: bool) -> None:
        self.places, self.ignore_owner = Places(root), ignore_owner
        self.times: dict[bytes, int] = {}
        self.born: dict[bytes, tuple[int, int]] = {}

    def own(self, target: int | bytes, uid: int, gid: int, dir_fd: int | None) -> None:
        """Give a file its owner; rootless, there may be no such owner here."""
        try:
            os.chown(target, uid, gid, dir_fd=dir_fd, follow_symlinks=dir_fd is None)
        except OSError as why:
            if not (self.ignore_owner and why.errno in (errno.EPERM, errno.EINVAL)):
                raise
            if why.errno == errno.EINVAL and (count := ids_here()) > 1:
                what = f"the owner {uid}:{gid} is beyond the {count} ids of this user"
                hint = "longer ranges in /etc/subuid and /etc/subgid, or run as root"
                raise UnsupportedError(what, hint=hint) from why

    def own_new(self, fd: int, parent: Place, owner: tuple[int, int]) -> None:
        """Give a new file its owner, unless files are born with it in this place."""
        born = self.born.get(parent.path)
        if born is None:
            info = os.fstat(fd)
            born = self.born[parent.path] = info.st_uid, info.st_gid
        if born != owner:
            self.own(fd, *owner, None)

    def find(self, parts: list[bytes]) -> Place | None:
        """Return the directory of these names, its time remembered; None if none."""
        found = self.places.find(b"/".join(parts))
        if found is not None and found.path not in self.times:
            self.times[found.path] = os.fstat(found.fd).st_mtime_ns
        return found

    def place(self, parts: list[bytes]) -> Place:
        """Return the directory of these names; make what is missing."""
        if found := self.find(parts):
            return found
        self.make_directory(self.place(parts[:-1]), parts[-1])
        return self.find(parts) or self.place(parts)

    def make_directory(self, parent: Place, base: bytes) -> None:
        """Make a directory that the archive implies: 0755, root's, from 1970."""
        try:
            os.mkdir(base, 0o755, dir_fd=parent.fd)
        except FileExistsError as why:
            what = "a symbolic link on the way leads nowhere"
            raise IntegrityError(what) from why
        self.dress(parent, base, Entry(base, Kind.DIRECTORY, 0o755))

    def dress(self, parent: Place, base: bytes, entry: Entry) -> None:
        """Give a directory exactly the attributes of an entry."""
        fd = os.open(base or b".", DIRECTORY, dir_fd=parent.fd)
        try:
            self.own(fd, entry.uid, entry.gid, None)
            os.fchmod(fd, entry.mode)
            set_xattrs(fd, entry.xattrs, exact=True)
        finally:
            os.close(fd)
        path = parent.child(base) if base else parent.path
        self.times[path] = entry.mtime
        self.born.pop(path, None)

    def finish(self) -> None:
        """Set the directories' times."""
        how = Resolve.IN_ROOT | Resolve.NO_SYMLINKS
        for path, when in self.times.items():
            try:
                fd = openat2(
                    self.places.root, os.fsdecode(path) or ".", DIRECTORY, resolve=how
                )
            except OSError as why:
                if why.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                continue
            os.utime(fd, ns=(when, when))
            os.close(fd)
