# From book/180-devices.md. Edit there and tangle, or here and tangle --back.

# %% Devices: device-mapper by ioctl
"""Device-mapper by ioctl: tables of devices, thin pools, snapshots, events.

Sizes and offsets of devices are in sectors of 512 bytes unless a name says otherwise.
All of it needs root. Failures are SysError, which prints the ioctl by name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Iterable

from minidocker.calls import Raw, SysError
from minidocker.errors import UnsupportedError
from minidocker.loops import sectors_of
from minidocker.records import IntEnum, IntFlag, Record


# %% The nouns of device-mapper
class Target(Record):
    """A line of a table: from sector ``start``, ``length`` sectors are served by it."""

    start: int
    length: int
    kind: str
    arguments: str = ""


class Reply(Record):
    """What the kernel says of a device. ``number`` is that of stat(2)'s st_rdev.

    ``events`` counts what happened to it; ``opened`` who has it open; ``targets`` the
    lines of its live table, 0 for one that has none.
    """

    name: str
    number: int
    opened: int
    events: int
    targets: int
    data: bytes
    suspended: bool

    @property
    def path(self) -> str:
        """The device's file, which the kernel itself makes."""
        return f"/dev/dm-{os.minor(self.number)}"

    @property
    def numbers(self) -> str:
        """``MAJOR:MINOR``, as tables name devices."""
        return f"{os.major(self.number)}:{os.minor(self.number)}"


# %% The nouns of device-mapper
class Call(IntEnum):
    """The commands, by number."""

    VERSION = 0
    LIST_DEVICES = 2
    DEV_CREATE = 3
    DEV_REMOVE = 4
    DEV_SUSPEND = 6
    DEV_STATUS = 7
    TABLE_LOAD = 9
    TABLE_STATUS = 12
    LIST_VERSIONS = 13
    TARGET_MSG = 14
    ARM_POLL = 16


class DmFlag(IntFlag):
    """Flags of a request, and of its answer."""

    READONLY = 1
    SUSPEND = 2
    STATUS_TABLE = 16
    BUFFER_FULL = 1 << 8
    NOFLUSH = 1 << 11
    DEFERRED_REMOVE = 1 << 17


# %% The nouns of device-mapper
DM = struct.Struct("=3IIIIiIIIQ128s129s7s")
ROOM = 16_384  # bytes for an answer, at first


class DeviceMapper:
    """The open control file; a context manager. One object for each thread."""

    def __init__(self, path: str = "/dev/mapper/control") -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as why:
            what = f"this kernel has no device-mapper: {why.strerror}"
            raise UnsupportedError(what, where=path, hint="modprobe dm_mod") from why

    def __enter__(self) -> DeviceMapper:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def call(
        self,
        call: Call,
        name: str = "",
        *,
        flags: DmFlag = DmFlag(0),  # noqa: B008
        payload: bytes = b"",
        targets: int = 0,
    ) -> Reply:
        """Make a request; raises SysError."""
        room = max(ROOM, DM.size + len(payload))
        number = 3 << 30 | DM.size << 16 | 0xFD << 8 | call  # _IOWR(0xfd, call, ...)
        while True:
            head = (4, 0, 0, room, DM.size, targets, 0, flags, 0, 0, 0)
            buffer = bytearray(DM.pack(*head, name.encode(), b"", b"") + payload)
            buffer.extend(bytes(room - len(buffer)))
            try:
                fcntl.ioctl(self.fd, number, buffer)
            except OSError as why:
                text = f'{self.fd}, DM_{call.name}, name="{name}"'
                raise SysError(why.errno or 0, "ioctl", Raw(text)) from why
            reply, full = read_reply(buffer)
            if not full:
                return reply
            room *= 2


# %% The nouns of device-mapper
def read_reply(buffer: bytearray) -> tuple[Reply, bool]:
    """Return an answer, and whether there was too little room for it."""
    words = DM.unpack_from(buffer)
    size, start, targets, opened, flags, events = words[3:9]
    name = text_at(words[11])
    data = bytes(buffer[start:size])
    suspended = bool(flags & DmFlag.SUSPEND)
    reply = Reply(name, words[10], opened, events, targets, data, suspended)
    return reply, bool(flags & DmFlag.BUFFER_FULL)


def text_at(field: bytes, start: int = 0) -> str:
    """Return the text in a field, up to its NUL."""
    return field[start:].partition(b"\0")[0].decode()


