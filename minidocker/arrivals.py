# From book/312-arrivals.md. Edit there and tangle, or here and tangle --back.

# %% Arrivals: many files, read once
"""Copy one source into a new layer and write the layer's tar, in one pass."""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)

from minidocker.archive import Aside, Tally, TarWriter, TreeWriter, entry_of
from minidocker.changes import ChangeKind
from minidocker.cleaning import mount_points
from minidocker.context import SMALL, Item, Source, SourceTree
from minidocker.copying import (
    Target,
    check_unchanged,
    finish_directory,
    new_file,
    put_link,
    small_file,
)
from minidocker.drivers import StorageDriver
from minidocker.errors import BuildError, ConflictError
from minidocker.headers import SECOND, Entry, Kind
from minidocker.layers import Known, Layer, LayerStore, Packed
from minidocker.manner import Manner, dress
from minidocker.records import Record
from minidocker.trees import copy_data, write_all, xattrs_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self, TypeVar

    Result = TypeVar("Result")


# %% Where a source arrives
class Landing(Record):
    """The directory where a source arrives, and has nothing in its way.

    ``place`` is its path in the tree, without links, "" for the root. ``name`` is what
    a single file is called there. ``times`` are the directory's, to be put back.
    """

    place: str
    name: str
    times: tuple[int, int]


def find_landing(target: Target, source: Source, to: str) -> Landing | None:
    """Make the directory where ``source`` arrives; None where something is in its way.

    ``to`` is absolute, in the container; a slash at its end says "a directory".
    """
    name = ""
    if not source.is_directory:
        into = to.endswith("/") or (not target.link and target.is_directory(to))
        name = posixpath.basename(source.path if into else to)
        to = to if into else posixpath.dirname(to)
    fd = target.directory(to)
    try:
        if not is_whole(source) or has_markers(source, name):
            return None
        if names_of(source, name) & set(os.listdir(fd)):
            return None
        info = os.fstat(fd)
        times = info.st_atime_ns, info.st_mtime_ns
        os.utime(fd, ns=times)
        return Landing(target.place_of(fd), name, times)
    finally:
        os.close(fd)


def names_of(source: Source, name: str) -> set[str]:
    """Return the names that arrive in the directory itself."""
    skip = skipped(source)
    return {name or item.path[skip:].partition("/")[0] for item in source.items}


def skipped(source: Source) -> int:
    """Return how much of its items' paths is the source's own."""
    return 0 if source.real == "." else len(source.real) + 1


# %% Where a source arrives
def is_whole(source: Source) -> bool:
    """Say whether something arrives, and each item's directory or the source does."""
    if not source.is_directory:
        return True
    known = {item.path for item in source.items if stat.S_ISDIR(item.info.st_mode)}
    known.add("" if source.real == "." else source.real)
    heads = {item.path.rpartition("/")[0] for item in source.items}
    return bool(heads) and heads <= known


# %% Where a source arrives
def is_plain(tree: SourceTree, source: Source) -> bool:
    """Say whether a source is files, directories and links, and no more is to keep.

    More are extended attributes, and several names of one file.
    """
    infos = [item.info for item in source.items]
    kinds = {stat.S_IFMT(mode) for mode in {info.st_mode for info in infos}}
    linked = [i for i in infos if i.st_nlink > 1 and stat.S_ISREG(i.st_mode)]
    if not kinds <= PLAIN or len({(i.st_dev, i.st_ino) for i in linked}) < len(linked):
        return False
    return not (tree.owned and any(tree.attributes(i.path) for i in source.items))


PLAIN = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}


# %% Where a source arrives
def has_markers(source: Source, name: str) -> bool:
    """Say whether a name would mean a deletion in a layer."""
    names = (name or item.path for item in source.items)
    return any("/.wh." in f"/{path}" for path in names)


