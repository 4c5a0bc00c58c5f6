# From book/155-unpack.md. Edit there and tangle, or here and tangle --back.

# %% Unpack: an archive that nobody trusts
"""Unpack tars below a root that they cannot leave.

``apply_layer`` applies a layer, whiteouts and all, to a *view*: a directory that shows
the tree below the layer, be it a plain copy or a mounted union. ``extract`` unpacks a
plain tar. A refusal is an ``IntegrityError``, and leaves what was unpacked before
it: whoever made the view throws the view away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from minidocker.errors import IntegrityError, MinidockerError
from minidocker.headers import Entry, Kind
from minidocker.places import Directories, Place, marker_of, names_in
from minidocker.reading import Read, Tape, TarReader
from minidocker.trees import (
    is_directory,
    names_at,
    printable,
    remove_tree,
    set_xattrs,
    write_all,
)


# %% What one archive has done so far
class Unpacker(Directories):
    """The state of one unpacking: its directories, and what this archive brought.

    ``brought`` has by the real path of each entry the name that it came under,
    ``above`` the paths of the directories that hold them.
    """

    def __init__(
        self,
        reader: TarReader,
        root: str,
        *,
        ignore_owner: bool,
        tape: Tape | None = None,
    ) -> None:
        super().__init__(root, ignore_owner=ignore_owner)
        self.reader, self.tape = reader, tape
        self.at: list[bytes] = []
        self.brought: dict[bytes, bytes] = {}
        self.above: set[bytes] = {b""}

    def claim(self, path: bytes, name: bytes) -> bool:
        """Note that the archive brings ``path``, under a name; say whether again.

        Raises IntegrityError when it came under another name before.
        """
        if (before := self.brought.get(path)) is not None:
            if before != name:
                raise IntegrityError("the archive has this file under two names")
            return True
        self.brought[path] = path if name == path else name
        head = path.rpartition(b"/")[0]
        while head not in self.above:
            self.above.add(head)
            head = head.rpartition(b"/")[0]
        return False

    def replace(self, parent: Place, base: bytes, entry: Entry) -> None:
        """Make room for an entry whose name came before; keep a copy who wants one."""
        st = os.stat(base, dir_fd=parent.fd, follow_symlinks=False)
        was_directory = stat.S_ISDIR(st.st_mode)
        if was_directory != (entry.kind is Kind.DIRECTORY):
            raise IntegrityError("the archive has this name twice, once a directory")
        if entry.kind is Kind.HARD_LINK:
            raise IntegrityError("the archive has this name twice, the second a link")
        if not was_directory:
            if self.tape and stat.S_ISREG(st.st_mode) and st.st_size:
                fd = os.open(base, READ, dir_fd=parent.fd)
                try:
                    self.tape.replaced(parent.child(base), fd)
                finally:
                    os.close(fd)
            os.unlink(base, dir_fd=parent.fd)

    def clear(self, parent: Place, base: bytes) -> None:
        """Remove what a lower layer has where an entry goes."""
        if parent.child(base) in self.above:
            raise IntegrityError("the archive has a directory of this name as well")
        self.places.forget(keep=parent)
        remove_tree(base, parent.fd)


# %% One adder for each kind
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


HOLE = 4096
ZEROS = bytes(1 << 18)


def is_hole(piece: memoryview) -> bool:
    """Whether a piece is so many zeros that nothing need be written."""
    ends = len(piece) >= HOLE and piece[0] == piece[-1] == 0
    return ends and bytes(piece) == ZEROS[: len(piece)]


def write_pieces(fd: int, pieces: Iterable[memoryview]) -> None:
    """Write a new file's contents; pieces of zeros become holes."""
    hole = False
    for piece in pieces:
        hole = is_hole(piece)
        if hole:
            os.lseek(fd, len(piece), os.SEEK_CUR)
        else:
            write_all(fd, piece)
    if hole:
        os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))


