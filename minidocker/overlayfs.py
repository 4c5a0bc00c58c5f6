# From book/140-overlayfs.md. Edit there and tangle, or here and tangle --back.

# %% Overlayfs: the union that the kernel makes
"""Overlayfs: mount many directories as one, as root or in a user namespace.

Lower directories are listed top-first everywhere in this module, as the kernel does.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.calls import SysError
from minidocker.errors import UnsupportedError
from minidocker.mounts import (
    MountFlags,
    UmountFlags,
    fs_messages,
    fsconfig_create,
    fsconfig_set_flag,
    fsconfig_set_string,
    fsmount,
    fsopen,
    is_first_user_namespace,
    mount,
    move_mount,
    umount2,
)
from minidocker.records import Record


# %% The noun
class Overlay(Record):
    """How a union is to be mounted. Paths are absolute and on the host.

    ``lowers`` is top-first. ``upper`` and ``work`` are empty directories of one file
    system at the first mount. ``userxattr`` keeps marks in ``user.overlay.*``, the only
    ones that a user namespace may write. ``volatile`` never syncs the upper directory:
    for what is thrown away. ``redirects`` renames merged directories by a mark, which
    no layer's tar can say; it needs root.
    """

    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    userxattr: bool = False
    volatile: bool = False
    redirects: bool = False

    def options(self) -> list[tuple[str, str | None]]:
        """Return the options of the mount, lower directories left out."""
        options: list[tuple[str, str | None]] = []
        if self.upper is not None:
            options += [("upperdir", self.upper), ("workdir", self.work)]
        if self.userxattr:
            options.append(("userxattr", None))
        elif self.upper is not None:  # the module may have other defaults
            options.append(("redirect_dir", "on" if self.redirects else "off"))
            options.append(("metacopy", "off"))
        if self.volatile and self.upper is not None:
            options.append(("volatile", None))
        return options

    def mount(self, target: str) -> None:
        """Mount the union on the directory ``target``; the caller unmounts."""
        mount_overlay(self, target)


# %% Mounting
MAX_LOWERS = 500


def mount_overlay(overlay: Overlay, target: str) -> None:
    """Mount ``overlay`` on the directory ``target``; the caller unmounts.

    Raises UnsupportedError with the kernel's own words where it refuses.
    """
    if len(overlay.lowers) > MAX_LOWERS:
        raise UnsupportedError(
            f"{len(overlay.lowers)} layers, and the kernel joins {MAX_LOWERS} at most",
            where=target,
        )
    if overlay.lowers and has_appending():
        mount_by_descriptor(overlay, target)
    else:
        mount_by_string(overlay, target)


# %% Mounting
def has_appending() -> bool:
    """Whether the kernel takes lower directories one by one (``lowerdir+``)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()))) >= (6, 8)


def mount_by_descriptor(overlay: Overlay, target: str) -> None:
    """Mount with fsopen, fsconfig, fsmount and move_mount."""
    try:
        context = fsopen("overlay")
    except SysError as why:
        raise refused(why, target, []) from why
    try:
        for lower in overlay.lowers:
            fsconfig_set_string(context, "lowerdir+", lower)
        for key, value in overlay.options():
            if value is None:
                fsconfig_set_flag(context, key)
            else:
                fsconfig_set_string(context, key, value)
        fsconfig_create(context)
        tree = fsmount(context)
    except SysError as why:
        raise refused(why, target, fs_messages(context)) from why
    finally:
        os.close(context)
    try:
        move_mount(tree, target)
    finally:
        os.close(tree)


# %% Mounting
def mount_by_string(overlay: Overlay, target: str) -> None:
    """Mount with mount(2), each directory named by a descriptor."""
    opened: list[int] = []

    def short(path: str) -> str:
        opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return f"/proc/self/fd/{opened[-1]}"

    try:
        words = ["lowerdir=" + ":".join(map(short, overlay.lowers))]
        for key, value in overlay.options():
            is_path = key in ("upperdir", "workdir")
            name = short(value) if value is not None and is_path else value
            words.append(key if name is None else f"{key}={name}")
        mount("overlay", target, "overlay", MountFlags(0), ",".join(words))
    except SysError as why:
        raise refused(why, target, []) from why
    finally:
        for descriptor in opened:
            os.close(descriptor)


# %% Mounting
def refused(why: OSError, target: str, messages: list[str]) -> UnsupportedError:
    """Return the error for a refused mount: the kernel's words, and what to do."""
    hints = {
        errno.ENODEV: "this kernel has no overlayfs: modprobe overlay",
        errno.EPERM: "mounting needs root, or a user namespace that may mount",
        errno.EACCES: "mounting needs root, or a user namespace that may mount",
        errno.ENOSYS: "this kernel, or a seccomp profile, has no fsopen(2)",
    }
    said = "; ".join(m[2:] for m in messages if m.startswith("e "))
    what = f"overlay refused: {said or why}"
    return UnsupportedError(what, where=target, hint=hints.get(why.errno or 0))


@contextmanager
def overlay_mounted(overlay: Overlay, target: str) -> Iterator[str]:
    """Mount ``overlay`` on ``target`` for the length of a block; yield ``target``."""
    mount_overlay(overlay, target)
    try:
        yield target
    finally:
        umount2(target, UmountFlags.DETACH | UmountFlags.NOFOLLOW)


# %% Marks on disk
OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file of an upper directory marks a deleted name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: str) -> bool:
    """Whether a directory of an upper directory hides what is below it.

    ``trusted.*`` is shown only to root of the first user namespace.
    """
    for name in OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError as why:
            if why.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                raise
    return False


# %% Marks on disk
def supported(scratch: str) -> None:
    """Raise UnsupportedError unless an overlay can be mounted on ``scratch``.

    ``scratch`` is an empty directory of the file system that is to hold layers.
    """
    names = ("lower", "upper", "work", "merged")
    lower, upper, work, merged = (os.path.join(scratch, name) for name in names)
    for path in (lower, upper, work, merged):
        os.mkdir(path)
    rootless = not is_first_user_namespace()
    overlay = Overlay((lower,), upper, work, userxattr=rootless)
    with overlay_mounted(overlay, merged):
        return
