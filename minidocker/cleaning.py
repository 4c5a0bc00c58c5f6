# From book/215-cleaning.md. Edit there and tangle, or here and tangle --back.

# %% Cleaning: what a layer should not say
"""Take out of a layer what is not its container's doing: mount points, and times."""

from __future__ import annotations

import os
import stat

from minidocker.drivers import StorageDriver
from minidocker.trees import remove_path


# %% Files to mount on
MOUNT_POINTS = (
    "/dev", "/dev/console", "/dev/mqueue", "/dev/pts", "/etc", "/etc/hostname",
    "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys",
    "/dev/shm",  # noqa: S108
)  # fmt: skip


def is_blank(path: str) -> bool:
    """Whether a path is a directory or an empty file."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(st.st_mode) or (stat.S_ISREG(st.st_mode) and not st.st_size)


def mount_points(
    driver: StorageDriver, layer: str, stubs: tuple[str, ...] = ()
) -> list[str]:
    """Return the paths of a layer that only mounts need, deepest first.

    ``stubs`` are further paths that something was mounted on.
    """
    from minidocker.changes import ChangeKind

    with driver.opened(layer) as tree:
        blank = {path for path in (*MOUNT_POINTS, *stubs) if is_blank(tree + path)}
    if not blank:
        return []
    added, needed = set(), set()
    for change in driver.changes(layer):
        if change.path in blank and change.kind is ChangeKind.ADDED:
            added.add(change.path)
        else:
            needed |= {path for path in blank if change.path.startswith(f"{path}/")}
    return sorted(added - needed, reverse=True)


# %% Files to mount on
def remove_mount_points(
    driver: StorageDriver, layer: str, stubs: tuple[str, ...] = ()
) -> bool:
    """Remove the files that were made to be mounted on; say whether there were any.

    Times stay as they are.
    """
    paths = mount_points(driver, layer, stubs)
    with driver.opened(layer, writable=True) as tree:
        for path in paths:
            above = os.path.dirname(tree + path)
            st = os.lstat(above)
            remove_path(tree + path)
            os.utime(above, ns=(st.st_atime_ns, st.st_mtime_ns))
    return bool(paths)


# %% Times that differ from build to build
def set_times_back(driver: StorageDriver, layer: str, epoch: int) -> None:
    """Set times after ``epoch`` (seconds) in a layer's own files to it."""
    from minidocker.changes import ChangeKind

    newest = epoch * 1_000_000_000
    with driver.opened(layer, writable=True) as tree:
        for change in driver.changes(layer):
            if change.kind is not ChangeKind.DELETED:
                path = tree + change.path
                if os.lstat(path).st_mtime_ns > newest:
                    os.utime(path, ns=(newest, newest), follow_symlinks=False)