# %% One file
@contextmanager
def in_background(work: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Do ``work`` in a thread during a ``with`` block; give what returns its result."""
    import threading

    results: list[Result] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as why:  # noqa: BLE001
            errors.append(why)

    def result() -> Result:
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    thread = threading.Thread(target=attempt)
    thread.start()
    try:
        yield result
    finally:
        thread.join()


# %% One file
class Arrival:
    """A source on its way from ``tree`` to its landing in a layer's tree.

    ``exact`` says that the tar is what the tree would say of itself.
    """

    __slots__ = ("before", "exact", "landing", "manner", "skip", "source", "tree")

    def __init__(
        self, tree: SourceTree, source: Source, landing: Landing, manner: Manner
    ) -> None:
        self.tree, self.source, self.manner = tree, source, manner
        self.landing, self.skip, self.exact = landing, skipped(source), True
        self.before = f"{landing.place}/" if landing.place else ""

    def name_of(self, item: Item) -> str:
        """Return the path in the layer's tree."""
        return self.before + (self.landing.name or item.path[self.skip :])

    def carry(self, items: list[Item], target: Target, tar: TarWriter) -> None:
        """Put items into their directories, which are there already, and the tar."""
        for item in items:
            name, mode = self.name_of(item), item.info.st_mode
            if stat.S_ISREG(mode):
                if item.info.st_size <= SMALL:
                    self.carry_small(item, name, target, tar)
                else:
                    self.carry_large(item, name, target, tar)
            elif stat.S_ISDIR(mode):
                tar.add(self.directory_entry(item, name))
            else:
                self.carry_link(item, name, target, tar)

    def carry_small(
        self, item: Item, name: str, target: Target, tar: TarWriter
    ) -> None:
        """Copy a file whose bytes are in memory, or are read in one piece."""
        info, data = item.info, self.tree.take(item.path)
        if data is None:
            data = small_file(self.tree, item)
        mode = self.manner.new_mode(info.st_mode & 0o7777)
        new = new_file(*target.beside(name), mode)
        try:
            write_all(new, data)
            now = dress(new, self.manner, mode, info)
        finally:
            os.close(new)
        tar.add(entry_of(os.fsencode(name), now), data=data)

    def carry_large(
        self, item: Item, name: str, target: Target, tar: TarWriter
    ) -> None:
        """Let the kernel copy a file while it is read for the tar."""
        info, mode = item.info, self.manner.new_mode(item.info.st_mode & 0o7777)
        with ExitStack() as stack:
            new = new_file(*target.beside(name), mode)
            stack.callback(os.close, new)
            one, two = (self.tree.open_item(item.path) for _ in range(2))
            for fd in (one, two):
                stack.callback(os.close, fd)
            now = dress(new, self.manner, mode, info)
            entry = entry_of(os.fsencode(name), now).replace(size=info.st_size)
            with in_background(lambda: copy_data(one, new, info.st_size)) as copied:
                try:
                    tar.add(entry, two)
                except ConflictError as why:
                    what = f'"{item.path}" was changed while it was copied'
                    raise BuildError(what) from why
            copied()
            check_unchanged(item, os.fstat(two), info.st_size)
            now = dress(new, self.manner, mode, info)
            self.exact &= entry_of(entry.name, now) == entry

    def carry_link(self, item: Item, name: str, target: Target, tar: TarWriter) -> None:
        """Make the same symbolic link."""
        fd, base = target.beside(name)
        put_link(self.tree, item, fd, base, self.manner)
        now = os.lstat(base, dir_fd=fd)
        text = os.fsencode(os.readlink(base, dir_fd=fd))
        tar.add(entry_of(os.fsencode(name), now, linkname=text))

    def directory_entry(self, item: Item, name: str) -> Entry:
        """Return what the tar says of a directory, as it will be when it is full."""
        info = item.info
        mode = self.manner.new_mode(info.st_mode & 0o7777, is_directory=True)
        uid, gid = self.manner.owner or (info.st_uid, info.st_gid)
        when = info.st_mtime_ns // SECOND * SECOND
        raw = os.fsencode(f"{name}/")
        return Entry(raw, Kind.DIRECTORY, mode, uid, gid, mtime=when)


# %% One file
def make_directories(arrival: Arrival, target: Target) -> list[Item]:
    """Make all directories of the source, parents first, open to us; return them."""
    made = [i for i in arrival.source.items if stat.S_ISDIR(i.info.st_mode)]
    for item in made:
        fd, base = target.beside(arrival.name_of(item))
        with suppress(FileExistsError):
            os.mkdir(base, 0o700, dir_fd=fd)
    return made


def finish_directories(arrival: Arrival, target: Target, made: list[Item]) -> None:
    """Give the directories their own mode, owner and time, children first."""
    target.leave()
    for item in reversed(made):
        name = arrival.name_of(item)
        now = finish_directory(target, name, item.info, arrival.manner)
        entry = arrival.directory_entry(item, name)
        arrival.exact &= entry_of(entry.name[:-1], now) == entry
    fd = target.directory(arrival.landing.place)
    os.utime(fd, ns=arrival.landing.times)
    os.close(fd)


# %% Two processes
LARGE = 32 << 20  # bytes of a file that is worth a thread
PART = 4 << 20  # bytes, and some for the header of each file
FEW = 400  # items that one process carries alone
Part = list[Item]


def parts_of(items: tuple[Item, ...]) -> list[Part]:
    """Cut items, in order, into parts of about ``PART`` bytes."""
    parts: list[Part] = [[]]
    room = PART
    for item in items:
        room -= min(item.info.st_size, PART) + 4096
        if room < 0:
            parts.append([])
            room = PART
        parts[-1].append(item)
    return parts


def is_small(part: Part) -> bool:
    """Say whether a part has no large file."""
    return all(item.info.st_size <= SMALL for item in part)


# %% Two processes
class Helper:
    """A child that carries ``parts``, one after another; use it with ``with``."""

    __slots__ = ("child", "go", "slots", "taken", "told")

    def __init__(
        self, carry: Callable[[Part, TarWriter], None], parts: list[Part]
    ) -> None:
        from mmap import mmap

        self.slots = [mmap(-1, 2 * PART), mmap(-1, 2 * PART)]
        self.taken = 0
        self.told, tell = os.pipe()
        hear, self.go = os.pipe()
        self.child = os.fork()
        if not self.child:
            try:
                os.close(self.told)
                os.close(self.go)
                self.work(carry, parts, hear, tell)
            finally:
                os._exit(0)
        os.close(hear)
        os.close(tell)

    def work(
        self,
        carry: Callable[[Part, TarWriter], None],
        parts: list[Part],
        hear: int,
        tell: int,
    ) -> None:
        """Carry the parts; wait for a place where the piece of the tar may lie."""
        for number, part in enumerate(parts):
            if number >= len(self.slots) and not os.read(hear, 1):
                return
            slot = self.slots[number % len(self.slots)]
            slot.seek(0)
            tar = TarWriter(slot.write)
            carry(part, tar)
            tar.flush()
            os.write(tell, slot.tell().to_bytes(8, "little"))

    def take(self, tar: TarWriter) -> bool:
        """Write the next part's piece to ``tar``; False if the child has failed."""
        said = os.read(self.told, 8)
        if not said:
            return False
        slot = self.slots[self.taken % len(self.slots)]
        tar.write(slot[: int.from_bytes(said, "little")])
        self.taken += 1
        with suppress(BrokenPipeError):
            os.write(self.go, b"1")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.told)
        os.close(self.go)
        os.waitpid(self.child, 0)


