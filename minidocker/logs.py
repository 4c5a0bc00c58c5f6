# From book/458-logs.md. Edit there and tangle, or here and tangle --back.

# %% Logs: what a container said, and when
"""Read a json-file log: its last lines, those of a time, those to come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress

from minidocker.containers import Container, ContainerStore, timestamp
from minidocker.durable import looking
from minidocker.errors import UsageError
from minidocker.records import Record, parse_json


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


# %% The noun
class LogEntry(Record):
    """A line that a container wrote: its stream, its time (RFC 3339), its text."""

    stream: str
    time: str
    log: str

    @property
    def moment(self) -> str:
        """The time with nine digits behind the point: such texts sort by time."""
        return fixed_time(self.time)


def fixed_time(text: str) -> str:
    """Return a time in UTC with all nine digits of its fraction.

    >>> fixed_time("2017-07-14T02:40:00.12Z")
    '2017-07-14T02:40:00.120000000Z'
    """
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}Z"


def entry_of(line: bytes) -> LogEntry:
    """Return the entry of a line of the file."""
    found = parse_json(line.decode())
    return LogEntry(found["stream"], found["time"], found["log"])


def read_log(file: BinaryIO) -> Iterator[LogEntry]:
    """Yield the whole lines of an open log from where it stands."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(place)
            return
        yield entry_of(line)


# %% The end of a long file
BLOCK = 65536


def seek_tail(file: BinaryIO, lines: int) -> int:
    """Stand before the last ``lines`` lines of a file; return how many those are."""
    at = file.seek(0, os.SEEK_END)
    found, text = 0, b""
    while at > 0 and found <= lines:
        step = min(BLOCK, at)
        at -= step
        file.seek(at)
        text = file.read(step) + text
        found = text.count(b"\n")
    skip = max(found - lines, 0)
    begin = 0
    for _ in range(skip):
        begin = text.index(b"\n", begin) + 1
    file.seek(at + begin)
    return found - skip


# %% How much is kept
UNITS = {"k": 10, "m": 20, "g": 30}


def log_limits(options: Iterable[str]) -> tuple[int, int]:
    """Return the bytes of a file (0 for any) and the files of ``--log-opt`` options.

    Raises UsageError in Docker's words.

    >>> log_limits(["max-size=10k", "max-file=3"])
    (10240, 3)
    """
    size, files = 0, 1
    for option in options:
        name, _, value = option.partition("=")
        if name == "max-size":
            size = log_size(value)
        elif name == "max-file":
            if not value.isdecimal() or int(value) < 1:
                raise UsageError("max-file cannot be less than 1")
            files = int(value)
        else:
            what = f"unknown log opt '{name}' for json-file log driver"
            raise UsageError(what, hint="max-size, max-file")
    return size, files


def log_size(text: str) -> int:
    """Return the bytes of ``10k`` or ``1m``; UsageError for what is no size."""
    number = text.lower().removesuffix("b")
    digits = number.rstrip("kmg")
    if not digits.isdecimal() or not int(digits) or len(number) - len(digits) > 1:
        raise UsageError(f"invalid size: '{text}'", hint="--log-opt max-size=10m")
    return int(digits) << UNITS.get(number[len(digits) :], 0)


# %% The whole log
def open_files(path: str, stack: ExitStack) -> list[BinaryIO]:
    """Open the files of a log, and return them oldest-first."""
    found: list[BinaryIO] = []
    seen: set[int] = set()
    with suppress(FileNotFoundError):
        for number in range(1 << 30):
            name = f"{path}.{number}" if number else path
            file = stack.enter_context(open(name, "rb"))  # noqa: SIM115
            inode = os.fstat(file.fileno()).st_ino
            if inode not in seen:
                found.insert(0, file)
            seen.add(inode)
    return found


def kept_entries(files: list[BinaryIO], tail: int | None) -> Iterator[LogEntry]:
    """Yield the entries of files, oldest-first: the last ``tail``, or all for None."""
    if tail is not None:
        for number in reversed(range(len(files))):
            tail -= seek_tail(files[number], tail)
            if tail <= 0:
                files = files[number:]
                break
    for file in files:
        yield from read_log(file)


# %% The whole log
def logs(
    store: ContainerStore,
    container: Container,
    *,
    tail: int | None = None,
    follow: bool = False,
    since: str = "",
    until: str = "",
) -> Iterator[LogEntry]:
    """Yield what a container wrote: the last ``tail`` lines; all of them for None.

    Of those only the ones between two moments (as ``fixed_time`` writes them; empty
    for no bound). With ``follow``, goes on until the container does not run.
    """
    path = store.path(container.id, f"{container.id}-json.log")
    found = every_entry(store, container, path, tail, until if follow else None)
    for entry in found:
        if until and entry.moment > until:
            return
        if entry.moment >= since:
            yield entry


# %% The whole log
PAUSE = 0.05  # seconds


def every_entry(
    store: ContainerStore,
    container: Container,
    path: str,
    tail: int | None,
    follow_until: str | None,
) -> Iterator[LogEntry]:
    """Yield what is there, and with ``follow_until`` what comes, up to that moment."""
    while (
        follow_until is not None
        and not os.path.exists(path)
        and is_attended(store, container)
        and not has_passed(follow_until)
    ):
        time.sleep(PAUSE)
    with ExitStack() as stack:
        files = open_files(path, stack)
        yield from kept_entries(files, tail)
        while follow_until is not None and files:
            attended = is_attended(store, container)
            yield from read_log(files[-1])
            if moved_on(path, files[-1]):
                yield from read_log(files[-1])
                files.append(stack.enter_context(open(path, "rb")))
            elif not attended or has_passed(follow_until):
                return
            else:
                time.sleep(PAUSE)


# %% The whole log
def moved_on(path: str, file: BinaryIO) -> bool:
    """Say whether another file has the log's name now."""
    try:
        return os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def has_passed(moment: str) -> bool:
    """Say whether a moment is over; an empty one never is."""
    return bool(moment) and fixed_time(timestamp()) > moment


def is_attended(store: ContainerStore, container: Container) -> bool:
    """Say whether a supervisor looks after a container just now."""
    with looking(store.path(container.id, "lock")) as taken:
        return taken
