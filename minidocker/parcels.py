# From book/540-parcels.md. Edit there and tangle, or here and tangle --back.

# %% Parcels: the files in a stranger's archive
"""Find files by name in a tar or a directory that anybody made.

What is not a regular file, climbs out, comes twice or is cut off is an
``IntegrityError``. Nothing is unpacked, and a file is read where it lies.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.compression import Codec, codec_of, decompressed
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.headers import Entry, Kind
from minidocker.linux import Resolve, openat2
from minidocker.manifests import DOCUMENT_LIMIT, clean
from minidocker.places import names_in
from minidocker.reading import Read, Stream, TarReader
from minidocker.records import Record
from minidocker.trees import printable


# %% The nouns
class Part(Record):
    """A file of a shipment: its size in bytes, and what reads it from its start."""

    size: int
    read: Read


# %% The nouns
class Source(ABC):
    """Files by name. A name is relative, and cannot climb out."""

    @abstractmethod
    def part(self, name: str) -> Part:
        """Return a regular file; NotFoundError if none, IntegrityError if another."""

    def text(self, name: str, limit: int = DOCUMENT_LIMIT) -> bytes:
        """Return all of a small file; IntegrityError for one that is not small."""
        part, data = self.part(name), b""
        if part.size > limit:
            raise IntegrityError(f"over {limit} bytes", where=clean(name))
        while len(data) < part.size:
            more = part.read(part.size - len(data))
            if not more:
                raise IntegrityError("truncated", where=clean(name))
            data += more
        return data

    def maybe(self, name: str) -> bytes | None:
        """Return all of a small file, or None where there is none."""
        try:
            return self.text(name)
        except NotFoundError:
            return None


def absent(name: str) -> NotFoundError:
    """Return the error for a file that a shipment does not have."""
    return NotFoundError("the archive has no such file", where=clean(name))


def reader(fd: int, start: int, size: int) -> Read:
    """Return what reads ``size`` bytes of a file from ``start``; the position stays."""
    at, end = start, start + size

    def read(most: int) -> bytes:
        nonlocal at
        data = os.pread(fd, min(most, end - at), at)
        at += len(data)
        return data

    return read


# %% The nouns
MOST_MEMBERS = 200_000
MOST_LINKS = 8


class Jumping(Stream):
    """A stream over an open file that passes over bytes without reading them."""

    def __init__(self, fd: int) -> None:
        super().__init__(lambda size: os.read(fd, min(size, 4096)))
        self._fd = fd

    def tell(self) -> int:
        """Return where in the file the next byte is."""
        return os.lseek(self._fd, 0, os.SEEK_CUR) - len(self._buffer) + self._at

    def skip(self, length: int) -> None:
        """Pass over ``length`` bytes."""
        ready = min(length, len(self._buffer) - self._at)
        self._at += ready
        if length > ready:
            os.lseek(self._fd, length - ready, os.SEEK_CUR)


# %% The nouns
class TarSource(Source):
    """The files of a tar, in an open file that can go back."""

    def __init__(self, fd: int) -> None:
        self._fd, self._size = fd, os.fstat(fd).st_size
        self._members: dict[bytes, tuple[Entry, int]] = {}
        os.lseek(fd, 0, os.SEEK_SET)
        stream = Jumping(fd)
        reader = TarReader(stream)
        for entry in reader:
            if reader.extents is not None:
                where = printable(entry.name)
                raise IntegrityError("a file of an image with holes", where=where)
            self._note(entry, stream.tell())

    def _note(self, entry: Entry, at: int) -> None:
        name = b"/".join(names_in(entry.name))
        if name in self._members and entry.kind is not Kind.DIRECTORY:
            raise IntegrityError("the archive has this twice", where=printable(name))
        if len(self._members) >= MOST_MEMBERS:
            raise IntegrityError(f"more than {MOST_MEMBERS} files in the archive")
        if at + entry.size > self._size:
            raise IntegrityError("the archive is truncated", where=printable(name))
        self._members[name] = entry, at

    def part(self, name: str) -> Part:
        """Find a member, through links inside the archive."""
        path = names_in(os.fsencode(name))
        for _ in range(MOST_LINKS):
            entry, at = self._members.get(b"/".join(path), (None, 0))
            if entry is None:
                raise absent(name)
            if entry.kind is Kind.FILE:
                return Part(entry.size, reader(self._fd, at, entry.size))
            if entry.kind is Kind.SYMLINK:
                path = joined(path[:-1], entry.linkname)
            elif entry.kind is Kind.HARD_LINK:
                path = names_in(entry.linkname)
            else:
                break
        raise IntegrityError("not a regular file", where=clean(name))


def joined(at: list[bytes], target: bytes) -> list[bytes]:
    """Return where a relative link in the directory ``at`` leads.

    Raises IntegrityError when that is outside.
    """
    path = list(at)
    for step in target.split(b"/"):
        if step == b".." and path:
            path.pop()
        elif step == b".." or target.startswith(b"/"):
            what = "the link leads out of the archive"
            raise IntegrityError(what, where=printable(target))
        elif step not in (b"", b"."):
            path.append(step)
    return path


# %% The nouns
class DirectorySource(Source):
    """The files of an OCI layout in a directory."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._fd = os.open(path, flags)
        self._open: list[int] = [self._fd]

    def part(self, name: str) -> Part:
        """Open a file; no link is followed, and no device is waited for."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        how = Resolve.BENEATH | Resolve.NO_SYMLINKS
        path = os.fsdecode(b"/".join(names_in(os.fsencode(name))))
        try:
            fd = openat2(self._fd, path, flags, resolve=how)
        except OSError as why:
            if why.errno in (errno.ENOENT, errno.ENOTDIR):
                raise absent(name) from why
            raise IntegrityError("not a regular file", where=clean(name)) from why
        self._open.append(fd)
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise IntegrityError("not a regular file", where=clean(name))
        return Part(st.st_size, reader(fd, 0, st.st_size))

    def close(self) -> None:
        """Close everything."""
        for fd in self._open:
            os.close(fd)


# %% The nouns
@contextmanager
def source_of(fd: int, tmp: str, *, limit: int | None = None) -> Iterator[Source]:
    """Yield the files of an open archive: one that may be compressed, or a pipe.

    ``limit`` bounds the bytes that are copied to a temporary file below ``tmp``.
    """
    from tempfile import TemporaryFile

    head = b""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        head = os.pread(fd, 6, 0)
        if codec_of(head) is Codec.PLAIN:
            yield TarSource(fd)
            return
        os.lseek(fd, 0, os.SEEK_SET)
    os.makedirs(tmp, 0o700, exist_ok=True)
    with TemporaryFile(dir=tmp, buffering=0) as spool:
        read, size = decompressed(lambda most: os.read(fd, most)), 0
        while data := read(1 << 18):
            size += spool.write(data)
            if limit is not None and size > limit:
                raise IntegrityError("the archive's contents exceed the size limit")
        if not size:
            raise IntegrityError("the archive is empty")
        yield TarSource(spool.fileno())


@contextmanager
def directory_source(path: str) -> Iterator[Source]:
    """Yield the files of an OCI layout in a directory."""
    source = DirectorySource(path)
    try:
        yield source
    finally:
        source.close()