# %% Two processes
def may_fork() -> bool:
    """Say whether a child would help, and may be."""
    threading = sys.modules.get("threading")
    alone = threading is None or threading.active_count() == 1
    return alone and len(os.sched_getaffinity(0)) > 1


def carry_all(arrival: Arrival, target: Target, tar: TarWriter) -> None:
    """Carry all items, with a helper where there are many small ones."""
    parts = parts_of(arrival.source.items)
    theirs = [part for part in parts[1::2] if is_small(part)]
    if len(arrival.source.items) <= FEW or not theirs or not may_fork():
        arrival.carry(list(arrival.source.items), target, tar)
        return
    own = target.again()  # the child's, with a directory open of its own
    with own, Helper(lambda part, tar: arrival.carry(part, own, tar), theirs) as helper:
        for number, part in enumerate(parts):
            shared = number % 2 and is_small(part)
            if not shared or not helper.take(tar):
                arrival.carry(part, target, tar)


# %% All of it
def arrive(
    tree: SourceTree, source: Source, root: str, landing: Landing, manner: Manner
) -> Packed | None:
    """Copy a source to its landing in the tree ``root`` of an empty layer.

    Returns what the layer's tar is; None where the tree must be asked. Raises
    BuildError for a file that changes meanwhile, or an owner that cannot be given.
    """
    arrival = Arrival(tree, source, landing, manner)
    with (
        tally_for(source) as tally,
        TreeWriter(root, tally) as writer,
        Target(root, 0, (0, 0)) as target,
    ):
        for above in paths_to(landing.place):
            writer.add(os.fsencode(above))
        made = make_directories(arrival, target)
        carry_all(arrival, target, writer.tar)
        finish_directories(arrival, target, made)
        writer.tar.finish()
    sizes = (i.info.st_size for i in source.items if stat.S_ISREG(i.info.st_mode))
    return Packed(tally.digest, sum(sizes)) if arrival.exact else None


