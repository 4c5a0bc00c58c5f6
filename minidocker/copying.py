# From book/310-copying.md. Edit there and tangle, or here and tangle --back.

# %% Copying: files into a root file system
"""Copy sources into a root file system without ever leaving it; ADD's archives."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.context import (
    IN_ROOT,
    LARDER,
    READ,
    SMALL,
    Item,
    Source,
    SourceTree,
    is_archive,
    opened_archive,
)
from minidocker.errors import BuildError
from minidocker.linux import openat2
from minidocker.manner import Manner, dress, finish, set_owner
from minidocker.trees import Xattrs, copy_data, remove_tree, set_xattrs, write_all
from minidocker.unpack import extract


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


# %% Copying: files into a root file system
MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
DIRECTORY = READ | os.O_DIRECTORY


# %% Reaching a directory
class TargetRoot:
    """A root file system that is written to, entered through one descriptor.

    ``when`` is the modification time, in nanoseconds, of directories made; ``owner``
    theirs. ``written`` has the contents of small files that were put there, by name,
    for whoever reads them next.
    """

    __slots__ = "fd", "owner", "room", "when", "written"

    def __init__(self, root: str, when: int, owner: tuple[int, int]) -> None:
        self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.when, self.owner = when, owner
        self.written: dict[bytes, bytes] = {}
        self.room = LARDER

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

    def place_of(self, fd: int) -> str:
        """Return the path of an open directory below the root; "" for the root."""
        top, own = (os.readlink(f"/proc/self/fd/{n}") for n in (self.fd, fd))
        return own.removeprefix(top).strip("/")

    def keep(self, name: bytes, data: bytes) -> None:
        """Keep the contents of a small file, while there is room."""
        if len(data) <= self.room:
            self.room -= len(data)
            self.written[name] = data


# %% Reaching a directory
class Target(TargetRoot):
    """A root in which missing directories are made; use it with ``with``.

    ``link``: no component of a path may be a link.
    """

    __slots__ = "at", "before", "link", "near"

    def __init__(
        self, root: str, when: int, owner: tuple[int, int], *, link: bool = False
    ) -> None:
        super().__init__(root, when, owner)
        self.link = link
        self.at, self.near, self.before = "", -1, (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()
        os.close(self.fd)

    def directory(self, path: str, links: int = MOST_LINKS) -> int:
        """Open the directory ``path``, made with its parents where it is missing."""
        path = posixpath.normpath("/" + path.lstrip("/"))
        if self.link:
            return self.plain_directory(path)
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

    def plain_directory(self, path: str) -> int:
        """Open ``path`` where no component may be a link: each is replaced."""
        here = os.open(".", DIRECTORY, dir_fd=self.fd)
        for name in filter(None, path.split("/")):
            before = os.fstat(here)
            try:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=here).st_mode):
                    os.unlink(name, dir_fd=here)
            except FileNotFoundError:
                pass
            made = False
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=here)
                made = True
            below = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            if made:
                dress = Manner(self.owner, 0o755)
                finish(below, dress, 0o755, self.owner, self.when)
                os.utime(here, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.close(here)
            here = below
        return here

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

    def beside(self, path: str) -> tuple[int, str]:
        """Return a descriptor of the directory of ``path``, and the name in it.

        The directory stays open until another is asked for, or ``leave``.
        """
        above, _, name = path.rpartition("/")
        if above != self.at or self.near < 0:
            self.leave()
            self.near = self.directory(above)
            info = os.fstat(self.near)
            self.at, self.before = above, (info.st_atime_ns, info.st_mtime_ns)
        return self.near, name

    def leave(self) -> None:
        """Put the time of the directory that is open back, and close it."""
        if self.near >= 0:
            os.utime(self.near, ns=self.before)
            os.close(self.near)
            self.near = -1

    def again(self) -> Target:
        """Open the same root once more, for another process."""
        return Target(f"/proc/self/fd/{self.fd}", self.when, self.owner)


def link_at(fd: int, name: str) -> str | None:
    """Return what the symbolic link ``name`` says, or None when it is none."""
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


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
        remove_tree(os.fsencode(name), fd)


NO_FILE = "neither a file, a directory, a link, a pipe nor a device"


def new_file(fd: int, name: str, mode: int) -> int:
    """Open a new file ``name`` in the directory ``fd``; what had the name is gone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(name, flags, mode, dir_fd=fd)
    except FileExistsError:
        make_room(fd, name, for_directory=False)
        return os.open(name, flags, mode, dir_fd=fd)


