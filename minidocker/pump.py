# From book/445-pump.md. Edit there and tangle, or here and tangle --back.

# %% Pump: bytes, signals and the size of a window
"""Connect a process with its user: pipes, pty, log, signals, window size."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from minidocker.containers import timestamp
from minidocker.linux import SysError, pidfd_send_signal
from minidocker.program import ProcessSpec
from minidocker.records import Record, json_text
from minidocker.runtime import Process, copy_window_size


# %% Who is connected to what
class Client(Record):
    """The descriptors of whoever asked for the container; they stay open."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2


class Ends(Record):
    """The ends of a container's pipes that are ours, and those that are its own.

    A pipe that is not there is -1. With a terminal there are none.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    given: tuple[int, ...] = ()

    def close_given(self) -> None:
        """Close the container's ends; without this our reads would never end."""
        for end in self.given:
            os.close(end)


def make_ends(spec: ProcessSpec, *, stdin: bool) -> tuple[ProcessSpec, Ends]:
    """Make the pipes; return the spec that uses them, and our ends."""
    if spec.tty:
        return spec, Ends()
    if stdin:
        theirs_in, ours_in = os.pipe()
    else:
        theirs_in, ours_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    ours_out, theirs_out = os.pipe()
    ours_err, theirs_err = os.pipe()
    given = (theirs_in, theirs_out, theirs_err)
    spec = spec.replace(stdin=theirs_in, stdout=theirs_out, stderr=theirs_err)
    return spec, Ends(ours_in, ours_out, ours_err, given)


# %% What came out is kept
LONGEST_LINE = 16384  # bytes; a longer one is cut in pieces, as Docker cuts it


def log_line(stream: str, text: bytes, when: str) -> bytes:
    r"""Return a line of a json-file log.

    >>> log_line("stdout", b"a<b\n", "2026-01-01T00:00:00Z")
    b'{"log":"a\\u003cb\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n'
    """
    log = json_text(text.decode(errors="replace"))
    for char in "<>&\u2028\u2029":  # Go's encoder has web pages in mind
        log = log.replace(char, f"\\u{ord(char):04x}")
    return f'{{"log":{log},"stream":"{stream}","time":"{when}"}}\n'.encode()


class JsonLog:
    """Append what containers write to a json-file log, whole lines at a time."""

    def __init__(self, path: str) -> None:
        self.path, self.file = path, -1
        self.pending = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, data: bytes) -> None:
        """Add output; an unfinished line is kept until its end comes."""
        *lines, rest = (self.pending[stream] + data).split(b"\n")
        pieces = [line + b"\n" for line in lines]
        while len(rest) >= LONGEST_LINE:
            pieces.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self.pending[stream] = rest
        self.append(stream, pieces)

    def append(self, stream: str, pieces: list[bytes]) -> None:
        """Write lines to the file in one call."""
        if not pieces:
            return
        if self.file < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self.file = os.open(self.path, flags, 0o640)
        now = timestamp()
        os.write(self.file, b"".join(log_line(stream, p, now) for p in pieces))

    def close(self) -> None:
        """Write what has no newline yet, and close the file."""
        for stream, rest in self.pending.items():
            self.append(stream, [rest] if rest else [])
        if self.file >= 0:
            os.close(self.file)


# %% The pump
CHUNK = 65536


def read_some(fd: int) -> bytes | None:
    """Read what is there: empty at the end, None when there is nothing now.

    A pty says EIO when its last slave is closed.
    """
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return None
    except OSError as why:
        if why.errno == errno.EIO:
            return b""
        raise


