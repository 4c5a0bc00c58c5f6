# From book/112-destinations.md. Edit there and tangle, or here and tangle --back.

# %% Destinations: places in a tree that cannot be trusted
"""Open places below a root that belongs to somebody else, and make what is missing.

No link leads out of the root, and what was opened stays what it was.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.calls import SysError
from minidocker.errors import RuntimeFault
from minidocker.linux import Resolve, openat2


# %% Opened, and never named twice
PLACE = os.O_PATH | os.O_CLOEXEC


def open_in_root(
    root: int, path: str, flags: int = PLACE, *, links: bool = True
) -> int:
    """Open ``path`` as a process would whose root is ``root``; the caller closes.

    ``links`` false refuses every symbolic link on the way, with ELOOP.
    """
    resolve = Resolve.IN_ROOT if links else Resolve.IN_ROOT | Resolve.NO_SYMLINKS
    return openat2(root, path, flags, resolve=resolve)


def open_if_there(root: int, path: str) -> int | None:
    """Open ``path`` below ``root``, or return None where there is no such path."""
    try:
        return open_in_root(root, path)
    except SysError as why:
        if why.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def directory_in_root(root: int, path: str, *, links: bool = True) -> int:
    """Open a directory below ``root``, making what is missing; the caller closes."""
    try:
        return open_in_root(root, path, PLACE | os.O_DIRECTORY, links=links)
    except SysError as why:
        if why.errno != errno.ENOENT or path in ("", "/"):
            raise
    parent, name = os.path.split(path.rstrip("/"))
    above = directory_in_root(root, parent or "/", links=links)
    try:
        with times_kept(above):
            os.mkdir(name, 0o755, dir_fd=above)
    except FileExistsError:
        pass  # somebody else made it, or it is a link to nowhere: the open says so
    finally:
        os.close(above)
    return open_in_root(root, path, PLACE | os.O_DIRECTORY, links=links)


# %% Opened, and never named twice
def magic(fd: int) -> str:
    """Return the path that leads to an open descriptor and nowhere else."""
    return f"/proc/self/fd/{fd}"


@contextmanager
def times_kept(directory: int) -> Iterator[None]:
    """Put an open directory's times back after a ``with`` block."""
    st = os.fstat(directory)
    try:
        yield
    finally:
        os.utime(magic(directory), ns=(st.st_atime_ns, st.st_mtime_ns))


# %% Places that are made
def file_in_root(root: int, path: str, hops: int = 8) -> int:
    """Open a file below ``root``, making it (and a link's target) when missing."""
    try:
        return open_in_root(root, path)
    except SysError as why:
        if why.errno != errno.ENOENT or not hops:
            raise
    parent, name = os.path.split(path)
    above = directory_in_root(root, parent or "/")
    try:
        target = os.readlink(name, dir_fd=above)
    except OSError:
        new = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with times_kept(above):
            os.close(os.open(name, new, 0o644, dir_fd=above))
        target = name
    finally:
        os.close(above)
    return file_in_root(root, os.path.join(parent, target), hops - 1)


# %% Of the same kind
def place_for(tree: int, source: str, root: int, target: str) -> int:
    """Open the place below ``root`` where a tree is to go; the caller closes.

    It is made when it is missing, of the tree's own kind. Raises RuntimeFault for one
    of the other kind. ``source`` names the tree.
    """
    is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    kind = "directory" if is_directory else "file"
    try:
        place = (directory_in_root if is_directory else file_in_root)(root, target)
    except SysError as why:
        if why.errno != errno.ENOTDIR:
            raise
        raise unlike(f"{source}, a {kind},", root, target) from why
    if not is_directory and stat.S_ISDIR(os.fstat(place).st_mode):
        os.close(place)
        raise unlike(f"{source}, a {kind},", root, target)
    return place


def unlike(source: str, root: int, target: str) -> RuntimeFault:
    """Phrase that what is at ``target``, or on the way to it, is of another kind."""
    there = open_if_there(root, target)
    if there is None:
        what = "a part of this path is a file"
    else:
        what = "a directory" if stat.S_ISDIR(os.fstat(there).st_mode) else "a file"
        what = f"this is {what} in the image"
        os.close(there)
    hint = "check that the host's path exists and is of the expected type"
    return RuntimeFault(f"cannot mount {source} here: {what}", where=target, hint=hint)