# %% Making a device
SPEC = struct.Struct("=QQiI16s")  # struct dm_target_spec


def packed(table: Iterable[Target]) -> bytes:
    """Return a table as TABLE_LOAD takes it: each line says where the next begins."""
    found = b""
    for line in table:
        text = line.arguments.encode() + b"\0"
        text += bytes(-len(text) % 8)
        size = SPEC.size + len(text)
        spec = SPEC.pack(line.start, line.length, 0, size, line.kind.encode())
        found += spec + text
    return found


def load(dm: DeviceMapper, name: str, table: list[Target]) -> None:
    """Put a table into the device's inactive place. Raises EINVAL for a bad one."""
    dm.call(Call.TABLE_LOAD, name, payload=packed(table), targets=len(table))


def resume(dm: DeviceMapper, name: str) -> None:
    """Swap the inactive table in, if there is one, and let requests through."""
    dm.call(Call.DEV_SUSPEND, name)


def suspend(dm: DeviceMapper, name: str) -> None:
    """Freeze the file system on a device, and hold new requests back."""
    dm.call(Call.DEV_SUSPEND, name, flags=DmFlag.SUSPEND)


def create(dm: DeviceMapper, name: str, table: list[Target]) -> Reply:
    """Make a device with a table; nothing is left when that fails.

    Raises EBUSY if the name is taken, EINVAL for a bad table.
    """
    reply = dm.call(Call.DEV_CREATE, name)
    try:
        load(dm, name, table)
        resume(dm, name)
    except SysError:
        dm.call(Call.DEV_REMOVE, name)
        raise
    return reply


# %% Making a device
def find(dm: DeviceMapper, name: str) -> Reply | None:
    """Return the device of that name, or None."""
    try:
        return dm.call(Call.DEV_STATUS, name)
    except SysError as why:
        if why.errno != errno.ENXIO:
            raise
        return None


def remove(dm: DeviceMapper, name: str, *, deferred: bool = False) -> None:
    """Remove a device; nothing if there is none. Raises EBUSY unless ``deferred``."""
    try:
        flags = DmFlag.DEFERRED_REMOVE if deferred else DmFlag(0)
        dm.call(Call.DEV_REMOVE, name, flags=flags)
    except SysError as why:
        if why.errno != errno.ENXIO:
            raise


def devices(dm: DeviceMapper) -> list[str]:
    """Return the names of all devices, sorted."""
    data, names, at = dm.call(Call.LIST_DEVICES).data, [], 0
    while len(data) >= at + 12:
        number, step = struct.unpack_from("=QI", data, at)  # struct dm_name_list
        names += [text_at(data, at + 12)] * bool(number)
        at += step
        if not step:
            break
    return sorted(names)


def status(dm: DeviceMapper, name: str, *, table: bool = False) -> list[Target]:
    """Return what each line of the live table says of itself, or the table itself."""
    flags = DmFlag.STATUS_TABLE if table else DmFlag(0)
    reply, lines, at = dm.call(Call.TABLE_STATUS, name, flags=flags), [], 0
    for _ in range(reply.targets):
        start, length, _, step, kind = SPEC.unpack_from(reply.data, at)
        text = text_at(reply.data, at + SPEC.size)
        lines.append(Target(start, length, text_at(kind), text))
        at = step  # counted from the first line
    return lines


# %% A thin pool
class PoolStatus(Record):
    """What a pool says of itself; numbers of blocks, and the state.

    ``mode`` is ``rw``, ``ro``, ``out_of_data_space`` or ``Fail``. ``needs_check`` means
    that the kernel found the metadata damaged.
    """

    transaction: int
    metadata: tuple[int, int]  # used, total; blocks of 4 KiB
    data: tuple[int, int]
    mode: str
    needs_check: bool

    @property
    def free(self) -> int:
        """The data blocks that nobody uses."""
        return self.data[1] - self.data[0]


def parse_status(line: str) -> PoolStatus:
    """Read a pool's status line.

    >>> parse_status("2 113/1024 145/640 - rw discard_passdown queue_if_no_space - 256")
    PoolStatus(transaction=2, metadata=(113, 1024), data=(145, 640), mode='rw', \
needs_check=False)
    """
    words = line.split()
    if len(words) < 8:
        return PoolStatus(0, (0, 0), (0, 0), words[0] if words else "Fail", True)
    used, total = (tuple(int(n) for n in word.split("/")) for word in words[1:3])
    check = words[7] == "needs_check"
    return PoolStatus(int(words[0]), used, total, words[4], check)  # type: ignore[arg-type]


