# From book/190-devicemapper.md. Edit there and tangle, or here and tangle --back.

# %% Devicemapper: the third driver
"""The storage driver devicemapper: each layer is a thin snapshot of its parent.

Needs root.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial

from minidocker.calls import SysError
from minidocker.devices import (
    BLOCK,
    Call,
    DeviceMapper,
    arm,
    devices,
    find,
    heard,
    parse_status,
    remove,
    status,
    tell,
)
from minidocker.drivers import Mountable, StorageDriver, Stray, shown
from minidocker.durable import locked_file
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
)
from minidocker.linux import CloneFlags, unshare
from minidocker.loops import SECTOR
from minidocker.mounts import (
    AT_FDCWD,
    MountAttr,
    MountFlags,
    UmountFlags,
    mount,
    mount_setattr,
    mountinfo,
    umount2,
)
from minidocker.poolmetadata import (
    BLOCK_SIZE,
    MetadataDisk,
    PoolContents,
    metadata_faults,
    read_contents,
    read_counts,
    read_superblock,
)
from minidocker.poolrecords import BASE, FILE_SYSTEMS, PoolOptions, Records, Thin
from minidocker.thinpool import (
    GONE,
    LOW_WATER,
    Disks,
    Session,
    activate_layer,
    base_device,
    clear_if_idle,
    find_disks,
    forget,
    grow_if_low,
    make_device,
    open_session,
    scarce,
    suppress_gone,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.changes import Change


# %% Mounting a layer
GRACE = 3.0  # seconds that a device may be gone, or not be there yet


class ThinRoot(Mountable):
    """The root of a layer, which is mounted from its thin device."""

    __slots__ = ("driver", "layer", "writable")

    def __init__(self, driver: ThinLayers, layer: str, writable: bool) -> None:
        self.driver, self.layer, self.writable = driver, layer, writable

    def mount(self, target: str) -> None:
        """Mount the layer's tree on ``target``; its device goes when that does."""
        disks, thin = self.driver.disks, self.driver.records.layer(self.layer)
        place = disks.place(self.layer)
        with open_session(disks) as session:
            mount_layer(session, self.layer, thin, place, self.writable)
            try:  # while no other thread may mount the device at this place
                remove(session.dm, session.device(self.layer), deferred=True)
                mount(f"{place}/rootfs", target, None, MountFlags.BIND)
            finally:
                umount2(place, UmountFlags.DETACH)
        if not self.writable:
            mount_setattr(AT_FDCWD, target, MountAttr.RDONLY)

    def description(self) -> dict[str, str]:
        """Return which device it is, in Docker's names."""
        thin = self.driver.records.layer(self.layer)
        return {
            "DeviceId": str(thin.device_id),
            "DeviceName": f"{self.driver.disks.prefix}-{self.layer}",
            "DeviceSize": str(thin.size),
        }


def mount_layer(
    session: Session, layer: str, thin: Thin, place: str, writable: bool
) -> None:
    """Activate a layer's device and mount it, anew where it went in between.

    That of an earlier mount goes when its last user does, and asks nobody.
    """
    until = time.monotonic() + GRACE
    while True:
        device = activate_layer(session, layer, thin)
        try:
            return mount_device(device, place, session.disks.options.fs, writable)
        except SysError as why:
            if why.errno not in GONE or time.monotonic() > until:
                raise
        time.sleep(0.005)


def mount_device(device: str, place: str, fs: str, writable: bool) -> None:
    """Mount a device; read-only unless somebody has it mounted for writing already."""
    options = FILE_SYSTEMS[fs].options
    try:
        flags = MountFlags(0) if writable else MountFlags.RDONLY
        mount(device, place, fs, flags, options)
    except SysError as why:
        if writable or why.errno != errno.EBUSY:
            raise
        mount(device, place, fs, MountFlags(0), options)


# %% Who hears the alarm
def watch(disks: Disks) -> None:
    """Attend the pool until it is gone; there is one watcher, the others return."""
    seen = time.monotonic()
    with locked_file(f"{disks.home}/watch") as ours, DeviceMapper() as dm:
        while ours and time.monotonic() - seen < GRACE:
            arm(dm)
            found = find(dm, disks.pool.name)
            if found and found.targets:  # who made one without a table was killed
                seen = time.monotonic()
                clear_if_idle(dm, disks)  # what was half made keeps the pool up
                if is_low(dm, disks):
                    with open_session(disks) as session:
                        grow_if_low(session)
            heard(dm, 1.0)


