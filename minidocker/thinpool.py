# From book/185-thinpool.md. Edit there and tangle, or here and tangle --back.

# %% Thin pool: a disk of disks that is there when needed
"""A thin pool for layers, that the kernel takes down when nobody uses it.

On disk as Docker's, below ``devicemapper``: ``devicemapper/{data,metadata}`` are the
pool's two disks; what is in them is written down beside (see ``poolrecords``).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.calls import SysError
from minidocker.devices import (
    DeviceMapper,
    PoolStatus,
    ThinPool,
    activate,
    create,
    create_snap,
    create_thin,
    deactivate,
    delete,
    devices,
    find,
    pool_status,
    reload,
    remove,
    resume,
    tell,
)
from minidocker.drivers import plain_root
from minidocker.durable import locked_file, turn
from minidocker.errors import MinidockerError, NotFoundError, UnsupportedError
from minidocker.loops import SECTOR, discard_range, hold_loop, loops_of, reread_size
from minidocker.mounts import (
    MountFlags,
    mounted,
)
from minidocker.poolrecords import (
    BASE,
    DEVICE_SET,
    FILE_SYSTEMS,
    TRANSACTION,
    UUID_AT,
    PoolOptions,
    Records,
    Thin,
)
from minidocker.records import Record


# %% Holding the pool
LOW_WATER = 512  # blocks of 64 KiB: 32 MiB
GONE = (errno.ENXIO, errno.ENOENT, errno.ENODEV)
PATIENCE = 10.0  # seconds for the kernel to take an old pool down


class Disks(Record):
    """Where a pool lies: ``home`` is the driver's directory, absolute."""

    home: str
    prefix: str
    options: PoolOptions

    @property
    def pool(self) -> ThinPool:
        """The pool as it is on disk: files, where a live one has loop devices."""
        place = f"{self.home}/devicemapper"
        name = f"{self.prefix}-pool"
        return ThinPool(name, f"{place}/metadata", f"{place}/data", LOW_WATER, "")

    def place(self, layer: str) -> str:
        """Return the directory that a layer's device is mounted on, made."""
        place = f"{self.home}/mnt/{layer}"
        os.makedirs(place, 0o700, exist_ok=True)
        return place


# %% Holding the pool
def find_disks(home: str, options: PoolOptions) -> Disks:
    """Return where the pool below ``home`` is, named after the directory's numbers."""
    os.makedirs(home, 0o700, exist_ok=True)
    st = os.stat(home)
    numbers = f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}-{st.st_ino}"
    fs = Records(f"{home}/metadata").read(DEVICE_SET).get("BaseDeviceFilesystem")
    options = options.replace(fs=fs) if fs in FILE_SYSTEMS else options
    return Disks(home, f"minidocker-{numbers}", options)


class Session:
    """The pool, held open: while a session lasts it stays."""

    def __init__(self, dm: DeviceMapper, pool: ThinPool, disks: Disks) -> None:
        self.dm, self.pool, self.disks = dm, pool, disks
        self.records = Records(f"{disks.home}/metadata")

    def status(self) -> PoolStatus:
        """Return the pool's figures."""
        return pool_status(self.dm, self.pool)

    def device(self, layer: str) -> str:
        """Return the name of a layer's block device."""
        return f"{self.disks.prefix}-{layer}"


# %% Holding the pool
def hold_pool(dm: DeviceMapper, disks: Disks) -> tuple[ThinPool, int]:
    """Return the pool with its devices, made if it is not there, and it open.

    The caller closes the descriptor, and holds the lock.
    """
    pool = disks.pool
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = find(dm, pool.name)
        if found:
            with suppress_gone():
                fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
                remove(dm, pool.name, deferred=True)  # who made it may have been killed
                return pool_there(dm, pool), fd
        elif os.path.exists(pool.metadata) and loops_of(pool.metadata):
            time.sleep(0.005)
        else:
            return new_pool(dm, pool, disks.options)
    raise UnsupportedError(f'the old pool "{pool.name}" does not go away')


def clear_halves(dm: DeviceMapper, disks: Disks) -> None:
    """Finish or undo what was killed between two steps; the caller holds the lock.

    A device without a table was being made, one that nobody has open was to be
    mounted, and one that is suspended was being copied or grown.
    """
    for name in devices(dm):
        if name.startswith(f"{disks.prefix}-") and (found := find(dm, name)):
            with suppress_gone(errno.EBUSY):
                if not found.targets:
                    remove(dm, name)
                elif found.suspended:
                    resume(dm, name)
                elif not found.opened and name != disks.pool.name:
                    remove(dm, name)


def clear_if_idle(dm: DeviceMapper, disks: Disks) -> None:
    """Do what ``clear_halves`` does, unless somebody holds the lock."""
    with locked_file(f"{disks.home}/lock") as ours:
        if ours:
            clear_halves(dm, disks)


