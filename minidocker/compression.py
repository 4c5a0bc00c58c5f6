# From book/270-compression.md. Edit there and tangle, or here and tangle --back.

# %% Compression: a layer on the road
"""Compress layers in one pass, on all processors, and decompress what came, bounded.

What is damaged or truncated is an ``IntegrityError``. Nothing here holds more than a
few pieces of a megabyte, however large the layer or however mean the archive.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.archive import Put, Tally
from minidocker.calls import LIBC
from minidocker.errors import IntegrityError, UsageError
from minidocker.layers import LayerStore
from minidocker.manifests import Descriptor, Media
from minidocker.reading import CHUNK, Read, Stream
from minidocker.records import Enum


TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any


# %% The nouns: a codec
class Codec(Enum):
    """A compression; the value is how its files begin."""

    PLAIN = b""
    GZIP = b"\x1f\x8b"
    ZSTD = b"\x28\xb5\x2f\xfd"
    BZIP2 = b"BZh"
    XZ = b"\xfd7zXZ\0"


MEDIA = {
    Codec.PLAIN: Media.OCI_LAYER,
    Codec.GZIP: Media.OCI_LAYER_GZIP,
    Codec.ZSTD: Media.OCI_LAYER_ZSTD,
}
LEVELS = {Codec.GZIP: range(4), Codec.ZSTD: range(1, 23)}
USUAL = {Codec.GZIP: 1, Codec.ZSTD: 3}


def codec_of(head: bytes) -> Codec:
    """Return the compression of a file that begins with ``head``.

    >>> codec_of(b"\\x1f\\x8b\\x08").name, codec_of(b"etc/passwd").name
    ('GZIP', 'PLAIN')
    """
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    if skippable:
        return Codec.ZSTD
    found = (codec for codec in Codec if codec.value and head.startswith(codec.value))
    return next(found, Codec.PLAIN)


def codec_named(name: str) -> Codec:
    """Return the compression that a person calls ``name``; none is "none"."""
    names = {"none": Codec.PLAIN, "gzip": Codec.GZIP, "zstd": Codec.ZSTD}
    if name not in names:
        raise UsageError(f'no compression "{name}"', hint=", ".join(names))
    return names[name]


# %% Gzip on all processors
PIECE = 1 << 20
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time, no system
LAST_BLOCK = b"\x03\0"


def deflated(parts: list[memoryview], level: int) -> bytes:
    """Return a piece, joined, as deflate blocks that end at a byte, none the last."""
    from isal import isal_zlib

    piece = parts[0] if len(parts) == 1 else b"".join(parts)
    press = isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15)
    return bytes(press.compress(piece) + press.flush(isal_zlib.Z_SYNC_FLUSH))


# %% Gzip on all processors
AHEAD = 14  # pieces that wait for the workers, beside those that are in their hands
NICE = 5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for the next piece; musl has no say."""
    with suppress(OSError):
        LIBC.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        LIBC.mallopt(M_MMAP_THRESHOLD, 16 << 20)


