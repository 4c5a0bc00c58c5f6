# From book/165-drivers.md. Edit there and tangle, or here and tangle --back.

# %% Drivers: where the layers' trees are kept
"""Storage drivers: keep each layer's tree, and show it with those below it as one.

``vfs`` copies the whole tree for each layer. ``overlay2`` keeps only what a layer
changes, and lets the kernel show the union. A caller cannot tell them apart by the
trees, the changes or the tars that they give.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
)
from minidocker.mounts import (
    MountFlags,
    UmountFlags,
    is_first_user_namespace,
    mount,
    umount2,
)
from minidocker.overlayfs import MAX_LOWERS, Overlay, supported
from minidocker.records import Record
from minidocker.trees import (
    bytes_below,
    copy_attributes,
    copy_tree,
    remove_path,
    sync_file_system,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.archive import Put
    from minidocker.changes import Change
    from minidocker.reading import Read, Tape


# %% The nouns: how a root is mounted
class Stray(Record):
    """Something of a driver's that is no layer: its name, bytes, and how it goes."""

    name: str
    size: int
    remove: Callable[[], object]


class Directory(Record):
    """A root that is a plain directory, to be bound."""

    path: str

    def mount(self, target: str) -> None:
        """Bind the root on the directory ``target``; the caller unmounts."""
        mount(self.path, target, None, MountFlags.BIND)


class Mountable(ABC):
    """A root that knows itself how to be mounted."""

    @abstractmethod
    def mount(self, target: str) -> None:
        """Mount the root on the directory ``target``; the caller unmounts once."""

    @abstractmethod
    def description(self) -> dict[str, str]:
        """Return what `inspect` tells of it, in Docker's names."""


RootView = Overlay | Directory | Mountable


# %% The contract
class ProtoDriver(ABC):
    """Keep layers by id, each with at most one parent. Ids are names of directories.

    A layer is made empty by ``create``, written through ``view``, ``mounted`` or
    ``apply``, and from then on only read; nothing here stops a second writer, so the
    store locks. ``root`` is the store's root; ``rootless`` says that the owners of
    files may not exist here, and is found out when it is None.
    """

    name: str

    def __init__(self, root: str, *, rootless: bool | None = None) -> None:
        self.rootless = (
            rootless
            if rootless is not None
            else (os.geteuid() != 0 or not is_first_user_namespace())
        )
        self.home = f"{root}/{self.name}"

    @abstractmethod
    def create(self, layer: str, parent: str | None) -> None:
        """Make layer ``layer`` on top of ``parent``; empty, its root as the parent's.

        Raises ConflictError if it exists, NotFoundError if the parent does not.
        """

    @abstractmethod
    def view(self, layer: str, *, writable: bool, volatile: bool = False) -> RootView:
        """Say how to mount the whole tree of ``layer``; mounts nothing.

        ``volatile``: the mount need not sync. Without it, one that is committed is
        synced as it is unmounted. Raises NotFoundError.
        """

    @abstractmethod
    def lowers(self, layer: str) -> list[str]:
        """Return the ids that ``layer`` needs below it, top-first."""

    @abstractmethod
    def opened(
        self, layer: str, *, writable: bool = False
    ) -> AbstractContextManager[str]:
        """Give a directory that has every file that ``changes`` names, for a block."""

    @abstractmethod
    def changes(
        self, layer: str, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Change]:
        """Yield what ``layer`` changes over its parent, sorted by path.

        The paths ``without``, and what is below them, are passed over.
        """

    @abstractmethod
    def ids(self) -> list[str]:
        """Return the ids of all layers, sorted, half-made ones included."""

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield each layer that is not whole, and what it lacks; "" is the driver."""
        yield from ()

    @abstractmethod
    def remove(self, layer: str) -> None:
        """Remove a layer, or what a crash left of it; nothing if there is none."""

    def strays(self) -> list[Stray]:
        """Return what takes space and is no layer; mostly there can be nothing."""
        return []

    def held(self) -> AbstractContextManager[None]:
        """Keep what the driver needs meanwhile for a ``with`` block: mostly nothing."""
        return nullcontext()

    def report(self) -> dict[str, str | int]:
        """Return what `info` tells of the driver, in Docker's words; sizes are ints."""
        return {}


