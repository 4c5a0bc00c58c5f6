# From book/646-buildcache.md. Edit there and tangle, or here and tangle --back.

# %% Buildcache: what builds keep beside images
"""What builds keep that is no image: cache mounts, indexes, links; list and prune."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from minidocker.durable import lock_file, locked_file, store_lock
from minidocker.engine import Engine
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.filters import Filters
from minidocker.oci import hex_of, sha256_text
from minidocker.records import Enum, Record
from minidocker.removal import may_prune
from minidocker.trees import remove_path


# %% The nouns
class Keep(Enum):
    """A kind of thing that is kept; the value is its directory."""

    MOUNT = "mounts"
    INDEX = "index"
    LINK = "links"
    ADDRESS = "addresses"
    DOWNLOAD = "downloads"


KIND_WORDS = {
    Keep.MOUNT: "exec.cachemount", Keep.INDEX: "source.local", Keep.LINK: "regular",
    Keep.ADDRESS: "source.http", Keep.DOWNLOAD: "blob.partial",
}  # fmt: skip
LOCKED = (Keep.MOUNT, Keep.DOWNLOAD)
ID_DIGITS = 25  # as many as BuildKit's ids have characters


class Kept(Record):
    """One of them: ``size`` in bytes, ``used`` ns since 1970, ``busy`` if mounted."""

    kind: Keep
    name: str
    size: int
    used: int
    busy: bool = False

    @property
    def id(self) -> str:
        """The digits by which it is told."""
        return hex_of(sha256_text(f"{self.kind.value}/{self.name}".encode()))[
            :ID_DIGITS
        ]


# %% What there is
LOCK = ".lock"


def tree_size(path: str) -> int:
    """Return the bytes of the files at ``path``; what vanishes meanwhile is none."""
    found: dict[tuple[int, int], int] = {}
    todo = [path]
    while todo:
        here = todo.pop()
        with suppress(OSError):
            st = os.lstat(here)
            if stat.S_ISREG(st.st_mode):
                found[st.st_dev, st.st_ino] = st.st_size
            elif stat.S_ISDIR(st.st_mode):
                todo += [entry.path for entry in os.scandir(here)]
    return sum(found.values())


def is_busy(path: str) -> bool:
    """Say whether a build has a cache mounted."""
    with locked_file(path + LOCK) as ours:
        return not ours


# %% What there is
def place_of(engine: Engine, kind: Keep, name: str) -> str:
    """Return the path of what is kept."""
    return f"{engine.root}/buildcache/{kind.value}/{name}"


def kept_in(engine: Engine) -> Iterator[Kept]:
    """Yield all that builds have kept."""
    for kind in Keep:
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(place_of(engine, kind, ""))):
                if not name.endswith(LOCK):
                    with suppress(FileNotFoundError):
                        yield look_at(engine, kind, name)


def look_at(engine: Engine, kind: Keep, name: str) -> Kept:
    """Return what is kept under a name. Raises FileNotFoundError."""
    path = place_of(engine, kind, name)
    used, busy = os.lstat(path).st_mtime_ns, False
    if kind in LOCKED:
        busy = is_busy(path)
        used = max(used, os.lstat(path + LOCK).st_mtime_ns)
    return Kept(kind, name, tree_size(path), used, busy)


# %% What goes
def is_dangling_link(engine: Engine, one: Kept) -> bool:
    """Say whether a link names a layer that is not there any more."""
    try:
        with open(place_of(engine, one.kind, one.name), encoding="ascii") as file:
            engine.layers.get(file.read())
    except (OSError, ValueError, NotFoundError, IntegrityError):
        return True
    return False


def may_go(engine: Engine, one: Kept, filters: Filters, *, everything: bool) -> bool:
    """Say whether a prune takes it."""
    if one.busy or "label" in filters or "label!" in filters:
        return False  # nothing here has labels
    useless = one.kind in (*LOCKED, Keep.ADDRESS) or (
        one.kind is Keep.LINK and is_dangling_link(engine, one)
    )
    return (everything or useless) and may_prune(one.used, filters)


def prune_kept(engine: Engine, filters: Filters, *, everything: bool) -> list[Kept]:
    """Remove what builds have kept and none has mounted; return what has gone."""
    gone: list[Kept] = []
    with store_lock(engine.root, exclusive=True) as alone:
        for one in kept_in(engine):
            path = place_of(engine, one.kind, one.name)
            goes = may_go(engine, one, filters, everything=everything)
            if goes and remove_kept(path, one.kind, alone):
                gone.append(one)
    return gone


def remove_kept(path: str, kind: Keep, alone: bool) -> bool:
    """Remove one, and with ``alone`` its lock; False when a build came first."""
    if kind not in LOCKED:
        remove_path(path)
        return True
    fd = lock_file(path + LOCK)
    if fd is None:
        return False
    try:
        remove_path(path)
        if alone:
            os.unlink(path + LOCK)
    finally:
        os.close(fd)
    return True
