# From book/160-changes.md. Edit there and tangle, or here and tangle --back.

# %% Changes: what a layer says
"""Find what changed between two trees, and write it as a layer.

Two full trees (vfs) and an overlay's upper directory (overlay2) give the same changes,
hence the same tar, hence the same digest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from minidocker.archive import Put, TreeWriter
from minidocker.errors import IntegrityError
from minidocker.headers import Entry, Kind
from minidocker.overlayfs import is_whiteout
from minidocker.records import Enum, Record
from minidocker.trees import xattrs_of


# %% The nouns: a change, a level
class ChangeKind(Enum):
    """What happened to a path; the value is the letter that ``docker diff`` prints."""

    ADDED = "A"
    MODIFIED = "C"
    DELETED = "D"


class Change(Record):
    """One path that a layer says something about; absolute, in the container."""

    path: str
    kind: ChangeKind

    def __str__(self) -> str:
        return f"{self.kind.value} {self.path}"


class Level(Record):
    """One directory, as a layer sees it and as the layers below it do.

    ``lowers`` are the directories that show through, top-first. ``whole`` means that
    nothing shows through: ``upper`` is all there is, as in vfs, or it is opaque.
    ``since`` is a ctime in nanoseconds; older files cannot have other contents.
    ``without`` are paths that are passed over.
    """

    path: str
    upper: str
    lowers: tuple[str, ...]
    whole: bool
    userxattr: bool = False
    since: int = 0
    without: frozenset[str] = frozenset()


# %% Overlay's marks
def hides_lowers(path: str, userxattr: bool) -> bool:
    """Whether an overlay's directory hides what is below it."""
    name = "user.overlay.opaque" if userxattr else "trusted.overlay.opaque"
    try:
        return os.getxattr(path, name, follow_symlinks=False) == b"y"
    except OSError:
        return False


# %% What lies below
class Below(Record):
    """What the lower layers show of one name: its path, and the way on down."""

    path: str
    st: os.stat_result
    lowers: tuple[str, ...]


def below(level: Level, name: str) -> Below | None:
    """Look a name up in the lower layers of a directory, as overlayfs does."""
    top: tuple[str, os.stat_result] | None = None
    directories: list[str] = []
    for lower in level.lowers:
        path = f"{lower}/{name}"
        try:
            st = os.lstat(path)
        except FileNotFoundError:
            continue
        if is_whiteout(st):
            break
        is_directory = stat.S_ISDIR(st.st_mode)
        if top and not is_directory:
            break
        top = top or (path, st)
        if not is_directory:
            break
        directories.append(path)
        if len(level.lowers) > 1 and hides_lowers(path, level.userxattr):
            break
    return Below(*top, tuple(directories)) if top else None


def names_below(level: Level) -> set[str]:
    """Return all names that the lower layers show in a directory."""
    names = {name for lower in level.lowers for name in os.listdir(lower)}
    if len(level.lowers) == 1:
        return names
    return {name for name in names if below(level, name)}


# %% The same or not
def same_contents(one: str, other: str) -> bool:
    """Whether two files have the same bytes."""
    with open(one, "rb", buffering=0) as a, open(other, "rb", buffering=0) as b:
        while True:
            left, right = a.read(1 << 18), b.read(1 << 18)
            if left != right:
                return False
            if not left:
                return True


def differs(level: Level, name: str, st: os.stat_result, old: Below) -> bool:
    """Whether a file is another than the one below; a directory's time is no matter.

    Sizes, owners and times first; contents only for a file that may have changed
    since the layer began, for two writes can share a timestamp.
    """
    was, path = old.st, f"{level.upper}/{name}"
    if (st.st_mode, st.st_uid, st.st_gid) != (was.st_mode, was.st_uid, was.st_gid):
        return True
    if not stat.S_ISDIR(st.st_mode) and (
        (st.st_size, st.st_mtime_ns, st.st_rdev)
        != (was.st_size, was.st_mtime_ns, was.st_rdev)
    ):
        return True
    if st.st_ctime_ns < level.since:
        return False
    if stat.S_ISLNK(st.st_mode):
        return os.readlink(path) != os.readlink(old.path)
    if stat.S_ISREG(st.st_mode) and not same_contents(path, old.path):
        return True
    return xattrs_of(path) != xattrs_of(old.path)


# %% One directory
Step = tuple[str, ChangeKind | None, Level | None]


def compare(level: Level) -> Iterator[Step]:
    """Yield what became of each name of a directory, sorted by name.

    A step is the name, how it changed if it did, and the level to go down to.
    """
    with os.scandir(level.upper) as entries:
        here = {entry.name: entry for entry in entries}
    if not level.lowers:
        yield from all_new(level, here)
        return
    names = set(here)
    if level.whole:
        names |= names_below(level)
    for name in sorted(names, key=os.fsencode):
        if f"{level.path}/{name}" in level.without:
            continue
        old = below(level, name)
        st = here[name].stat(follow_symlinks=False) if name in here else None
        if st is None or is_whiteout(st):
            if old:
                yield name, ChangeKind.DELETED, None
            continue
        kind = None if old else ChangeKind.ADDED
        if old and differs(level, name, st, old):
            kind = ChangeKind.MODIFIED
        yield name, kind, deeper(level, name, st, old)