# %% The contract
class StorageDriver(ProtoDriver):
    """What works over any driver: to show, pack, apply, weigh and sync a layer."""

    def mounted(self, layer: str, *, writable: bool) -> AbstractContextManager[str]:
        """Show the whole tree of ``layer`` in a directory while the ``with`` lasts."""
        return shown(
            self.view(layer, writable=writable, volatile=True), self.target(layer)
        )

    def target(self, layer: str) -> str:
        """Return the directory that a union of ``layer`` is mounted on."""
        return f"{self.home}/{layer}/merged"

    def pack(
        self,
        layer: str,
        put: Put,
        contents: dict[bytes, bytes] | None = None,
        *,
        without: frozenset[str] = frozenset(),
    ) -> int:
        """Write what ``layer`` changes as an OCI layer; return its files' bytes.

        ``contents`` are what the caller knows of small files in it, by name. The paths
        ``without`` are passed over.
        """
        from minidocker.changes import pack_layer

        with self.opened(layer) as tree:
            changes = self.changes(layer, without=without)
            return pack_layer(tree, changes, put, contents)

    def apply(
        self,
        layer: str,
        read: Read,
        *,
        limit: int | None = None,
        tape: Tape | None = None,
    ) -> int:
        """Unpack a layer's tar into ``layer``; return the bytes of its files.

        ``tape`` hears every byte. When it fails, for whatever reason, the layer is
        removed.
        """
        from minidocker.unpack import apply_layer

        plain = self.rootless
        try:
            with self.mounted(layer, writable=True) as root:
                return apply_layer(
                    read, root, limit=limit, ignore_owner=plain, tape=tape
                )
        except BaseException:
            self.remove(layer)
            raise

    def size(self, layer: str) -> int:
        """Return the bytes of the files that ``layer`` adds or changes."""
        found: dict[tuple[int, int], int] = {}
        with self.opened(layer) as tree:
            for change in self.changes(layer):
                with suppress(FileNotFoundError):  # the deleted ones
                    st = os.lstat(tree + change.path)
                    if stat.S_ISREG(st.st_mode):
                        found[st.st_dev, st.st_ino] = st.st_size
        return sum(found.values())

    def space(self, layers: list[str]) -> list[int]:
        """Return the bytes on disk that come back when each is removed."""
        found = []
        for layer in layers:
            with self.opened(layer) as tree:
                found.append(bytes_below(tree))
        return found

    def sync(self, layer: str) -> None:
        """Put the layer's data on disk, so that it may be named."""
        with self.opened(layer) as tree:
            sync_file_system(tree)


# %% The contract
@contextmanager
def shown(view: RootView, target: str) -> Iterator[str]:
    """Yield a directory that shows a view; mount and unmount if it takes a mount."""
    if isinstance(view, Directory):
        yield view.path
        return
    with suppress(FileExistsError):
        os.mkdir(target)
    view.mount(target)
    try:
        yield target
    finally:
        umount2(target, UmountFlags.DETACH | UmountFlags.NOFOLLOW)
        if isinstance(view, Overlay):
            settle(view)


# %% Overlay2: only what differs
ROOT_MODE = 0o755


def settle(view: Overlay) -> None:
    """Remove the mark of a volatile mount, which forbids the next one."""
    if view.work:
        mark = f"{view.work}/work/incompat/volatile"
        with suppress(FileNotFoundError):
            os.unlink(f"{mark}/dirty")
        with suppress(FileNotFoundError):
            os.rmdir(mark)


def new_directory(path: str, layer: str) -> None:
    """Make the directory of a new layer, and those above it."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    try:
        os.mkdir(path)
    except FileExistsError as why:
        raise ConflictError(f'layer "{layer}" exists already') from why


def plain_root(path: str) -> None:
    """Give the root of a tree fixed attributes: 0755, from 1970."""
    os.chmod(path, ROOT_MODE)
    os.utime(path, (0, 0))


# %% Overlay2: only what differs
class Overlay2(StorageDriver):
    """Keep a layer's own files in ``diff``; the kernel shows the union.

    ``<id>/{diff,lower,work,merged}``: ``lower`` lists the layers below, top-first.
    """

    name = "overlay2"

    def lowers(self, layer: str) -> list[str]:
        """Return the ids below ``layer``, top-first."""
        try:
            with open(f"{self.home}/{layer}/lower") as file:
                found = file.read().split()
        except FileNotFoundError as why:
            raise NotFoundError(f'no such layer: "{layer}"') from why
        if not found and os.path.isdir(f"{self.home}/{layer}/work"):
            what = f'what the layer "{layer}" lies on is lost'
            raise IntegrityError(
                what, hint="`minidocker system check` tells whose it is"
            )
        return found

    def create(self, layer: str, parent: str | None) -> None:
        """Make the directories; a layer without a parent needs no ``work``."""
        below = [parent, *self.lowers(parent)] if parent else []
        if len(below) > MAX_LOWERS:
            what = f"more than {MAX_LOWERS} layers cannot be mounted below another"
            hint = "export a container of it, and import that: it is one layer then"
            raise UnsupportedError(what, hint=hint)
        home = f"{self.home}/{layer}"
        new_directory(home, layer)
        os.mkdir(f"{home}/diff")
        if parent:
            os.mkdir(f"{home}/work", 0o700)
            root = self.tree(parent)
            copy_attributes(root, f"{home}/diff", os.lstat(root))
        else:
            plain_root(f"{home}/diff")
        with open(f"{home}/lower", "w") as file:
            file.write("\n".join(below))

    def view(self, layer: str, *, writable: bool, volatile: bool = False) -> RootView:
        """One directory needs no union; the kernel shows the others."""
        home, below = f"{self.home}/{layer}", self.lowers(layer)
        if not below:
            return Directory(f"{home}/diff")
        lowers = tuple(f"{self.home}/{one}/diff" for one in below)
        if not writable and len(lowers) < MAX_LOWERS:  # itself is one more
            return Overlay((f"{home}/diff", *lowers), userxattr=self.rootless)
        view = Overlay(
            lowers,
            upper=f"{home}/diff",
            work=f"{home}/work",
            userxattr=self.rootless,
            volatile=volatile,
        )
        settle(view)
        return view

    def opened(
        self, layer: str, *, writable: bool = False
    ) -> AbstractContextManager[str]:
        """The upper directory has all that the layer changes."""
        return nullcontext(self.tree(layer))

    def tree(self, layer: str) -> str:
        """Return the directory of a layer's own files."""
        return f"{self.home}/{layer}/diff"

    def changes(
        self, layer: str, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Change]:
        """Compare the upper directory with the lower ones; no mount is made."""
        from minidocker.changes import changes_in_upper

        lowers = tuple(self.tree(one) for one in self.lowers(layer))
        return changes_in_upper(
            self.tree(layer), lowers, userxattr=self.rootless, without=without
        )

    def ids(self) -> list[str]:
        """List the directory."""
        return sorted(os.listdir(self.home)) if os.path.isdir(self.home) else []

    def faults(self) -> Iterator[tuple[str, str]]:
        """Look for the directories."""
        for layer in self.ids():
            if not os.path.isdir(self.tree(layer)):
                yield layer, "the directory of its files is not here"

    def remove(self, layer: str) -> None:
        """Remove the layer's directory."""
        remove_path(f"{self.home}/{layer}")


