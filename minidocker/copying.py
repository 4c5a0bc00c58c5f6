# From book/34-copying.md. Edit there and tangle, or here and tangle --back.

# %% Copying: files into a root file system
"""Copy sources into a root file system without ever leaving it; ADD's archives."""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.context import IN_ROOT, READ, Item, Source, SourceTree
from minidocker.errors import BuildError
from minidocker.linux import openat2
from minidocker.records import Record
from minidocker.unpack import extract


# %% The nouns
class Manner(Record):
    """How files arrive: with which owner and mode, and what ADD unpacks.

    ``owner`` is (uid, gid), or None to keep each file's own. ``mode`` is an octal
    mode for all files and directories, or None to keep. ``ignore_owner`` gives an
    archive's files to us, where there are no other users.
    """

    owner: tuple[int, int] | None = (0, 0)
    mode: int | None = None
    unpacks: bool = False
    ignore_owner: bool = False


MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
DIRECTORY = READ | os.O_DIRECTORY


# %% Reaching a directory
class Target:
    """A root file system that is written to, entered through one descriptor.

    ``when`` is the modification time, in nanoseconds, of directories made.
    """

    __slots__ = ("fd", "owner", "when")

    def __init__(self, root: str, when: int, owner: tuple[int, int]) -> None:
        self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.when, self.owner = when, owner

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int) -> int:
        """Open ``path`` inside the root; the caller closes."""
        return openat2(self.fd, path.lstrip("/") or ".", flags, resolve=IN_ROOT)

    def is_directory(self, path: str) -> bool:
        """Say whether ``path``, links followed inside the root, is a directory."""
        try:
            os.close(self.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def directory(self, path: str, links: int = MOST_LINKS) -> int:
        """Open the directory ``path``, made with its parents where it is missing."""
        path = posixpath.normpath("/" + path.lstrip("/"))
        try:
            return self.open(path, DIRECTORY)
        except OSError as why:
            if why.errno == errno.ELOOP or not links:
                raise BuildError(f'too many levels of links at "{path}"') from why
            if why.errno != errno.ENOENT:
                raise BuildError(f'"{path}" is not a directory') from why
        above, name = posixpath.split(path)
        with self.inside(above, links - 1) as fd:
            link = link_at(fd, name)
            if link is not None:
                return self.directory(posixpath.join(above, link), links - 1)
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
            made = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finish(made, Manner(self.owner, 0o755), 0o755, self.owner, self.when)
        return made

    @contextmanager
    def inside(self, path: str, links: int = MOST_LINKS) -> Iterator[int]:
        """Give a descriptor of the directory ``path``; put its time back after."""
        fd = self.directory(path, links)
        try:
            before = os.fstat(fd)
            yield fd
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(fd)


def link_at(fd: int, name: str) -> str | None:
    """Return what the symbolic link ``name`` says, or None when it is none."""
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def finish(
    fd: int, manner: Manner, mode: int, owner: tuple[int, int], when: int
) -> None:
    """Give an open file or directory its owner, mode and time, in this order.

    chown(2) clears the set-user-ID bit, so the mode comes after it.
    """
    set_owner(fd, manner.owner or owner)
    os.fchmod(fd, mode if manner.mode is None else manner.mode)
    os.utime(fd, ns=(when, when))


# %% Reaching a directory
def set_owner(fd: int, owner: tuple[int, int], name: str | None = None) -> None:
    """Set the owner of an open file, or of the link ``name`` in the directory."""
    try:
        if name is None:
            os.fchown(fd, *owner)
        else:
            os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
    except OSError as why:
        if why.errno not in {errno.EINVAL, errno.EPERM}:
            raise
        raise BuildError(
            f"this user cannot own files as {owner[0]}:{owner[1]}",
            hint="without root there is one user in an image, 0:0",
        ) from why


# %% Putting one thing in its place
def make_room(fd: int, name: str, *, for_directory: bool) -> None:
    """Remove what is called ``name`` in ``fd``, but keep a directory for another."""
    try:
        found = os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=fd)
    elif not for_directory:
        shutil.rmtree(name, dir_fd=fd)


def pour(source: int, target: int) -> None:
    """Copy the content of one open file to another, in the kernel if it can."""
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
    except OSError as why:
        if why.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        while block := os.read(source, 1 << 18):
            while block:
                block = block[os.write(target, block) :]


def put_file(tree: SourceTree, item: Item, fd: int, name: str, manner: Manner) -> None:
    """Copy a regular file to ``name`` in the directory ``fd``."""
    make_room(fd, name, for_directory=False)
    source = tree.open(item.path, READ | os.O_NOFOLLOW)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=fd)
        try:
            pour(source, target)
            owner = (item.info.st_uid, item.info.st_gid)
            mode = stat.S_IMODE(item.info.st_mode)
            finish(target, manner, mode, owner, item.info.st_mtime_ns)
        finally:
            os.close(target)
    finally:
        os.close(source)


