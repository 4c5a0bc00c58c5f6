# From book/143-union-mount.md. Edit there and tangle, or here and tangle --back.

# %% Union mount: the model, served to every program
"""Serve a union of directories at a mount point, by FUSE.

Needs /dev/fuse, libfuse and the package mfusepy: ``pip install minidocker[fuse]``.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from minidocker.encodings import DiskBranch, Notation
from minidocker.errors import NotFoundError, UnsupportedError, UsageError
from minidocker.operations import Union
from minidocker.union import BranchKind, Kind, Node, failure, names, need, parent


# %% The branches
WORDS = {
    "rw": BranchKind.READ_WRITE,
    "wo": BranchKind.WHITEOUT_ABLE,
    "ro": BranchKind.READ_ONLY,
}


class ServedBranch(DiskBranch):
    """A branch that libfuse keeps deleted files in, while they are open."""

    def children(self, path: str) -> list[str]:
        """List what is not libfuse's own."""
        found = super().children(path)
        return [name for name in found if not name.startswith(".fuse_hidden")]


# %% The branches
def branch_of(word: str, notation: Notation) -> DiskBranch:
    """Return the branch that a word like ``ro=/layers/a`` names.

    Raises UsageError for what is no such word, NotFoundError for what is no directory.
    """
    kind, equals, root = word.partition("=")
    if kind not in WORDS or not equals or not root:
        hint = "a branch is rw=DIRECTORY, wo=DIRECTORY or ro=DIRECTORY"
        raise UsageError(f'"{word}" is no branch', hint=hint)
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise NotFoundError("there is no such directory", where=root)
    return ServedBranch(root, WORDS[kind], root, notation)


def union_of(words: Sequence[str], notation: Notation = Notation.AUFS) -> Union:
    """Return the union of some branches, top-first; the one that is ``rw`` on top."""
    branches = [branch_of(word, notation) for word in words]
    branches.sort(key=lambda branch: branch.kind is not BranchKind.READ_WRITE)
    if len(branches) > 1 and branches[1].kind is BranchKind.READ_WRITE:
        raise UsageError("two branches are rw: only one can take the changes")
    return Union(branches)


# %% Answering
Attributes = dict[str, int]
FIELDS = "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_rdev"
TIMES = "st_atime", "st_mtime", "st_ctime"
PRIVATE = "trusted.overlay.", "user.overlay.", "system."
WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


