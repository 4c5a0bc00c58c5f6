# From book/125-rootfs.md. Edit there and tangle, or here and tangle --back.

# %% Rootfs: what a machine runs on
"""What bootfs and rootfs are, and how a process is given another root."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence

from minidocker.errors import UnsupportedError
from minidocker.mounts import Mount, MountFlags, mount, mountinfo, place_of
from minidocker.records import Record


# %% On this machine
class Boot(Record):
    """What the kernel's command line says about the root file system."""

    device: str | None
    first_mounted: str


def boot_line(text: str | None = None) -> Boot:
    """Read a kernel command line, by default this machine's.

    >>> boot_line("BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet")
    Boot(device='/dev/sda1', first_mounted='ro')
    """
    if text is None:
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            text = file.read()
    words = shlex.split(text.replace("'", " "))
    device = [w.removeprefix("root=") for w in words if w.startswith("root=")]
    modes = [w for w in words if w in ("ro", "rw")]
    return Boot(device[-1] if device else None, modes[-1] if modes else "ro")


# %% On this machine
def root_mount(mounts: Sequence[Mount] | None = None) -> Mount:
    """Return the mount that ``/`` is, in this process or in ``mounts``.

    Raises UnsupportedError in a chroot, whose ``/`` need not be a mount.
    """
    tops = [m for m in (mounts or mountinfo()) if m.target == "/"]
    if mounts is None:  # of mounts that cover each other, statx(2) knows the last one
        here = place_of("/").mount_id
        tops = [m for m in tops if m.id == here] or tops
    if not tops:
        raise UnsupportedError("no mount is at /", hint="is this a chroot?")
    return tops[-1]


def is_writable(found: Mount) -> bool:
    """Whether a mount may be written to."""
    return "ro" not in found.options.split(",")


# %% From read-only to read-write
def remount_story(place: str) -> list[str]:
    """Mount a read-only file system on ``place``, remount it, and tell what happened.

    The calling process must have a mount namespace of its own.
    """
    told = []
    mount("tmpfs", place, "tmpfs", MountFlags.RDONLY)
    for step in ("mounted ro", "remounted rw"):
        try:
            with open(f"{place}/file", "w", encoding="ascii") as file:
                file.write("x")
            told.append(f"{step}: writing works")
        except OSError as why:
            told.append(f"{step}: {why.strerror}")
            mount("", place, "", MountFlags.REMOUNT)
    return told


def in_child(action: Callable[[], object]) -> str:
    """Call ``action`` in a forked child and return what it returns, as text.

    An error comes back as its text: the plain line that a reader wants.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        text = "the child ended early"
        try:
            text = str(action())
        except OSError as why:
            text = f"refused here: {why.strerror if why.filename else why}"
        except Exception as why:  # noqa: BLE001
            text = f"refused here: {why}"
        finally:
            os.write(write, text.encode())
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


# %% The simplest container there is
NOT_FOUND = 127


def enter(root: str, argv: Sequence[str]) -> int:
    """Run ``argv`` with ``root`` as its ``/``; return its exit status. Needs root.

    127 when the program is not there, 126 when it cannot be executed. The caller's own
    root stays. Source: chroot(2).
    """
    child = os.fork()
    if child == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            os.execvp(argv[0], list(argv))  # noqa: S606
        except FileNotFoundError:
            os._exit(NOT_FOUND)
        except OSError:
            os._exit(126)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# %% The simplest container there is
def escape(root: str) -> bool:
    """Chroot, get out again as root can, and say whether it worked. Needs root.

    Changes this process's root: call it in a child. Source: chroot(2), NOTES.
    """
    outside = os.stat("/").st_ino, os.stat("/").st_dev
    here = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot(root)
    os.fchdir(here)
    os.chroot(".")
    return (os.stat("/").st_ino, os.stat("/").st_dev) == outside
