# From book/402-namespaces.md. Edit there and tangle, or here and tangle --back.

# %% Namespaces: what a process is allowed to see
"""What a container sees: namespaces, the mounts inside, pivot_root.

The mounts are a plan: a tuple of frozen records, each of which can apply itself
below a root directory that is given as a descriptor, and can describe itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from minidocker.calls import SysError
from minidocker.destinations import (
    PLACE,
    directory_in_root,
    file_in_root,
    magic,
    open_if_there,
    open_in_root,
    place_for,
    unlike,
)
from minidocker.errors import RuntimeFault
from minidocker.linux import CloneFlags, Resolve, openat2, pivot_root
from minidocker.mounts import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    OPEN_TREE_CLONE,
    MountAttr,
    MountFlags,
    UmountFlags,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)
from minidocker.records import Record


# %% Eight kinds
class Namespace(Record):
    """A kind of namespace: its name in /proc/PID/ns, its flag, what it keeps apart."""

    name: str
    flag: CloneFlags
    isolates: str


NAMESPACES = (
    Namespace("mnt", CloneFlags.NEWNS, "the tree of mounts"),
    Namespace("pid", CloneFlags.NEWPID, "process numbers; the first one is 1"),
    Namespace("uts", CloneFlags.NEWUTS, "the host name"),
    Namespace("ipc", CloneFlags.NEWIPC, "System V IPC and POSIX message queues"),
    Namespace("net", CloneFlags.NEWNET, "interfaces, addresses, routes, ports"),
    Namespace("cgroup", CloneFlags.NEWCGROUP, "where the cgroup tree seems to begin"),
    Namespace("user", CloneFlags.NEWUSER, "user ids and what root may do"),
    Namespace("time", CloneFlags.NEWTIME, "the monotonic and boot clocks"),
)


def flags_of(names: Iterable[str]) -> CloneFlags:
    """Return the flags of kinds that are named as in /proc/PID/ns."""
    by_name = {kind.name: kind.flag for kind in NAMESPACES}
    flags = CloneFlags(0)
    for name in names:
        flags |= by_name[name]
    return flags


def container_kinds(shared: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the kinds that a container has of its own: all but user, time, ``shared``.

    The user namespace is not made here: a process that is not root entered its own
    before it touched the store, and Docker gives root's containers none.
    """
    left_out = {"user", "time", *shared}
    return tuple(kind.name for kind in NAMESPACES if kind.name not in left_out)


# %% A word in /proc
def put(path: str, text: str) -> None:
    """Write ``text`` to a file of the kernel in one write, as the id maps demand."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def first_line(path: str) -> str:
    """Return the first line of a file, or nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:  # inside a container no codec can be loaded
            return file.readline().decode().strip()
    except OSError:
        return ""


# %% The plan is data
QUIET = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC


class MountStep(Record):
    """A step of the plan: it applies itself below a root, and tells what it is."""

    def ahead(self) -> MountStep:
        """Do what must come before the mounts are cut off; return what is to apply."""
        return self

    def apply(self, root: int) -> None:
        """Do it below the directory ``root``, a descriptor; nothing is kept open."""
        raise NotImplementedError

    def describe(self) -> tuple[str, str, str]:
        """Return destination, what, how."""
        raise NotImplementedError


def hidden_below(path: str) -> list[str]:
    """Return where something is mounted below a path, in our mount namespace."""
    with open("/proc/self/mountinfo", "rb") as file:
        places = {os.fsdecode(line.split()[4]) for line in file}
    return sorted(place for place in places if place.startswith(f"{path}/"))


def too_revealing(fstype: str, target: str) -> RuntimeFault:
    """Phrase that the kernel mounts no new proc or sysfs, and what it protects."""
    hidden = hidden_below("/proc" if fstype == "proc" else "/sys")
    what, hint = f"the kernel refuses a new {fstype}", "is this root in a container?"
    if hidden:
        more = f" and {len(hidden) - 1} more" if hidden[1:] else ""
        what += f": what is mounted on {hidden[0]}{more} hides a part of it"
        hint = (
            "start the container around us with --security-opt systempaths=unconfined"
        )
    return RuntimeFault(what, where=target, hint=hint)


