# From book/178-loops.md. Edit there and tangle, or here and tangle --back.

# %% Loops: a file as a disk
"""Loop devices by ioctl: a file as a disk.

Sizes and offsets of devices are in sectors of 512 bytes unless a name says otherwise.
All of it needs root. Failures are SysError, which prints the ioctl by name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from minidocker.calls import Raw, SysError


# %% Asking a device
def ask(fd: int, name: str, number: int, buffer: bytes | int = 0) -> bytes:
    """Do an ioctl; return the buffer as the kernel left it. Raises SysError."""
    try:
        found = fcntl.ioctl(fd, number, buffer)
    except OSError as why:
        raise SysError(why.errno or 0, "ioctl", fd, Raw(name)) from why
    return found if isinstance(found, bytes) else b"%d" % found


def ask_device(
    path: str, name: str, number: int, buffer: bytes | int = 0, *, write: bool = False
) -> bytes:
    """Open a device, do an ioctl, close it."""
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return ask(fd, name, number, buffer)
    finally:
        os.close(fd)


# %% Bound to a file
LOOP_CLR_FD, LOOP_GET_STATUS64, LOOP_SET_CAPACITY = 0x4C01, 0x4C05, 0x4C07
LOOP_CONFIGURE, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
BLKGETSIZE64, BLKDISCARD = 0x80081272, 0x1277
LO_AUTOCLEAR = 4
SECTOR = 512

# struct loop_info64: device, inode, rdevice, offset, size limit; number, encryption
# (twice), flags; file name, cipher name and key; two spare words.
LOOP_INFO = struct.Struct("=5Q4I64s64s32s2Q")
LOOP_CONFIG = struct.Struct("=II232s64x")  # descriptor, block size, the info


def hold_loop(path: str, *, autoclear: bool = False) -> tuple[str, int]:
    """Bind a file to a free loop device; return the device's path, and it open.

    With ``autoclear`` the kernel unbinds it when nobody has it open any more; otherwise
    the caller detaches it. LOOP_CTL_GET_FREE only names a free one: where another
    process was faster we ask again. Source: loop(4).
    """
    flags = LO_AUTOCLEAR if autoclear else 0
    info = LOOP_INFO.pack(*[0] * 8, flags, os.fsencode(path)[:63], b"", b"", 0, 0)
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = ask_device(
                "/dev/loop-control", "LOOP_CTL_GET_FREE", LOOP_CTL_GET_FREE, write=True
            )
            device = f"/dev/loop{number.decode()}"
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                request = LOOP_CONFIG.pack(file, 0, info)
                ask(loop, "LOOP_CONFIGURE", LOOP_CONFIGURE, request)
            except SysError as why:
                os.close(loop)
                if why.errno != errno.EBUSY:
                    raise
            else:
                return device, loop
    finally:
        os.close(file)


# %% Bound to a file
def attach_loop(path: str) -> str:
    """Bind a file to a free loop device; return its path. The caller detaches it."""
    device, loop = hold_loop(path)
    os.close(loop)
    return device


def detach_loop(device: str) -> None:
    """Unbind a loop device, once nobody has it open. Raises ENXIO if it is unbound."""
    ask_device(device, "LOOP_CLR_FD", LOOP_CLR_FD)


# %% Bound to a file
def loops_of(path: str) -> list[str]:
    """Return the loop devices bound to a file, such as those that a crash left.

    By the file's numbers: its name is another one in another mount namespace.
    """
    wanted, found = os.stat(path), []
    for name in sorted(os.listdir("/sys/block")):
        if not os.path.exists(f"/sys/block/{name}/loop"):
            continue
        try:
            asked = ask_device(
                f"/dev/{name}",
                "LOOP_GET_STATUS64",
                LOOP_GET_STATUS64,
                bytes(LOOP_INFO.size),
            )
        except SysError:  # unbound meanwhile
            continue
        device, inode = LOOP_INFO.unpack(asked)[:2]
        if (device, inode) == (wanted.st_dev, wanted.st_ino):
            found.append(f"/dev/{name}")
    return found


def reread_size(device: str) -> None:
    """Let a loop device have the size that its file has now."""
    ask_device(device, "LOOP_SET_CAPACITY", LOOP_SET_CAPACITY)


def sectors_of(device: str) -> int:
    """Return the size of a block device."""
    answer = ask_device(device, "BLKGETSIZE64", BLKGETSIZE64, bytes(8))
    return int.from_bytes(answer, "little") // SECTOR


def discard_range(device: str, start: int, length: int) -> None:
    """Tell a device that a range of sectors is no longer needed."""
    words = struct.pack("=QQ", start * SECTOR, length * SECTOR)
    ask_device(device, "BLKDISCARD", BLKDISCARD, words, write=True)