class Looking:
    """The messages that change nothing. Paths begin with a slash."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True  # a file's handle is enough

    def __init__(self, union: Union, caller: Callable[[], tuple[int, int]]) -> None:
        self.union, self.caller = union, caller
        self.disks: dict[int, int] = {}
        self.listings: dict[int, str] = {}

    def where(self, path: str) -> str:
        """Return where on the host the thing lies that is seen. Raises ENOENT."""
        need(self.union, path[1:])
        place = self.union.stack(path[1:])[0]
        if not isinstance(place.branch, DiskBranch):
            raise failure(errno.ENXIO, path)
        return place.branch.where(place.path)

    def attributes(self, st: os.stat_result) -> Attributes:
        """Return what the kernel wants to know; inode numbers of many disks in one."""
        disk = self.disks.setdefault(st.st_dev, len(self.disks))
        found = {name: getattr(st, name) for name in FIELDS}
        found |= {name: getattr(st, f"{name}_ns") for name in TIMES}
        return found | {"st_ino": st.st_ino ^ (disk << 48)}

    def getattr(self, path: str | None, handle: int | None = None) -> Attributes:
        """Answer GETATTR and LOOKUP."""
        if path is None:
            return self.attributes(os.fstat(handle or 0))
        return self.attributes(os.lstat(self.where(path)))

    def readlink(self, path: str) -> str:
        """Answer READLINK."""
        return os.readlink(self.where(path))

    def opendir(self, path: str) -> int:
        """Answer OPENDIR: remember which directory it is."""
        number = max(self.listings, default=0) + 1
        self.listings[number] = path
        return number

    def readdir(
        self, _: str | None, handle: int
    ) -> Iterator[tuple[str, Attributes, int]]:
        """Answer READDIR: the merged names, each with its kind and number."""
        path = self.listings[handle]
        for name in (".", ".."):
            yield name, self.getattr(path), 0
        for name in names(self.union, path[1:]):
            with suppress(FileNotFoundError):
                yield name, self.getattr(f"{path.rstrip('/')}/{name}"), 0

    def releasedir(self, _: str | None, handle: int) -> None:
        """Answer RELEASEDIR."""
        del self.listings[handle]

    def statfs(self, path: str) -> Attributes:
        """Answer STATFS with what the top branch's disk says."""
        found = os.statvfs(self.where("/"))
        return {n: getattr(found, n) for n in dir(found) if n.startswith("f_")}

    def getxattr(self, path: str, name: str, *_: int) -> bytes:
        """Answer GETXATTR; the union's own marks are nobody's."""
        if name.startswith(PRIVATE):
            raise failure(errno.ENOTSUP, path)
        return os.getxattr(self.where(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        """Answer LISTXATTR."""
        found = os.listxattr(self.where(path), follow_symlinks=False)
        return [name for name in found if not name.startswith(PRIVATE)]


# %% Answering
KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.PIPE,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.DEVICE,
    stat.S_IFBLK: Kind.DEVICE,
}


class Naming(Looking):
    """The messages that make and take names."""

    def make(self, path: str, kind: Kind, mode: int, data: bytes = b"") -> None:
        """Make a node that belongs to whoever asked. Raises EEXIST."""
        uid, gid = self.caller()
        mode = stat.S_IMODE(mode)
        above = need(self.union, parent(path[1:]))
        if above.mode & stat.S_ISGID:
            gid = above.gid
            mode |= stat.S_ISGID if kind is Kind.DIRECTORY else 0
        if data == b"c 0 0":
            raise failure(errno.EPERM, path)
        node = Node(kind, data, mode, uid, gid)
        self.union.create(self.union.free(path), node)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """Answer MKNOD."""
        kind = KINDS.get(stat.S_IFMT(mode) or stat.S_IFREG)
        if kind is None:
            raise failure(errno.EINVAL, path)
        letter = "b" if stat.S_ISBLK(mode) else "c"
        numbers = f"{letter} {os.major(device)} {os.minor(device)}".encode()
        self.make(path, kind, mode, numbers if kind is Kind.DEVICE else b"")

    def mkdir(self, path: str, mode: int) -> None:
        """Answer MKDIR."""
        self.make(path, Kind.DIRECTORY, mode)

    def symlink(self, path: str, target: str) -> None:
        """Answer SYMLINK."""
        self.make(path, Kind.SYMLINK, 0o777, os.fsencode(target))

    def link(self, new: str, old: str) -> None:
        """Answer LINK."""
        self.union.link(old, new)

    def unlink(self, path: str) -> None:
        """Answer UNLINK."""
        self.union.unlink(path)

    def rmdir(self, path: str) -> None:
        """Answer RMDIR."""
        self.union.rmdir(path)

    def rename(self, old: str, new: str) -> None:
        """Answer RENAME."""
        self.union.rename(old, new)


# %% Answering
class Serving(Naming):
    """The messages about open files, and about what is known of a file."""

    def upper(self, path: str) -> str:
        """Copy up what is seen at ``path``; return where on the host it lies then."""
        self.union.copy_up(path[1:])
        return self.where(path)

    def open(self, path: str, flags: int) -> int:
        """Answer OPEN: the handle is a descriptor of ours."""
        full = self.upper(path) if flags & WRITES else self.where(path)
        return os.open(full, flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)

    def create(self, path: str, mode: int, flags: int) -> int:
        """Answer CREATE."""
        self.make(path, Kind.FILE, mode)
        kept = flags & ~(os.O_EXCL | os.O_CREAT) | os.O_CLOEXEC
        return os.open(self.where(path), kept)

    def read(self, _: str | None, size: int, offset: int, handle: int) -> bytes:
        """Answer READ."""
        return os.pread(handle, size, offset)

    def write(self, _: str | None, data: bytes, offset: int, handle: int) -> int:
        """Answer WRITE."""
        return os.pwrite(handle, data, offset)

    def release(self, _: str | None, handle: int) -> None:
        """Answer RELEASE."""
        os.close(handle)

    def fsync(self, _: str | None, only_data: int, handle: int) -> None:
        """Answer FSYNC."""
        (os.fdatasync if only_data else os.fsync)(handle)

    def truncate(self, path: str | None, size: int, handle: int | None = None) -> None:
        """Answer SETATTR of a size."""
        if handle is not None:
            os.ftruncate(handle, size)
        elif path is not None:
            os.truncate(self.upper(path), size)

    def chmod(self, path: str, mode: int) -> None:
        """Answer SETATTR of a mode."""
        self.union.change(path[1:], mode=stat.S_IMODE(mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Answer SETATTR of an owner; -1 leaves one as it is."""
        self.union.change(path[1:], uid=uid, gid=gid)

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        """Answer SETATTR of times, in nanoseconds; two values mean now, and neither."""
        full = self.upper(path)
        st, now = os.lstat(full), time.time_ns()
        old = st.st_atime_ns, st.st_mtime_ns
        wanted = [
            {UTIME_NOW: now, UTIME_OMIT: was}.get(new, new)
            for new, was in zip(times, old, strict=True)
        ]
        os.utime(full, ns=(wanted[0], wanted[1]), follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int, *_: int) -> None:
        """Answer SETXATTR."""
        if name.startswith(PRIVATE):
            raise failure(errno.ENOTSUP, path)
        if flags == os.XATTR_REPLACE:
            self.getxattr(path, name)
        os.setxattr(self.upper(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        """Answer REMOVEXATTR."""
        self.getxattr(path, name)
        os.removexattr(self.upper(path), name, follow_symlinks=False)


# %% Mounting
RENAME_NOREPLACE = 1  # the kernel itself sees to it
Fuse = Callable[..., object]


def libfuse() -> tuple[Fuse, Callable[[], tuple[int, int]]]:
    """Return what mounts and serves, and what says who asks.

    Raises UnsupportedError where the package, libfuse or the device is missing.
    """
    try:
        import mfusepy
    except ImportError as why:
        hint = "pip install minidocker[fuse]"
        raise UnsupportedError("the package mfusepy is missing", hint=hint) from why
    except (OSError, AttributeError) as why:
        hint = "install fuse3 (Debian), which has libfuse"
        raise UnsupportedError(f"libfuse cannot be used: {why}", hint=hint) from why

    class Mount(mfusepy.FUSE):  # type: ignore[misc]
        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            if flags & ~RENAME_NOREPLACE:
                return -errno.EINVAL
            return int(self.rename_fuse_2(old, new) or 0)

        def truncate_fuse_3(self, path: bytes | None, size: int, info: object) -> int:
            handle = info.contents.fh if info else None  # type: ignore[attr-defined]
            self.operations.truncate(path and os.fsdecode(path), size, handle)
            return 0

    return Mount, lambda: mfusepy.fuse_get_context()[:2]


def ready(target: str) -> None:
    """Raise an error that says why nothing can be mounted on ``target``, if so."""
    if not os.path.isdir(target):
        raise NotFoundError("there is no such directory", where=target)
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as why:
        absent = why.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = "modprobe fuse" if absent else "only root may open it here"
        raise UnsupportedError(str(why.strerror), where="/dev/fuse", hint=hint) from why


# %% Mounting
def serve(union: Union, target: str, *, background: bool = False) -> None:
    """Mount ``union`` on ``target`` and answer until it is unmounted.

    ``background``: return as soon as it is mounted, by ending this process; another
    one answers. SIGINT and SIGTERM unmount. Raises UnsupportedError.
    """
    ready(target)
    mount, caller = libfuse()
    root = os.geteuid() == 0
    os.umask(0)
    options = dict.fromkeys(("attr_timeout", "entry_timeout", "negative_timeout"), 0)
    try:
        mount(
            Serving(union, caller),
            os.path.abspath(target),
            foreground=not background,
            nothreads=True,
            default_permissions=True,
            use_ino=True,
            allow_other=root,
            dev=root,
            suid=root,
            fsname="minidocker",
            subtype="union",
            **options,
        )
    except RuntimeError as why:
        what = f"libfuse ends with status {why}"
        raise UnsupportedError(what, where=target) from why
