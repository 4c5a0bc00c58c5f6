# From book/672-copy-verb.md. Edit there and tangle, or here and tangle --back.

# %% Copy verb: files in and out
"""``cp``: copy files between a container and the host, by a tar."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from minidocker.archive import Put, TarWriter, TreeWriter
from minidocker.container_verbs import Needs, open_engine
from minidocker.containers import Container, Status, tell
from minidocker.destinations import PLACE, magic, open_in_root
from minidocker.engine import Engine
from minidocker.errors import IntegrityError, MinidockerError, NotFoundError
from minidocker.flags import Command, Flag, Given
from minidocker.headers import Entry, Kind
from minidocker.records import Record
from minidocker.storing import points_of
from minidocker.unpack import extract


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


# %% Where
class Place(Record):
    """One side of a copy: a container's name or "", and a path; ``-`` for a tar."""

    container: str
    path: str


def parse_place(text: str) -> Place:
    """Return the place of an argument.

    >>> parse_place("web:/etc"), parse_place("./a:b")
    (Place(container='web', path='/etc'), Place(container='', path='./a:b'))
    """
    name, colon, path = text.partition(":")
    if text.startswith("/") or not colon or name.startswith("."):
        return Place("", text)
    return Place(name, "/" + path.lstrip("/"))


class Found(Record):
    """What is at a path: its directory, its last name, its mode (0 for nothing).

    ``must_be_directory``: the path ends in a slash. ``contents``: it ends in ``/.``.
    """

    parent: str
    base: str
    mode: int
    must_be_directory: bool = False
    contents: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether there is a directory."""
        return stat.S_ISDIR(self.mode)


def find(root: int, path: str, *, follow: bool = False, hops: int = 40) -> Found:
    """Look at ``path`` below ``root``; ``follow``: also ``hops`` links at its end.

    Raises OSError where a directory on the way is missing or is none.
    """
    contents = path.endswith("/.") or path == "."
    slash = path.endswith("/") or contents
    parent, base = os.path.split(os.path.normpath("/" + path.lstrip("/")))
    if not base:
        return Found("/", "", stat.S_IFDIR | 0o755, slash, contents)
    above = directory_in(root, parent)
    try:
        mode = os.stat(base, dir_fd=above, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return Found(parent, base, 0, slash, contents)
    finally:
        os.close(above)
    if stat.S_ISLNK(mode) and (follow or slash):
        return followed(root, Found(parent, base, mode, slash, contents), hops)
    if slash and not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
    return Found(parent, base, mode, slash, contents)


def directory_in(root: int, path: str) -> int:
    """Open a directory below the root. Raises OSError, which names it."""
    try:
        return open_in_root(root, path, PLACE | os.O_DIRECTORY)
    except OSError as why:
        code = why.errno or 0
        raise OSError(code, os.strerror(code), path) from why


def followed(root: int, link: Found, hops: int) -> Found:
    """Return what a link leads to, within the root."""
    if not hops:
        path = os.path.join(link.parent, link.base)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    above = directory_in(root, link.parent)
    try:
        target = os.readlink(link.base, dir_fd=above)
    finally:
        os.close(above)
    end = "/." if link.contents else "/" if link.must_be_directory else ""
    path = os.path.join(link.parent, target) + end
    return find(root, path, follow=True, hops=hops - 1)


# %% What it is called there
class Landing(Record):
    """Where a copy lands: in the directory ``at``, under ``name``.

    An empty name: what is in the source lands in ``at`` itself.
    """

    at: str
    name: str


def landing(source: Found, target: Found) -> Landing:
    """Return where a source lands. Raises MinidockerError by the rules of `cp -a`."""
    here = os.path.join(target.parent, target.base)
    if target.is_directory:
        name = "" if source.is_directory and source.contents else source.base
        return Landing(here, name)
    if target.mode and source.is_directory:
        raise MinidockerError("cannot copy directory", where=target.base)
    if target.must_be_directory and not source.is_directory:
        raise NotFoundError("no such directory", where=here)
    return Landing(target.parent, target.base)


# %% The container's tree
@contextmanager
def root_of(engine: Engine, container: Container) -> Iterator[str]:
    """Yield a path to the root of a container's tree."""
    state = engine.containers.state(container.id)
    if state.status is Status.RUNNING and state.pid:
        yield f"/proc/{state.pid}/root"
        return
    with engine.layers.rw_mounted(container.id) as tree, ExitStack() as stack:
        top = os.open(tree, PLACE | os.O_DIRECTORY)
        stack.callback(os.close, top)
        for point in points_of(container):
            if point.kind != "tmpfs":
                point.step().apply(top)
        yield tree


