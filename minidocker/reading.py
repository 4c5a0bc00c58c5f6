# From book/150-reading.md. Edit there and tangle, or here and tangle --back.

# %% Reading: a tar with a hostile author
"""Read tar, and believe nothing.

What is malformed, truncated, out of range or ambiguous is an ``IntegrityError``.
Contents stream through; only one header is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache

from minidocker.errors import IntegrityError
from minidocker.fields import (
    EXTENSIONS,
    MOST_EXTENTS,
    OLD_SPARSE,
    PAX_LIMIT,
    SPARSE_MAP,
    Extents,
    Pax,
    checked_extents,
    decimal,
    is_sparse,
    nanoseconds,
    number,
    old_map,
)
from minidocker.headers import BLANK_SUM, BLOCK, SCHILY, SECOND, Entry, Kind, checksum
from minidocker.trees import Xattrs, kept, printable


# %% The nouns: a source of bytes
Read = Callable[[int], bytes]
CHUNK = 1 << 18


class Stream:
    """Exact amounts from a ``read`` that returns what it likes."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._buffer, self._at = b"", 0

    def available(self) -> memoryview:
        """Return what is buffered, reading when nothing is; empty at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._read(CHUNK), 0
        return memoryview(self._buffer)[self._at :]

    def some(self, most: int) -> memoryview:
        """Return between one and ``most`` bytes.

        Raises IntegrityError at the end of the input.
        """
        data = self.available()[:most]
        if not data:
            raise IntegrityError("the archive is truncated")
        self._at += len(data)
        return data

    def take(self, length: int) -> bytes:
        """Return exactly ``length`` bytes.

        Raises IntegrityError at the end of the input.
        """
        at = self._at
        if len(self._buffer) - at >= length:
            self._at = at + length
            return self._buffer[at : at + length]
        parts = []
        while length:
            parts.append(bytes(self.some(length)))
            length -= len(parts[-1])
        return b"".join(parts)

    def skip(self, length: int) -> None:
        """Pass over ``length`` bytes."""
        while length:
            length -= len(self.some(length))


# %% The nouns: a source of bytes
PATIENCE = 1.0  # seconds


class Ahead:
    """Read in a thread, a few pieces ahead of the caller; end with ``with``.

    Digesting and decompressing release Python's lock, so that they go on beside the
    making of files. What the thread meets is raised where the piece is asked for.
    """

    MOST = 8

    def __init__(self, read: Read) -> None:
        from queue import SimpleQueue
        from threading import Semaphore, Thread

        self._read, self._stopped = read, False
        self._pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._room = Semaphore(self.MOST)
        self._thread = Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        """Read to the end, to an error, or until nobody asks any more."""
        data = b"begin"
        while data and not self._stopped:
            self._room.acquire()
            try:
                data = b"" if self._stopped else self._read(CHUNK)
            except BaseException as why:  # noqa: BLE001  raised in __call__
                self._pieces.put(why)
                return
            self._pieces.put(data)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __call__(self, size: int) -> bytes:
        """Return the next piece, of at most ``CHUNK`` bytes whatever ``size``."""
        data = self._pieces.get()
        if isinstance(data, BaseException):
            raise data
        if data:
            self._room.release()
        else:
            self._pieces.put(data)  # the end stays the end
        return data

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join(PATIENCE)  # it may wait for a pipe that says nothing


# %% From a header to an entry
ID_LIMIT = 2**32 - 1
SIZE_LIMIT = 2**63
FLAGS = {kind.value: kind for kind in Kind} | dict.fromkeys(
    (b"\0", b"7", OLD_SPARSE), Kind.FILE
)


def verified(block: bytes) -> bytes:
    """Return a header whose checksum is right.

    Sums of signed bytes, as some old programs wrote them, are accepted, as GNU tar
    does. Raises IntegrityError.
    """
    digits = block[148:156].strip(b" \0")
    stated = -1 if digits.strip(b"01234567") else int(digits or b"0", 8)
    if stated != checksum(block):
        rest = block[:148] + BLANK_SUM + block[156:]
        if stated != sum(byte - 256 if byte > 127 else byte for byte in rest):
            is_header = block[257:262] == b"ustar"
            what = "the checksum of a header is wrong" if is_header else "not a tar"
            raise IntegrityError(what)
    return block


def plain_name(block: bytes) -> bytes:
    """Return the name that a header's own fields give."""
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