class Gzip:
    """Compress what is put, on all processors; the result goes to ``put`` in order."""

    def __init__(self, put: Put, level: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        keep_freed_memory()
        self._put, self._level = put, level
        cores = os.cpu_count() or 1
        # on Linux a thread has a niceness of its own
        self._workers = ThreadPoolExecutor(cores, "gzip", os.nice, (NICE,))
        self._most = cores + AHEAD
        self._waiting: list[Future[bytes]] = []
        self._parts: list[memoryview] = []
        self._room, self._sum, self._size = PIECE, 0, 0
        put(GZIP_HEADER)

    def __call__(self, data: bytes) -> None:
        from isal import isal_zlib

        self._sum = isal_zlib.crc32(data, self._sum)
        self._size += len(data)
        view = memoryview(data)
        while view:
            part, view = view[: self._room], view[self._room :]
            self._parts.append(part)
            self._room -= len(part)
            if not self._room:
                self._start()

    def _start(self) -> None:
        """Give a piece to a worker; wait for the oldest when too many are under way."""
        job = self._workers.submit(deflated, self._parts, self._level)
        self._parts, self._room = [], PIECE
        self._waiting.append(job)
        if len(self._waiting) > self._most:
            self._put(self._waiting.pop(0).result())

    def finish(self) -> None:
        """Compress what is left, and end the file."""
        if self._parts:
            self._start()
        for piece in self._waiting:
            self._put(piece.result())
        self._put(LAST_BLOCK + struct.pack("<II", self._sum, self._size % 2**32))

    def close(self) -> None:
        """Let the workers go."""
        self._workers.shutdown(cancel_futures=True)


# %% Gzip on all processors
class Zstd:
    """Compress what is put with zstandard."""

    def __init__(self, put: Put, level: int) -> None:
        import zstandard

        self._put = put
        self._press = zstandard.ZstdCompressor(
            level, threads=os.cpu_count() or 1, write_checksum=True
        ).compressobj()

    def __call__(self, data: bytes) -> None:
        if done := self._press.compress(data):
            self._put(done)

    def finish(self) -> None:
        """End the frame."""
        self._put(self._press.flush())

    def close(self) -> None:
        """Nothing is held."""


class Plain:
    """Pass on what is put."""

    def __init__(self, put: Put, level: int) -> None:
        self._put = put

    def __call__(self, data: bytes) -> None:
        self._put(data)

    def finish(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held."""


# %% Gzip on all processors
Press = Gzip | Zstd | Plain
PRESSES: dict[Codec, type[Press]] = {
    Codec.PLAIN: Plain,
    Codec.GZIP: Gzip,
    Codec.ZSTD: Zstd,
}


@contextmanager
def compressing(put: Put, codec: Codec, level: int | None = None) -> Iterator[Press]:
    """Yield where to put what is to be compressed; the file ends with the block.

    ``level`` is 0 to 3 for gzip, 1 to 22 for zstd. After an error nothing more is put.
    """
    number = USUAL.get(codec, 0) if level is None else level
    levels = LEVELS.get(codec, range(1))
    if number not in levels:
        hint = f"{levels.start} to {levels.stop - 1}"
        raise UsageError(f"no level {number} of {codec.name.lower()}", hint=hint)
    press = PRESSES[codec](put, number)
    try:
        yield press
        press.finish()
    finally:
        press.close()


# %% The one pass
def compress_layer(
    layers: LayerStore,
    chain: str,
    put: Put,
    *,
    codec: Codec = Codec.GZIP,
    level: int | None = None,
) -> Descriptor:
    """Write a layer as a blob in one pass; return the blob's descriptor.

    Files are read once, and the tar and the blob digested on the way. Raises
    IntegrityError, after the last byte, when the tar is not that of the diff id:
    what has been put must then be thrown away.
    """
    tally = Tally(put)
    with compressing(tally, codec, level) as press:
        layers.tar_of(chain, press)
    return Descriptor(MEDIA[codec].value, tally.digest, tally.size)


# %% Decompressing, in bounded memory
MEMORY = 96 << 20  # what a decompressor may need for its window: `xz -9` takes 65 MiB


class Streams:
    """Read compressed streams in a row; ``new`` makes a decompressor for one."""

    def __init__(self, read: Read, new: Callable[[], Any]) -> None:
        self._read, self._new = read, new
        self._now: Any = None
        self._rest = b""

    def __call__(self, size: int) -> bytes:
        while True:
            if not self._open():
                return b""
            more = self._rest
            if self._now.needs_input and not more:
                more = self._read(CHUNK)
                if not more:
                    raise EOFError("the compressed file is truncated")
            self._rest = b""
            if data := self._now.decompress(more, size):
                return bytes(data)

    def _open(self) -> bool:
        """Begin the next stream if need be; False at the end of the input."""
        if self._now is not None and not self._now.eof:
            return True
        if self._now is not None:
            self._rest = self._now.unused_data
        self._rest = self._rest or self._read(CHUNK)
        if self._now is not None:  # tapes are padded with zeros
            while self._rest and not self._rest.strip(b"\0"):
                self._rest = self._read(CHUNK)
        self._now = self._new() if self._rest else None
        return bool(self._rest)


# %% Decompressing, in bounded memory
ZSTD_BLOCK = 1 << 17


def frames(stream: Stream) -> Iterator[bytes]:
    """Yield zstd input in pieces of at most 128 KiB, unchanged.

    Raises IntegrityError when it ends in the middle of a frame. Source: RFC 8878.
    """
    while stream.available():
        yield (magic := stream.take(4))
        if magic != Codec.ZSTD.value:
            yield (length := stream.take(4))
            yield from passed(stream, int.from_bytes(length, "little"))
            continue
        yield (byte := stream.take(1))
        flags, single = byte[0], byte[0] >> 5 & 1
        content = (single, 2, 4, 8)[flags >> 6]
        yield stream.take(1 - single + (0, 1, 2, 4)[flags & 3] + content)
        last = 0
        while not last:
            yield (head := stream.take(3))
            block = int.from_bytes(head, "little")
            last, kind = block & 1, block >> 1 & 3
            yield from passed(stream, 1 if kind == 1 else block >> 3)
        yield stream.take(flags & 4)


def passed(stream: Stream, length: int) -> Iterator[bytes]:
    """Yield the next ``length`` bytes of a stream in pieces."""
    while length:
        yield (data := bytes(stream.some(min(length, ZSTD_BLOCK))))
        length -= len(data)


class Pieces:
    """A file whose reads return the pieces of an iterator, one by one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int = -1) -> bytes:
        """Return the next piece that is not empty; nothing at the end."""
        return next(filter(None, self._pieces), b"")


# %% Decompressing, in bounded memory
def gunzipped(read: Read) -> Read:
    """Return what reads a gzip file's contents."""
    from isal import igzip_lib

    flag = igzip_lib.DECOMP_GZIP
    return Streams(read, lambda: igzip_lib.IgzipDecompressor(flag=flag))


def bunzipped(read: Read) -> Read:
    """Return what reads a bzip2 file's contents."""
    from bz2 import BZ2Decompressor

    return Streams(read, BZ2Decompressor)


def unxzed(read: Read) -> Read:
    """Return what reads an xz file's contents."""
    from lzma import FORMAT_XZ, LZMADecompressor

    return Streams(read, lambda: LZMADecompressor(FORMAT_XZ, memlimit=MEMORY))


def unzstded(read: Read) -> Read:
    """Return what reads a zstandard file's contents."""
    import zstandard

    press = zstandard.ZstdDecompressor(max_window_size=1 << 26)
    source: Any = Pieces(frames(Stream(read)))
    return press.stream_reader(source, read_across_frames=True).read


DECODERS: dict[Codec, Callable[[Read], Read]] = {
    Codec.PLAIN: lambda read: read,
    Codec.GZIP: gunzipped,
    Codec.ZSTD: unzstded,
    Codec.BZIP2: bunzipped,
    Codec.XZ: unxzed,
}


# %% Decompressing, in bounded memory
def damages() -> tuple[type[Exception], ...]:
    """Return what the decompressors raise for damaged input."""
    from lzma import LZMAError
    from zlib import error

    from isal import igzip_lib
    from zstandard import ZstdError

    fault: Any = igzip_lib.IsalError
    ours = IntegrityError  # the end of zstd's input, from `frames`
    return EOFError, OSError, ValueError, LZMAError, fault, ZstdError, error, ours


def decompressed(read: Read, where: str | None = None) -> Read:
    """Return what reads the contents of a file that is compressed, or is not.

    How it is compressed is seen from its first bytes. Reads return at most the bytes
    asked for, and raise IntegrityError for what is damaged or truncated.
    """
    stream = Stream(read)

    def again(size: int) -> bytes:
        data = bytes(stream.available()[:size])
        stream.skip(len(data))
        return data

    codec = codec_of(bytes(stream.available()[:6]))
    if codec is Codec.PLAIN:
        return again
    inner, damaged = DECODERS[codec](again), damages()

    def checked(size: int) -> bytes:
        try:
            return inner(size)
        except damaged as why:
            if getattr(why, "errno", None):
                raise  # a disk's error, not the file's
            what = f"the {codec.name.lower()} file is damaged: {why}"
            raise IntegrityError(what, where=where) from why

    return checked
