# From book/444-pump.md. Edit there and tangle, or here and tangle --back.

# %% Pump: bytes, signals and the size of a window
"""Connect a process with its user: pipes, pty, log, signals, window size."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from minidocker.calls import SysError, signal
from minidocker.containers import timestamp
from minidocker.dialogue import copy_window_size
from minidocker.linux import pidfd_send_signal
from minidocker.program import ProcessSpec
from minidocker.records import Record, json_text
from minidocker.runtime import Process


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


def log_line(stream: str, text: bytes, when: str, told: str = "") -> bytes:
    r"""Return a line of a json-file log; ``told`` is JSON that goes before the time.

    >>> log_line("stdout", b"a<b\n", "2026-01-01T00:00:00Z")
    b'{"log":"a\\u003cb\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n'
    """
    log = json_text(text.decode(errors="replace"))
    for char in "<>&\u2028\u2029":  # Go's encoder has web pages in mind
        log = log.replace(char, f"\\u{ord(char):04x}")
    return f'{{"log":{log},"stream":"{stream}",{told}"time":"{when}"}}\n'.encode()


# %% What came out is kept
class JsonLog:
    """Append what containers write to a json-file log, whole lines at a time.

    ``told`` is written in each line.
    """

    def __init__(self, path: str, told: Mapping[str, str] | None = None) -> None:
        self.path, self.file = path, -1
        self.told = f'"attrs":{json_text(told)},' if told else ""
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
        """Write pieces of a stream as lines of the log."""
        if pieces:
            now = timestamp()
            self.put([log_line(stream, piece, now, self.told) for piece in pieces])

    def put(self, lines: list[bytes]) -> None:
        """Write lines to the file, in one call."""
        if self.file < 0:
            self.open()
        os.write(self.file, b"".join(lines))

    def open(self) -> None:
        """Open the file, at its end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.file = os.open(self.path, flags, 0o640)

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


def is_ready(fd: int) -> bool:
    """Say whether a descriptor has something to read, or has ended."""
    one = select.poll()
    one.register(fd, select.POLLIN)
    return bool(one.poll(0))


# %% The pump
class Loop:
    """Read from descriptors, and pass on what comes, until a process ends.

    ``clock`` does what is due, and returns the milliseconds until it wants to be
    called again.
    """

    def __init__(self, ending: int) -> None:
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.outputs: dict[int, Callable[[], None]] = {}
        self.tees: dict[str, Tee] = {}
        self.clock: Callable[[], float | None] | None = None
        self.ended = False
        self.watch(ending, select.POLLIN, self.end)

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
                self.outputs.pop(fd, None)

        self.outputs[fd] = handler
        self.watch(fd, select.POLLIN, handler)

    def shut(self, fd: int) -> None:
        """Let what writes to the pipe ``fd`` meet EPIPE; the number stays taken."""
        self.drop(fd)
        self.outputs.pop(fd, None)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, fd, inheritable=False)
        os.close(null)

    def run(self) -> None:
        """Work until the process has ended and its last words are read."""
        while not self.ended:
            for fd, _ in self.poll.poll(self.clock and self.clock()):
                if fd in self.handlers:
                    self.handlers[fd]()
        for fd in tuple(self.outputs):
            while fd in self.outputs and is_ready(fd):
                self.outputs[fd]()