def put_link(tree: SourceTree, item: Item, fd: int, name: str, manner: Manner) -> None:
    """Make the same symbolic link as ``name`` in the directory ``fd``."""
    make_room(fd, name, for_directory=False)
    os.symlink(tree.link_target(item.path), name, dir_fd=fd)
    set_owner(fd, manner.owner or (item.info.st_uid, item.info.st_gid), name)
    when = item.info.st_mtime_ns
    os.utime(name, ns=(when, when), dir_fd=fd, follow_symlinks=False)


# %% A directory and what is in it
def put_directory(
    tree: SourceTree, source: str, target: Target, to: str, manner: Manner
) -> None:
    """Copy what is below the directory ``source`` to below ``to``."""
    os.close(target.directory(to))
    arrived: list[tuple[str, Item]] = []
    for item in tree.walk(source):
        path = posixpath.join(to, posixpath.relpath(item.path, source))
        above, name = posixpath.split(path)
        with target.inside(above) as fd:
            if stat.S_ISDIR(item.info.st_mode):
                make_room(fd, name, for_directory=True)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                arrived.append((path, item))
            elif stat.S_ISLNK(item.info.st_mode):
                put_link(tree, item, fd, name, manner)
            else:
                put_file(tree, item, fd, name, manner)
    for path, item in reversed(arrived):
        fd = target.open(path, DIRECTORY | os.O_NOFOLLOW)
        owner, info = (item.info.st_uid, item.info.st_gid), item.info
        try:
            finish(fd, manner, stat.S_IMODE(info.st_mode), owner, info.st_mtime_ns)
        finally:
            os.close(fd)


# %% Where does a source go?
def final_path(target: Target, path: str, links: int = MOST_LINKS) -> str:
    """Follow the links that ``path`` itself is, inside the root."""
    above, name = posixpath.split(posixpath.normpath("/" + path.lstrip("/")))
    with target.inside(above) as fd:
        link = link_at(fd, name) if name else None
    if link is None:
        return posixpath.join(above, name)
    if not links:
        raise BuildError(f'too many levels of links at "{path}"')
    return final_path(target, posixpath.join(above, link), links - 1)


def copy_source(
    tree: SourceTree, source: Source, target: Target, to: str, manner: Manner
) -> None:
    """Copy one source to the destination ``to`` (absolute, in the container)."""
    if source.is_directory:
        put_directory(tree, tree.real_path(source.path), target, to, manner)
        return
    real = tree.real_path(source.path)
    if manner.unpacks and is_archive(tree, real):
        unpack_archive(tree, real, target, to, manner)
        return
    if to.endswith("/") or target.is_directory(to):
        above, name = to, posixpath.basename(source.path)
    else:
        above, name = posixpath.split(final_path(target, to))
    item = Item(real, tree.look(real, follow=False))
    with target.inside(above) as fd:
        put_file(tree, item, fd, name, manner)


# %% ADD's archives
@contextmanager
def opened_archive(tree: SourceTree, path: str) -> Iterator[Callable[[int], bytes]]:
    """Give a read function over a file, decompressed if it is compressed."""
    with open(tree.open(path), "rb") as file:
        start = file.peek(6)
        if start.startswith(b"\x1f\x8b"):
            import gzip

            with gzip.GzipFile(fileobj=file) as plain:
                yield plain.read
        elif start.startswith(b"BZh"):
            import bz2

            with bz2.BZ2File(file) as bunzipped:
                yield bunzipped.read
        elif start.startswith(b"\xfd7zXZ\0"):
            import lzma

            with lzma.LZMAFile(file) as unpacked:
                yield unpacked.read
        else:
            yield file.read


def is_archive(tree: SourceTree, path: str) -> bool:
    """Say whether the content is a tar archive, perhaps gzip, bzip2 or xz."""
    import lzma
    import tarfile
    import zlib

    damaged = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)
    try:
        with opened_archive(tree, path) as read:
            tarfile.TarInfo.frombuf(read(512), "utf-8", "surrogateescape")
    except (*damaged, tarfile.HeaderError):
        return False
    return True


def unpack_archive(
    tree: SourceTree, path: str, target: Target, to: str, manner: Manner
) -> None:
    """Unpack the archive ``path`` into the directory ``to``; owners are its own."""
    import lzma
    import zlib

    try:
        with opened_archive(tree, path) as read, target.inside(to) as place:
            root = f"/proc/self/fd/{place}"
            extract(read, root, ignore_owner=manner.ignore_owner)
    except (EOFError, zlib.error, lzma.LZMAError) as why:
        raise BuildError(f'the archive "{path}" is damaged: {why}') from why


# %% All of it
def copy_sources(
    tree: SourceTree, sources: list[Source], root: str, to: str, manner: Manner
) -> None:
    """Copy ``sources`` of ``tree`` to ``to`` in the root file system at ``root``.

    ``to`` is absolute, in the container; a slash at its end says "a directory".
    Raises BuildError for a loop of links, or an owner that cannot be given.
    """
    if len(sources) > 1 and not to.endswith("/"):
        raise BuildError(
            "with more than one source the destination must be a directory",
            hint=f'write "{to}/"',
        )
    when = min(tree.look(s.path, follow=True).st_mtime_ns for s in sources)
    with Target(root, when, manner.owner or (0, 0)) as target:
        for source in sources:
            copy_source(tree, source, target, to, manner)
