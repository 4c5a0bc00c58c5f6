# From book/110-mounts.md. Edit there and tangle, or here and tangle --back.

# %% Mounts: old calls and new
"""mount(2), the mount calls by descriptor, and /proc/self/mountinfo."""

from __future__ import annotations

import os
from _struct import pack, unpack_from
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.calls import LIBC, Constants, Flags, Raw, Word, check, room, syscall
from minidocker.records import Record


# %% The nouns
class MountFlags(Flags, prefix="MS_"):
    """Flags of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    MANDLOCK = 64
    DIRSYNC = 128
    NOSYMFOLLOW = 256
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    MOVE = 8192
    REC = 0x4000
    SILENT = 0x8000
    POSIXACL = 0x10000
    UNBINDABLE = 0x20000
    PRIVATE = 0x40000
    SLAVE = 0x80000
    SHARED = 0x100000
    RELATIME = 0x200000
    I_VERSION = 0x800000
    STRICTATIME = 0x1000000
    LAZYTIME = 0x2000000


class UmountFlags(Flags, prefix="MNT_"):
    """Flags of umount2(2)."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8

    def strace(self) -> str:
        """Return the flags; one of them has another prefix in C."""
        return super().strace().replace("MNT_NOFOLLOW", "UMOUNT_NOFOLLOW")


class MountAttr(Flags, prefix="MOUNT_ATTR_"):
    """Attributes of a mount, for fsmount(2) and mount_setattr(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOATIME = 0x10
    STRICTATIME = 0x20
    NODIRATIME = 0x80
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


# %% The nouns
MOUNT_WORDS = {
    "bind": MountFlags.BIND, "rbind": MountFlags.BIND | MountFlags.REC,
    "defaults": MountFlags(0), "dirsync": MountFlags.DIRSYNC,
    "acl": MountFlags.POSIXACL, "iversion": MountFlags.I_VERSION,
    "lazytime": MountFlags.LAZYTIME, "mand": MountFlags.MANDLOCK,
    "noatime": MountFlags.NOATIME, "nodev": MountFlags.NODEV,
    "nodiratime": MountFlags.NODIRATIME, "noexec": MountFlags.NOEXEC,
    "nosuid": MountFlags.NOSUID, "nosymfollow": MountFlags.NOSYMFOLLOW,
    "relatime": MountFlags.RELATIME, "remount": MountFlags.REMOUNT,
    "ro": MountFlags.RDONLY, "silent": MountFlags.SILENT,
    "strictatime": MountFlags.STRICTATIME, "sync": MountFlags.SYNCHRONOUS,
}  # fmt: skip


# %% The nouns
class Mount(Record):
    """One mount of this namespace (proc_pid_mountinfo(5))."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: str
    propagation: str
    fstype: str
    source: str
    super_options: str


def unescaped(text: str) -> str:
    r"""Return a path of mountinfo with its octal escapes undone.

    >>> unescaped(r"/a\040b")
    '/a b'
    """
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


# %% The nouns
def mountinfo(text: str | None = None) -> list[Mount]:
    """Return the mounts of this process, in mount order, or those of ``text``."""
    if text is None:
        with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
            text = lines.read()
    return [parse_mount(line) for line in text.splitlines()]


def parse_mount(line: str) -> Mount:
    """Return the mount that a line of mountinfo tells of.

    >>> parse_mount("36 35 98:0 /a /mnt rw,noatime master:1 - ext3 /dev/root rw").target
    '/mnt'
    """
    left, _, right = line.partition(" - ")
    number, parent, device, root, target, options, *propagation = left.split(" ")
    fstype, source, *super_options = right.split(" ")
    return Mount(
        int(number),
        int(parent),
        device,
        unescaped(root),
        unescaped(target),
        options,
        " ".join(propagation),
        fstype,
        unescaped(source),
        " ".join(super_options),
    )


# %% The old calls
def raw(text: str | None) -> bytes | None:
    """Return ``text`` as the kernel wants it."""
    return None if text is None else os.fsencode(text)


