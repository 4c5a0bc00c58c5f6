# From book/145-archive.md. Edit there and tangle, or here and tangle --back.

# %% Archive: a layer is a tar
"""Write tars, the form in which layers travel.

The same tree gives the same bytes: names are sorted, and a header says nothing that
differs from machine to machine. Memory is constant.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from minidocker.errors import ConflictError
from minidocker.headers import BLOCK, SECOND, Entry, Kind, header
from minidocker.trees import DIRECTORY, Xattrs, printable, xattrs_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash as Hash
    from queue import SimpleQueue
    from threading import Thread
    from typing import Self

Put = Callable[[bytes], object]


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
    """Write entries to ``put`` in pieces of 1 MiB; ``finish`` ends the tar.

    What is read is copied once more at most, and of a large file nothing is.
    """

    def __init__(self, put: Put) -> None:
        self._put = put
        self._parts: list[bytes | memoryview] = []
        self._pending = 0

    def write(self, *parts: bytes) -> None:
        """Pass on raw bytes, in time."""
        self._parts += parts
        self._pending += sum(map(len, parts))
        while self._pending >= BATCH:
            self._pass_on(BATCH)

    def _pass_on(self, size: int) -> None:
        """Pass on ``size`` bytes; what else the last part has is kept."""
        over = self._pending - size
        last = memoryview(self._parts[-1])
        if over:
            self._parts[-1] = last[:-over]
        self._put(b"".join(self._parts))
        self._parts, self._pending = [last[-over:]] if over else [], over

    def flush(self) -> None:
        """Pass on what is pending."""
        if self._parts:
            self._pass_on(self._pending)

    def add(self, entry: Entry, fd: int | None = None, data: bytes = b"") -> None:
        """Write an entry, and of a file ``data`` or ``entry.size`` bytes of ``fd``.

        Raises ConflictError when the file is shorter than it was.
        """
        if fd is not None and 0 < entry.size <= SMALL:
            data = os.read(fd, entry.size)
        if len(data) == entry.size:
            self.write(header(entry), data, PAD[: -entry.size % BLOCK])
            return
        self.write(header(entry), data)
        self.copy(fd, entry.size - len(data), entry.name)
        self.write(PAD[: -entry.size % BLOCK])

    def copy(self, fd: int | None, size: int, name: bytes) -> None:
        """Write ``size`` bytes of a file. Raises ConflictError when it is shorter."""
        while size:
            room = min(size, BATCH - self._pending)
            data = os.read(fd, room) if fd is not None else b""
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
class Beneath:
    """A tree whose files are reached from its root without following a link.

    That holds even if somebody is changing the tree. Use it with ``with``.
    """

    def __init__(self, root: str) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at, self._fd = b"", self._root

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd != self._root:
            os.close(self._fd)
        os.close(self._root)

    def parent(self, name: bytes) -> int:
        """Return a descriptor of ``name``'s directory, which stays ours."""
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

    def open(self, name: bytes) -> int:
        """Open a file or a directory to read it, and no link; the caller closes."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name.rpartition(b"/")[2], flags, dir_fd=self.parent(name))


# %% One file into the tar
class TreeWriter(Beneath):
    """Write files of one tree into a tar, hard links as such.

    ``contents`` are those of small files that the caller has just made, without
    attributes; they need not be read again.
    """

    def __init__(
        self, root: str, put: Put, contents: dict[bytes, bytes] | None = None
    ) -> None:
        super().__init__(root)
        self.tar, self._contents = TarWriter(put), contents or {}
        self._seen: dict[tuple[int, int], bytes] = {}
        self.size = 0

    def add(self, name: bytes) -> bool:
        """Write the file called ``name``, relative to the root; no tar has sockets.

        Returns whether it was written.
        """
        head, _, base = name.rpartition(b"/")
        parent = self._fd if head == self._at else self.parent(name)
        st = os.stat(base, dir_fd=parent, follow_symlinks=False)
        kind = KINDS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            return False
        if kind is not Kind.DIRECTORY and st.st_nlink > 1:
            first = self._seen.setdefault((st.st_dev, st.st_ino), name)
            if first != name:
                link = entry_of(name, st, kind=Kind.HARD_LINK, linkname=first, size=0)
                self.tar.add(link)
                return True
        data = self._contents.pop(name, b"")
        if data and kind is Kind.FILE and len(data) == st.st_size:
            self.size += st.st_size
            self.tar.add(entry_of(name, st), data=data)
        elif kind is Kind.FILE or kind is Kind.DIRECTORY:
            self._add_opened(name, st)
        elif kind is Kind.SYMLINK:
            target = os.readlink(base, dir_fd=parent)
            self.tar.add(entry_of(name, st, linkname=target))
        else:
            self.tar.add(entry_of(name, st))
        return True

    def _add_opened(self, name: bytes, st: os.stat_result) -> None:
        """Write a file or a directory, with its contents and attributes."""
        fd = self.open(name)
        try:
            now = os.fstat(fd)
            seen = st.st_dev, st.st_ino, st.st_mode
            if (now.st_dev, now.st_ino, now.st_mode) != seen:
                what = "the file was replaced while it was read"
                raise ConflictError(what, where=printable(name))
            entry = entry_of(name, now, xattrs=xattrs_of(fd))
            self.size += entry.size
            self.tar.add(entry, fd)
        finally:
            os.close(fd)

    def add_contents(self, name: bytes, size: int) -> None:
        """Write only the contents of a file, no header and no padding.

        Raises ConflictError when it is no file of exactly ``size`` bytes, and OSError.
        """
        fd = self.open(name)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or st.st_size != size:
                raise ConflictError(f"no file of {size} bytes", where=printable(name))
            self.tar.copy(fd, size, name)
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