# %% From a header to an entry
def fault(entry: Entry) -> str | None:
    """Return why no file can be as an entry says, or None."""
    if not (0 <= entry.uid < ID_LIMIT and 0 <= entry.gid < ID_LIMIT):
        return "the owner's id is not between 0 and 2^32-2"
    if not 0 <= entry.size < SIZE_LIMIT:
        return "the size is negative or too large"
    if not -(2**63) <= entry.mtime < 2**63:
        return "the time cannot be kept"
    if not (0 <= entry.device[0] < 2**12 and 0 <= entry.device[1] < 2**20):
        return "the device number is out of range"
    if not entry.name or b"\0" in entry.name or b"\0" in entry.linkname:
        return "the name is empty or contains a NUL"
    return None


@lru_cache(1024)
def permissions(fields: bytes) -> tuple[int, int, int]:
    """Return mode, uid and gid of a header's three fields: mostly those before."""
    mode, uid, gid = fields[:8], fields[8:16], fields[16:]
    return number(mode) & 0o7777, number(uid), number(gid)


# %% From a header to an entry
def decode(block: bytes, pax: Pax) -> Entry:
    """Return the entry of a header and the pax records before it."""
    name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or plain_name(block)
    kind = FLAGS.get(block[156:157])
    if kind is None:
        what = f"entries of type {printable(block[156:157])!r} are not supported"
        raise IntegrityError(what, where=printable(name))
    if kind is Kind.FILE and name.endswith(b"/"):
        kind = Kind.DIRECTORY  # as tar did before ustar had a type for it
    link = pax.get(b"linkpath") or block[157:257].partition(b"\0")[0]
    is_device = kind is Kind.CHAR or kind is Kind.BLOCK
    size = decimal(pax[b"size"]) if pax.get(b"size") else number(block[124:136])
    if pax.get(b"mtime"):
        mtime = nanoseconds(pax[b"mtime"])
    else:
        mtime = number(block[136:148]) * SECOND
    mode, uid, gid = permissions(block[100:124])
    entry = Entry(
        name,
        kind,
        mode,
        decimal(pax[b"uid"]) if pax.get(b"uid") else uid,
        decimal(pax[b"gid"]) if pax.get(b"gid") else gid,
        size if kind is Kind.FILE or size < 0 else 0,
        mtime,
        link,
        (number(block[329:337]), number(block[337:345])) if is_device else (0, 0),
        xattrs_in(pax) if pax else (),
    )
    if why := fault(entry):
        raise IntegrityError(why, where=printable(name))
    return entry


def xattrs_in(pax: Pax) -> Xattrs:
    """Return the extended attributes that pax records carry and a layer keeps."""
    named = ((key[13:], pax[key]) for key in sorted(pax) if key[:13] == SCHILY)
    return tuple((name, value) for name, value in named if kept(os.fsdecode(name)))


# %% The reader
class Tape:
    """Hear a tar as it is read, in order and every byte; this one keeps nothing."""

    def frame(self, data: bytes) -> None:
        """Hear bytes that are not a file's contents."""

    def piece(self, data: memoryview) -> None:
        """Hear contents of the entry whose header came last."""

    def entry(self, entry: Entry, path: bytes) -> None:
        """Hear that this entry is done; it is now ``path`` below the root."""

    def replaced(self, path: bytes, fd: int) -> None:
        """Hear that ``path``, open as ``fd``, gives way to an entry of its name."""


