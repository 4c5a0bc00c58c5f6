# From book/615-opened-store.md. Edit there and tangle, or here and tangle --back.

# %% Opened store: the driver, the locks, the sweep
"""A store with its driver, opened: locks, marks, the sweep of what a crash left.

Nothing here knows of commands; chapter `engine` adds what they do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidocker.drivers import DRIVERS, StorageDriver, best_driver
from minidocker.durable import (
    Batch,
    is_marked,
    marked,
    store_lock,
    sweep_later,
    turn,
    unmark,
    write_lasting,
)
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from minidocker.images import ImageStore
from minidocker.layers import Layer, LayerStore, read_text, sweep
from minidocker.oci import ContainerConfig, HistoryEntry, ImageConfig, Reference
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.containers import ContainerStore


# %% Which driver
DRIVER_NAMES = (*DRIVERS, "devicemapper")


def make_driver(root: str, name: str, options: tuple[str, ...] = ()) -> StorageDriver:
    """Return the driver of that name; ``options`` are those of ``--storage-opt``.

    The code of devicemapper is loaded only for a store that has it.
    """
    if name == "devicemapper":
        from minidocker.devicemapper import Devicemapper
        from minidocker.poolrecords import parse_options

        return Devicemapper(root, options=parse_options(options))
    if options:
        what = f'the storage driver "{name}" has no options'
        raise UsageError(what, hint="devicemapper has: dm.basesize=10G and others")
    return DRIVERS[name](root)


# %% Which driver
def choose_driver(
    root: str, name: str = "", options: tuple[str, ...] = ()
) -> StorageDriver:
    """Return the store's driver: as written down, as asked for, or the best.

    Raises UsageError for an unknown one, ConflictError when the store has another.
    """
    if name and name not in DRIVER_NAMES:
        known = f"there are {', '.join(DRIVER_NAMES)}"
        hint = did_you_mean(name, DRIVER_NAMES, other=known)
        raise UsageError(f'no storage driver "{name}"', hint=hint)
    written = driver_of(root) or first_driver(root, name)
    if written not in DRIVER_NAMES:
        what = f'the store has the driver "{written}", which is not known'
        raise IntegrityError(what, where=f"{root}/driver")
    if name and written != name:
        what = f'the store has the driver "{written}" and cannot have "{name}"'
        raise ConflictError(what, where=root, hint="choose another --root")
    return make_driver(root, written, options)


# %% Which driver
def driver_of(root: str) -> str:
    """Return the driver that a store has written down, "" for a new store."""
    return (read_text(f"{root}/driver") or "").strip()


def first_driver(root: str, name: str) -> str:
    """Write down the driver of a new store, whoever comes first; return its name."""
    os.makedirs(root, 0o711, exist_ok=True)
    with turn(f"{root}/driver.lock"):
        if found := driver_of(root):
            return found
        driver = name or best_driver(root)[0].name
        if driver == "devicemapper":
            from minidocker.devicemapper import supported

            if why := supported():
                raise UnsupportedError(why, hint="--storage-driver overlay2, or vfs")
        write_lasting(f"{root}/driver", f"{driver}\n")
        return driver


# %% The store, opened
BASE = "minidocker/base"


class StoreEngine:
    """A store below ``root`` and all that works on it.

    ``notice`` is called with a line for the person who waits, such as that the base
    image is being made. ``max_size`` bounds the bytes of files that come from outside.
    """

    def __init__(
        self,
        root: str,
        driver: str = "",
        notice: Callable[[str], None] = lambda line: None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.root, self.notice = os.path.abspath(root), notice
        self.driver = choose_driver(self.root, driver, options)
        self.batch = Batch(self.root, os.path.join(self.root, "tmp"))
        self.layers = LayerStore(self.root, self.driver, self.batch)
        self.images = ImageStore(self.root, self.driver.name, self.batch)
        self._containers: ContainerStore | None = None
        self.max_size = 0

    def room(self) -> int:
        """Return how many bytes a stranger's files may have: what was said, or fits."""
        return self.max_size or free_bytes(self.root)

    @property
    def containers(self) -> ContainerStore:
        """The containers; a build that has no RUN does not load their code."""
        if self._containers is None:
            from minidocker.containers import ContainerStore

            self._containers = ContainerStore(self.root, self.layers, self.images)
        return self._containers

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the store's lock while something is made; first sweep what was left."""
        if is_marked(self.root):
            self.tidy()
        with store_lock(self.root), marked(self.root) as mark, self.driver.held():
            before, self.batch.mark = self.batch.mark, mark
            try:
                with self.batch:
                    yield
            finally:
                self.batch.mark = before

    @contextmanager
    def bringing(self) -> Iterator[None]:
        """``changing`` for what others made: when it is refused, nothing of it stays.

        Not even the mark, unless somebody else is at work.
        """
        try:
            with self.changing():
                yield
        except MinidockerError:
            self.tidy()
            raise

    def tidy(self) -> None:
        """Remove what a crash left; while others make something, put it off.

        Where a record is damaged nothing is removed: who knows what it named?
        """
        with store_lock(self.root, exclusive=True) as alone:
            if not alone:
                sweep_later(self.root)
                return
            try:
                self.sweep()
            except IntegrityError as why:
                self.notice(f"nothing is swept, see `system check`: {why}")
            else:
                unmark(self.root)

    def sweep(self) -> None:
        """Remove what nobody names. The caller holds the store's lock alone."""
        from minidocker.catalog import chains_in_use
        from minidocker.lifecycle import sweep_containers

        sweep_containers(self.containers)
        self.sweep_records()
        chains = chains_in_use(self.images, self.layers)
        self.images.sweep()
        sweep(self.layers, containers=self.containers.ids(), chains=chains)
        for name in os.listdir(self.root):
            if name.startswith("overlay-check-"):
                remove_path(f"{self.root}/{name}")

    def sweep_records(self) -> None:
        """Remove what was half made of networks and volumes."""
        if os.path.isdir(f"{self.root}/networks"):
            from minidocker.sandbox import network_store

            network_store(self.containers).sweep()
        if os.path.isdir(f"{self.root}/volumes"):
            from minidocker.storing import sweep_volumes

            sweep_volumes(self.containers)

    def finish(
        self,
        image: ImageConfig,
        line: HistoryEntry,
        layer: Layer | None,
        parent: str | None,
        reference: Reference | None,
    ) -> str:
        """Date an image, add a line of history and a layer, keep and tag it."""
        from minidocker.containers import timestamp
        from minidocker.stage import go_time, source_date_epoch

        epoch = source_date_epoch()
        created = timestamp() if epoch is None else go_time(epoch * 10**9)
        image = image.replace(
            comment=line.comment,
            created=created,
            history=(*image.history, line.replace(created=created)),
            diff_ids=image.diff_ids + ((layer.diff_id,) if layer else ()),
        )
        id = self.images.add(image, parent)
        if reference:
            self.images.tag(reference, id)
        return id


# %% The store, opened
def free_bytes(path: str) -> int:
    """Return nine tenths of the bytes that the file system of a path has left."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize * 9 // 10


# %% The base image, from this machine
def make_base_image(engine: StoreEngine, reference: Reference) -> str:
    """Make the image `minidocker/base` from this machine; return its id."""
    from minidocker.base import make_base
    from minidocker.manifests import host_platform

    engine.notice(f"Making {BASE} from this machine's own programs ...")
    name = f"base-{os.urandom(8).hex()}"
    with engine.changing():
        engine.layers.create_rw(name, None)
        try:
            with engine.layers.rw_mounted(name) as tree:
                make_base(tree)
            layer = engine.layers.commit_rw(name)
        finally:
            engine.layers.remove_rw(name)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        config = ContainerConfig(env=(path,), cmd=("sh",))
        image = ImageConfig(architecture=host_platform().architecture, config=config)
        line = HistoryEntry(comment="Made from this machine")
        return engine.finish(image, line, layer, None, reference)