def mount(
    source: str | None,
    target: str,
    fstype: str | None,
    flags: MountFlags = MountFlags(0),  # noqa: B008
    data: str | None = None,
) -> None:
    """Mount, bind, remount or change propagation, as ``flags`` say.

    The caller unmounts. Raises EPERM without CAP_SYS_ADMIN in the user namespace that
    owns the mount namespace, ENODEV for an unknown file system, EINVAL for options
    that it does not take, EBUSY, ENOENT, ENOTDIR. Source: mount(2).
    """
    words = (raw(source), raw(target), raw(fstype), Word(flags), raw(data))
    check("mount", LIBC.mount(*words), source, target, fstype, flags, data)


def umount2(target: str, flags: UmountFlags = UmountFlags(0)) -> None:  # noqa: B008
    """Unmount what is on top at ``target``.

    Raises EINVAL where nothing is mounted, EBUSY where it is in use (without DETACH).
    Source: umount2(2).
    """
    check("umount2", LIBC.umount2(raw(target), int(flags)), target, flags)


@contextmanager
def mounted(
    source: str | None,
    target: str,
    fstype: str | None,
    flags: MountFlags = MountFlags(0),  # noqa: B008
    data: str | None = None,
) -> Iterator[str]:
    """Mount on ``target`` for the length of a ``with`` block; yield ``target``."""
    mount(source, target, fstype, flags, data)
    try:
        yield target
    finally:
        umount2(target, UmountFlags.DETACH | UmountFlags.NOFOLLOW)


# %% The new calls
class Fsopen(Flags, prefix="FSOPEN_"):
    """Flags of fsopen(2)."""

    CLOEXEC = 1


class Fsmount(Flags, prefix="FSMOUNT_"):
    """Flags of fsmount(2)."""

    CLOEXEC = 1


class Fsconfig(Constants, prefix="FSCONFIG_"):
    """What fsconfig(2) is to do."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6


class MoveMount(Flags, prefix="MOVE_MOUNT_"):
    """Flags of move_mount(2): F is about where from, T about where to."""

    F_EMPTY_PATH = 4
    T_EMPTY_PATH = 0x40


class Tree(Flags):
    """Flags of open_tree(2), mount_setattr(2) and statx(2), which share a word."""

    OPEN_TREE_CLONE = 1
    OPEN_TREE_CLOEXEC = os.O_CLOEXEC
    AT_SYMLINK_NOFOLLOW = 0x100
    AT_EMPTY_PATH = 0x1000
    AT_RECURSIVE = 0x8000


class Descriptor(Constants):
    """A number in the place of a directory's descriptor."""

    AT_FDCWD = -100


OPEN_TREE_CLONE = Tree.OPEN_TREE_CLONE
AT_EMPTY_PATH, AT_RECURSIVE = Tree.AT_EMPTY_PATH, Tree.AT_RECURSIVE
AT_FDCWD = Descriptor.AT_FDCWD


# %% The new calls
def fsopen(fstype: str) -> int:
    """Return a descriptor on which a file system is configured; the caller closes it.

    Raises ENODEV for an unknown type, EPERM. Source: fsopen(2).
    """
    return syscall("fsopen", fstype, Fsopen.CLOEXEC)


def fsconfig_set_string(context: int, key: str, value: str) -> None:
    """Set an option of a file system to be.

    Raises EINVAL for an option, or a value, that the file system does not take.
    Source: fsconfig(2).
    """
    syscall("fsconfig", context, Fsconfig.SET_STRING, key, value, 0)


def fsconfig_set_flag(context: int, key: str) -> None:
    """Switch on an option without a value. Raises EINVAL for an unknown one.

    Source: fsconfig(2).
    """
    syscall("fsconfig", context, Fsconfig.SET_FLAG, key, None, 0)


def fsconfig_create(context: int) -> None:
    """Make the file system from the options set so far.

    Raises what mount(2) would raise for them. Source: fsconfig(2).
    """
    syscall("fsconfig", context, Fsconfig.CMD_CREATE, None, None, 0)


