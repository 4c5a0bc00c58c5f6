# From book/175-thin.md. Edit there and tangle, or here and tangle --back.

# %% Thin: snapshots of snapshots, as a model
"""Snapshots and thin provisioning of block devices, as a model in memory.

A device is a row of blocks, numbered from 0. Blocks hold text here, one word each.
Failures are OSError with the errno that device-mapper gives.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    import graphviz


# %% Snapshot: keep the old block somewhere else
class Origin:
    """A device, and the classic snapshots that are taken of it.

    ``copies`` counts the blocks that had to be copied so far.
    """

    def __init__(self, blocks: list[str]) -> None:
        self.blocks = blocks
        self.snapshots: list[Snapshot] = []
        self.copies = 0

    def snapshot(self) -> Snapshot:
        """Take a snapshot; it costs nothing yet."""
        self.snapshots.append(Snapshot(self))
        return self.snapshots[-1]

    def write(self, block: int, word: str) -> None:
        """Write a block; each snapshot that still shares it saves the old one first."""
        for snapshot in self.snapshots:
            if block not in snapshot.store:
                snapshot.store[block] = self.blocks[block]
                self.copies += 1
        self.blocks[block] = word


class Snapshot:
    """A classic snapshot: ``store`` holds the blocks that differ from the origin's."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.store: dict[int, str] = {}

    def read(self, block: int) -> str:
        """Return a block as it was, or as it was written here."""
        return self.store.get(block, self.origin.blocks[block])

    def write(self, block: int, word: str) -> None:
        """Write a block of the snapshot only; the origin stays."""
        self.store[block] = word


# %% The nouns
FANOUT, DEPTH = 4, 2
DEVICE_BLOCKS = FANOUT**DEPTH
ZERO = ""
MAX_ID = (1 << 24) - 1


class Node(Record):
    """A node of a mapping tree: of the lowest level, the entries are data blocks.

    Of the others they are nodes; -1 stands for nothing.
    """

    leaf: bool
    entries: tuple[int, ...] = (-1,) * FANOUT

    def with_entry(self, index: int, value: int) -> Node:
        """Return the node with one entry changed."""
        return self.replace(
            entries=(*self.entries[:index], value, *self.entries[index + 1 :])
        )


class Usage(Record):
    """What a pool says of itself, as ``dmsetup status`` does, in numbers of blocks."""

    nodes: int
    used: int
    total: int

    @property
    def free(self) -> int:
        """The data blocks that nobody uses."""
        return self.total - self.used


# %% The nouns
class SpaceMap:
    """How often each of ``total`` blocks is used; the lowest free one is taken next."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.counts: dict[int, int] = {}

    def take(self) -> int:
        """Return a block that nobody uses, used once from now on. Raises ENOSPC."""
        for block in range(self.total):
            if block not in self.counts:
                self.counts[block] = 1
                return block
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def share(self, block: int) -> None:
        """Count one more use."""
        self.counts[block] += 1

    def drop(self, block: int) -> bool:
        """Count one use less; whether that was the last one."""
        self.counts[block] -= 1
        if self.counts[block]:
            return False
        del self.counts[block]
        return True


# %% The pool
class Pool:
    """A thin pool: devices by id, their mapping trees, and the data blocks.

    ``low_water`` is a number of free blocks; ``alarms`` counts the events, one each
    time that the free blocks fall to it.
    """

    def __init__(self, blocks: int, low_water: int = 0) -> None:
        self.data, self.metadata = SpaceMap(blocks), SpaceMap(1 << 20)
        self.words: dict[int, str] = {}
        self.nodes: dict[int, Node] = {}
        self.roots: dict[int, int] = {}
        self.low_water, self.alarms, self.alarmed = low_water, 0, False

    def usage(self) -> Usage:
        """Return how much is in use."""
        return Usage(len(self.nodes), len(self.data.counts), self.data.total)

    def grow(self, blocks: int) -> None:
        """Add data blocks, and arm the alarm again."""
        self.data.total += blocks
        self.alarmed = False

    def root(self, device: int) -> int:
        """Return the root of a device's tree. Raises ENODATA for a device not there."""
        if device not in self.roots:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), str(device))
        return self.roots[device]

    def check_new(self, device: int) -> None:
        """Raise EEXIST for an id in use, EINVAL for one of more than 24 bits."""
        if not 0 <= device <= MAX_ID:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(device))
        if device in self.roots:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(device))


# %% The pool
def create_thin(pool: Pool, device: int) -> None:
    """Make an empty device. Raises EEXIST for an id in use."""
    pool.check_new(device)
    pool.roots[device] = new_node(pool, Node(leaf=DEPTH == 1))


def create_snap(pool: Pool, device: int, origin: int) -> None:
    """Make a device that shares all of ``origin``'s blocks. Raises EEXIST, ENODATA."""
    pool.check_new(device)
    root = pool.root(origin)
    pool.metadata.share(root)
    pool.roots[device] = root


def new_node(pool: Pool, node: Node) -> int:
    """Keep a node; return its number."""
    number = pool.metadata.take()
    pool.nodes[number] = node
    return number