def add_file(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Make a regular file; what was there is unlinked, never written through."""
    try:
        fd = os.open(base, WRITE, entry.mode, dir_fd=parent.fd)
    except FileExistsError:
        to.clear(parent, base)
        fd = os.open(base, WRITE, entry.mode, dir_fd=parent.fd)
    try:
        if to.reader.extents is None:
            write_pieces(fd, to.reader.pieces())
        else:
            fill_between_holes(fd, to.reader, entry.size)
        to.own_new(fd, parent, (entry.uid, entry.gid))
        if entry.mode & 0o6000:  # chown(2) clears them
            os.fchmod(fd, entry.mode)
        if entry.xattrs:
            set_xattrs(fd, entry.xattrs, exact=False)
        os.utime(fd, ns=(entry.mtime, entry.mtime))
    finally:
        os.close(fd)


def fill_between_holes(fd: int, reader: TarReader, size: int) -> None:
    """Write the pieces of a sparse file where they belong; holes take no place."""
    os.ftruncate(fd, size)
    pieces, data = reader.pieces(), memoryview(b"")
    for offset, length in reader.extents or ():
        os.lseek(fd, offset, os.SEEK_SET)
        left = length
        while left:
            data = data or next(pieces)
            part = data[:left]
            write_all(fd, part)
            data, left = data[len(part) :], left - len(part)


def add_directory(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Make a directory, or give the one that is there these attributes."""
    try:
        os.mkdir(base, 0o700, dir_fd=parent.fd)
    except FileExistsError:
        if not is_directory(base, parent.fd):
            to.clear(parent, base)
            os.mkdir(base, 0o700, dir_fd=parent.fd)
    to.dress(parent, base, entry)


def finish_node(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Give a node that cannot be opened its owner and time."""
    to.own(base, entry.uid, entry.gid, parent.fd)
    when = (entry.mtime, entry.mtime)
    os.utime(base, ns=when, dir_fd=parent.fd, follow_symlinks=False)


# %% One adder for each kind
def add_symlink(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Make a symbolic link; where it points is nobody's business yet."""
    if not entry.linkname:
        raise IntegrityError("the symbolic link points to nothing")
    try:
        os.symlink(entry.linkname, base, dir_fd=parent.fd)
    except FileExistsError:
        to.clear(parent, base)
        os.symlink(entry.linkname, base, dir_fd=parent.fd)
    finish_node(to, parent, base, entry)


# %% One adder for each kind
def add_hard_link(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Give a file of this layer or of one below it one more name."""
    parts = to.at + names_in(entry.linkname)
    source = to.find(parts[:-1]) if parts else None
    if source is None:
        raise IntegrityError("the hard link is to nothing in this archive or below it")
    if source.child(parts[-1]) == parent.child(base):
        raise IntegrityError("the hard link is to itself")
    try:
        if is_directory(parts[-1], source.fd):
            raise IntegrityError("the hard link is to a directory")
    except FileNotFoundError as why:
        what = "the hard link is to nothing in this archive or below it"
        raise IntegrityError(what) from why
    try:
        link(source, parts[-1], parent, base)
    except FileExistsError:
        to.clear(parent, base)
        link(to.place(parts[:-1]), parts[-1], parent, base)


def link(source: Place, old: bytes, parent: Place, new: bytes) -> None:
    """Give a file one more name."""
    fds = {"src_dir_fd": source.fd, "dst_dir_fd": parent.fd}
    os.link(old, new, **fds, follow_symlinks=False)


# %% One adder for each kind
FORMAT = {
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def add_node(to: Unpacker, parent: Place, base: bytes, entry: Entry) -> None:
    """Make a device or a FIFO; rootless, a device becomes an empty file."""
    if entry.kind is Kind.CHAR and entry.device == (0, 0):
        raise IntegrityError("a character device 0:0 is overlayfs's own whiteout")
    device = os.makedev(*entry.device)
    with suppress(FileNotFoundError):
        os.stat(base, dir_fd=parent.fd, follow_symlinks=False)
        to.clear(parent, base)
    try:
        os.mknod(base, FORMAT[entry.kind] | entry.mode, device, dir_fd=parent.fd)
    except PermissionError:
        if not to.ignore_owner:
            raise
        os.close(os.open(base, WRITE, entry.mode, dir_fd=parent.fd))
    finish_node(to, parent, base, entry)
    if entry.mode & 0o6000:  # chown(2) clears them
        os.chmod(base, entry.mode, dir_fd=parent.fd)


ADDERS: dict[Kind, Callable[[Unpacker, Place, bytes, Entry], None]] = {
    Kind.FILE: add_file,
    Kind.HARD_LINK: add_hard_link,
    Kind.SYMLINK: add_symlink,
    Kind.CHAR: add_node,
    Kind.BLOCK: add_node,
    Kind.DIRECTORY: add_directory,
    Kind.FIFO: add_node,
}


# %% Adding an entry
def add(to: Unpacker, entry: Entry, parts: list[bytes]) -> bytes:
    """Bring one entry into the view; return its real path."""
    parent = to.place(parts[:-1])
    base = parts[-1] if parts else b""
    path = parent.child(base) if base else parent.path
    if to.claim(path, b"/".join(parts)) and base:
        to.replace(parent, base, entry)
    if base:
        ADDERS[entry.kind](to, parent, base, entry)
    elif entry.kind is Kind.DIRECTORY:
        to.dress(parent, b"", entry)
    else:
        raise IntegrityError("the root can be nothing but a directory")
    return path


# %% Whiteouts, in any order
def hide_below(to: Unpacker, path: bytes) -> None:
    """Remove from a directory what the archive did not bring itself."""
    todo = [path]
    while todo:
        place = to.place([todo.pop()])
        for base in names_at(place.fd):
            child = place.child(base)
            if child in to.brought or child in to.above:
                if is_directory(base, place.fd):
                    todo.append(child)
                    undress(to, place, base)
            else:
                to.places.forget(keep=place)
                remove_tree(base, place.fd)


def undress(to: Unpacker, parent: Place, base: bytes) -> None:
    """Make a lower directory as if only implied, unless the archive describes it."""
    if parent.child(base) not in to.brought:
        to.dress(parent, base, Entry(base, Kind.DIRECTORY, 0o755))


def hide(to: Unpacker, parts: list[bytes], hidden: bytes) -> None:
    """Apply a whiteout: ``hidden`` of the layers below, or all when it is ``b""``."""
    parent = to.find(parts[:-1])
    if parent is None:
        return
    marker = parent.child(parts[-1])
    if marker in to.brought:
        raise IntegrityError("the archive has this whiteout twice")
    to.brought[marker] = marker
    path = parent.child(hidden) if hidden else parent.path
    if not hidden:
        hide_below(to, path)
    elif path in to.brought or path in to.above:
        if is_directory(hidden, parent.fd):
            undress(to, parent, hidden)
            hide_below(to, path)
    else:
        to.places.forget(keep=parent)
        remove_tree(hidden, parent.fd)


# %% The whole archive
NAMES_AT_FAULT = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EMLINK,
    errno.EEXIST,
)


def placed(entry: Entry, why: MinidockerError | OSError) -> Exception:
    """Return the error that says which entry it is about."""
    where = printable(entry.name)
    if isinstance(why, MinidockerError):
        why.where = why.where or where
        return why
    if why.errno not in NAMES_AT_FAULT:
        if isinstance(why.filename, int):  # a descriptor, which tells nobody anything
            why.filename = where
        return why
    return IntegrityError(os.strerror(why.errno).lower(), where=where)


@contextmanager
def unpacking(
    reader: TarReader,
    root: str,
    at: str,
    ignore_owner: bool,
    tape: Tape | None = None,
) -> Iterator[Unpacker]:
    """Yield an unpacker; set the directories' times when all went well."""
    to = Unpacker(reader, root, ignore_owner=ignore_owner, tape=tape)
    to.at = names_in(os.fsencode(at))
    before = os.umask(0)
    try:
        yield to
        to.finish()
    finally:
        os.umask(before)
        to.places.close()


# %% The whole archive
def apply_layer(
    read: Read,
    root: str,
    *,
    limit: int | None = None,
    ignore_owner: bool = False,
    tape: Tape | None = None,
) -> int:
    """Apply a layer's tar to the view at ``root``; return the bytes of its files.

    ``limit`` bounds those bytes. ``ignore_owner`` is for a user namespace that does
    not know every owner: chown(2) may fail, and devices become empty files. ``tape``
    hears every byte. Raises IntegrityError; the view is then half done, and its
    maker removes it.
    """
    size, reader = 0, TarReader(read, limit=limit, tape=tape)
    with unpacking(reader, root, "/", ignore_owner, tape) as to:
        for entry in reader:
            try:
                path = apply_entry(to, entry)
            except (MinidockerError, OSError) as why:
                raise placed(entry, why) from why.__cause__
            if tape:
                dense = reader.extents is None
                tape.entry(entry if dense else entry.replace(size=0), path)
            size += entry.size
    return size


def apply_entry(to: Unpacker, entry: Entry) -> bytes:
    """Bring in an entry, or delete what a whiteout says; return the real path."""
    parts = names_in(entry.name)
    hidden = marker_of(entry, parts)
    if hidden is None:
        return add(to, entry, parts)
    hide(to, parts, hidden)
    return b""


# %% The whole archive
def extract(
    read: Read,
    root: str,
    *,
    at: str = "/",
    limit: int | None = None,
    ignore_owner: bool = False,
) -> int:
    """Unpack a plain tar into directory ``at`` of the tree at ``root``.

    As ``apply_layer``, but ``.wh.`` names have no meaning. ``at`` is made if missing.
    """
    size, reader = 0, TarReader(read, limit=limit)
    with unpacking(reader, root, at, ignore_owner) as to:
        to.place(to.at)
        for entry in reader:
            try:
                add(to, entry, to.at + names_in(entry.name))
            except (MinidockerError, OSError) as why:
                raise placed(entry, why) from why.__cause__
            size += entry.size
    return size