class Filesystem(MountStep):
    """Mount a new file system at a directory; a link in its way is refused.

    With ``links`` one is followed, inside the root. ``source`` is its label. A tmpfs
    has the mode of the directory that it covers, unless ``data`` has one.
    """

    target: str
    fstype: str
    flags: MountFlags
    data: str = ""
    links: bool = False
    source: str = ""

    @property
    def label(self) -> str:
        """What /proc/mounts and df(1) show as the source."""
        return self.source or self.fstype

    def whole_data(self, root: int) -> str:
        """Return the data for a mount below ``root``."""
        told = self.fstype != "tmpfs" or "mode=" in self.data
        covered = None if told else open_if_there(root, self.target)
        if covered is None:
            return self.data
        mode = stat.S_IMODE(os.fstat(covered).st_mode)
        os.close(covered)
        return ",".join(filter(None, [self.data, f"mode={mode:04o}"]))

    def apply(self, root: int) -> None:
        """Mount it; the directory is made when it is missing."""
        data = self.whole_data(root)
        try:
            place = directory_in_root(root, self.target, links=self.links)
        except OSError as why:
            if why.errno == errno.ENOTDIR:
                raise unlike(f"a {self.fstype}", root, self.target) from why
            raise RuntimeFault(
                f"the image has no directory to mount {self.fstype} on: {why}",
                where=self.target,
            ) from why
        try:
            mount(self.label, magic(place), self.fstype, self.flags, data)
        except SysError as why:
            raise self.refused(why, data) from why
        finally:
            os.close(place)

    def refused(self, why: SysError, data: str) -> SysError | RuntimeFault:
        """Phrase why it cannot be mounted, where its number says too little."""
        if why.errno == errno.EPERM and self.fstype in ("proc", "sysfs"):
            return too_revealing(self.fstype, self.target)
        if why.errno == errno.EINVAL and self.fstype == "tmpfs":
            what = f'the kernel takes no tmpfs with the options "{data}"'
            return RuntimeFault(what, where=self.target)
        return why

    def describe(self) -> tuple[str, str, str]:
        how = ",".join(filter(None, [str_of(self.flags), self.data]))
        return self.target, self.fstype, how


def str_of(flags: MountFlags) -> str:
    """Write flags as mount(8) does."""
    words = ",".join((flag.name or "").lower() for flag in flags)
    return words.replace("rdonly", "ro")


# %% The plan is data
CLONE_TREE = OPEN_TREE_CLONE | AT_RECURSIVE


def attach_copy(tree: int, place: int, attributes: MountAttr) -> None:
    """Attach the detached copy ``tree`` at ``place``; both are closed."""
    try:
        if attributes:
            flags = AT_EMPTY_PATH | AT_RECURSIVE
            mount_setattr(tree, "", attributes, flags=flags)
        move_mount(tree, "", place)
    finally:
        os.close(tree)
        os.close(place)


class Bind(MountStep):
    """Show a path of the host at ``target``, with what is mounted below it.

    Device nodes in it can be opened only with ``devices``. With ``propagation``
    (``shared``, ``slave``) mounts of the host go on arriving; such a copy is made
    ``ahead``, and ``tree`` is its descriptor.
    """

    source: str
    target: str
    readonly: bool = False
    devices: bool = False
    propagation: str = ""
    recursive: bool = True
    tree: int = -1

    def ahead(self) -> MountStep:
        """Copy mounts that are to travel, while those of the host still do."""
        return self.replace(tree=self.copy()) if self.propagation else self

    def copy(self) -> int:
        """Return a detached copy of the source's mounts. Raises RuntimeFault."""
        flags = CLONE_TREE if self.recursive else OPEN_TREE_CLONE
        try:
            tree = open_tree(AT_FDCWD, self.source, flags)
        except SysError as why:
            if why.errno != errno.ENOENT:
                raise
            raise RuntimeFault("no such path on the host", where=self.source) from why
        if self.propagation == "slave":
            slave, how = MountFlags.SLAVE, AT_EMPTY_PATH | AT_RECURSIVE
            mount_setattr(tree, "", MountAttr(0), propagation=slave, flags=how)
        return tree

    def apply(self, root: int) -> None:
        """Attach a copy of the source's mounts; the target is made when missing."""
        tree = self.tree if self.tree >= 0 else self.copy()
        place = place_for(tree, self.source, root, self.target)
        attributes = MountAttr.RDONLY if self.readonly else MountAttr(0)
        if not self.devices:
            attributes |= MountAttr.NODEV
        attach_copy(tree, place, attributes)

    def describe(self) -> tuple[str, str, str]:
        return self.target, "bind", "ro" if self.readonly else "rw"


# %% The plan is data
class ReadOnly(MountStep):
    """Make what is at ``path`` read-only, by attaching a read-only copy over it."""

    path: str

    def apply(self, root: int) -> None:
        """Cover the path; nothing happens where the kernel has no such path."""
        place = open_if_there(root, self.path)
        if place is None:
            return
        tree = open_tree(place, "", CLONE_TREE | AT_EMPTY_PATH)
        attach_copy(tree, place, MountAttr.RDONLY)

    def describe(self) -> tuple[str, str, str]:
        return self.path, "readonly", "ro"


class Mask(MountStep):
    """Hide a path: a directory under an empty tmpfs, a file under /dev/null."""

    path: str

    def apply(self, root: int) -> None:
        """Cover the path; nothing happens where the kernel has no such path."""
        place = open_if_there(root, self.path)
        if place is None:
            return
        try:
            if stat.S_ISDIR(os.fstat(place).st_mode):
                mount("tmpfs", magic(place), "tmpfs", MountFlags.RDONLY, "size=0")
            else:
                mount("/dev/null", magic(place), None, MountFlags.BIND)
        finally:
            os.close(place)

    def describe(self) -> tuple[str, str, str]:
        return self.path, "mask", "ro"


