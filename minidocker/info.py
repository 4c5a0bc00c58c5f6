# From book/54-info.md. Edit there and tangle, or here and tangle --back.

# %% Info: what this kernel lets us do
"""Try what containers need from the kernel, and say what follows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from minidocker.errors import MinidockerError
from minidocker.linux import CloneFlags, unshare
from minidocker.namespaces import (
    enter_user_namespace,
    keep_mounts_private,
    why_no_user_namespace,
)
from minidocker.overlayfs import supported
from minidocker.records import Record


# %% A finding
class Finding(Record):
    """What was tried, whether it works, and what follows."""

    name: str
    works: bool
    follows: str


# %% A finding
def attempt(action: Callable[[], None]) -> str:
    """Do ``action`` in a child; return nothing, or why it failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except (OSError, MinidockerError) as why:
            os.write(write, str(why).encode()[:1000])
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def new_user_namespace() -> None:
    """Enter a user namespace of our own."""
    unshare(CloneFlags.NEWUSER)


def new_namespaces() -> None:
    """Enter the namespaces of a container."""
    kinds = CloneFlags.NEWNS | CloneFlags.NEWPID | CloneFlags.NEWUTS
    kinds |= CloneFlags.NEWIPC | CloneFlags.NEWNET | CloneFlags.NEWCGROUP
    if os.geteuid() != 0:
        kinds |= CloneFlags.NEWUSER
    unshare(kinds)


def an_overlay() -> None:
    """Mount an overlay on a directory of our own."""
    with tempfile.TemporaryDirectory() as scratch:
        if os.geteuid() == 0:
            unshare(CloneFlags.NEWNS)
            keep_mounts_private()
        else:
            enter_user_namespace()
        supported(scratch)


# %% The list
def usable(path: str) -> bool:
    """Whether a device is there and may be opened for reading and writing."""
    return os.access(path, os.R_OK | os.W_OK)


def cgroup_version() -> int:
    """Return 2, 1, or 0 when no control groups are mounted."""
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return 2
    return 1 if os.path.isdir("/sys/fs/cgroup/memory") else 0


def findings() -> list[Finding]:
    """Try everything; the names are those of `info`."""
    root = os.geteuid() == 0
    user = attempt(new_user_namespace)
    spaces, overlay = attempt(new_namespaces), attempt(an_overlay)
    cgroups = cgroup_version()
    mapper, fuse = usable("/dev/mapper/control"), usable("/dev/fuse")
    return [
        Finding(
            "Namespaces",
            not spaces,
            spaces or "containers are isolated" + ("" if root else ", without root"),
        ),
        Finding(
            "User namespaces",
            not user,
            why_no_user_namespace()
            if user
            else "users without root can run containers",
        ),
        Finding(
            "Overlayfs",
            not overlay,
            f"layers are copied (vfs): {overlay}" if overlay else "driver overlay2",
        ),
        Finding(
            "Control groups",
            cgroups > 0,
            f"version {cgroups}" if cgroups else "no limits of memory and processor",
        ),
        Finding(
            "Device mapper",
            mapper,
            "thin snapshots are possible" if mapper else "no driver devicemapper",
        ),
        Finding(
            "FUSE",
            fuse,
            "file systems in user space" if fuse else "not needed by any driver",
        ),
    ]