@contextmanager
def suppress_gone(*also: int) -> Iterator[None]:
    """Pass over errors that say that what was there is gone, and over others."""
    try:
        yield
    except OSError as why:
        if why.errno not in (*GONE, *also):
            raise


def pool_there(dm: DeviceMapper, pool: ThinPool) -> ThinPool:
    """Return a pool that is there, with the loop devices of its table."""
    loops = [loops_of(path)[0] for path in (pool.metadata, pool.data)]
    return pool.replace(metadata=loops[0], data=loops[1])


# %% Holding the pool
def new_pool(
    dm: DeviceMapper, pool: ThinPool, options: PoolOptions
) -> tuple[ThinPool, int]:
    """Make the pool on loop devices; it goes when nobody has it open any more."""
    sizes = ((pool.metadata, options.metadata_size), (pool.data, options.data_size))
    for path, size in sizes:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        if not os.path.exists(path):
            with open(path, "xb") as file:
                file.truncate(size)
    metadata, one = hold_loop(pool.metadata, autoclear=True)
    data, two = hold_loop(pool.data, autoclear=True)
    try:
        real = pool.replace(metadata=metadata, data=data)
        made = create(dm, pool.name, real.table())
        fd = os.open(made.path, os.O_RDONLY | os.O_CLOEXEC)
        remove(dm, pool.name, deferred=True)
        return real, fd
    finally:
        os.close(one)
        os.close(two)