# %% A thin pool
BLOCK = 128  # sectors: 64 KiB, Docker's choice


class ThinPool(Record):
    """A thin pool by name: its two devices, and the low water mark in free blocks.

    ``full`` is what a writer meets when no block is free: ``error_if_no_space`` is
    ENOSPC at once; without it, the writer waits a minute for the pool to grow.
    """

    name: str
    metadata: str
    data: str
    low_water: int = 0
    full: str = "error_if_no_space"

    def table(self) -> list[Target]:
        """Return the pool's table, for the size that its data device has now."""
        length = sectors_of(self.data) // BLOCK * BLOCK
        options = ["skip_block_zeroing", *([self.full] if self.full else [])]
        words = [
            self.metadata,
            self.data,
            BLOCK,
            self.low_water,
            len(options),
            *options,
        ]
        return [Target(0, length, "thin-pool", " ".join(map(str, words)))]


def pool_status(dm: DeviceMapper, pool: ThinPool) -> PoolStatus:
    """Return a pool's status; what is in flight is committed first."""
    return parse_status(status(dm, pool.name)[0].arguments)


def reload(dm: DeviceMapper, pool: ThinPool) -> None:
    """Give a pool the size of its grown data device, while it is in use."""
    load(dm, pool.name, pool.table())
    suspend(dm, pool.name)
    resume(dm, pool.name)


def tell(dm: DeviceMapper, pool: ThinPool, message: str) -> None:
    """Send a pool a message; raises what the kernel answers.

    EEXIST: the id is in use. ENODATA: there is no such id. EINVAL: not understood, or
    another transaction id than the pool's.
    """
    payload = struct.pack("=Q", 0) + message.encode() + b"\0"
    dm.call(Call.TARGET_MSG, pool.name, payload=payload)


# %% A thin pool
def create_thin(dm: DeviceMapper, pool: ThinPool, id: int) -> None:
    """Make an empty thin device in the pool's metadata."""
    tell(dm, pool, f"create_thin {id}")


def create_snap(
    dm: DeviceMapper, pool: ThinPool, id: int, origin: int, active: str = ""
) -> None:
    """Make a snapshot. ``active`` is the origin's device, if there is one now.

    It is suspended meanwhile, so that the snapshot has a whole file system. If it
    goes before, all of it is on its blocks already.
    """
    steady = bool(active) and still_there(suspend, dm, active)
    try:
        tell(dm, pool, f"create_snap {id} {origin}")
    finally:
        if steady:
            still_there(resume, dm, active)


def still_there(
    action: Callable[[DeviceMapper, str], None], dm: DeviceMapper, name: str
) -> bool:
    """Do something to a device; whether it was still there."""
    try:
        action(dm, name)
    except SysError as why:
        if why.errno != errno.ENXIO:
            raise
        return False
    return True


def delete(dm: DeviceMapper, pool: ThinPool, id: int) -> None:
    """Delete a thin device; its blocks are free unless another one uses them."""
    tell(dm, pool, f"delete {id}")


# %% A thin pool
def activate(dm: DeviceMapper, pool: ThinPool, name: str, id: int, sectors: int) -> str:
    """Make a block device of a thin device, unless there is one; return its path."""
    found = find(dm, name)
    if found is None:
        numbers = dm.call(Call.DEV_STATUS, pool.name).numbers
        found = create(dm, name, [Target(0, sectors, "thin", f"{numbers} {id}")])
    if not is_device(found):
        os.mknod(found.path, stat.S_IFBLK | 0o600, found.number)
    return found.path


def is_device(found: Reply) -> bool:
    """Whether /dev has the device's file, which it lacks where /dev is a tmpfs."""
    try:
        return os.stat(found.path).st_rdev == found.number
    except FileNotFoundError:
        return False


def deactivate(dm: DeviceMapper, name: str, patience: float = 1.0) -> None:
    """Remove a block device, and wait a little for its last user to let go.

    Raises EBUSY when ``patience``, in seconds, is at its end.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return remove(dm, name)
        except SysError as why:
            if why.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


# %% The alarm
def arm(dm: DeviceMapper) -> None:
    """Let the control file become readable at the next event from now on."""
    dm.call(Call.ARM_POLL)


def heard(dm: DeviceMapper, seconds: float) -> bool:
    """Wait for an event since `arm`, ``seconds`` at most; whether there was one."""
    poll = select.poll()
    poll.register(dm.fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