def tally_for(source: Source) -> AbstractContextManager[Tally]:
    """Return what digests the tar: in a thread, where a large file is copied too."""
    large = any(item.info.st_size > LARGE for item in source.items)
    return Aside() if large else nullcontext(Tally(whole=True))


def paths_to(place: str) -> list[str]:
    """Return a path and those above it, the shortest first.

    >>> paths_to("usr/lib"), paths_to("")
    (['usr', 'usr/lib'], [])
    """
    names = place.split("/") if place else []
    return ["/".join(names[: count + 1]) for count in range(len(names))]


# %% A container's layer
class PlainTree(SourceTree):
    """A layer's files, to be copied as long as none of them has an attribute."""

    def open_item(self, path: str) -> int:
        """Open a file. Raises BuildError for one with an attribute."""
        fd = super().open_item(path)
        if xattrs_of(fd):
            os.close(fd)
            raise BuildError(f'"{path}" has attributes')
        return fd


def plain_items(
    driver: StorageDriver, layer: str, without: frozenset[str]
) -> list[Item] | None:
    """Return what a layer changes, in order; None where that is more than files."""
    items: list[Item] = []
    with driver.opened(layer) as root, PlainTree(root) as tree:
        for change in driver.changes(layer, without=without):
            path = change.path[1:]
            fd, name = tree.beside(path)
            if change.kind is ChangeKind.DELETED or name.startswith(".wh."):
                return None
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            kind = stat.S_IFMT(info.st_mode)
            single = kind in {stat.S_IFREG, stat.S_IFLNK} and info.st_nlink == 1
            data = kind == stat.S_IFREG and not info.st_mode & 0o111
            if not (single or kind == stat.S_IFDIR):
                return None
            if not data and xattrs_of(root + change.path):
                return None
            items.append(Item(path, info))
    return items


def copy_layer(layers: LayerStore, name: str) -> Layer | None:
    """Make a read-only layer of what is in a container's layer, which stays.

    None when nothing was changed.
    """
    mount_id, parent = layers.mount_id(name), layers.rw_parent(name)
    driver, copy = layers.driver, os.urandom(32).hex()
    try:
        ours = frozenset(mount_points(driver, mount_id))
        items = plain_items(driver, mount_id, ours)
        if items:
            driver.create(copy, layers.get(parent).cache_id if parent else None)
            packed = copy_items(driver, mount_id, copy, items)
            return layers.seal(copy, parent, Known(packed=packed))
    except BaseException as why:
        driver.remove(copy)
        if not isinstance(why, BuildError | FileNotFoundError):  # it still runs
            raise
    return layers.copy_rw(name)


def copy_items(
    driver: StorageDriver, layer: str, copy: str, items: list[Item]
) -> Packed | None:
    """Copy files of one layer into another; return what the other's tar is."""
    with (
        driver.opened(layer) as old,
        driver.opened(copy, writable=True) as new,
        PlainTree(old, owned=True, lasting=False) as tree,
    ):
        info = os.stat(new)
        root = Landing("", "", (info.st_atime_ns, info.st_mtime_ns))
        source = Source(".", ".", True, tuple(items))
        return arrive(tree, source, new, root, Manner(owner=None))
