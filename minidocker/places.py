# From book/153-places.md. Edit there and tangle, or here and tangle --back.

# %% Places: names below a root
"""Names of archives as lists of components, and directories that are open by name."""

from __future__ import annotations

import errno
import os

from minidocker.errors import IntegrityError
from minidocker.headers import Entry, Kind
from minidocker.linux import Resolve, openat2
from minidocker.records import Record
from minidocker.trees import printable


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