def write_out(fd: int, data: bytes) -> None:
    """Write all of ``data``, waiting where the descriptor does not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            room = select.poll()
            room.register(fd, select.POLLOUT)
            room.poll()


class Pump:
    """Move bytes between a process and a client until the process ends."""

    def __init__(self, process: Process, entrance: int) -> None:
        self.entrance = entrance  # where input goes, or -1; closed by the pump
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.outputs: list[int] = []
        self.ended = False
        self.pending = b""
        self.watch(process.pidfd, select.POLLIN, self.end)

    def watch(self, fd: int, events: int, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever ``fd`` is ready."""
        self.poll.register(fd, events)
        self.handlers[fd] = handler

    def drop(self, fd: int) -> None:
        """Watch ``fd`` no more."""
        if self.handlers.pop(fd, None):
            self.poll.unregister(fd)

    def end(self) -> None:
        """Note that the process has ended."""
        self.ended = True

    def output(self, fd: int, sink: Callable[[bytes], None]) -> None:
        """Pass what the process writes on to ``sink``, to the very end."""
        os.set_blocking(fd, False)

        def handler() -> None:
            data = read_some(fd)
            if data:
                sink(data)
            elif data is not None:
                self.drop(fd)

        self.outputs.append(fd)
        self.watch(fd, select.POLLIN, handler)

    def shut(self, fd: int) -> None:
        """Let what writes to the pipe ``fd`` meet EPIPE; the number stays taken."""
        self.drop(fd)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, fd, inheritable=False)
        os.close(null)

    def run(self) -> None:
        """Work until the process has ended and its last words are read."""
        while not self.ended:
            for fd, _ in self.poll.poll():
                if fd in self.handlers:
                    self.handlers[fd]()
        for fd in self.outputs:
            while fd in self.handlers and self.poll_one(fd):
                self.handlers[fd]()

    def close_entrance(self) -> None:
        """Let the process read the end of its input."""
        if self.entrance >= 0:
            self.drop(self.entrance)
            os.close(self.entrance)
            self.entrance = -1

    def poll_one(self, fd: int) -> bool:
        """Say whether ``fd`` has something to read, or has ended."""
        one = select.poll()
        one.register(fd, select.POLLIN)
        return bool(one.poll(0))


# %% The pump
def connect_input(pump: Pump, source: int) -> None:
    """Pass bytes from ``source`` to the pump's entrance, and close it at the end."""
    os.set_blocking(pump.entrance, False)

    def finish() -> None:
        pump.drop(source)
        pump.close_entrance()

    def flush() -> None:
        try:
            pump.pending = pump.pending[os.write(pump.entrance, pump.pending) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            finish()
            return
        if not pump.pending:
            pump.drop(pump.entrance)
            pump.watch(source, select.POLLIN, fill)

    def fill() -> None:
        data = read_some(source)
        if data:
            pump.pending = data
            pump.drop(source)
            pump.watch(pump.entrance, select.POLLOUT, flush)
        elif data is not None:
            finish()

    pump.watch(source, select.POLLIN, fill)


# %% The pump
def tee(
    fd: int,
    log: JsonLog | None,
    stream: str,
    gone: Callable[[], None] = lambda: None,
) -> Callable[[bytes], None]:
    """Return a sink that writes to the client's ``fd`` (-1: none) and to the log.

    ``gone`` is called when the client has gone: nobody reads its pipe any more
    (EPIPE), or its terminal was closed (EIO). That does not stop the log.
    """
    open_fds = [fd] if fd >= 0 else []

    def sink(data: bytes) -> None:
        if log:
            log.write(stream, data)
        try:
            for one in open_fds:
                write_out(one, data)
        except OSError as why:
            if why.errno not in (errno.EPIPE, errno.EIO):
                raise
            open_fds.clear()
            gone()

    return sink


def pump_process(
    process: Process, ends: Ends, client: Client | None, log: JsonLog | None
) -> None:
    """Connect a process with its client and its log, until it ends."""
    out, err = (client.stdout, client.stderr) if client else (-1, -1)
    if process.terminal >= 0:
        pump = Pump(process, os.dup(process.terminal))
        pump.output(process.terminal, tee(out, log, "stdout"))
    else:
        pump = Pump(process, ends.stdin)
        for end, fd, name in (
            (ends.stdout, out, "stdout"),
            (ends.stderr, err, "stderr"),
        ):
            pump.output(end, tee(fd, log, name, partial(pump.shut, end)))
    if client and client.stdin >= 0 and pump.entrance >= 0:
        connect_input(pump, client.stdin)
    try:
        pump.run()
    finally:
        pump.close_entrance()


# %% Signals and the window
FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT,
)  # fmt: skip


@contextmanager
def signals_forwarded(process: Process) -> Iterator[None]:
    """Pass signals on to ``process`` for the length of a ``with`` block."""

    def forward(number: int, _: object) -> None:
        with suppress(SysError):  # it has ended: we are about to see that
            pidfd_send_signal(process.pidfd, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# %% Signals and the window
@contextmanager
def raw_terminal(client: Client | None, terminal: int) -> Iterator[None]:
    """Hand the client's terminal to the pty for the length of a ``with`` block."""
    if client is None or terminal < 0:
        yield
        return
    import termios
    import tty

    screen, keyboard = client.stdout, client.stdin
    before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    copy_window_size(screen, terminal)
    handler = signal.signal(
        signal.SIGWINCH, lambda *_: copy_window_size(screen, terminal)
    )
    try:
        if before:
            tty.setraw(keyboard)
        yield
    finally:
        signal.signal(signal.SIGWINCH, handler)
        if before:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
