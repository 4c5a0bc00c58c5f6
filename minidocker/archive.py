# From book/145-archive.md. Edit there and tangle, or here and tangle --back.

# %% Archive: a layer is a tar
"""Write tar, the format in which layers travel.

The same tree gives the same bytes: sorted names, whole seconds, numeric owners and no
names of owners, pax records only for what ustar cannot say. Memory is constant.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from zlib import adler32

from minidocker.errors import ConflictError
from minidocker.records import Enum, Record
from minidocker.trees import DIRECTORY, Xattrs, printable, xattrs_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash as Hash
    from queue import SimpleQueue
    from threading import Thread
    from typing import Self

Put = Callable[[bytes], object]


# %% The nouns: a kind, an entry
class Kind(Enum):
    """What an entry is; the value is its type flag in the header."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


class Entry(Record):
    """One member of a tar, without its contents.

    ``name`` and ``linkname`` are the exact bytes, relative to the tree's root.
    ``size`` is in bytes, ``mtime`` in nanoseconds since 1970, ``mode`` has the twelve
    permission bits, ``device`` is (major, minor).
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()


# %% A header, field by field
BLOCK = 512
SECOND = 1_000_000_000
HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
BLANK_SUM = b" " * 8
SCHILY = b"SCHILY.xattr."


def octal(number: int, width: int) -> bytes:
    """Return ``number`` as octal digits and a NUL, ``width`` bytes together.

    >>> octal(0o644, 8)
    b'0000644\\x00'
    """
    return b"%0*o\0" % (width - 1, number)


def checksum(block: bytes) -> int:
    """Return the sum of a header's bytes, those of its checksum field as blanks.

    Adler-32 keeps the plain sum of the bytes, plus one, in its lower half, modulo
    65521: one call in C, and exact while no byte is over 127.

    >>> checksum(bytes(512))
    256
    """
    if not block.isascii():
        return sum(block[:148]) + 256 + sum(block[156:])
    rest = adler32(block[156:], adler32(BLANK_SUM, adler32(block[:148])))
    return (rest & 0xFFFF) - 1


def sealed(block: bytes) -> bytes:
    """Return a header with its checksum in place, whatever was there."""
    return summed(block[:148] + BLANK_SUM + block[156:])


def summed(block: bytes) -> bytes:
    """Return a header that has blanks for its checksum with the checksum in place."""
    total = (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    return b"%b%06o\0 %b" % (block[:148], total, block[156:])


# %% Splitting a long name
def split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Return ustar's (prefix, name) for a name, or None where it does not fit.

    >>> split_name(b"d" * 90 + b"/" + b"f" * 90) == (b"d" * 90, b"f" * 90)
    True
    """
    if len(name) <= 100:
        return b"", name
    at = name.find(b"/", len(name) - 101, len(name) - 1)
    return (name[:at], name[at + 1 :]) if 0 < at <= 155 else None


# %% What ustar cannot say
def pax_record(key: bytes, value: bytes) -> bytes:
    """Return ``LENGTH KEY=VALUE\\n``, where the length counts its own digits.

    >>> pax_record(b"path", b"abc")
    b'12 path=abc\\n'
    """
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def pax_records(entry: Entry) -> bytes:
    """Return the pax records that an entry needs: mostly none."""
    records = {}
    if split_name(entry.name) is None:
        records[b"path"] = entry.name
    if len(entry.linkname) > 100:
        records[b"linkpath"] = entry.linkname
    seconds = entry.mtime // SECOND
    for key, number, room in (
        (b"uid", entry.uid, 8**7),
        (b"gid", entry.gid, 8**7),
        (b"size", entry.size, 8**11),
        (b"mtime", seconds, 8**11),
    ):
        if not 0 <= number < room:
            records[key] = b"%d" % number
    for name, value in entry.xattrs:
        records[SCHILY + name] = value
    return b"".join(pax_record(key, records[key]) for key in sorted(records))


# %% The whole header
@lru_cache(maxsize=4096)  # of ten thousand files most have the same owner and time
def fitting(number: int, width: int) -> bytes:
    """Return an octal field, zero where a pax record says the number."""
    return octal(number if 0 <= number < 8 ** (width - 1) else 0, width)