def fsmount(context: int, attributes: MountAttr = MountAttr(0)) -> int:  # noqa: B008
    """Return a descriptor of a mount, attached nowhere, that dies with it.

    The caller closes it. Source: fsmount(2).
    """
    return syscall("fsmount", context, Fsmount.CLOEXEC, attributes)


def fs_messages(context: int) -> list[str]:
    """Return what the kernel wrote about an fsopen descriptor, oldest first.

    A line starts with ``e``, ``w`` or ``i`` and a space: error, warning, information.
    """
    messages = []
    while True:
        try:
            messages.append(os.read(context, 8192).decode(errors="replace").rstrip())
        except OSError:
            return messages


# %% The new calls
class Place(Record):
    """Where a path is: on the mount of this id, of mountinfo.

    ``is_top``: it is the directory at which that mount begins.
    """

    mount_id: int
    is_top: bool


STATX_MNT_ID, STATX_ATTR_MOUNT_ROOT = 0x1000, 0x2000


def place_of(path: str) -> Place:
    """Ask the kernel on which mount ``path`` is; a symbolic link is not followed.

    Raises ENOENT; ENOSYS in a sandbox without statx. Source: statx(2): stx_mnt_id,
    since Linux 5.8.
    """
    found, flags = room(256), Tree.AT_SYMLINK_NOFOLLOW
    show = (AT_FDCWD, path, flags, Raw("STATX_MNT_ID"))
    syscall("statx", AT_FDCWD, path, flags, STATX_MNT_ID, found, show=show)
    (attributes,) = unpack_from("Q", found, 8)
    (mount_id,) = unpack_from("Q", found, 144)
    return Place(mount_id, bool(attributes & STATX_ATTR_MOUNT_ROOT))


# %% The new calls
def move_mount(tree: int, target: str, directory: int = AT_FDCWD) -> None:
    """Attach the mount of a descriptor at ``target``, or at ``directory`` for "".

    Raises ENOENT, ENOTDIR for a file over a directory or the reverse, EINVAL where
    the parent mount is shared. Source: move_mount(2).
    """
    flags = MoveMount.F_EMPTY_PATH
    if not target:
        flags |= MoveMount.T_EMPTY_PATH
    syscall("move_mount", tree, "", directory, target, flags)


def open_tree(directory: int, path: str, flags: Tree = OPEN_TREE_CLONE) -> int:
    """Return a descriptor of a copy of the mount at ``path``, attached nowhere.

    AT_RECURSIVE copies what is mounted below too; AT_EMPTY_PATH with "" means the
    descriptor itself. The caller closes it, which unmounts what is not attached.
    Raises ENOENT, EPERM. Source: open_tree(2).
    """
    return syscall("open_tree", directory, path, flags | Tree.OPEN_TREE_CLOEXEC)


def mount_setattr(
    directory: int,
    path: str,
    set_: MountAttr,
    *,
    clear: MountAttr = MountAttr(0),  # noqa: B008
    propagation: MountFlags = MountFlags(0),  # noqa: B008
    userns: int = 0,
    flags: Tree = Tree(0),  # noqa: B008
) -> None:
    """Change attributes or the propagation of a mount; with AT_RECURSIVE, below too.

    With IDMAP the owners of files are shown by the maps of the user namespace
    ``userns``, a descriptor. All of it or none. Raises EINVAL where ``path`` is no
    mount, EPERM. Source: mount_setattr(2).
    """
    words = pack("=4Q", set_, clear, propagation, userns)

    def how() -> str:
        attributes = f"attr_set={set_.strace()}, attr_clr={clear.strace()}"
        rest = f"propagation={propagation.strace()}, userns_fd={userns}"
        return f"{{{attributes}, {rest}}}"

    show = (directory, path, flags, how, len(words))
    syscall("mount_setattr", directory, path, flags, words, len(words), show=show)


# %% The new calls
def is_first_user_namespace() -> bool:
    """Whether user ids are not mapped: the whole range stands for itself."""
    with open("/proc/self/uid_map", "rb") as lines:
        return lines.read().split() == [b"0", b"0", b"4294967295"]
