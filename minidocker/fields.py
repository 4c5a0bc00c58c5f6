# From book/149-fields.md. Edit there and tangle, or here and tangle --back.

# %% Fields: what a header can say, and how
"""The fields of a tar's headers: numbers, pax records, names, and maps of holes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from minidocker.errors import IntegrityError
from minidocker.headers import SCHILY, SECOND
from minidocker.trees import printable


# %% Numbers
@lru_cache(4096)  # of ten thousand files most have the size and time of another
def number(field: bytes) -> int:
    """Return a header's number: octal, or base-256 where the first bit is set.

    >>> number(b"644\\0"), number(b"\\x80\\0\\x09"), number(b"\\xff" * 8)
    (420, 9, -1)
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        return value + (1 << (8 * len(field) - 1)) if field[0] < 0xFF else value
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise IntegrityError(f"{printable(field)!r} is not an octal number")
    return int(digits or b"0", 8)


def nanoseconds(text: bytes) -> int:
    """Return a pax time, decimal seconds, in nanoseconds.

    >>> nanoseconds(b"1.5"), nanoseconds(b"-0.25")
    (1500000000, -250000000)
    """
    found = re.fullmatch(rb"(-?)(\d{1,18})(?:\.(\d*))?", text)
    if not found:
        raise IntegrityError(f'"{printable(text)}" is not a time')
    sign, whole, part = found.groups()
    value = int(whole) * SECOND + int(((part or b"") + b"0" * 9)[:9])
    return -value if sign else value


def decimal(text: bytes) -> int:
    """Return a pax number."""
    if not re.fullmatch(rb"\d{1,19}", text):
        raise IntegrityError(f'"{printable(text)}" is not a number')
    return int(text)


# %% Pax records
Pax = dict[bytes, bytes]
PAX_LIMIT = 1 << 20
SPARSE_MAP = b"GNU.sparse.map"
PAIRED = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def read_pax(block: bytes) -> Pax:
    """Return the records of a pax header.

    >>> read_pax(b"12 path=abc\\n")
    {b'path': b'abc'}
    """
    records: Pax = {}
    while block:
        digits, _, _ = block[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = block[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if length > len(block) or record[-1:] != b"\n" or not (key and equals):
            raise IntegrityError("a pax record is malformed")
        if b"\0" in key or (b"\0" in value and not key.startswith(SCHILY)):
            raise IntegrityError("a pax record contains a NUL")
        if key in PAIRED:  # the oldest form says each of them again and again
            key, value = SPARSE_MAP, records.get(SPARSE_MAP, b"") + value + b","
        records[key] = value
        block = block[length:]
    return records


# %% Holes
OLD_SPARSE = b"S"
Extents = tuple[tuple[int, int], ...]
MOST_EXTENTS = 1 << 16


def checked_extents(numbers: list[int], size: int, stored: int) -> Extents:
    """Return pairs of offset and length, upwards. Raises IntegrityError.

    ``size`` is that of the file, ``stored`` the bytes that the archive has of it.

    >>> checked_extents([0, 2, 8, 1], 9, 3)
    ((0, 2), (8, 1))
    """
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in pairs:
        if length < 0 or not end <= offset <= offset + length <= size:
            raise IntegrityError("the pieces of a sparse file overlap or lie outside")
        end = offset + length
    if len(numbers) % 2 or sum(length for _, length in pairs) != stored:
        raise IntegrityError("the map of a sparse file is not that of its data")
    return pairs


def old_map(block: bytes, begin: int, count: int) -> list[int]:
    """Return the offsets and lengths in a block of the old form."""
    fields = [block[begin + 12 * n : begin + 12 * n + 12] for n in range(2 * count)]
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [number(one) for pair in pairs if pair[1].strip(b"\0") for one in pair]


def is_sparse(block: bytes, pax: Pax) -> bool:
    """Say whether a header is that of a file with a map."""
    if block[156:157] == OLD_SPARSE:
        return True
    return SPARSE_MAP in pax or pax.get(b"GNU.sparse.major") == b"1"


# %% Headers about the next header
def gnu_name(data: bytes) -> Pax:
    """Return GNU tar's long name as the pax record that it became."""
    return {b"path": data.partition(b"\0")[0]}


def gnu_link(data: bytes) -> Pax:
    """Return GNU tar's long link target as the pax record that it became."""
    return {b"linkpath": data.partition(b"\0")[0]}


def global_pax(data: bytes) -> Pax:
    """Check a global pax header, and ignore it as Docker does."""
    read_pax(data)
    return {}


EXTENSIONS: dict[bytes, Callable[[bytes], Pax]] = {
    b"x": read_pax,
    b"g": global_pax,
    b"L": gnu_name,
    b"K": gnu_link,
}