# %% Putting one thing in its place
def put_file(
    tree: SourceTree, item: Item, target: Target, path: str, manner: Manner
) -> None:
    """Copy a regular file to ``path``.

    Raises BuildError when it is not, or not any more, the file that was found.
    """
    info, data = item.info, tree.take(item.path)
    key = os.fsencode(path[1:])
    target.written.pop(key, None)
    if data is None and info.st_size <= SMALL:
        data = small_file(tree, item)
    mode = manner.new_mode(info.st_mode & 0o7777)
    new = new_file(*target.beside(path), mode)
    try:
        if data is None:
            fill_file(tree, item, new)
        else:
            write_all(new, data)
            target.keep(key, data)
        dress(new, manner, mode, info)
        set_xattrs(new, tree.attributes(item.path), exact=False)
    finally:
        os.close(new)


def small_file(tree: SourceTree, item: Item) -> bytes:
    """Return the content of a small file."""
    source = tree.open_item(item.path)
    try:
        data = os.read(source, SMALL + 1)
        check_unchanged(item, os.fstat(source), len(data))
    finally:
        os.close(source)
    return data


def fill_file(tree: SourceTree, item: Item, target: int) -> None:
    """Copy the content of a file that may be large."""
    source = tree.open_item(item.path)
    try:
        copy_data(source, target, item.info.st_size)
        check_unchanged(item, os.fstat(source), item.info.st_size)
    finally:
        os.close(source)


def check_unchanged(item: Item, now: os.stat_result, size: int) -> None:
    """Raise BuildError for a file that is not as it was found, ``size`` bytes of it."""
    info = item.info
    if (size, now.st_size, now.st_mtime_ns, now.st_ino) != (
        info.st_size,
        info.st_size,
        info.st_mtime_ns,
        info.st_ino,
    ):
        raise BuildError(f'"{item.path}" was changed while it was copied')


# %% Putting one thing in its place
def put_link(tree: SourceTree, item: Item, fd: int, name: str, manner: Manner) -> None:
    """Make the same symbolic link as ``name`` in the directory ``fd``."""
    text = tree.link_target(item.path)
    try:
        os.symlink(text, name, dir_fd=fd)
    except FileExistsError:
        make_room(fd, name, for_directory=False)
        os.symlink(text, name, dir_fd=fd)
    set_owner(fd, manner.owner or (item.info.st_uid, item.info.st_gid), name)
    when = item.info.st_mtime_ns
    os.utime(name, ns=(when, when), dir_fd=fd, follow_symlinks=False)


def put_node(item: Item, fd: int, name: str, manner: Manner) -> None:
    """Make the same pipe or device as ``name`` in the directory ``fd``."""
    info, when = item.info, item.info.st_mtime_ns
    mode, kind = manner.new_mode(info.st_mode & 0o7777), stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFCHR and not info.st_rdev:
        raise BuildError(f'cannot copy "{item.path}": 0:0 is overlayfs\'s whiteout')
    make_room(fd, name, for_directory=False)
    try:
        os.mknod(name, kind | mode, info.st_rdev, dir_fd=fd)
    except PermissionError:
        if not manner.ignore_owner:
            raise
        os.close(new_file(fd, name, mode))
    set_owner(fd, manner.owner or (info.st_uid, info.st_gid), name)
    os.chmod(name, mode, dir_fd=fd)
    os.utime(name, ns=(when, when), dir_fd=fd)


# %% Putting one thing in its place
NODES = {stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK}


def put_item(
    tree: SourceTree, item: Item, target: Target, path: str, manner: Manner
) -> None:
    """Copy what is no directory to ``path``, as what it is. Raises BuildError."""
    kind = stat.S_IFMT(item.info.st_mode)
    if kind == stat.S_IFREG:
        put_file(tree, item, target, path, manner)
    elif kind == stat.S_IFLNK:
        put_link(tree, item, *target.beside(path), manner)
    elif kind in NODES:
        put_node(item, *target.beside(path), manner)
    else:
        raise BuildError(f'cannot copy "{item.path}": {NO_FILE}')


def put_name(target: Target, old: str, path: str) -> None:
    """Give the file that has arrived at ``old`` one more name."""
    fd, name = target.beside(path)
    make_room(fd, name, for_directory=False)
    target.written.pop(os.fsencode(path[1:]), None)
    above, _, base = old.rpartition("/")
    with target.inside(above) as place:
        os.link(base, name, src_dir_fd=place, dst_dir_fd=fd, follow_symlinks=False)


