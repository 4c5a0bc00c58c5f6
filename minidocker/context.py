# From book/305-context.md. Edit there and tangle, or here and tangle --back.

# %% Context: what COPY may read
"""The build context: .dockerignore, and what COPY and ADD find in it."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from minidocker.errors import (
    BuildError,
    IntegrityError,
    NotFoundError,
    did_you_mean,
)
from minidocker.headers import BLOCK
from minidocker.linux import Resolve, openat2
from minidocker.patterns import (
    Pattern,
    deciding_pattern,
    glob_regex,
    has_wildcards,
    is_ignored,
    read_patterns,
)
from minidocker.reading import Read, verified
from minidocker.records import Record
from minidocker.trees import Xattrs, xattrs_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


# %% The nouns
class Item(Record):
    """A file, directory or link in a tree; ``path`` is relative to the tree's root."""

    path: str
    info: os.stat_result


class Source(Record):
    """One thing that COPY copies, and all that belongs to it, found in one walk.

    ``path`` is as it was named, ``real`` has no links. ``items`` are the file, or what
    is below the directory, parents first. ``kept`` is the path that it keeps below the
    destination (``--parents``), "" without.
    """

    path: str
    real: str
    is_directory: bool
    items: tuple[Item, ...]
    kept: str = ""


# %% A tree that one cannot climb out of
IGNORE_FILE = ".dockerignore"
IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
LOOK = os.O_PATH | os.O_CLOEXEC
SMALL = 1 << 16  # bytes: a file that is read in one piece
LARDER = 64 << 20  # bytes that are kept in memory of small files


