# From book/458-logs.md. Edit there and tangle, or here and tangle --back.

# %% Logs: what a container said, and when
"""Read a json-file log: its last lines, those of a time, those to come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import pairwise

from minidocker.containers import Container, ContainerStore, timestamp
from minidocker.durable import looking
from minidocker.errors import WordFault, did_you_mean
from minidocker.pump import JsonLog
from minidocker.records import Record, parse_json
from minidocker.watching import LATE, Sleeper


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


# %% The noun
class LogEntry(Record):
    """A line that a container wrote: its stream, its time (RFC 3339), its text.

    ``details`` are what the log's options tell besides.
    """

    stream: str
    time: str
    log: str
    details: Mapping[str, str] | None = None

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
    return LogEntry(found["stream"], found["time"], found["log"], found.get("attrs"))


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
DRIVERS = ("json-file", "local", "none")


class Shape(Record):
    """How a log is kept: bytes of a file (0 for any), files, packed or not."""

    most: int = 0
    files: int = 1
    packed: bool = False


USUAL = {"json-file": Shape(), "local": Shape(20 << 20, 5, packed=True)}
SIZES = ("max-size", "max-file", "compress")
MODES = ("mode", "max-buffer-size")
TOLD = ("labels", "labels-regex", "env", "env-regex", "tag")


def check_names(driver: str, names: Iterable[str]) -> None:
    """Raise WordFault for an option that a driver does not have."""
    known = SIZES + MODES + (TOLD if driver == "json-file" else ())
    for name in names:
        if name not in known:
            what = f"unknown log opt '{name}' for {driver} log driver"
            raise WordFault(what, hint=did_you_mean(name, known))


def log_shape(driver: str, options: Mapping[str, str]) -> Shape:
    """Return how the log of a driver is kept with its options. Raises WordFault.

    >>> log_shape("json-file", {"max-size": "10k", "max-file": "3"})
    Shape(most=10240, files=3, packed=False)
    """
    check_names(driver, options)
    shape = USUAL[driver]
    if size := options.get("max-size"):
        shape = shape.replace(most=log_size(size))
    if count := options.get("max-file"):
        if not count.isdecimal() or int(count) < 1:
            raise WordFault("max-file cannot be less than 1")
        shape = shape.replace(files=int(count))
    if word := options.get("compress"):
        shape = shape.replace(packed=truth(word))
    if shape.packed and "compress" in options and not (shape.most and shape.files > 1):
        what = "compress cannot be true when max-file is less than 2"
        raise WordFault(f"{what} or max-size is not set")
    check_mode(options)
    return shape


# %% How much is kept
def log_size(text: str) -> int:
    """Return the bytes of ``10k`` or ``1m``; WordFault for what is no size."""
    number = text.lower().removesuffix("b")
    digits = number.rstrip("kmg")
    if not digits.isdecimal() or not int(digits) or len(number) - len(digits) > 1:
        raise WordFault(f"invalid size: '{text}'", hint="--log-opt max-size=10m")
    return int(digits) << UNITS.get(number[len(digits) :], 0)


def truth(text: str) -> bool:
    """Return what ``true`` or ``false`` means. Raises WordFault."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise WordFault(f'invalid value "{text}" for compress: true or false')
    return words[text.lower()]


def check_mode(options: Mapping[str, str]) -> None:
    """Refuse a mode that is none; both are the same here, where nobody waits."""
    mode = options.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking"):
        raise WordFault(f"logging mode not supported: {mode}")
    if size := options.get("max-buffer-size"):
        if mode != "non-blocking":
            what = "max-buffer-size option is only supported with 'mode=non-blocking'"
            raise WordFault(what)
        log_size(size)


# %% How much is kept
def pack(path: str) -> None:
    """Make PATH.gz of a file, in its place."""
    import gzip

    with open(path, "rb") as file, gzip.open(f"{path}.gz", "wb", 6) as packed:
        packed.write(file.read())
    os.unlink(path)