# %% A directory and what is in it
def put_directory(
    tree: SourceTree, source: Source, target: Target, to: str, manner: Manner
) -> None:
    """Copy what is below a directory to below ``to``."""
    os.close(target.directory(to))
    skip = 0 if source.real == "." else len(source.real) + 1
    arrived: list[tuple[str, Item]] = []
    names: dict[tuple[int, int], str] = {}
    to = to.rstrip("/")
    for item in source.items:
        path, info = f"{to}/{item.path[skip:]}", item.info
        if stat.S_ISDIR(info.st_mode):
            fd, name = target.beside(path)
            make_room(fd, name, for_directory=True)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            arrived.append((path, item))
        elif (inode := (info.st_dev, info.st_ino)) in names:
            put_name(target, names[inode], path)
        else:
            put_item(tree, item, target, path, manner)
            if info.st_nlink > 1:
                names[inode] = path
    target.leave()
    for path, item in reversed(arrived):
        more = tree.attributes(item.path)
        finish_directory(target, path, item.info, manner, more)


# %% A directory and what is in it
def finish_directory(
    target: Target,
    path: str,
    info: os.stat_result,
    manner: Manner,
    more: Xattrs = (),
) -> os.stat_result:
    """Give a directory that has arrived its owner, mode and time; say what it has.

    ``more`` are extended attributes.
    """
    fd = target.open(path, DIRECTORY | os.O_NOFOLLOW)
    mode = manner.new_mode(info.st_mode & 0o7777, is_directory=True)
    try:
        finish(fd, manner, mode, (info.st_uid, info.st_gid), info.st_mtime_ns)
        set_xattrs(fd, more, exact=False)
        return os.fstat(fd)
    finally:
        os.close(fd)


def put_parents(
    tree: SourceTree, source: Source, target: Target, to: str, manner: Manner
) -> None:
    """Make the directories above a source that ``--parents`` keeps, like their own."""
    kept, above = posixpath.dirname(source.kept), posixpath.dirname(source.path)
    missing: list[tuple[str, str]] = []
    while kept and not target.is_directory(path := posixpath.join(to, kept)):
        missing.append((path, above))
        kept, above = posixpath.dirname(kept), posixpath.dirname(above)
    if missing:
        os.close(target.directory(missing[0][0]))
    for path, above in missing:
        finish_directory(target, path, tree.look(above, follow=True), manner)


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
    if source.kept:
        put_parents(tree, source, target, to, manner)
        head = source.kept if source.is_directory else posixpath.dirname(source.kept)
        to = posixpath.join(to, head, "")
    if source.is_directory:
        put_directory(tree, source, target, to, manner)
    elif manner.unpacks and is_archive(tree, source.real):
        unpack_archive(tree, source.real, target, to, manner)
    else:
        put_one(tree, source, target, to, manner)


def put_one(
    tree: SourceTree, source: Source, target: Target, to: str, manner: Manner
) -> None:
    """Copy one file to ``to``, or into it where that is a directory."""
    if to.endswith("/") or (not manner.link and target.is_directory(to)):
        path = posixpath.join(to, posixpath.basename(source.path))
    else:
        path = to if manner.link else final_path(target, to)
    put_item(tree, source.items[0], target, path, manner)
    target.leave()


# %% ADD's archives
def unpack_archive(
    tree: SourceTree, path: str, target: Target, to: str, manner: Manner
) -> None:
    """Unpack the archive ``path`` into the directory ``to``; owners are its own."""
    target.written.clear()  # an archive may have a file of any name
    with opened_archive(tree, path) as read, target.inside(to) as place:
        root = f"/proc/self/fd/{place}"
        extract(read, root, ignore_owner=manner.ignore_owner)


# %% All of it
def target_of(
    root: str, tree: SourceTree, sources: list[Source], manner: Manner
) -> Target:
    """Open the root that sources are copied to; their times count for what is made."""
    when = min(tree.look(s.path, follow=True).st_mtime_ns for s in sources)
    return Target(root, when, manner.owner or (0, 0), link=manner.link)


def copy_sources(
    tree: SourceTree,
    sources: list[Source],
    root: str,
    to: str,
    manner: Manner,
    *,
    written: dict[bytes, bytes] | None = None,
) -> None:
    """Copy ``sources`` of ``tree`` to ``to`` in the root file system at ``root``.

    ``to`` is absolute, in the container; a slash at its end says "a directory".
    ``written`` gets the contents of small files, by their names without a slash.
    Raises BuildError for a loop of links, or an owner that cannot be given.
    """
    if len(sources) > 1 and not to.endswith("/"):
        raise BuildError(
            "with more than one source the destination must be a directory",
            hint=f'write "{to}/"',
        )
    with target_of(root, tree, sources, manner) as target:
        target.written = {} if written is None else written
        for source in sources:
            copy_source(tree, source, target, to, manner)