# %% The pool
def path_of(block: int) -> list[int]:
    """Return which entry to follow at each level, from the root.

    >>> path_of(0), path_of(7), path_of(15)
    ([0, 0], [1, 3], [3, 3])
    """
    if not 0 <= block < DEVICE_BLOCKS:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(block))
    return [block // FANOUT**level % FANOUT for level in reversed(range(DEPTH))]


def nodes_to(pool: Pool, device: int, block: int) -> list[int]:
    """Return the numbers of the nodes on the way to a block, the root first."""
    found = [pool.root(device)]
    for index in path_of(block)[:-1]:
        number = pool.nodes[found[-1]].entries[index]
        if number < 0:
            break
        found.append(number)
    return found


def mapped(pool: Pool, device: int, block: int) -> int:
    """Return the data block behind a device's block, or -1."""
    path = nodes_to(pool, device, block)
    if len(path) < DEPTH:
        return -1
    return pool.nodes[path[-1]].entries[path_of(block)[-1]]


def read(pool: Pool, device: int, block: int) -> str:
    """Return what a block holds; one never written holds zeros."""
    number = mapped(pool, device, block)
    return ZERO if number < 0 else pool.words[number]


# %% Writing
def own(pool: Pool, number: int) -> int:
    """Return a node with the same entries that only one device uses."""
    if pool.metadata.counts[number] == 1:
        return number
    node = pool.nodes[number]
    below = pool.data if node.leaf else pool.metadata
    for entry in node.entries:
        if entry >= 0:
            below.share(entry)
    pool.metadata.drop(number)
    return new_node(pool, node)


def own_path(pool: Pool, device: int, block: int) -> tuple[int, int]:
    """Make the nodes on the way to a block the device's own; the leaf and its entry."""
    number = pool.roots[device] = own(pool, pool.root(device))
    *inner, last = path_of(block)
    for level, index in enumerate(inner, 2):
        child = pool.nodes[number].entries[index]
        child = own(pool, child) if child >= 0 else new_node(pool, Node(level == DEPTH))
        pool.nodes[number] = pool.nodes[number].with_entry(index, child)
        number = child
    return number, last


# %% Writing
def write(pool: Pool, device: int, block: int, word: str) -> None:
    """Write a block: provide it if it is new, copy it if it is shared.

    Raises ENOSPC, and changes nothing, when the pool has no block for it.
    """
    path_of(block)
    number = mapped(pool, device, block)
    if number < 0 or is_shared(pool, device, block):
        fresh = pool.data.take()
        leaf, index = own_path(pool, device, block)
        pool.nodes[leaf] = pool.nodes[leaf].with_entry(index, fresh)
        if number >= 0:
            pool.data.drop(number)
        number = fresh
    pool.words[number] = word
    watch(pool)


def is_shared(pool: Pool, device: int, block: int) -> bool:
    """Whether another device uses the block: it, or a node above it, has two uses."""
    counts = pool.metadata.counts
    shared = any(counts[node] > 1 for node in nodes_to(pool, device, block))
    return shared or pool.data.counts.get(mapped(pool, device, block), 0) > 1


def watch(pool: Pool) -> None:
    """Raise the alarm, once, when the free blocks have fallen to the low water mark."""
    if pool.usage().free <= pool.low_water and not pool.alarmed:
        pool.alarmed = True
        pool.alarms += 1


# %% Deleting
def forget(pool: Pool, number: int) -> None:
    """Drop one use of a node, and what only it used."""
    if not pool.metadata.drop(number):
        return
    node = pool.nodes.pop(number)
    for entry in node.entries:
        if entry >= 0 and not node.leaf:
            forget(pool, entry)
        elif entry >= 0 and pool.data.drop(entry):
            del pool.words[entry]


def delete(pool: Pool, device: int) -> None:
    """Remove a device, whoever is a snapshot of it. Raises ENODATA."""
    forget(pool, pool.root(device))
    del pool.roots[device]


def discard(pool: Pool, device: int, block: int) -> None:
    """Say that a block's content is no longer needed; it reads as zeros then."""
    number = mapped(pool, device, block)
    if number < 0:
        return
    leaf, index = own_path(pool, device, block)
    pool.nodes[leaf] = pool.nodes[leaf].with_entry(index, -1)
    if pool.data.drop(number):
        del pool.words[number]


# %% A picture of the map
def arrows(pool: Pool) -> Iterator[tuple[str, str]]:
    """Yield every arrow of the map: device to root, node to node, leaf to block."""
    for device, root in sorted(pool.roots.items()):
        yield f"device {device}", f"node {root}"
    for number, node in sorted(pool.nodes.items()):
        for index, entry in enumerate(node.entries):
            kind = "block" if node.leaf else "node"
            if entry >= 0:
                yield f"node {number}:e{index}", f"{kind} {entry}"


def node_label(number: int, node: Node) -> str:
    """Return the label of a node: its number, and a place for each entry."""
    places = "|".join(f"<e{n}>" for n in range(len(node.entries)))
    return f"{number}|{places}"


def block_map(pool: Pool, known: frozenset[str] = frozenset()) -> graphviz.Digraph:
    """Draw a pool. What is not in ``known``, names of an earlier map, is blue."""
    import graphviz

    dot = graphviz.Digraph(graph_attr={"rankdir": "LR", "nodesep": "0.12"})
    dot.attr("node", fontname="sans-serif", fontsize="11", height="0.3")
    names = {f"device {d}": (f"device {d}", "box3d") for d in pool.roots}
    for number, node in pool.nodes.items():
        names[f"node {number}"] = (node_label(number, node), "record")
    for block, word in pool.words.items():
        names[f"block {block}"] = (f"{block}: {word}", "box")
    for name, (label, shape) in sorted(names.items()):
        new = {} if name in known else {"color": "#1f6fb5", "fontcolor": "#1f6fb5"}
        dot.node(name, label, shape=shape, **new)
    for tail, head in arrows(pool):
        dot.edge(tail, head, color="#777777", arrowsize="0.6")
    return dot


def drawn(pool: Pool) -> frozenset[str]:
    """Return the names of all that a map shows, for the next one."""
    devices = {f"device {number}" for number in pool.roots}
    nodes = {f"node {number}" for number in pool.nodes}
    return frozenset(devices | nodes | {f"block {number}" for number in pool.words})