def is_low(dm: DeviceMapper, disks: Disks) -> bool:
    """Whether the pool has few free blocks; not if it is going or coming."""
    with suppress_gone():
        lines = status(dm, disks.pool.name)  # none before its table is loaded
        found = [parse_status(line.arguments) for line in lines]
        return any(now.data[1] and any(scarce(now)) for now in found)
    return False


def is_watched(disks: Disks) -> bool:
    """Whether somebody watches the pool."""
    with locked_file(f"{disks.home}/watch") as ours:
        return not ours


# %% Who hears the alarm
def start_watch(disks: Disks) -> None:
    """Start the watcher, as nobody's child; return when it has let go of all ours."""
    if is_watched(disks):
        return
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        os.waitpid(child, 0)
        os.read(ready, 1)
        os.close(ready)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            let_go(disks.home)
            watch(disks)
    finally:
        os._exit(0)


def let_go(home: str) -> None:
    """Keep neither descriptors nor mounts of the process that we were forked from."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    unshare(CloneFlags.NEWNS)
    mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    for one in reversed(mountinfo()):
        if one.source.startswith("/dev/dm-") or one.target.startswith(home):
            with suppress(OSError):
                umount2(one.target, UmountFlags.DETACH)


# %% Looking into the pool
def inspect(session: Session) -> tuple[PoolContents, list[str]]:
    """Return what the pool's metadata says, and what in it does not agree.

    Uses are counted while no layer is mounted. Raises IntegrityError.
    """
    own = f"{session.disks.prefix}-"
    others = {one for one in devices(session.dm) if one.startswith(own)}
    idle = others <= {session.pool.name}
    with held_root(session), closing(MetadataDisk(session.disks.pool.metadata)) as disk:
        found = read_contents(disk, held=True)
        counts = read_counts(disk, read_superblock(disk).space) if idle else None
        return found, list(metadata_faults(found, counts))


@contextmanager
def held_root(session: Session) -> Iterator[None]:
    """Have the pool hold the roots of its trees as they are now, for a block."""
    with suppress(SysError):  # somebody was killed while it held one
        tell(session.dm, session.pool, "release_metadata_snap")
    tell(session.dm, session.pool, "reserve_metadata_snap")
    try:
        yield
    finally:
        tell(session.dm, session.pool, "release_metadata_snap")


# %% The driver
class ThinLayers(StorageDriver):
    """Keep each layer as a thin device; see the chapter's docstring."""

    name = "devicemapper"

    def __init__(
        self,
        root: str,
        *,
        rootless: bool | None = None,
        options: PoolOptions = PoolOptions(),  # noqa: B008
    ) -> None:
        super().__init__(root, rootless=rootless)
        self.disks = find_disks(self.home, options)
        self.records = Records(f"{self.home}/metadata")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the pool for a ``with`` block: making it takes longer than using it."""
        with open_session(self.disks) as session:
            found = session.dm.call(Call.DEV_STATUS, session.pool.name)
            fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(fd)

    def target(self, layer: str) -> str:
        """Return the directory that shows a layer's tree."""
        os.makedirs(f"{self.home}/trees", 0o700, exist_ok=True)
        return f"{self.home}/trees/{layer}"

    def ids(self) -> list[str]:
        """List the files of the layers."""
        return self.records.layers()

    def create(self, layer: str, parent: str | None) -> None:
        """Make a snapshot of the parent's device, or of the base."""
        if layer in self.records.layers():
            raise ConflictError(f'layer "{layer}" exists already')
        origin = self.records.layer(parent) if parent else None
        with open_session(self.disks) as session:
            origin = origin or base_device(session)
            make_device(session, layer, origin.device_id, parent or "")

    def lowers(self, layer: str) -> list[str]:
        """Return the ancestors: `changes` compares with the first."""
        parent = self.records.layer(layer).parent
        return [parent, *self.lowers(parent)] if parent else []

    def view(self, layer: str, *, writable: bool, volatile: bool = False) -> ThinRoot:
        """Return the root; for a writer, let somebody watch the pool."""
        self.records.layer(layer)
        if writable:
            start_watch(self.disks)
        return ThinRoot(self, layer, writable)

    def opened(
        self, layer: str, *, writable: bool = False
    ) -> AbstractContextManager[str]:
        """Mount the layer's tree."""
        return self.mounted(layer, writable=writable)

    def changes(
        self, layer: str, *, without: frozenset[str] = frozenset()
    ) -> Iterator[Change]:
        """Compare the two whole trees, both mounted."""
        from minidocker.changes import changes_between

        parent = self.records.layer(layer).parent
        # one layer may be open twice: each time at a place of its own
        upper = shown(ThinRoot(self, layer, False), f"{self.target(layer)}-changes")
        below = self.opened(parent) if parent else nullcontext(None)
        with upper as tree, below as lower:
            yield from changes_between(lower, tree, without=without)

    def remove(self, layer: str) -> None:
        """Delete the layer's device; its blocks are free unless others share them."""
        try:
            thin = self.records.layer(layer)
        except NotFoundError:
            return
        with open_session(self.disks) as session:
            self.records.write(layer, thin.replace(deleted=True))
            forget(session, layer, thin.device_id)
        tree = self.target(layer)
        for place in (self.disks.place(layer), tree, f"{tree}-changes"):
            with suppress(OSError):
                os.rmdir(place)