# %% The pump
class Pump(Loop):
    """Move bytes between a process and those around it until the process ends.

    ``entrance`` is where input goes, or -1; it is closed by the pump. ``through`` is
    what input goes through.
    """

    def __init__(self, ending: int, entrance: int = -1) -> None:
        super().__init__(ending)
        self.entrance = entrance
        self.inputs: dict[int, Callable[[], None]] = {}
        self.through: Callable[[bytes], bytes] | None = None
        self.pending = b""

    def input(self, source: int, done: Callable[[], None]) -> None:
        """Pass bytes from ``source`` to the entrance; call ``done`` at their end."""
        os.set_blocking(self.entrance, False)

        def fill() -> None:
            data = read_some(source)
            if data:
                self.put(self.through(data) if self.through else data)
            elif data is not None:
                self.forget(source)
                done()

        self.inputs[source] = fill
        if not self.pending:
            self.watch(source, select.POLLIN, fill)

    def put(self, data: bytes) -> None:
        """Keep input until the entrance takes it; nobody is read from meanwhile."""
        if self.entrance >= 0 and data:
            self.pending += data
            for source in self.inputs:
                self.drop(source)
            self.watch(self.entrance, select.POLLOUT, self.flush)

    def flush(self) -> None:
        """Give the process what it takes of its input."""
        try:
            self.pending = self.pending[os.write(self.entrance, self.pending) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self.close_entrance()
            return
        if not self.pending:
            self.drop(self.entrance)
            for source, fill in self.inputs.items():
                self.watch(source, select.POLLIN, fill)

    def forget(self, source: int) -> None:
        """Read no more from a source of input."""
        self.drop(source)
        self.inputs.pop(source, None)

    def close_entrance(self) -> None:
        """Let the process read the end of its input."""
        for source in tuple(self.inputs):
            self.forget(source)
        if self.entrance >= 0:
            self.drop(self.entrance)
            os.close(self.entrance)
            self.entrance, self.pending = -1, b""


# %% The pump
class Tee:
    """Who takes a stream of a process: its log, the client's ``fd``, and guests.

    ``gone`` is called when the client has gone: nobody reads its pipe any more
    (EPIPE), or its terminal was closed (EIO). That does not stop the log.
    """

    def __init__(
        self,
        source: int,
        stream: str,
        fd: int,
        log: JsonLog | None,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.stream, self.fd = source, stream, fd
        self.log, self.gone = log, gone
        self.guests: list[Callable[[bytes], None]] = []

    def __call__(self, data: bytes) -> None:
        if self.log:
            self.log.write(self.stream, data)
        for guest in tuple(self.guests):
            guest(data)
        if self.fd < 0:
            return
        try:
            write_out(self.fd, data)
        except OSError as why:
            if why.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.fd = -1
            self.gone()


# %% The pump
def pump_for(
    process: Process, ends: Ends, client: Client | None, log: JsonLog | None
) -> Pump:
    """Return a pump that connects a process with its client and its log."""
    out, err = (client.stdout, client.stderr) if client else (-1, -1)
    if process.terminal >= 0:
        pump = Pump(process.pidfd, os.dup(process.terminal))
        tees = [Tee(process.terminal, "stdout", out, log)]
    else:
        pump = Pump(process.pidfd, ends.stdin)
        tees = [
            Tee(end, name, fd, log, partial(pump.shut, end))
            for end, fd, name in (
                (ends.stdout, out, "stdout"),
                (ends.stderr, err, "stderr"),
            )
        ]
    for tee in tees:
        pump.tees[tee.stream] = tee
        pump.output(tee.source, tee)
    if client and client.stdin >= 0 and pump.entrance >= 0:
        pump.input(client.stdin, pump.close_entrance)
    return pump


# %% The pump
def pump_process(
    process: Process,
    ends: Ends,
    client: Client | None,
    log: JsonLog | None,
    welcome: Callable[[Pump, Process], None] = lambda *_: None,
) -> None:
    """Connect a process with its client and its log, until it ends.

    ``welcome`` is called before the first byte moves.
    """
    pump = pump_for(process, ends, client, log)
    try:
        welcome(pump, process)
        pump.run()
    finally:
        pump.close_entrance()


# %% Signals and the window
FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT,
)  # fmt: skip


@contextmanager
def signals_forwarded(pidfd: int) -> Iterator[None]:
    """Pass signals on to a process for the length of a ``with`` block."""

    def forward(number: int, _: object) -> None:
        with suppress(SysError):  # it has ended: we are about to see that
            pidfd_send_signal(pidfd, number)

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
            tty.setraw(keyboard, termios.TCSANOW)  # what is typed already stays
        yield
    finally:
        signal.signal(signal.SIGWINCH, handler)
        if before:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


# %% A process's life, in one function
def attend(
    spec: ProcessSpec,
    launch: Callable[[ProcessSpec], Process],
    client: Client | None,
    log: JsonLog | None = None,
    welcome: Callable[[Pump, Process], None] = lambda *_: None,
    *,
    stdin: bool = False,
) -> int:
    """Launch a process, attend it to its end, return its exit status.

    ``welcome`` is called when the program runs. Every descriptor that is made here
    is closed here. Raises what ``launch`` raises.
    """
    if client:
        spec = spec.replace(stdout=client.stdout, stderr=client.stderr)
    spec, ends = make_ends(spec, stdin=stdin)
    try:
        process = launch(spec)
    except BaseException:
        close_all(ends.stdin, ends.stdout, ends.stderr)
        raise
    finally:
        ends.close_given()
    try:
        client = client if stdin else deaf(client)
        with (
            signals_forwarded(process.pidfd),
            raw_terminal(client, process.terminal),
        ):
            pump_process(process, ends, client, log, welcome)
        return process.wait()
    finally:
        close_all(ends.stdout, ends.stderr, process.terminal, process.pidfd)
        if log:
            log.close()


def deaf(client: Client | None) -> Client | None:
    """Return a client whose input is not passed on."""
    return client.replace(stdin=-1) if client else None


def close_all(*fds: int) -> None:
    """Close the descriptors that are open (not -1)."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


# %% Who stays behind
def let_go(*keep: int) -> None:
    """Close every descriptor but ``keep``; the first three become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
