# From book/170-durable.md. Edit there and tangle, or here and tangle --back.

# %% Durable: made whole elsewhere, synced, renamed
"""Write a store so that neither a reader nor a crash ever meets half a thing."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress

from minidocker.records import json_text, parse_json
from minidocker.trees import remove_path, sync_file_system, write_all


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% One file, in two strengths
def write_new(path: str, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file that nobody reads yet; not synced."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def write_whole(path: str, data: bytes | str) -> None:
    """Write a file so that a reader sees the old text or the new one.

    A power cut may leave an empty one. Two writers at once must hold a lock: the new
    text waits at ``path.new``.
    """
    write_new(f"{path}.new", data)
    os.rename(f"{path}.new", path)


def write_lasting(path: str, data: bytes | str) -> None:
    """Do what ``write_whole`` does, on the disk: after a power cut it is old or new.

    Directories that are missing are made, and are as sure to be there.
    """
    home = os.path.dirname(path)
    make_lasting(home)
    write_new(f"{path}.new", data)
    sync_path(f"{path}.new")
    os.rename(f"{path}.new", path)
    sync_path(home)


# %% One file, in two strengths
def sync_path(path: str) -> None:
    """Put a file's contents, or a directory's names, on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_lasting(path: str, mode: int = 0o711) -> None:
    """Make a directory and those above it, on the disk; nothing if it is there."""
    if not os.path.isdir(path):
        above = os.path.dirname(path)
        make_lasting(above)
        with suppress(FileExistsError):
            os.mkdir(path, mode)
        sync_path(above)