# %% The plan is data
class Device(MountStep):
    """Show a device of the host in /dev, under the same name."""

    name: str

    def apply(self, root: int) -> None:
        """Attach the host's node over a new empty file; /dev is a tmpfs of ours."""
        dev = open_in_root(root, "/dev", links=False)
        tree = open_tree(AT_FDCWD, f"/dev/{self.name}", OPEN_TREE_CLONE)
        new = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            os.close(os.open(self.name, new, 0o666, dir_fd=dev))
            move_mount(tree, self.name, dev)
        finally:
            os.close(tree)
            os.close(dev)

    def describe(self) -> tuple[str, str, str]:
        return f"/dev/{self.name}", "device", "bind"


# %% The plan is data
class Content(MountStep):
    """Show a file that exists in memory only: made in /dev, bound, and unlinked."""

    target: str
    data: bytes
    mode: int = 0o400
    owner: tuple[int, int] = (0, 0)

    def apply(self, root: int) -> None:
        """Write the file and show it, read-only; the target is made when missing."""
        dev = directory_in_root(root, "/dev", links=False)
        name, new = ".content", os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(name, new, 0o600, dir_fd=dev), "wb") as file:
            file.write(self.data)
            os.fchown(file.fileno(), *self.owner)
            os.fchmod(file.fileno(), self.mode)
        tree = open_tree(dev, name, OPEN_TREE_CLONE)
        attach_copy(tree, file_in_root(root, self.target), MountAttr.RDONLY)
        os.unlink(name, dir_fd=dev)
        os.close(dev)

    def describe(self) -> tuple[str, str, str]:
        return self.target, "content", f"{len(self.data)} bytes"


class Link(MountStep):
    """Make a symbolic link in /dev."""

    name: str
    target: str

    def apply(self, root: int) -> None:
        """Make the link; /dev is a tmpfs of ours, so nothing is in the way."""
        dev = open_in_root(root, "/dev", links=False)
        try:
            os.symlink(self.target, self.name, dir_fd=dev)
        finally:
            os.close(dev)

    def describe(self) -> tuple[str, str, str]:
        return f"/dev/{self.name}", "link", f"-> {self.target}"


# %% The plan is data
class Sysctl(MountStep):
    """Write a value to /proc/sys; ``name`` has points, as for sysctl(8)."""

    name: str
    value: str

    def apply(self, root: int) -> None:
        """Write it in one call. Raises RuntimeFault with the kernel's answer."""
        proc = open_in_root(root, "/proc", PLACE | os.O_DIRECTORY, links=False)
        path = f"sys/{self.name.replace('.', '/')}"
        only_here = Resolve.BENEATH | Resolve.NO_XDEV | Resolve.NO_SYMLINKS
        try:
            place = openat2(proc, path, os.O_WRONLY, resolve=only_here)
            try:
                os.write(place, self.value.encode())
            finally:
                os.close(place)
        except OSError as why:
            what = f"cannot set sysctl {self.name} to {self.value}: {why.strerror}"
            raise RuntimeFault(what) from why
        finally:
            os.close(proc)

    def describe(self) -> tuple[str, str, str]:
        return f"/proc/sys/{self.name.replace('.', '/')}", "sysctl", self.value


# %% The old root goes
def keep_mounts_private() -> None:
    """Cut the caller's mount namespace off: no mount travels in or out."""
    mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)


def apply_mounts(plan: tuple[MountStep, ...], root: int) -> None:
    """Apply the steps in order below the directory ``root``.

    Raises RuntimeFault with the kernel's answer, and at which step.
    """
    before = os.umask(0)
    try:
        for step in plan:
            step.apply(root)
    except OSError as why:
        raise RuntimeFault(str(why), where=step.describe()[0]) from why
    finally:
        os.umask(before)


def pivot(root: int, *, travels: bool = False) -> None:
    """Make the mount that ``root`` is the top of the root; drop the old one.

    ``root`` is a descriptor. The caller is in its own mount namespace. Where the host's
    mounts travel in (``travels``), the old root is made a slave before it goes, or its
    going would travel out. Raises SysError: EINVAL when ``root`` is no mount point, or
    when the old root is the initramfs. Source: pivot_root(2), "pivot_root(".", ".")".
    """
    old = os.open("/", PLACE | os.O_DIRECTORY) if travels else -1
    os.fchdir(root)
    pivot_root(".", ".")
    if travels:
        os.fchdir(old)
        os.close(old)
        mount(None, ".", None, MountFlags.SLAVE | MountFlags.REC)
    umount2(".", UmountFlags.DETACH)
    os.chdir("/")


# %% A network of one
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def raise_loopback() -> None:
    """Bring up `lo` in the caller's network namespace. Source: netdevice(7)."""
    from _socket import AF_INET, SOCK_DGRAM, socket  # socket(7) alone: 1 ms, not 16
    from fcntl import ioctl

    request = b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, "little") + bytes(22)
    handle = socket(AF_INET, SOCK_DGRAM)
    try:
        ioctl(handle.fileno(), SIOCSIFFLAGS, request)
    finally:
        handle.close()