def engine_for(given: Given, name: str) -> tuple[Engine, Container]:
    """Open the store as a container needs it: to mount, if it is stopped."""
    engine = open_engine(given, Needs.TREES)
    container = engine.containers.resolve(name)
    if engine.containers.state(container.id).status is not Status.RUNNING:
        engine = open_engine(given, Needs.MOUNTS)
    return engine, container


# %% The tar between
class Renaming(TarWriter):
    """A tar whose entries are renamed: ``old`` at the beginning becomes ``new``.

    With ``own``, they belong to whoever runs this.
    """

    def __init__(self, put: Put, old: bytes, new: bytes, *, own: bool) -> None:
        super().__init__(put)
        self.old, self.new, self.own = old, new, own

    def renamed(self, name: bytes) -> bytes:
        """Return the new name of an entry."""
        rest = name[len(self.old) :]
        return self.new + rest if self.new else rest.lstrip(b"/")

    def add(self, entry: Entry, fd: int | None = None, data: bytes = b"") -> None:
        """Write an entry under its new name."""
        more = {"linkname": self.renamed(entry.linkname)}
        hard = entry.kind is Kind.HARD_LINK
        entry = entry.replace(name=self.renamed(entry.name), **(more if hard else {}))
        if self.own:
            entry = entry.replace(uid=os.geteuid(), gid=os.getegid())
        if entry.name:
            super().add(entry, fd, data)


def names_of(parent: int, base: str) -> Iterator[bytes]:
    """Yield a name in an open directory, and all below it."""
    yield os.fsencode(base)
    mode = os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return
    for place, directories, files, _ in os.fwalk(base, dir_fd=parent):
        directories.sort()
        for name in sorted([*directories, *files]):
            yield os.fsencode(os.path.join(place, name))


def pack_found(root: int, found: Found, name: str, put: Put, *, own: bool) -> None:
    """Write what was found as a tar, under ``name``, or without one of its own."""
    if found.base:
        parent, base = (
            open_in_root(root, found.parent, PLACE | os.O_DIRECTORY),
            found.base,
        )
    else:
        parent, base = os.dup(root), "."
    try:
        with TreeWriter(magic(parent), put) as writer:
            old = b"." if base == "." else os.fsencode(base)
            writer.tar = Renaming(put, old, os.fsencode(name), own=own)
            for one in names_of(parent, base):
                writer.add(one)
            writer.tar.finish()
    finally:
        os.close(parent)


