# From book/421-sharing.md. Edit there and tangle, or here and tangle --back.

# %% Sharing: in the namespaces of another container
"""Clone in another's pid namespace; show another's shared memory."""

from __future__ import annotations

import errno
import os

from minidocker.calls import SysError
from minidocker.linux import CloneFlags, clone3, pidfd_open, setns
from minidocker.mounts import AT_FDCWD, open_tree
from minidocker.namespaces import CLONE_TREE, Bind, MountStep


# %% Born elsewhere
def clone_by_another(
    target: int, flags: CloneFlags, group: int = -1
) -> tuple[int, int]:
    """Clone in another's pid namespace by a child that enters it, without root.

    Who is there cannot come back to a namespace that the host's root owns. What it
    clones is our child, not its own. ``group``, of version 2 or -1, is closed.
    """
    heard, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            setns(target, CloneFlags.NEWPID)
            pid, _ = clone3(flags | CloneFlags.PARENT, cgroup=group)
        except OSError as why:
            pid = -(why.errno or errno.EPERM)
        if pid:
            os.write(told, b"%d" % pid)
            os._exit(0)
        for fd in (heard, told):
            os.close(fd)
        return 0, -1
    os.close(told)
    os.waitpid(middle, 0)
    with open(heard, encoding="ascii") as file:
        number = int(file.read() or 0)
    if group >= 0:
        os.close(group)
    if number <= 0:
        raise SysError(-number, "clone3", flags)
    return number, pidfd_open(number)


# %% Shared memory
class SharedMemory(MountStep):
    """Show the /dev/shm of another container; ``mounts`` is its mount namespace."""

    mounts: str

    def ahead(self) -> MountStep:
        """Copy it from inside, and come back."""
        paths, flags = (self.mounts, "/proc/self/ns/mnt"), os.O_RDONLY | os.O_CLOEXEC
        theirs, home = (os.open(path, flags) for path in paths)
        try:
            setns(theirs, CloneFlags.NEWNS)
            tree = open_tree(AT_FDCWD, "/dev/shm", CLONE_TREE)  # noqa: S108
        finally:
            setns(home, CloneFlags.NEWNS)
            os.close(theirs)
            os.close(home)
        return Bind(self.mounts, "/dev/shm", tree=tree)  # noqa: S108

    def describe(self) -> tuple[str, str, str]:
        return "/dev/shm", "shared", "rw"  # noqa: S108