# %% The driver
class Devicemapper(ThinLayers):
    """The driver, with what the pool says of itself."""

    def report(self) -> dict[str, str | int]:
        """Return the pool's figures."""
        with open_session(self.disks) as session:
            now, real = session.status(), session.pool
        files, options = self.disks.pool, self.disks.options
        block, least = BLOCK * SECTOR, options.min_free
        (used, total), (meta_used, meta_total) = now.data, now.metadata
        return {
            "Pool Name": files.name,
            "Pool Blocksize": block,
            "Base Device Size": options.base_size,
            "Backing Filesystem": options.fs,
            "Udev Sync Supported": "false",
            "Data file": real.data,
            "Metadata file": real.metadata,
            "Data loop file": files.data,
            "Metadata loop file": files.metadata,
            "Data Space Used": used * block,
            "Data Space Total": total * block,
            "Data Space Available": (total - used) * block,
            "Metadata Space Used": meta_used * BLOCK_SIZE,
            "Metadata Space Total": meta_total * BLOCK_SIZE,
            "Metadata Space Available": (meta_total - meta_used) * BLOCK_SIZE,
            "Thin Pool Minimum Free Space": total * least // 100 * block,
            "Low Water Mark": LOW_WATER * block,
            "Deferred Removal Enabled": "true",
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        """Ask the pool, and compare the layers' files with it and with each other."""
        with open_session(self.disks) as session:
            now = session.status()
            try:
                found, wrong = inspect(session)
            except IntegrityError as why:
                yield "", f"the pool's metadata cannot be read: {why}"
                return
        yield from (("", what) for what in wrong)
        there = {one.id for one in found.devices}
        if now.mode != "rw" or now.needs_check:
            check = ", and its metadata needs thin_check" if now.needs_check else ""
            yield "", f"the thin pool is in mode {now.mode}{check}"
        seen: dict[int, str] = {}
        for layer in self.ids():
            try:
                thin = self.records.layer(layer)
            except NotFoundError:
                yield layer, "which device it is cannot be read"
                continue
            if thin.transaction_id > now.transaction:
                yield layer, "the pool does not know the transaction that made it"
            if thin.device_id not in there:
                yield layer, f"its device {thin.device_id} is not in the pool"
            if seen.setdefault(thin.device_id, layer) != layer:
                yield layer, f"layer {seen[thin.device_id][:12]} has the same device"

    def strays(self) -> list[Stray]:
        """Return the pool's devices that are no layer's, and not the base.

        None while a record cannot be read: who knows whose device it named?
        """
        try:
            known = {self.records.layer(one).device_id for one in (*self.ids(), BASE)}
        except NotFoundError:
            return []
        with open_session(self.disks) as session:
            found, _ = inspect(session)
        return [
            Stray(
                f"thin device {one.id}",
                found.own({one.id}),
                partial(self.remove_device, one.id),
            )
            for one in found.devices
            if one.id not in known
        ]

    def remove_device(self, id: int) -> None:
        """Delete a device that is no layer's: it becomes one, and that is removed."""
        name, size = f"stray-{id}", self.disks.options.base_size
        self.records.write(name, Thin(id, size, 0, initialized=True))
        self.remove(name)

    def space(self, layers: list[str]) -> list[int]:
        """Return the bytes of the blocks that each has and no other device."""
        if not layers:
            return []
        with open_session(self.disks) as session:
            found, _ = inspect(session)
        return [found.own({self.records.layer(one).device_id}) for one in layers]


# %% The driver
def supported() -> str:
    """Return why the driver cannot work here, or an empty text."""
    if os.geteuid() != 0:
        return "devicemapper needs root"
    try:
        with DeviceMapper():
            return ""
    except MinidockerError as why:
        return str(why)
