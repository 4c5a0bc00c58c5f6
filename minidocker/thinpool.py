# From book/185-thinpool.md. Edit there and tangle, or here and tangle --back.

# %% Thin pool: a disk of disks that is there when needed
"""A thin pool for layers, that the kernel takes down when nobody uses it.

On disk as Docker's, below ``devicemapper``: ``devicemapper/{data,metadata}`` are the
pool's two disks; ``metadata/<layer>`` says which thin device a layer is,
``metadata/deviceset-metadata`` and ``transaction-metadata`` what was being done.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.devices import (
    SECTOR,
    DeviceMapper,
    PoolStatus,
    ThinPool,
    activate,
    create,
    create_snap,
    create_thin,
    deactivate,
    delete,
    find,
    hold_loop,
    loops_of,
    pool_status,
    reload,
    remove,
    reread_size,
    tell,
)
from minidocker.drivers import plain_root
from minidocker.durable import replace_file, sync_path
from minidocker.errors import (
    NotFoundError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from minidocker.linux import SysError
from minidocker.mounts import (
    MountFlags,
    mounted,
)
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class PoolOptions(Record):
    """How a new pool is made; sizes in bytes.

    ``base_size`` is that of every layer's file system. ``data_size`` is what the pool
    starts with, and grows by when it runs low.
    """

    base_size: int = 10 << 30
    data_size: int = 4 << 30
    metadata_size: int = 64 << 20
    fs: str = "ext4"


OPTION_NAMES = {
    "dm.basesize": "base_size",
    "dm.loopdatasize": "data_size",
    "dm.loopmetadatasize": "metadata_size",
    "dm.fs": "fs",
}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return a size in bytes.

    >>> parse_size("10G"), parse_size("64m")
    (10737418240, 67108864)
    """
    number = text.rstrip("bB").rstrip("kKmMgGtT")
    unit = text.rstrip("bB")[len(number) :].upper()
    if not (number.isascii() and number.isdecimal()) or unit not in UNITS:
        raise UsageError(f'invalid size "{text}"', hint="such as 10G or 512M")
    return int(number) * UNITS[unit]


def parse_options(words: tuple[str, ...]) -> PoolOptions:
    """Read ``--storage-opt``. Raises UsageError for an unknown name or value."""
    options = PoolOptions()
    for word in words:
        name, _, text = word.partition("=")
        if name not in OPTION_NAMES:
            known = f"there are {', '.join(OPTION_NAMES)}"
            hint = did_you_mean(name, OPTION_NAMES, other=known)
            raise UsageError(f'unknown storage option "{name}"', hint=hint)
        if name == "dm.fs" and text not in FILE_SYSTEMS:
            raise UsageError(f'unknown file system "{text}"', hint="ext4 or xfs")
        value = text if name == "dm.fs" else parse_size(text)
        options = options.replace(**{OPTION_NAMES[name]: value})
    return options


# %% The nouns
class FileSystem(Record):
    """How one kind of file system is made, and with which options it is mounted."""

    make: tuple[str, ...]
    options: str


FILE_SYSTEMS = {
    "ext4": FileSystem(
        ("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
        "noinit_itable",
    ),
    "xfs": FileSystem(
        ("mkfs.xfs", "-q", "-K", "-m", "reflink=0"),
        "nouuid",  # every snapshot has the same
    ),
}


UUID_AT = {"ext4": 1024 + 104, "xfs": 32}  # bytes from the start of the device


class Thin(Record):
    """What ``metadata/<layer>`` says: which thin device a layer is.

    ``size`` is in bytes. ``parent`` is ours: Docker's driver is told it each time.
    """

    device_id: int
    size: int
    transaction_id: int
    initialized: bool = False
    deleted: bool = False
    parent: str = ""

    def to_json(self) -> bytes:
        """Return the file's text."""
        fields = {name: getattr(self, name) for name in self.__match_args__}
        return json.dumps(fields, separators=(",", ":")).encode()


# %% Files that say what was done
class Records:
    """The files below ``metadata``."""

    def __init__(self, home: str) -> None:
        self.home = home

    def read(self, name: str) -> dict[str, Any]:
        """Return what a file says; nothing if there is none."""
        try:
            with open(f"{self.home}/{name}", "rb") as file:
                found = json.load(file)
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, name: str, text: bytes) -> None:
        """Write a file whole, and synced."""
        os.makedirs(self.home, 0o700, exist_ok=True)
        replace_file(f"{self.home}/{name}", text)

    def drop(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.home}/{name}")
            sync_path(self.home)

    def layer(self, name: str) -> Thin:
        """Return the thin device of a layer. Raises NotFoundError."""
        found = self.read(name)
        if "device_id" not in found:
            raise NotFoundError(f'no such layer: "{name}"')
        return Thin(**{key: found[key] for key in Thin.__match_args__ if key in found})

    def layers(self) -> list[str]:
        """Return the names of all layers, sorted."""
        names = os.listdir(self.home) if os.path.isdir(self.home) else []
        return sorted(n for n in names if n not in NOT_LAYERS and "." not in n)


