# From book/144-headers.md. Edit there and tangle, or here and tangle --back.

# %% Headers: a file in 512 bytes
"""The headers of a tar: what it says of a file, in blocks of 512 bytes.

Whole seconds, owners as numbers and never by name, pax records only for what ustar
cannot say: the same entry gives the same bytes.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from zlib import adler32

from minidocker.records import Enum, Record
from minidocker.trees import Xattrs


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