# %% Holding the pool
def metadata_low(total: int) -> int:
    """Return at how many free blocks of metadata the kernel raises its alarm.

    A quarter, and at most 4 MiB. Source: the kernel's drivers/md/dm-thin.c.

    >>> metadata_low(1024), metadata_low(16384)
    (256, 1024)
    """
    return min(1024, total // 4)


def scarce(now: PoolStatus, percent: int = 0) -> tuple[bool, bool]:
    """Whether data blocks and metadata blocks are few: the kernel's marks, or less
    than ``percent`` of all.
    """
    (used, total), (meta_used, meta_total) = now.data, now.metadata
    data = max(LOW_WATER, total * percent // 100)
    metadata = max(metadata_low(meta_total), meta_total * percent // 100)
    return total - used <= data, meta_total - meta_used <= metadata


def lengthen(path: str, device: str, by: int) -> bool:
    """Make a pool's file longer, and its loop device with it; whether there was room.

    A sparse file promises what the file system below may not have, so no more is
    promised than is free there.
    """
    found = os.statvfs(path)
    by = min(by, found.f_bavail * found.f_frsize) // CHUNK * CHUNK
    if not by:
        return False
    with open(path, "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + by)
    reread_size(device)
    return True


CHUNK = 1 << 20


# %% Holding the pool
def grow_if_low(session: Session, percent: int = 0) -> bool:
    """Give the pool more blocks of what it has few of; whether it has grown.

    ``percent``: grow, too, where less than that is free.
    """
    files, real, sizes = session.disks.pool, session.pool, session.disks.options
    few_data, few_metadata = scarce(session.status(), percent)
    grown = few_data and lengthen(files.data, real.data, sizes.data_size)
    if few_metadata:
        grown |= lengthen(files.metadata, real.metadata, sizes.metadata_size)
    if grown:
        reload(session.dm, real)
    return grown


def refuse_if_full(session: Session) -> None:
    """Raise MinidockerError where less is free than must be, and nothing can grow."""
    percent = session.disks.options.min_free
    grow_if_low(session, percent)
    now = session.status()
    for kind, (used, total) in (("data", now.data), ("metadata", now.metadata)):
        wanted = total * percent // 100
        if total - used < wanted:
            what = f"the thin pool has {total - used} free {kind} blocks"
            hint = "free some space below it, or change dm.min_free_space"
            raise MinidockerError(f"{what}, fewer than {wanted}", hint=hint)


# %% Transactions
def next_id(records: Records) -> int:
    """Count up and return the id of the next thin device, written down first."""
    found = records.read(DEVICE_SET)
    id = int(found.get("next_device_id", 1))
    after = found | {"next_device_id": id % ((1 << 24) - 1) + 1}
    records.write(DEVICE_SET, after)
    return id


def make_device(session: Session, layer: str, origin: int | None, parent: str) -> Thin:
    """Make a layer's thin device in one transaction; a snapshot if it has an origin.

    An origin that somebody still has mounted, if only in a copy of a mount namespace,
    is frozen meanwhile: what was written to it must be on its blocks.
    """
    refuse_if_full(session)
    number, records = session.status().transaction, session.records
    device = session.device(parent or BASE)
    active = device if find(session.dm, device) else ""
    while True:
        id = next_id(records)
        doing = {
            "open_transaction_id": number + 1,
            "device_hash": layer,
            "device_id": id,
        }
        records.write(TRANSACTION, doing)
        try:
            if origin is None:
                create_thin(session.dm, session.pool, id)
            else:
                create_snap(session.dm, session.pool, id, origin, active)
            break
        except SysError as why:
            if why.errno != errno.EEXIST:
                raise
    size = session.disks.options.base_size
    thin = Thin(id, size, number + 1, origin is not None, parent=parent)
    records.write(layer, thin)
    tell(session.dm, session.pool, f"set_transaction_id {number} {number + 1}")
    return thin


# %% Transactions
def recover(session: Session) -> None:
    """Undo a transaction that a crash left open, and finish what was being deleted."""
    doing = session.records.read(TRANSACTION)
    if int(doing.get("open_transaction_id", 0)) == session.status().transaction + 1:
        forget(session, str(doing["device_hash"]), int(doing["device_id"]))
        session.records.drop(TRANSACTION)


def discard_all(session: Session, layer: str, id: int) -> None:
    """Say that nothing on a thin device is needed; what others share stays."""
    try:
        thin = session.records.layer(layer)
        device = activate_layer(session, layer, thin.replace(device_id=id))
    except NotFoundError:
        return
    except SysError as why:
        if why.errno != errno.ENODATA:  # it was deleted, and its file was not
            raise
        return
    try:
        discard_range(device, 0, thin.size // SECTOR)
    finally:
        deactivate(session.dm, session.device(layer))


def forget(session: Session, layer: str, id: int) -> None:
    """Delete a thin device and its file; either may be gone already.

    Its block device may have gone a moment ago, and the kernel not be done with it.
    Deleting frees blocks for the pool; only a discard before frees them for the file
    system below, too.
    """
    deactivate(session.dm, session.device(layer))
    if session.disks.options.discard:
        discard_all(session, layer, id)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            delete(session.dm, session.pool, id)
        except SysError as why:
            if why.errno == errno.EBUSY and time.monotonic() < until:
                time.sleep(0.01)
                continue
            if why.errno != errno.ENODATA:
                raise
        break
    session.records.drop(layer)


# %% Transactions
@contextmanager
def open_session(disks: Disks) -> Iterator[Session]:
    """Hold the pool, and everybody else off, for a ``with`` block.

    What a crash left undone is undone first.
    """
    with turn(f"{disks.home}/lock"), DeviceMapper() as dm:
        clear_halves(dm, disks)
        pool, fd = hold_pool(dm, disks)
        try:
            session = Session(dm, pool, disks)
            recover(session)
            grow_if_low(session)
            yield session
        finally:
            os.close(fd)


# %% The base device
def base_device(session: Session) -> Thin:
    """Return the base device, made if there is none yet."""
    with suppress(NotFoundError):
        base = session.records.layer(BASE)
        if base.initialized:
            return base
        forget(session, BASE, base.device_id)
    base = make_device(session, BASE, None, "")
    fs = session.disks.options.fs
    device = activate_layer(session, BASE, base)
    try:
        make_file_system(device, fs)
        place = session.disks.place(BASE)
        with mounted(device, place, fs, MountFlags(0), FILE_SYSTEMS[fs].options):
            os.mkdir(f"{place}/rootfs")
            plain_root(f"{place}/rootfs")
        note_file_system(session.records, device, fs)
    finally:
        deactivate(session.dm, session.device(BASE))
    base = base.replace(initialized=True)
    session.records.write(BASE, base)
    return base


# %% The base device
def note_file_system(records: Records, device: str, fs: str) -> None:
    """Write down what the base device has: kind, and UUID from its superblock."""
    with open(device, "rb") as disk:
        disk.seek(UUID_AT[fs])
        uuid = disk.read(16).hex()
    parts = (uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])
    found = records.read(DEVICE_SET)
    found |= {"BaseDeviceUUID": "-".join(parts), "BaseDeviceFilesystem": fs}
    records.write(DEVICE_SET, found)


def make_file_system(device: str, fs: str) -> None:
    """Run mkfs. Raises UnsupportedError when it is not installed, or fails."""
    import subprocess

    command = [*FILE_SYSTEMS[fs].make, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as why:
        hint = f"install {'e2fsprogs' if fs == 'ext4' else 'xfsprogs'}"
        raise UnsupportedError(f"no program {command[0]}", hint=hint) from why
    if done.returncode:
        raise UnsupportedError(f"{command[0]} failed: {done.stderr.strip()}")


def activate_layer(session: Session, layer: str, thin: Thin) -> str:
    """Make the block device of a layer; return its path."""
    sectors = thin.size // SECTOR
    name = session.device(layer)
    return activate(session.dm, session.pool, name, thin.device_id, sectors)