# %% Vfs: a whole copy
class Vfs(StorageDriver):
    """Keep the whole tree of each layer, copied from its parent's. Works anywhere.

    ``dir/<id>`` is the tree; ``parent/<id>`` names the parent, and is written last: its
    ctime separates what was copied from what was changed.
    """

    name = "vfs"

    def parent(self, layer: str) -> tuple[str | None, int]:
        """Return the parent of ``layer``, and the time of the copy in nanoseconds."""
        try:
            with open(f"{self.home}/parent/{layer}") as file:
                return file.read() or None, os.fstat(file.fileno()).st_ctime_ns
        except FileNotFoundError as why:
            raise NotFoundError(f'no such layer: "{layer}"') from why

    def lowers(self, layer: str) -> list[str]:
        """Return the ids below ``layer``: ``changes`` compares with the first."""
        parent, _ = self.parent(layer)
        return [parent, *self.lowers(parent)] if parent else []

    def create(self, layer: str, parent: str | None) -> None:
        """Copy the parent's tree."""
        if parent:
            self.parent(parent)
        os.makedirs(f"{self.home}/parent", 0o700, exist_ok=True)
        new_directory(self.tree(layer), layer)
        if parent:
            copy_tree(self.tree(parent), self.tree(layer))
        else:
            plain_root(self.tree(layer))
        with open(f"{self.home}/parent/{layer}", "w") as file:
            file.write(parent or "")

    def view(self, layer: str, *, writable: bool, volatile: bool = False) -> RootView:
        """The tree is whole as it is."""
        self.parent(layer)
        return Directory(self.tree(layer))

    def opened(
        self, layer: str, *, writable: bool = False
    ) -> AbstractContextManager[str]:
        """The one directory there is."""
        return nullcontext(self.tree(layer))

    def tree(self, layer: str) -> str:
        """Return the directory of a layer's own files."""
        return f"{self.home}/dir/{layer}"

    def changes(
        self, layer: str, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Change]:
        """Compare the two whole trees."""
        from minidocker.changes import changes_between

        parent, copied = self.parent(layer)
        lower = self.tree(parent) if parent else None
        return changes_between(lower, self.tree(layer), since=copied, without=without)

    def ids(self) -> list[str]:
        """List both directories."""
        found: set[str] = set()
        for part in ("dir", "parent"):
            with suppress(FileNotFoundError):
                found.update(os.listdir(f"{self.home}/{part}"))
        return sorted(found)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Look for both: the tree, and the file that names its parent."""
        for layer in self.ids():
            if not os.path.isdir(self.tree(layer)):
                yield layer, "the directory of its files is not here"
            elif not os.path.isfile(f"{self.home}/parent/{layer}"):
                yield layer, "what it was copied from is not written down"

    def remove(self, layer: str) -> None:
        """Remove the tree, then its name."""
        remove_path(self.tree(layer))
        remove_path(f"{self.home}/parent/{layer}")


# %% Choosing
DRIVERS: dict[str, type[StorageDriver]] = {"overlay2": Overlay2, "vfs": Vfs}


def best_driver(root: str) -> tuple[StorageDriver, str]:
    """Return the best driver that works below ``root``, and why it is that one."""
    scratch = f"{root}/overlay-check-{os.getpid()}"
    os.makedirs(scratch)
    try:
        supported(scratch)
    except (MinidockerError, OSError) as why:
        return Vfs(root), f"overlay2 does not work here: {why}"
    finally:
        remove_path(scratch)
    return Overlay2(root), "the kernel mounts overlays"