# %% The tar between
def transfer(
    source: int, found: Found, name: str, target: str, at: str, *, own: bool
) -> None:
    """Copy what was found below ``source`` into ``at`` below the tree ``target``."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        send(source, found, name, write, own=own)
    os.close(write)
    try:
        with open(read, "rb") as file:
            extract(file.read1, target, at=at, ignore_owner=own)
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise MinidockerError("the source could not be read to its end")


def send(source: int, found: Found, name: str, write: int, *, own: bool) -> NoReturn:
    """Be the child that packs."""
    status = 1
    try:
        with open(write, "wb") as file:
            pack_found(source, found, name, file.write, own=own)
        status = 0
    except (MinidockerError, OSError) as why:
        print(f"minidocker: {why}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


# %% The verb
def copy_out(given: Given, source: Place, target: str) -> None:
    """Copy from a container to the host, or to our output."""
    engine, container = engine_for(given, source.container)
    with root_of(engine, container) as tree:
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = looked_for(root, source, follow=given.on("follow-link"))
        tell(engine.containers, container, "archive-path")
        if target == "-":
            with open(1, "wb", closefd=False) as file:
                pack_found(root, found, found.base, file.write, own=False)
            return
        place = on_host(target)
        host = os.open("/", PLACE | os.O_DIRECTORY)
        there = find(host, place, follow=True)
        lands = checked(host, landing(found, there), found)
        transfer(root, found, lands.name, "/", lands.at, own=True)


def check_writable(container: Container, path: str) -> None:
    """Refuse a place on a root, or in a volume, that the container may only read."""
    below = [
        point
        for point in points_of(container)
        if point.kind != "tmpfs" and f"{path}/".startswith(f"{point.target}/")
    ]
    if below and not max(below, key=lambda point: len(point.target)).writable:
        raise MinidockerError("mounted volume is marked read-only")
    if container.host.readonly and not below:
        raise MinidockerError("container rootfs is marked read-only")


def copy_in(given: Given, source: str, target: Place) -> None:
    """Copy from the host, or from our input, to a container."""
    engine, container = engine_for(given, target.container)
    rootless = engine.layers.driver.rootless
    with root_of(engine, container) as tree:
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        there = looked_for(root, target, follow=True, may_be_missing=True)
        check_writable(container, os.path.join(there.parent, there.base))
        if source == "-":
            if not there.is_directory:
                where = f"{target.container}:{target.path}"
                what = f'destination "{where}" must be a directory'
                raise MinidockerError(what)
            with open(0, "rb", closefd=False) as file:
                at = os.path.join(there.parent, there.base)
                extract(file.read1, tree, at=at, ignore_owner=rootless)
            tell(engine.containers, container, "extract-to-dir")
            return
        host = os.open("/", PLACE | os.O_DIRECTORY)
        found = find(host, on_host(source), follow=given.on("follow-link"))
        if not found.mode:
            raise NotFoundError("no such file or directory", where=source)
        lands = checked(root, landing(found, there), found)
        # without root, other users' files have owners that are nobody in there
        transfer(host, found, lands.name, tree, lands.at, own=rootless)
        tell(engine.containers, container, "extract-to-dir")


# %% The verb
def on_host(path: str) -> str:
    """Return an absolute path of the host, its end (``/`` or ``/.``) kept."""
    end = (
        "/."
        if path.endswith("/.") or path == "."
        else "/"
        if path.endswith("/")
        else ""
    )
    return os.path.abspath(path) + end


def looked_for(
    root: int, place: Place, *, follow: bool, may_be_missing: bool = False
) -> Found:
    """Look in a container; NotFoundError in Docker's words where there is nothing."""
    try:
        found = find(root, place.path, follow=follow)
    except FileNotFoundError:
        found = Found("", "", 0)
    if not found.mode and (not may_be_missing or not found.base):
        what = f"no such container:path: {place.container}:{place.path}"
        raise NotFoundError(what)
    return found


def checked(root: int, lands: Landing, source: Found) -> Landing:
    """Return a landing, unless a directory would replace a file, or a file one."""
    there = find(root, os.path.join(lands.at, lands.name)).mode if lands.name else 0
    if there and stat.S_ISDIR(there) is not source.is_directory:
        words = ("non-directory", "directory")
        one, other = words[source.is_directory], words[stat.S_ISDIR(there)]
        raise MinidockerError(f"cannot overwrite {other} with {one}", where=lands.name)
    return lands


# %% The verb
def cp(given: Given) -> int:
    """``cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-``"""
    source, target = map(parse_place, given.args)
    if source.container and target.container:
        raise MinidockerError("copying between containers is not supported")
    if not source.container and not target.container:
        raise MinidockerError("must specify at least one container source")
    try:
        if source.container:
            copy_out(given, source, target.path)
        else:
            copy_in(given, source.path, target)
    except IntegrityError as why:
        what = f"error processing tar file: {why.what}"
        raise MinidockerError(what, where=why.where) from why
    except OSError as why:
        where = None if why.filename is None else os.fsdecode(why.filename)
        what = (why.strerror or str(why)).lower()
        raise MinidockerError(what, where=where) from why
    return 0


# %% The table
COMMANDS = (
    Command(
        "cp", "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-",
        "Copy files/folders between a container and the local filesystem", cp,
        (
            Flag("archive", "Archive mode (copy all uid/gid information)", "a"),
            Flag("follow-link", "Always follow symbol link in SRC_PATH", "L"),
        ),
        least=2, most=2, example="minidocker cp web:/etc/hosts -",
    ),
)  # fmt: skip