class SourceRoot:
    """A directory to copy from, entered through one descriptor, with ``with``."""

    __slots__ = "fd", "root"

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as why:
            raise NotFoundError("no such directory", where=root) from why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = READ) -> int:
        """Open ``path`` inside the tree; links are resolved inside the tree.

        The caller closes. Raises OSError (ENOENT, ELOOP, EACCES).
        """
        return openat2(self.fd, path.lstrip("/") or ".", flags, resolve=IN_ROOT)

    def look(self, path: str, *, follow: bool) -> os.stat_result:
        """Return the stat of ``path``, of what a link leads to when ``follow``."""
        fd = self.open(path, LOOK if follow else LOOK | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def real_path(self, path: str) -> str:
        """Return the path without links, relative to the root; "." is the root."""
        fd = self.open(path, LOOK)
        try:
            top, own = (os.readlink(f"/proc/self/fd/{n}") for n in (self.fd, fd))
        finally:
            os.close(fd)
        return os.path.relpath(own, top)

    def read(self, path: str, limit: int = 4 << 20) -> bytes:
        """Return the bytes of a regular file, or raise NotFoundError."""
        try:
            fd = self.open(path)
        except OSError as why:
            raise NotFoundError(f'no file "{path}"', where=self.root) from why
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotFoundError(f'"{path}" is not a file', where=self.root)
            return file.read(limit)


# %% A tree that one cannot climb out of
class SourceFiles(SourceRoot):
    """Files of a tree by the names that a walk gives them; small ones are kept."""

    __slots__ = "at", "larder", "near", "room"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.at, self.near = "\0", -1
        self.larder: dict[str, bytes] = {}
        self.room = LARDER

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self.near >= 0:
            os.close(self.near)

    def beside(self, path: str) -> tuple[int, str]:
        """Return a descriptor of the directory of ``path``, and the name in it.

        The last directory stays open: of a thousand files in one, it is opened once.
        """
        above, _, name = path.rpartition("/")
        if above != self.at:
            fd = self.open(above, LOOK | os.O_DIRECTORY)
            if self.near >= 0:
                os.close(self.near)
            self.at, self.near = above, fd
        return self.near, name

    def open_item(self, path: str) -> int:
        """Open what ``walk`` has found, and nothing that a link leads to."""
        fd, name = self.beside(path)
        return os.open(name, READ | os.O_NOFOLLOW, dir_fd=fd)

    def link_target(self, path: str) -> str:
        """Return the text of a symbolic link."""
        fd, name = self.beside(path)
        return os.readlink(name, dir_fd=fd)

    def keep(self, path: str, data: bytes) -> None:
        """Keep a small file's bytes for whoever reads it next, if it fits."""
        if len(data) <= self.room:
            self.room -= len(data)
            self.larder[path] = data

    def take(self, path: str) -> bytes | None:
        """Return what was kept of a file, and make room."""
        data = self.larder.pop(path, None)
        self.room += len(data or b"")
        return data


# %% A tree that one cannot climb out of
class SourceTree(SourceFiles):
    """A tree to copy from: what is in it, and not ignored.

    ``owned`` says that owners and extended attributes are part of it (an image), and
    not all are 0:0 and without (a context);
    ``lasting`` that it will still be there for the next build.
    """

    __slots__ = "lasting", "owned", "patterns"

    def __init__(
        self,
        root: str,
        patterns: tuple[Pattern, ...] = (),
        *,
        owned: bool = False,
        lasting: bool = True,
    ) -> None:
        super().__init__(root)
        self.patterns = patterns
        self.owned, self.lasting = owned, lasting

    def again(self) -> SourceTree:
        """Open the same tree once more, for another thread."""
        return SourceTree(
            self.root, self.patterns, owned=self.owned, lasting=self.lasting
        )

    def ignores(self, path: str) -> bool:
        """Say whether a pattern keeps ``path`` out."""
        return bool(self.patterns) and path != "." and is_ignored(path, self.patterns)

    def attributes(self, path: str) -> Xattrs:
        """Return the extended attributes of a file that count: none in a context."""
        if not self.owned:
            return ()
        fd, name = self.beside(path)
        return xattrs_of(f"/proc/self/fd/{fd}/{name}")

    def walk(self, path: str, exclude: tuple[Pattern, ...] = ()) -> Iterator[Item]:
        """Yield what is below the directory ``path``, sorted, parents first.

        Links are not followed. An ignored directory is left out, and looked into
        only where a pattern might take something back in. ``exclude`` matches paths
        relative to ``path``.
        """
        skip = 0 if path == "." else len(path) + 1
        keeps = any(pattern.keeps for pattern in (*self.patterns, *exclude))
        plain = not self.patterns and not exclude
        todo = [(path, self.inside(path))]
        while todo:
            above, items = todo[-1]
            if not items:
                todo.pop()
                continue
            name, info = items.pop()
            here = name if above == "." else f"{above}/{name}"
            out = not plain and (self.ignores(here) or is_ignored(here[skip:], exclude))
            if not out:
                yield Item(here, info)
            if stat.S_ISDIR(info.st_mode) and (keeps or not out):
                todo.append((here, self.inside(here)))

    def inside(self, path: str) -> list[tuple[str, os.stat_result]]:
        """Return name and stat of what is in a directory, the last name first.

        In the order of their bytes, which is that of a layer. Sockets are left out.
        """
        fd = self.open(path, READ | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as found:
                all_of = ((e.name, e.stat(follow_symlinks=False)) for e in found)
                items = [one for one in all_of if not stat.S_ISSOCK(one[1].st_mode)]
        finally:
            os.close(fd)
        return sorted(items, key=lambda item: os.fsencode(item[0]), reverse=True)


# %% What a source names
def missing(tree: SourceTree, path: str) -> BuildError:
    """Return the error for a source that is not there, or is ignored."""
    near = [item.path for item in tree.walk(".") if item.path.count("/") <= 2]
    hint: str | None
    if path in near:
        hint = f'"{path}" is a link that leads to nothing inside of the context'
    elif tree.ignores(path):
        hint = f'.dockerignore has a pattern that keeps "{path}" out'
    else:
        hint = did_you_mean(path, near, other="the path is relative to the context")
    what = "file not found in build context or excluded by .dockerignore"
    return BuildError(f"{what}: stat {path}: file does not exist", hint=hint)


def clean_source(path: str) -> str:
    """Return a source's path relative to its tree; refuse one that climbs out.

    >>> clean_source("/etc/../srv/")
    'srv'
    """
    clean = posixpath.normpath(path.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise BuildError(f"forbidden path outside the build context: {path}")
    return clean


# %% What a source names
def one_source(
    tree: SourceTree, path: str, exclude: tuple[Pattern, ...] = ()
) -> Source:
    """Return the file or directory at ``path``; a link counts as what it leads to.

    ``exclude`` leaves out what it matches below a directory.
    """
    try:
        real = tree.real_path(path)
        info = tree.look(real, follow=False)
    except OSError as why:
        raise missing(tree, path) from why
    if stat.S_ISDIR(info.st_mode):
        items = tuple(tree.walk(real, exclude))
        if tree.ignores(path) and not items:
            raise missing(tree, path)
        return Source(path, real, True, items)
    if tree.ignores(path) or tree.ignores(real):
        raise missing(tree, path)
    return Source(path, real, False, (Item(real, info),))


def kept_path(pattern: str, path: str) -> str:
    """Return what ``--parents`` keeps of a path; ``/./`` marks where that begins.

    >>> kept_path("./src/a.c", "src/a.c"), kept_path("src/./lib/*.c", "src/lib/b.c")
    ('src/a.c', 'lib/b.c')
    """
    head, pivot, _ = pattern.partition("/./")
    skipped = len(clean_source(head).split("/")) if pivot and head.strip("./") else 0
    return "/".join(path.split("/")[skipped:])


# %% What a source names
def find_sources(
    tree: SourceTree,
    patterns: tuple[str, ...],
    exclude: tuple[Pattern, ...] = (),
    *,
    parents: bool = False,
) -> list[Source]:
    """Return what the sources of a COPY name, in order; wildcards are expanded.

    A pattern may match nothing. Raises BuildError for a path that is not there, or lies
    outside.
    """
    found: list[Source] = []
    for pattern in patterns:
        clean = clean_source(pattern)
        paths = [clean]
        if wild := has_wildcards(pattern):
            regex = glob_regex(clean, deep=parents)
            paths = [item.path for item in tree.walk(".") if regex.match(item.path)]
        for path in paths:
            if wild and is_ignored(posixpath.basename(path), exclude):
                continue
            source = one_source(tree, path, exclude)
            kept = kept_path(pattern, path) if parents else ""
            found.append(source.replace(kept=kept))
    return found


def no_sources(patterns: Iterable[str]) -> BuildError:
    """Return the error for patterns of which none matches anything."""
    names = ", ".join(f'"{pattern}"' for pattern in patterns)
    return BuildError(f"no source files were specified: nothing matches {names}")


# %% What a source names
@contextmanager
def opened_archive(tree: SourceTree, path: str) -> Iterator[Read]:
    """Give a read function over a file, decompressed if it is compressed."""
    from minidocker.compression import decompressed

    with open(tree.open(path), "rb") as file:
        yield decompressed(file.read, path)


def is_tar(head: bytes) -> bool:
    """Say whether bytes begin with the header of a tar.

    >>> is_tar(b"FROM scratch"), is_tar(bytes(512))
    (False, False)
    """
    try:
        return len(head) >= BLOCK and bool(verified(head[:BLOCK]).strip(b"\0"))
    except IntegrityError:
        return False


def first_block(read: Read) -> bytes:
    """Return the first 512 bytes of a stream, or what there is."""
    head = b""
    while len(head) < BLOCK and (more := read(BLOCK - len(head))):
        head += more
    return head


def is_archive(tree: SourceTree, path: str) -> bool:
    """Say whether the content is a tar, perhaps gzip, bzip2, xz or zstd."""
    try:
        with opened_archive(tree, path) as read:
            return is_tar(first_block(read))
    except (IntegrityError, OSError):
        return False


# %% The context itself
def ignore_file(tree: SourceTree, dockerfile: str = "") -> tuple[str, bytes]:
    """Return name and bytes of the file that says what to ignore; ("", b"") if none.

    ``dockerfile`` is the Dockerfile's path in the context: ``NAME.dockerignore``
    beside it counts before the context's own.
    """
    for name in ([f"{dockerfile}.dockerignore"] if dockerfile else []) + [IGNORE_FILE]:
        with suppress(NotFoundError):
            return name, tree.read(name)
    return "", b""


def open_context(root: str, dockerfile: str = "") -> SourceTree:
    """Open the build context at ``root``; the caller uses it with ``with``."""
    with SourceTree(root) as tree:
        name, raw = ignore_file(tree, dockerfile)
    return SourceTree(root, read_patterns(os.fsdecode(raw), name))


def verdicts(tree: SourceTree) -> Iterator[tuple[str, bool, Pattern | None]]:
    """Yield each path, whether it is in the context, and the pattern that decided.

    An ignored directory that no pattern could take back from is not looked into.
    """
    with SourceTree(tree.root) as everything:
        keeps = any(pattern.keeps for pattern in tree.patterns)
        closed = "\0"
        for item in everything.walk("."):
            if item.path.startswith(closed):
                continue
            pattern = deciding_pattern(item.path, tree.patterns)
            kept = pattern is None or pattern.keeps
            if stat.S_ISDIR(item.info.st_mode) and not (kept or keeps):
                closed = f"{item.path}/"
            yield item.path, kept, pattern
