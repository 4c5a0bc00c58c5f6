# From book/115-trees.md. Edit there and tangle, or here and tangle --back.

# %% Trees: copying and removing them whole
"""Copy and remove trees of files, whatever is in them.

Links, owners, times, holes, devices and extended attributes survive a copy. Nothing
follows a symbolic link, and no depth is too deep.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from minidocker.errors import UnsupportedError


Xattrs = tuple[tuple[bytes, bytes], ...]
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# %% Names are bytes
def printable(name: bytes) -> str:
    r"""Return a name as one line of text.

    >>> printable(b"two\nlines \xff")
    'two\\nlines \\xff'
    """
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_directory(base: bytes, dir_fd: int) -> bool:
    """Whether ``base`` is a directory itself, not a link to one."""
    return stat.S_ISDIR(os.stat(base, dir_fd=dir_fd, follow_symlinks=False).st_mode)


# %% Extended attributes
def kept(name: str) -> bool:
    """Whether an extended attribute travels with a layer.

    >>> kept("user.mood"), kept("user.overlay.opaque"), kept("trusted.overlay.opaque")
    (True, False, False)
    """
    if name.startswith("user."):
        return not name.startswith("user.overlay.")
    return name == "security.capability"


def xattrs_of(path: str | int) -> Xattrs:
    """Return the extended attributes that travel, sorted by name."""
    follow = isinstance(path, int)
    names = os.listxattr(path, follow_symlinks=follow)
    return tuple(
        (os.fsencode(n), os.getxattr(path, n, follow_symlinks=follow))
        for n in sorted(names)
        if kept(n)
    )


# %% Extended attributes
def set_xattrs(fd: int, wanted: Xattrs, *, exact: bool) -> None:
    """Set extended attributes; ``exact`` removes the others that travel with layers.

    Raises UnsupportedError where the file system keeps none.
    """
    if exact:
        names = {name for name, _ in wanted}
        for name in os.listxattr(fd):
            if kept(name) and os.fsencode(name) not in names:
                os.removexattr(fd, name)
    for key, value in wanted:
        try:
            os.setxattr(fd, key, value)
        except OSError as why:
            if why.errno != errno.ENOTSUP:
                raise
            what = f'the file system cannot keep the attribute "{printable(key)}"'
            raise UnsupportedError(what) from why


# %% Removing
def removed(base: bytes, dir_fd: int) -> bool:
    """Remove a file or an empty directory; say whether it is gone."""
    try:
        os.unlink(base, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError):
        try:
            os.rmdir(base, dir_fd=dir_fd)
        except NotADirectoryError:
            os.unlink(base, dir_fd=dir_fd)  # again, for its own errno
        except OSError as why:
            if why.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
    return True


def names_at(fd: int) -> list[bytes]:
    """Return the names in an open directory."""
    return [os.fsencode(name) for name in os.listdir(fd)]


# %% Removing
def remove_tree(base: bytes, dir_fd: int) -> None:
    """Remove ``base``, whatever it is, or do nothing.

    One descriptor and no recursion, however deep: the way up is ``..``.
    """
    if removed(base, dir_fd):
        return
    fd, trail = os.open(base, DIRECTORY, dir_fd=dir_fd), [base]
    todo = [names_at(fd)]
    try:
        while trail:
            if todo[-1]:
                name = todo[-1].pop()
                if removed(name, fd):
                    continue
                after = os.open(name, DIRECTORY, dir_fd=fd)
                trail.append(name)
                todo.append(names_at(after))
            else:
                todo.pop()
                after = os.open("..", DIRECTORY, dir_fd=fd) if todo else os.dup(dir_fd)
                os.rmdir(trail.pop(), dir_fd=after)
            os.close(fd)
            fd = after
    finally:
        os.close(fd)


def remove_path(path: str) -> None:
    """Remove the file or tree at ``path``, or do nothing."""
    head, base = os.path.split(path)
    try:
        fd = os.open(head, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(os.fsencode(base), fd)
    finally:
        os.close(fd)


# %% Copying one file
PIECE = 1 << 30


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``."""
    done = os.write(fd, data) if data else 0
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy the bytes from ``start`` to ``end``; inside the kernel where it can."""
    while start < end:
        try:
            done = os.copy_file_range(
                source, target, min(PIECE, end - start), start, start
            )
        except OSError as why:
            if why.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            done = 0
        if not done:
            data = os.pread(source, min(1 << 18, end - start), start)
            if not data:
                return
            done = os.pwrite(target, data, start)
        start += done


def copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's contents; a hole stays a hole."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as why:
            if why.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        copy_range(source, target, at, end)
        at = end


# %% Copying one file
def bytes_below(top: str) -> int:
    """Return the bytes that the files below a directory take on the disk."""
    found: dict[int, int] = {}
    for place, _, names in os.walk(top):
        for name in names:
            with suppress(FileNotFoundError):
                st = os.lstat(f"{place}/{name}")
                found[st.st_ino] = st.st_blocks * 512
    return sum(found.values())


# %% Copying one file
def sync_file_system(path: str) -> None:
    """Put all that is in memory of a directory's file system on the disk."""
    from minidocker.linux import syncfs

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


# %% Copying attributes
def copy_attributes(source: str, target: str, st: os.stat_result) -> None:
    """Give ``target`` the owner, mode, attributes and times of ``source``."""
    os.chown(target, st.st_uid, st.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(target, stat.S_IMODE(st.st_mode))
        if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
            for name, value in xattrs_of(source):
                os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def copy_node(source: str, target: str, st: os.stat_result) -> None:
    """Make ``target`` the same kind of file as ``source``, with its contents."""
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFREG:
        read = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        write = os.open(target, flags, 0o600)
        try:
            copy_data(read, write, st.st_size)
        finally:
            os.close(read)
            os.close(write)
    elif kind == stat.S_IFDIR:
        os.mkdir(target, 0o700)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, kind | 0o600, st.st_rdev)


# %% Copying a tree
def copy_tree(source: str, target: str) -> None:
    """Copy what is below ``source`` into the directory ``target``, and its attributes.

    Hard links within the tree stay hard links.
    """
    links: dict[tuple[int, int], str] = {}
    dated = [(source, target, os.lstat(source))]
    for old, new, _ in dated:  # grows while directories are found
        for name in os.listdir(old):
            here, there = f"{old}/{name}", f"{new}/{name}"
            st = os.lstat(here)
            if stat.S_ISDIR(st.st_mode):
                copy_node(here, there, st)
                dated.append((here, there, st))
                continue
            first = links.setdefault((st.st_dev, st.st_ino), there)
            if first != there:
                os.link(first, there, follow_symlinks=False)
                continue
            copy_node(here, there, st)
            copy_attributes(here, there, st)
    for old, new, st in reversed(dated):
        copy_attributes(old, new, st)