# %% One directory
def all_new(level: Level, here: dict[str, os.DirEntry[str]]) -> Iterator[Step]:
    """Yield the names of a directory below which there is nothing: all are new.

    What ``scandir`` knows of a file is enough here; no file is asked for its stat.
    """
    for name in sorted(here, key=os.fsencode):
        entry = here[name]
        if level.without and f"{level.path}/{name}" in level.without:
            continue
        if entry.is_dir(follow_symlinks=False):
            path = f"{level.path}/{name}"
            down = level.replace(path=path, upper=f"{level.upper}/{name}")
            yield name, ChangeKind.ADDED, down
        elif (
            entry.is_file(follow_symlinks=False)
            or entry.is_symlink()
            or not is_whiteout(entry.stat(follow_symlinks=False))
        ):
            yield name, ChangeKind.ADDED, None


def deeper(
    level: Level, name: str, st: os.stat_result, old: Below | None
) -> Level | None:
    """Return the level of a directory below this one; None for a file."""
    if not stat.S_ISDIR(st.st_mode):
        return None
    upper = f"{level.upper}/{name}"
    lowers = old.lowers if old else ()
    whole = level.whole or hides_lowers(upper, level.userxattr)
    return level.replace(
        path=f"{level.path}/{name}", upper=upper, lowers=lowers, whole=whole
    )


# %% The whole tree
def changes_of(top: Level) -> Iterator[Change]:
    """Yield the changes below a level, sorted, each directory before what it holds.

    A directory that holds a change is one itself: it carries the permissions.
    """
    walks = [compare(top)]
    paths = [top.path]
    unsaid: list[Change] = []
    while walks:
        step = next(walks[-1], None)
        if step is None:
            walks.pop()
            path = paths.pop()
            if unsaid and unsaid[-1].path == path:
                unsaid.pop()
            continue
        name, kind, level = step
        path = f"{paths[-1]}/{name}"
        if kind:
            if unsaid:
                yield from unsaid
                unsaid.clear()
            yield Change(path, kind)
        elif level:
            unsaid.append(Change(path, ChangeKind.MODIFIED))
        if level:
            walks.append(compare(level))
            paths.append(path)


def changes_between(
    lower: str | None,
    upper: str,
    *,
    since: int = 0,
    without: frozenset[str] = frozenset(),
) -> Iterator[Change]:
    """Yield what changed from one full tree to another; from nothing if no ``lower``.

    ``since`` is a ctime on ``upper``'s file system, in nanoseconds, before which no
    file's contents were changed: contents of older files are not compared.
    """
    lowers = (lower,) if lower else ()
    top = Level("", upper, lowers, whole=True, since=since, without=without)
    return changes_of(top)


def changes_in_upper(
    upper: str,
    lowers: tuple[str, ...],
    *,
    userxattr: bool = False,
    without: frozenset[str] = frozenset(),
) -> Iterator[Change]:
    """Yield what an overlay's upper directory changes; ``lowers`` are top-first."""
    top = Level("", upper, lowers, False, userxattr, without=without)
    return changes_of(top)


# %% The layer
def whiteout(path: str) -> bytes:
    """Return the name of the whiteout of a path.

    >>> whiteout("/etc/motd")
    b'etc/.wh.motd'
    """
    head, slash, base = os.fsencode(path[1:]).rpartition(b"/")
    return head + slash + b".wh." + base


def pack_layer(
    tree: str,
    changes: Iterable[Change],
    put: Put,
    contents: dict[bytes, bytes] | None = None,
) -> int:
    """Write changes as an OCI layer; ``tree`` has the files, at the same paths.

    Returns the bytes of the files, each counted once. ``contents`` are as in
    TreeWriter. A whiteout is an empty file from 1970. Raises IntegrityError for a
    file whose own name would read as a whiteout.
    """
    with TreeWriter(tree, put, contents) as writer:
        for change in changes:
            base = change.path.rpartition("/")[2]
            if base.startswith(".wh."):
                what = "a file of this name cannot be in a layer: it means a deletion"
                raise IntegrityError(what, where=change.path)
            gone = change.kind is ChangeKind.DELETED
            if not gone and not writer.add(os.fsencode(change.path[1:])):
                gone = change.kind is ChangeKind.MODIFIED  # now it is a socket
            if gone:
                writer.tar.add(Entry(whiteout(change.path), Kind.FILE))
        writer.tar.finish()
        return writer.size