class RotatingLog(JsonLog):
    """A log in several files: a full PATH becomes PATH.1, that PATH.2, and so on.

    Where they are packed the older ones are PATH.1.gz, and so on.
    """

    def __init__(
        self, path: str, shape: Shape, told: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(path, told)
        self.shape = shape

    def put(self, lines: list[bytes]) -> None:
        """Write lines to the file, each to a new one if it is full."""
        for line in lines:
            if self.file < 0:
                self.open()
            if os.fstat(self.file).st_size >= self.shape.most:
                self.rotate()
            super().put([line])

    def rotate(self) -> None:
        """Let the file be the second newest; the oldest goes."""
        os.close(self.file)
        end = ".gz" if self.shape.packed else ""
        older = [f"{self.path}.{n}{end}" for n in range(1, self.shape.files)]
        if end and older:
            pack(self.path)
        names = [f"{self.path}{end}", *older]
        for old, new in reversed(list(pairwise(names))):
            with suppress(FileNotFoundError):
                os.rename(old, new)
        if self.shape.files == 1:
            os.unlink(self.path)
        self.open()


# %% What each line tells besides
TAG = re.compile(r"{{\s*\.(\w*)\s*}}")


FIELDS = (
    "ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "Command",
    "DaemonName",
)  # fmt: skip


def check_tag(form: str) -> None:
    """Raise WordFault for a ``tag`` with a field that a log does not have."""
    for name in TAG.findall(form):
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS, other=", ".join(FIELDS))
            raise WordFault(f"a log has no field {name}", hint=hint)


def tag_text(form: str, container: Container) -> str:
    """Return a ``tag`` with its fields filled in."""
    values = (
        container.id[:12], container.id, container.name, container.image[7:19],
        container.image, container.config.image, " ".join(container.argv), "minidocker",
    )  # fmt: skip
    fields = dict(zip(FIELDS, values, strict=True))
    return TAG.sub(lambda found: fields[found[1]], form)


def attributes(container: Container, options: Mapping[str, str]) -> dict[str, str]:
    """Return what each line of a log tells of its container, as its options ask."""
    env = dict(line.partition("=")[::2] for line in container.config.env or ())
    found = {}
    for kind, values in (("labels", container.config.labels or {}), ("env", env)):
        names = options.get(kind, "").split(",")
        form = options.get(f"{kind}-regex")
        for name, value in values.items():
            if name in names or (form and re.search(form, name)):
                found[name] = value
    if form := options.get("tag"):
        found["tag"] = tag_text(form, container)
    return dict(sorted(found.items()))


def log_for(container: Container, path: str) -> JsonLog:
    """Return the log that a container's driver and options ask for."""
    options = dict(text.split("=", 1) for text in container.host.log_opts)
    shape = log_shape(container.host.log_driver, options)
    told = attributes(container, options)
    return RotatingLog(path, shape, told) if shape.most else JsonLog(path, told)


# %% The whole log
def open_files(path: str, stack: ExitStack) -> list[BinaryIO]:
    """Open the files of a log, and return them oldest-first."""
    found: list[BinaryIO] = []
    seen: set[int] = set()
    with suppress(FileNotFoundError):
        for number in range(1 << 30):
            name = f"{path}.{number}" if number else path
            packed = bool(number) and not os.path.exists(name)
            name += ".gz" if packed else ""
            file = stack.enter_context(open(name, "rb"))  # noqa: SIM115
            inode = os.fstat(file.fileno()).st_ino
            if inode not in seen:
                found.insert(0, unpacked(file) if packed else file)
            seen.add(inode)
    return found


def unpacked(file: BinaryIO) -> BinaryIO:
    """Return what is in a packed file, unpacked in memory; it was bounded."""
    import gzip
    import io

    return io.BytesIO(gzip.decompress(file.read()))


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
def every_entry(
    store: ContainerStore,
    container: Container,
    path: str,
    tail: int | None,
    follow_until: str | None,
) -> Iterator[LogEntry]:
    """Yield what is there, and with ``follow_until`` what comes, up to that moment."""
    with ExitStack() as stack:
        sleeper = stack.enter_context(Sleeper(os.path.dirname(path)))
        while (
            follow_until is not None
            and not os.path.exists(path)
            and is_attended(store, container)
            and not has_passed(follow_until)
        ):
            sleeper.sleep(time_left(follow_until))
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
                sleeper.sleep(time_left(follow_until))


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


def time_left(moment: str) -> float:
    """Return how long to sleep at most: a moment that is to come is not slept over."""
    return 0.1 if moment else LATE


def is_attended(store: ContainerStore, container: Container) -> bool:
    """Say whether a supervisor looks after a container just now."""
    with looking(store.path(container.id, "lock")) as taken:
        return taken