BASE = "base"
DEVICE_SET, TRANSACTION = "deviceset-metadata", "transaction-metadata"
NOT_LAYERS = {BASE, DEVICE_SET, TRANSACTION}


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
                return pool_there(dm, pool), fd
        elif os.path.exists(pool.metadata) and loops_of(pool.metadata):
            time.sleep(0.005)
        else:
            return new_pool(dm, pool, disks.options)
    raise UnsupportedError(f'the old pool "{pool.name}" does not go away')


@contextmanager
def suppress_gone() -> Iterator[None]:
    """Pass over errors that say: what was there a moment ago is gone."""
    try:
        yield
    except OSError as why:
        if why.errno not in GONE:
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
def grow_if_low(session: Session) -> bool:
    """Give the pool more data blocks when few are free; whether it was needed."""
    if session.status().free > session.pool.low_water:
        return False
    path = session.disks.pool.data
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(size + session.disks.options.data_size)
    reread_size(session.pool.data)
    reload(session.dm, session.pool)
    return True


# %% Transactions
def next_id(records: Records) -> int:
    """Count up and return the id of the next thin device, written down first."""
    found = records.read(DEVICE_SET)
    id = int(found.get("next_device_id", 1))
    after = found | {"next_device_id": id % ((1 << 24) - 1) + 1}
    records.write(DEVICE_SET, json.dumps(after, separators=(",", ":")).encode())
    return id


def make_device(session: Session, layer: str, origin: int | None, parent: str) -> Thin:
    """Make a layer's thin device in one transaction; a snapshot if it has an origin.

    An origin that somebody still has mounted, if only in a copy of a mount namespace,
    is frozen meanwhile: what was written to it must be on its blocks.
    """
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
        records.write(TRANSACTION, json.dumps(doing, separators=(",", ":")).encode())
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
    records.write(layer, thin.to_json())
    tell(session.dm, session.pool, f"set_transaction_id {number} {number + 1}")
    return thin


# %% Transactions
def recover(session: Session) -> None:
    """Undo a transaction that a crash left open, and finish what was being deleted."""
    doing = session.records.read(TRANSACTION)
    if int(doing.get("open_transaction_id", 0)) == session.status().transaction + 1:
        forget(session, str(doing["device_hash"]), int(doing["device_id"]))
        session.records.drop(TRANSACTION)


def forget(session: Session, layer: str, id: int) -> None:
    """Delete a thin device and its file; either may be gone already.

    Its block device may have gone a moment ago, and the kernel not be done with it.
    """
    deactivate(session.dm, session.device(layer))
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
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    lock = os.open(f"{disks.home}/lock", flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with DeviceMapper() as dm:
            pool, fd = hold_pool(dm, disks)
            try:
                session = Session(dm, pool, disks)
                recover(session)
                grow_if_low(session)
                yield session
            finally:
                os.close(fd)
    finally:
        os.close(lock)


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
    session.records.write(BASE, base.to_json())
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
    records.write(DEVICE_SET, json.dumps(found, separators=(",", ":")).encode())


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
