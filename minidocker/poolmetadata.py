# From book/187-poolmetadata.md. Edit there and tangle, or here and tangle --back.

# %% Pool metadata: trees that the kernel has written
"""Read a thin pool's metadata disk: devices, their blocks, how often each is used.

Nothing is written. Blocks are numbered from 0; those of the metadata disk have 4 KiB.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from struct import Struct

from minidocker.errors import IntegrityError
from minidocker.loops import SECTOR
from minidocker.records import Record


# %% A block and its checksum
BLOCK_SIZE = 4096
SUPERBLOCK_KIND, NODE_KIND, BITMAP_KIND = 160774, 121107, 240779


CASTAGNOLI = 0x82F63B78  # the polynomial, its lowest power first


@cache
def crc_table() -> tuple[int, ...]:
    """Return the remainders of all bytes."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (CASTAGNOLI if value & 1 else 0) for value in table]
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes as the kernel leaves it, not turned at the end.

    >>> hex(crc32c(b"123456789") ^ 0xFFFFFFFF)
    '0xe3069283'
    """
    table, found = crc_table(), 0xFFFFFFFF
    for byte in data:
        found = table[found & 255 ^ byte] ^ found >> 8
    return found


# %% A block and its checksum
class MetadataDisk:
    """The metadata disk of a pool, open to be read. Source: dm-thin-metadata.c."""

    def __init__(self, path: str) -> None:
        self.path, self.fd = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def block(self, number: int, kind: int) -> bytes:
        """Return a block. Raises IntegrityError for one that is another, or damaged."""
        data = os.pread(self.fd, BLOCK_SIZE, number * BLOCK_SIZE)
        where = f"{self.path}, block {number}"
        if len(data) < BLOCK_SIZE:
            raise IntegrityError("the disk ends before it", where=where)
        found = int.from_bytes(data[:4], "little")
        if crc32c(data[4:]) ^ kind != found:
            raise IntegrityError("its checksum is wrong", where=where)
        if int.from_bytes(data[8:16], "little") != number:
            raise IntegrityError("it is another block", where=where)
        return data

    def close(self) -> None:
        """Close the disk."""
        os.close(self.fd)


# %% The superblock
MAGIC = 27022010
SUPER = Struct("<IIQ16sQIIQQ128s128sQQIIQ")
SPACE = Struct("<QQQQ")


class SpaceMapRoot(Record):
    """Where a space map begins: a tree of bitmaps, and one of counts above 2."""

    blocks: int
    allocated: int
    bitmaps: int
    counts: int


class Superblock(Record):
    """Block 0, or a held root: what was true at one moment."""

    transaction: int
    held: int
    space: SpaceMapRoot
    mappings: int
    details: int
    sectors: int


def read_superblock(disk: MetadataDisk, number: int = 0) -> Superblock:
    """Read the superblock, or the copy that is held. Raises IntegrityError."""
    found = SUPER.unpack_from(disk.block(number, SUPERBLOCK_KIND))
    (_, _, _, _, magic, _, _, transaction, held, space, _, *rest) = found
    if magic != MAGIC:
        raise IntegrityError("not the metadata of a thin pool", where=disk.path)
    mappings, details, sectors, _, _ = rest
    root = SpaceMapRoot(*SPACE.unpack_from(space))
    return Superblock(transaction, held, root, mappings, details, sectors)


# %% A tree
HEAD = Struct("<IIQIIII")
LEAF = 2


class TreeNode(Record):
    """A node: its keys and values, the values as bytes."""

    leaf: bool
    pairs: tuple[tuple[int, bytes], ...]


def read_node(disk: MetadataDisk, number: int) -> TreeNode:
    """Read a node of a tree. Raises IntegrityError."""
    data = disk.block(number, NODE_KIND)
    _, flags, _, entries, room, size, _ = HEAD.unpack_from(data)
    if entries > room or HEAD.size + room * (8 + size) > BLOCK_SIZE:
        where = f"{disk.path}, block {number}"
        raise IntegrityError("more entries than have room", where=where)
    keys, values = HEAD.size, HEAD.size + 8 * room
    pairs = tuple(
        (
            int.from_bytes(data[keys + 8 * n : keys + 8 * n + 8], "little"),
            data[values + size * n : values + size * (n + 1)],
        )
        for n in range(entries)
    )
    return TreeNode(bool(flags & LEAF), pairs)


def number_of(value: bytes) -> int:
    """Return the number that a value is."""
    return int.from_bytes(value[:8], "little")


def leaves(disk: MetadataDisk, root: int) -> Iterator[tuple[int, TreeNode]]:
    """Yield the leaves of a tree, each with its block, in the order of their keys."""
    todo = [root]
    while todo:
        block = todo.pop()
        node = read_node(disk, block)
        if node.leaf:
            yield block, node
        else:
            todo += [number_of(value) for _, value in reversed(node.pairs)]


def entries(disk: MetadataDisk, root: int) -> Iterator[tuple[int, bytes]]:
    """Yield the keys and values of a tree, in order."""
    for _, leaf in leaves(disk, root):
        yield from leaf.pairs


# %% Devices and their blocks
DETAILS = Struct("<QQII")
WHEN = 24  # bits of a mapping that say when it was made; the block is above them


class ThinDevice(Record):
    """A device of the pool: what is written down of it, and what its tree has.

    ``promised`` is the number of mapped blocks that is written down, ``mapped`` that of
    the entries in its leaves; they name the data blocks ``blocks``.
    """

    id: int
    promised: int
    transaction: int
    mapped: int
    blocks: frozenset[int]


class PoolContents(Record):
    """All that a pool's metadata says at one moment.

    ``uses`` counts how many leaves name each data block; a block has ``size`` bytes.
    """

    superblock: Superblock
    devices: tuple[ThinDevice, ...]
    uses: Counter[int]
    size: int

    def own(self, ids: set[int]) -> int:
        """Return the bytes that only devices of those ids have."""
        others = {b for one in self.devices if one.id not in ids for b in one.blocks}
        own = {b for one in self.devices if one.id in ids for b in one.blocks}
        return len(own - others) * self.size


def read_contents(disk: MetadataDisk, held: bool = False) -> PoolContents:
    """Read everything that a pool says of its devices. Raises IntegrityError.

    ``held``: as it was when the pool was asked to hold a root.
    """
    top = read_superblock(disk)
    if held:
        top = read_superblock(disk, top.held)
    roots = {id: number_of(value) for id, value in entries(disk, top.mappings)}
    known: dict[int, tuple[int, ...]] = {}
    devices = [
        read_device(disk, id, value, roots.get(id), known)
        for id, value in entries(disk, top.details)
    ]
    uses = Counter(block for blocks in known.values() for block in blocks)
    return PoolContents(top, tuple(devices), uses, top.sectors * SECTOR)


def read_device(
    disk: MetadataDisk,
    id: int,
    details: bytes,
    root: int | None,
    known: dict[int, tuple[int, ...]],
) -> ThinDevice:
    """Read a device; ``known`` gets the data blocks of each of its leaves."""
    promised, transaction, _, _ = DETAILS.unpack(details)
    own = set[int]()
    for at, leaf in leaves(disk, root) if root is not None else ():
        own.add(at)
        known.setdefault(at, tuple(number_of(v) >> WHEN for _, v in leaf.pairs))
    blocks = [block for at in own for block in known[at]]
    return ThinDevice(id, promised, transaction, len(blocks), frozenset(blocks))


# %% How often is a block used?
INDEX = Struct("<QII")
BITMAP_HEAD = 16
PER_BITMAP = (BLOCK_SIZE - BITMAP_HEAD) * 4
MORE = 3


def counts_in(data: bytes, first: int) -> Iterator[tuple[int, int]]:
    """Yield each block of a bitmap that is used, and how often: MORE for 3 or more.

    The higher bit of the two comes first. ``first`` is the number of its first block.

    >>> list(counts_in(bytes(16) + bytes([0b01_11_00_10]), 0))
    [(0, 1), (2, 3), (3, 2)]
    """
    for at, byte in enumerate(data[BITMAP_HEAD:]):
        for place in range(4) if byte else ():
            bits = byte >> 2 * place & 3
            if bits:
                yield first + 4 * at + place, bits >> 1 | (bits & 1) << 1


def read_counts(disk: MetadataDisk, root: SpaceMapRoot) -> dict[int, int]:
    """Return how often each data block is used, of those that are."""
    found: dict[int, int] = {}
    for index, value in entries(disk, root.bitmaps):
        bitmap, _, _ = INDEX.unpack(value)
        found.update(counts_in(disk.block(bitmap, BITMAP_KIND), index * PER_BITMAP))
    for block, value in entries(disk, root.counts):
        if found.get(block) == MORE:
            found[block] = int.from_bytes(value[:4], "little")
    return {block: count for block, count in found.items() if block < root.blocks}


# %% What can be wrong
def metadata_faults(
    found: PoolContents, counts: dict[int, int] | None
) -> Iterator[str]:
    """Say what does not agree in a pool's metadata; ``counts`` None: do not count."""
    for one in found.devices:
        if one.promised != one.mapped:
            written = f"{one.promised} blocks are written down"
            yield f"device {one.id} has {one.mapped} blocks, and {written}"
    if counts is None:
        return
    lost = [block for block in counts if counts[block] > found.uses[block]]
    short = [block for block in found.uses if found.uses[block] > counts.get(block, 0)]
    if lost:
        yield f"{len(lost)} blocks of {found.size >> 10} KiB have a use too many"
    if short:
        yield f"{len(short)} blocks have a use too few: two devices may get the same"