# %% The reader
class Contents:
    """The bytes of a tar as they pass: counted, recorded, and never kept.

    ``limit`` bounds the sum of the files' sizes in bytes, holes included. ``extents``
    say where the contents of the current entry go, None for one piece.
    """

    def __init__(
        self, read: Read | Stream, *, limit: int | None = None, tape: Tape | None = None
    ) -> None:
        self._stream = read if isinstance(read, Stream) else Stream(read)
        self._room, self._tape = limit, tape
        self.extents: Extents | None = None
        self._left = self._pad = 0

    def _charge(self, size: int, name: bytes = b"") -> None:
        """Take ``size`` bytes off the limit."""
        if self._room is not None:
            self._room -= size
            if self._room < 0:
                what = "the archive's contents exceed the size limit"
                raise IntegrityError(what, where=printable(name) or None)

    def _take(self, size: int) -> bytes:
        """Return the next bytes, which are not contents."""
        data = self._stream.take(size)
        if self._tape:
            self._tape.frame(data)
        return data

    def _pass(self) -> None:
        """Pass over what is left of an entry."""
        if self._tape is None:
            self._stream.skip(self._left + self._pad)
            self._left = self._pad = 0
        for _ in self.pieces():
            pass

    def pieces(self) -> Iterator[memoryview]:
        """Yield the contents of the current entry that have not been read yet."""
        while self._left:
            data = self._stream.some(self._left)
            self._left -= len(data)
            if self._tape and self.extents is None:
                self._tape.piece(data)
            elif self._tape:
                self._tape.frame(bytes(data))  # no file has these bytes in a row
            yield data


# %% The reader
class SparseFiles(Contents):
    """The maps of files with holes."""

    def _sparse(self, block: bytes, pax: Pax, entry: Entry) -> Entry:
        """Read the map of a file with holes; return its entry with its whole size."""
        if block[156:157] == OLD_SPARSE:
            size, numbers = number(block[483:495]), old_map(block, 386, 4)
            more = block[482]
            while more and len(numbers) < 2 * MOST_EXTENTS:
                block = self._take(BLOCK)
                numbers += old_map(block, 0, 21)
                more = block[504]
        elif SPARSE_MAP in pax:
            size = decimal(pax.get(b"GNU.sparse.size", b""))
            numbers = [decimal(n) for n in pax[SPARSE_MAP].strip(b",").split(b",") if n]
        else:
            size, numbers = decimal(pax.get(b"GNU.sparse.realsize", b"")), self._lines()
        entry = entry.replace(size=size)
        if why := fault(entry):
            raise IntegrityError(why, where=printable(entry.name))
        self.extents = checked_extents(numbers, size, self._left)
        return entry

    def _lines(self) -> list[int]:
        """Read the map before the data: how many pairs, and then them, a line each."""
        text, count = b"", 0
        while text.count(b"\n") <= 2 * count or not text:
            if self._left < BLOCK or len(text) > PAX_LIMIT:
                raise IntegrityError("the map of a sparse file has no end")
            text += self._take(BLOCK)
            self._left -= BLOCK
            if b"\n" in text:
                count = decimal(text.partition(b"\n")[0])
        return [decimal(line) for line in text.split(b"\n")[1 : 2 * count + 1]]


# %% The reader
class TarReader(SparseFiles):
    """Iterate over the entries of a tar; between two, ``pieces`` is the contents.

    After the last entry the input has been read to its end, so that a digest taken on
    the way covers all of it. Raises IntegrityError for whatever is not a whole,
    proper tar.
    """

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def _next(self) -> Entry | None:
        """Return the next entry, its long names and pax records taken in."""
        pax: Pax = {}
        while True:
            if self._left or (self._pad and self._tape is None):
                self._pass()
            block, self._pad = self._take(self._pad + BLOCK)[self._pad :], 0
            if not block[0] and not any(block):
                self._end(pax)
                return None
            flag = verified(block)[156:157]
            if flag in EXTENSIONS:
                pax |= EXTENSIONS[flag](self._extension(block))
                continue
            return self._opened(block, pax)

    def _extension(self, block: bytes) -> bytes:
        """Return the contents of a header that describes the next entry."""
        size = number(block[124:136])
        if not 0 <= size <= PAX_LIMIT:
            raise IntegrityError(f"an extended header is over {PAX_LIMIT} bytes")
        return self._take(size + -size % BLOCK)[:size]

    def _opened(self, block: bytes, pax: Pax) -> Entry:
        """Return the entry of a header; its contents come next in the stream."""
        entry = decode(block, pax)
        self._left, self._pad = entry.size, -entry.size % BLOCK
        self.extents = None
        if is_sparse(block, pax):
            entry = self._sparse(block, pax, entry)
        self._charge(entry.size, entry.name)
        return entry

    def _end(self, pax: Pax) -> None:
        """Read the rest of the input, after the first block of zeros."""
        if pax:
            raise IntegrityError("the archive ends after an extended header")
        while data := self._stream.available():
            self._charge(len(data))
            self._take(len(data))