def ustar(entry: Entry) -> bytes:
    """Return the 512 bytes of an entry's header, as far as ustar can say it."""
    prefix, name = split_name(entry.name) or (b"", entry.name[:100])
    major, minor = entry.device
    block = HEADER.pack(
        name,
        fitting(entry.mode, 8),
        fitting(entry.uid, 8),
        fitting(entry.gid, 8),
        fitting(entry.size, 12),
        fitting(entry.mtime // SECOND, 12),
        BLANK_SUM,
        entry.kind.value,
        entry.linkname[:100],
        b"ustar\x0000",
        b"",
        b"",
        fitting(major, 8),
        fitting(minor, 8),
        prefix,
    )
    return summed(block)


# %% The whole header
def header(entry: Entry) -> bytes:
    """Return an entry's header, a pax header before it where ustar is too narrow."""
    block = ustar(entry)
    if not (
        entry.xattrs
        or len(entry.name) > 100
        or len(entry.linkname) > 100
        or entry.mtime < 0
        or max(entry.uid, entry.gid) >= 8**7
        or max(entry.size, entry.mtime // SECOND) >= 8**11
    ):
        return block
    records = pax_records(entry)
    if not records:
        return block
    before = ustar(Entry(b"././@PaxHeader", Kind.FILE, size=len(records)))
    before = sealed(before[:156] + b"x" + before[157:])
    return before + records + bytes(-len(records) % BLOCK) + block


# %% Writing: one hash, one batch
BATCH = 1 << 20  # bytes that are passed on together
SMALL = 1 << 18  # bytes that Python's own SHA-256 digests while OpenSSL's is loaded


def sha256_for(size: int) -> Hash:
    """Return a new SHA-256 for about ``size`` bytes.

    OpenSSL's is some four times as fast, and takes two milliseconds to load.
    """
    if size < SMALL and "hashlib" not in sys.modules:
        with suppress(ImportError):
            from _sha256 import sha256  # type: ignore[import-not-found]  # Python 3.11

            return sha256()  # type: ignore[no-any-return]
    import hashlib

    return hashlib.sha256()


# %% Writing: one hash, one batch
class Tally:
    """Count and digest the bytes that pass, and hand them on to ``put``.

    ``whole``: the first piece is all there is, or large, as a TarWriter's.
    """

    def __init__(self, put: Put | None = None, *, whole: bool = False) -> None:
        self._put, self.size = put, 0
        self._hash = None if whole else sha256_for(SMALL)

    def _update(self, data: bytes) -> None:
        if self._hash is None:
            self._hash = sha256_for(len(data))
        self._hash.update(data)

    def __call__(self, data: bytes) -> None:
        self._update(data)
        self.size += len(data)
        if self._put:
            self._put(data)

    @property
    def digest(self) -> str:
        """The digest of what has passed so far, ``sha256:hex``."""
        return f"sha256:{(self._hash or sha256_for(0)).hexdigest()}"


# %% Writing: one hash, one batch
class Aside(Tally):
    """A Tally that digests in a thread, a few pieces behind; use it with ``with``."""

    MOST = 4

    def __init__(self, put: Put | None = None) -> None:
        super().__init__(put, whole=True)
        self._thread: Thread | None = None

    def _start(self) -> None:
        from queue import SimpleQueue
        from threading import Semaphore, Thread

        self._pieces: SimpleQueue[bytes] = SimpleQueue()
        self._room = Semaphore(self.MOST)
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Digest what comes, until an empty piece does."""
        while data := self._pieces.get():
            self._update(data)
            self._room.release()

    def __call__(self, data: bytes) -> None:
        if self.size < BATCH or not data:
            super().__call__(data)
            return
        if self._thread is None:
            self._start()
        self._room.acquire()
        self._pieces.put(data)
        self.size += len(data)
        if self._put:
            self._put(data)

    @property
    def digest(self) -> str:
        """The digest of what has passed so far; waits for the thread."""
        if self._thread is not None:
            for _ in range(self.MOST):
                self._room.acquire()
            self._room.release(self.MOST)
        return super().digest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._pieces.put(b"")
            self._thread.join()


# %% The writer
PAD = bytes(BLOCK)


class TarWriter:
    """Write entries to ``put`` in pieces of about 1 MiB; ``finish`` ends the tar."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._parts: list[bytes] = []
        self._pending = 0

    def write(self, data: bytes) -> None:
        """Pass on raw bytes, in time."""
        self._parts.append(data)
        self._pending += len(data)
        if self._pending >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Pass on what is pending."""
        if self._parts:
            self._put(b"".join(self._parts))
            self._parts.clear()
            self._pending = 0

    def add(self, entry: Entry, fd: int | None = None, data: bytes = b"") -> None:
        """Write an entry, and of a file ``data`` or ``entry.size`` bytes of ``fd``.

        Raises ConflictError when the file is shorter than it was.
        """
        if fd is not None and 0 < entry.size <= SMALL:
            data = os.read(fd, entry.size)
        if len(data) == entry.size:
            self.write(b"".join((header(entry), data, PAD[: -entry.size % BLOCK])))
            return
        self.write(header(entry) + data)
        self.copy(fd, entry.size - len(data), entry.name)
        self.write(PAD[: -entry.size % BLOCK])

    def copy(self, fd: int | None, size: int, name: bytes) -> None:
        """Write ``size`` bytes of a file. Raises ConflictError when it is shorter."""
        while size:
            data = os.read(fd, min(size, BATCH)) if fd is not None else b""
            if not data:
                what = "the file changed while it was read"
                raise ConflictError(what, where=printable(name))
            size -= len(data)
            self.write(data)

    def finish(self) -> None:
        """Write the two blocks of zeros that end a tar, and flush."""
        self.write(bytes(2 * BLOCK))
        self.flush()


# %% From a tree
KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def entry_of(
    name: bytes, st: os.stat_result, xattrs: Xattrs = (), **more: object
) -> Entry:
    """Return the entry that describes a file of ``st``; ``more`` are other fields."""
    kind = KINDS[stat.S_IFMT(st.st_mode)]
    is_device = kind is Kind.CHAR or kind is Kind.BLOCK
    entry = Entry(
        name + b"/" if kind is Kind.DIRECTORY else name,
        kind,
        0o777 if kind is Kind.SYMLINK else st.st_mode & 0o7777,
        st.st_uid,
        st.st_gid,
        st.st_size if kind is Kind.FILE else 0,
        st.st_mtime_ns // SECOND * SECOND,
        b"",
        (os.major(st.st_rdev), os.minor(st.st_rdev)) if is_device else (0, 0),
        xattrs,
    )
    return entry.replace(**more) if more else entry


# %% One file into the tar
class TreeWriter:
    """Write files of one tree into a tar, hard links as such.

    Each directory is reached from ``root`` without following a symbolic link, even if
    somebody is changing the tree. ``contents`` are those of small files that the
    caller has just made, without attributes; they need not be read again.
    """

    def __init__(
        self, root: str, put: Put, contents: dict[bytes, bytes] | None = None
    ) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.tar, self._contents = TarWriter(put), contents or {}
        self._root = os.open(root, flags)
        self._seen: dict[tuple[int, int], bytes] = {}
        self._at, self._fd = b"", self._root
        self.size = 0

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd != self._root:
            os.close(self._fd)
        os.close(self._root)

    def _parent(self, name: bytes) -> int:
        """Return a descriptor of ``name``'s directory; the last one stays open."""
        head = name.rpartition(b"/")[0]
        if head == self._at:
            return self._fd
        from minidocker.linux import Resolve, openat2

        how = Resolve.BENEATH | Resolve.NO_SYMLINKS
        fd = openat2(self._root, os.fsdecode(head) or ".", DIRECTORY, resolve=how)
        if self._fd != self._root:
            os.close(self._fd)
        self._at, self._fd = head, fd
        return fd

    def add(self, name: bytes) -> bool:
        """Write the file called ``name``, relative to the root; no tar has sockets.

        Returns whether it was written.
        """
        head, _, base = name.rpartition(b"/")
        parent = self._fd if head == self._at else self._parent(name)
        st = os.stat(base, dir_fd=parent, follow_symlinks=False)
        kind = KINDS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            return False
        if kind is not Kind.DIRECTORY and st.st_nlink > 1:
            first = self._seen.setdefault((st.st_dev, st.st_ino), name)
            if first != name:
                self.tar.add(
                    entry_of(name, st, kind=Kind.HARD_LINK, linkname=first, size=0)
                )
                return True
        data = self._contents.pop(name, b"")
        if data and kind is Kind.FILE and len(data) == st.st_size:
            self.size += st.st_size
            self.tar.add(entry_of(name, st), data=data)
        elif kind is Kind.FILE or kind is Kind.DIRECTORY:
            self._add_opened(name, base, parent, st)
        elif kind is Kind.SYMLINK:
            target = os.readlink(base, dir_fd=parent)
            self.tar.add(entry_of(name, st, linkname=target))
        else:
            self.tar.add(entry_of(name, st))
        return True

    def add_contents(self, name: bytes, size: int) -> None:
        """Write only the contents of a file, no header and no padding.

        Raises ConflictError when it is no file of exactly ``size`` bytes, and OSError.
        """
        parent, base = self._parent(name), name.rpartition(b"/")[2]
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(base, flags, dir_fd=parent)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or st.st_size != size:
                raise ConflictError(f"no file of {size} bytes", where=printable(name))
            self.tar.copy(fd, size, name)
        finally:
            os.close(fd)

    def _add_opened(
        self, name: bytes, base: bytes, parent: int, st: os.stat_result
    ) -> None:
        """Write a file or a directory, with its contents and attributes."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(base, flags, dir_fd=parent)
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino, now.st_mode) != (
                st.st_dev,
                st.st_ino,
                st.st_mode,
            ):
                what = "the file was replaced while it was read"
                raise ConflictError(what, where=printable(name))
            entry = entry_of(name, now, xattrs=xattrs_of(fd))
            self.size += entry.size
            self.tar.add(entry, fd)
        finally:
            os.close(fd)


# %% A whole tree
def names_below(tree: str) -> Iterator[bytes]:
    """Yield every name below a tree, sorted, a directory before what it holds."""
    pending = [b""]
    while pending:
        name = pending.pop()
        path = os.path.join(os.fsencode(tree), name)
        if name:
            yield name
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                continue
        inside = sorted(os.listdir(path), reverse=True)
        pending += [os.path.join(name, child) for child in inside]


def pack(tree: str, put: Put) -> None:
    """Write a whole tree as a tar, for ``export``; the root itself is left out."""
    with TreeWriter(tree, put) as writer:
        for name in names_below(tree):
            writer.add(name)
        writer.tar.finish()