# %% One file, in two strengths
def is_written(path: str) -> bool:
    """Whether a file is there, and not empty, as a power cut may leave a new one."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def read_json(path: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError when there is none in it."""
    with open(path, "rb") as file:
        found = parse_json(file.read().decode(errors="surrogateescape"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object")
    return found


# %% Many things at once
PATIENCE = 1.0  # seconds that staged things may wait


class Batch:
    """Things staged below ``root``, published together: one sync, then the renames.

    Outside of a ``with`` block each ``settle`` publishes; inside, only when the oldest
    staged thing is a second old, and at the end, also when the block fails. What was
    staged is complete in itself, so publishing it is right then too.
    """

    __slots__ = ("depth", "mark", "root", "since", "staged", "tmp")

    def __init__(self, root: str, tmp: str) -> None:
        self.root, self.tmp, self.mark = root, tmp, -1
        self.staged: dict[str, str] = {}
        self.depth, self.since = 0, 0.0

    def place(self, final: str) -> str:
        """Return where a thing is now: staged, or where it belongs."""
        return self.staged.get(final, final)

    def new_path(self) -> str:
        """Return an unused path on the store's file system, to make something at."""
        if not self.staged:
            os.makedirs(self.tmp, 0o700, exist_ok=True)
        return f"{self.tmp}/{os.urandom(8).hex()}"

    def stage(self, final: str, data: bytes) -> None:
        """Stage a file."""
        new = self.new_path()
        write_new(new, data)
        self.stage_path(new, final)

    def stage_path(self, new: str, final: str) -> None:
        """Stage a file or directory that was made at ``new``."""
        self.since = self.since if self.staged else time.monotonic()
        self.staged[final] = new

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, staged ones included."""
        found = set()
        with suppress(FileNotFoundError):
            found.update(os.listdir(directory))
        heads = (os.path.split(final) for final in self.staged)
        return sorted(found | {name for head, name in heads if head == directory})

    def settle(self) -> None:
        """Publish, unless a block will do it soon."""
        if not self.depth or time.monotonic() - self.since > PATIENCE:
            self.publish()

    def publish(self) -> None:
        """Sync the store's file system, rename all that is staged, in order; sync."""
        if not self.staged:
            return
        sync_file_system(self.root)
        for final, new in self.staged.items():
            rename_new(new, final)
        sync_file_system(self.root)
        self.staged.clear()

    def __enter__(self) -> Batch:
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        self.settle()


# %% Many things at once
def rename_new(new: str, final: str) -> None:
    """Move a finished thing into place; one that is there already is left."""
    os.makedirs(os.path.dirname(final), 0o700, exist_ok=True)
    try:
        os.rename(new, final)
    except OSError as why:
        if why.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove_path(new)


# %% The lock
ALONE = fcntl.LOCK_EX | fcntl.LOCK_NB  # and without waiting


def lock_file(path: str, how: int = ALONE) -> int | None:
    """Lock a file, made if it is missing, until the descriptor is closed.

    ``how`` is for flock(2). None where that would wait and must not.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
    except BaseException as why:
        os.close(fd)
        if isinstance(why, BlockingIOError):
            return None
        raise
    return fd


@contextmanager
def locked_file(path: str, how: int = ALONE) -> Iterator[bool]:
    """Lock a file for a ``with`` block; yield whether it was got."""
    fd = lock_file(path, how)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def store_lock(root: str, *, exclusive: bool = False) -> AbstractContextManager[bool]:
    """Hold the store's lock for a ``with`` block; yield whether it was got.

    Shared waits and always gets it; exclusive does not wait.
    """
    os.makedirs(root, 0o711, exist_ok=True)
    return locked_file(f"{root}/lock", ALONE if exclusive else fcntl.LOCK_SH)


# %% The lock
@contextmanager
def turn(path: str) -> Iterator[None]:
    """Wait until nobody else holds the file ``path``; hold it for a ``with`` block."""
    with locked_file(path, fcntl.LOCK_EX):
        yield


# %% The lock
@contextmanager
def looking(path: str) -> Iterator[bool]:
    """Yield whether somebody holds the lock; if not, nobody takes it meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        taken = False
    except BlockingIOError:
        taken = True
    try:
        yield taken
    finally:
        os.close(handle)


# %% The lock
@contextmanager
def marked(root: str) -> Iterator[int]:
    """Leave a mark in the store for a ``with`` block; a crash or an error leaves it.

    Yields its descriptor: what is written there, a line each, is claimed meanwhile.
    """
    mark = f"{root}/{MARKS}/{os.urandom(8).hex()}"
    fd = leave_mark(mark)
    try:
        yield fd
    finally:
        os.close(fd)
    with suppress(OSError):  # one too many costs a sweep
        os.unlink(mark)


MARKS = "changing"


def leave_mark(mark: str) -> int:
    """Make a mark, and return it open."""
    os.makedirs(os.path.dirname(mark), 0o700, exist_ok=True)
    return os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def sweep_later(root: str) -> None:
    """Leave a mark that stays, so that whoever comes next sweeps."""
    os.close(leave_mark(f"{root}/{MARKS}/later"))


def claimed(root: str) -> set[str]:
    """Return what those who are at work claim, or claimed before they were killed."""
    found: set[str] = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(f"{root}/{MARKS}"):
            with suppress(FileNotFoundError), open(f"{root}/{MARKS}/{name}") as file:
                found.update(file.read().split())
    return found


def is_marked(root: str) -> bool:
    """Tell whether somebody makes something here, or has died of it."""
    try:
        return bool(os.listdir(f"{root}/{MARKS}"))
    except FileNotFoundError:
        return False


def unmark(root: str) -> None:
    """Remove all marks. The caller holds the store's lock exclusively.

    Their directory stays: somebody may be about to leave one in it.
    """
    for name in os.listdir(f"{root}/{MARKS}") if is_marked(root) else ():
        os.unlink(f"{root}/{MARKS}/{name}")


# %% A file that only grows
MOST_LINES = 4 << 20  # bytes


def append_line(path: str, line: bytes, most: int = MOST_LINES) -> None:
    """Append to a file; one of more than ``most`` bytes becomes ``PATH.1``."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, line)
        if os.fstat(fd).st_size <= most:
            return
        with turn(f"{path}.lock"), suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                os.rename(path, f"{path}.1")
    finally:
        os.close(fd)


# %% What happened
def event_fields(
    kind: str, action: str, id: str, attributes: Mapping[str, str]
) -> dict[str, Any]:
    """Return Docker's fields of something that happens now."""
    now = time.time_ns()
    return {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": id, "Attributes": dict(sorted(attributes.items()))},
        "scope": "local",
        "time": now // 10**9,
        "timeNano": now,
    }


def happened(root: str, *events: Mapping[str, Any]) -> None:
    """Write events at the end of the log of the store ``root``."""
    text = "".join(json_text(event) + "\n" for event in events)
    append_line(f"{root}/events.json", text.encode("utf-8", "surrogateescape"))
