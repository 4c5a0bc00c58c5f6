# From book/450-attach.md. Edit there and tangle, or here and tangle --back.

# %% Attach: a guest at the window
"""Let guests see what a container writes, type into it, and leave by two keys."""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from contextlib import ExitStack, suppress
from functools import partial

from minidocker.dialogue import receive_rights, send_rights
from minidocker.door import door_of
from minidocker.errors import ConflictError, MinidockerError, WordFault
from minidocker.pump import (
    Client,
    Pump,
    Tee,
    raw_terminal,
    signals_forwarded,
    write_out,
)
from minidocker.records import Record


# %% The keys
CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"  # Control and a letter: its place here
DETACH_KEYS = "ctrl-p,ctrl-q"


def key_bytes(text: str) -> bytes:
    """Return what a sequence such as ``ctrl-p,ctrl-q`` or ``a`` sends.

    >>> key_bytes("ctrl-p,q")
    b'\\x10q'
    """
    found = b""
    for key in text.split(","):
        letter = key.lower().removeprefix("ctrl-")
        if len(key.encode()) == 1:
            found += key.encode()
        elif key == "DEL":
            found += b"\x7f"
        elif key.lower().startswith("ctrl-") and letter and letter in CONTROL:
            found += bytes((CONTROL.index(letter),))
        else:
            what = f"invalid detach keys ({text}) provided: Unknown character: '{key}'"
            raise WordFault(what, hint="a letter or ctrl-LETTER, parted by commas")
    return found


# %% The keys
class Detached(MinidockerError):
    """The guest has typed the sequence that means goodbye."""


class Keyboard:
    """What is typed, without the sequence ``keys``; ``keys`` may be empty: none."""

    def __init__(self, keys: bytes) -> None:
        self.keys, self.held = keys, b""

    def __call__(self, typed: bytes) -> bytes:
        """Return what the program is to get. Raises Detached at the last key."""
        through = b""
        for at in range(len(typed) if self.keys else 0):
            self.held += typed[at : at + 1]
            if self.held == self.keys:
                raise Detached("read escape sequence")
            while self.held and not self.keys.startswith(self.held):
                through, self.held = through + self.held[:1], self.held[1:]
        return through if self.keys else typed


# %% A seat
class Seat(Record):
    """One side of what joins a guest and a supervisor; -1 for a pipe that is not there.

    The supervisor reads ``stdin`` and writes the others; the guest the other way.
    ``screen`` is the guest's terminal, for its size, until the program runs.
    """

    channel: socket
    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    screen: int = -1

    @property
    def pipes(self) -> tuple[int, ...]:
        """The pipes that are there, and the screen."""
        every = (self.stdin, self.stdout, self.stderr, self.screen)
        return tuple(fd for fd in every if fd >= 0)

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor."""
        return (self.channel.fileno(), *self.pipes)

    def close(self) -> None:
        """Leave."""
        self.channel.close()
        for fd in self.pipes:
            os.close(fd)


# %% A seat
def pipes_for(client: Client) -> tuple[dict[str, int], dict[str, int]]:
    """Return pipes for what a client has: the guest's ends, the supervisor's ends."""
    ours, theirs = {}, {}
    for name in ("stdin", "stdout", "stderr"):
        if getattr(client, name) >= 0:
            read, write = os.pipe()
            pair = (write, read) if name == "stdin" else (read, write)
            ours[name], theirs[name] = pair
    return ours, theirs


def new_seats(client: Client) -> tuple[Seat, Seat]:
    """Return two seats, the guest's and the supervisor's, before there is a door."""
    ours, theirs = pipes_for(client)
    guest, host = socketpair(AF_UNIX, SOCK_SEQPACKET)
    screen = os.dup(client.stdout) if client.stdout >= 0 else -1
    return Seat(guest, **ours), Seat(host, screen=screen, **theirs)


# %% The door
LETTERS = {"0": "stdin", "1": "stdout", "2": "stderr"}


def knock(place: str, client: Client) -> tuple[Seat, int]:
    """Ask to be let in; return our seat, and the terminal's master or -1.

    Raises ConflictError where nobody opens.
    """
    ours, theirs = pipes_for(client)
    channel = socket(AF_UNIX, SOCK_SEQPACKET)
    seat = Seat(channel, **ours)
    try:
        with door_of(place) as path:
            channel.connect(path)
        text = "".join(key for key, name in LETTERS.items() if name in theirs)
        send_rights(channel, f"in{text}".encode(), tuple(theirs.values()))
        answer, fds = receive_rights(channel)
        if not answer:
            raise ConnectionRefusedError
    except (FileNotFoundError, ConnectionError) as why:
        seat.close()
        raise ConflictError("nobody attends this container") from why
    finally:
        for fd in theirs.values():
            os.close(fd)
    return seat, fds[0] if fds else -1


# %% The supervisor's side
PATIENCE = 2000  # milliseconds that a guest may take nothing, after the end


class Writer:
    """Gives one stream to one guest."""

    def __init__(self, pump: Pump, tee: Tee, fd: int) -> None:
        self.pump, self.tee, self.fd, self.pending = pump, tee, fd, b""
        os.set_blocking(fd, False)
        tee.guests.append(self)

    def __call__(self, data: bytes) -> None:
        self.pending += data
        self.flush()

    def flush(self) -> None:
        """Write what fits; hold the stream while something is left."""
        try:
            self.pending = self.pending[os.write(self.fd, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self.leave()
            return
        if self.pending:
            self.pump.drop(self.tee.source)
            self.pump.watch(self.fd, select.POLLOUT, self.flush)
        else:
            self.pump.drop(self.fd)
            self.let_go()

    def let_go(self) -> None:
        """Read the stream again, unless another guest holds it."""
        source = self.tee.source
        if source in self.pump.outputs and not any(
            getattr(guest, "pending", b"") for guest in self.tee.guests
        ):
            self.pump.watch(source, select.POLLIN, self.pump.outputs[source])

    def leave(self) -> None:
        """Take this guest off the list."""
        self.pump.drop(self.fd)
        self.pending = b""
        if self in self.tee.guests:
            self.tee.guests.remove(self)
        self.let_go()

    def finish(self) -> None:
        """Write the rest, to a guest that takes it."""
        room = select.poll()
        room.register(self.fd, select.POLLOUT)
        while self.pending and room.poll(PATIENCE):
            self.flush()


# %% The supervisor's side
class Guest:
    """A guest as its supervisor sees it. The descriptors of ``seat`` are ours."""

    def __init__(self, seat: Seat, *, last: bool) -> None:
        self.seat, self.last = seat, last
        self.writers: list[Writer] = []
        self.gone = False

    def sit(self, pump: Pump) -> None:
        """Connect the guest with a process; ``last``: its end of input is final."""
        if self.seat.screen >= 0:
            os.close(self.seat.screen)
            self.seat = self.seat.replace(screen=-1)
        for name in ("stdout", "stderr"):
            fd, tee = getattr(self.seat, name), pump.tees.get(name)
            if fd >= 0 and tee:
                self.writers.append(Writer(pump, tee, fd))
        if self.seat.stdin >= 0 and pump.entrance >= 0:
            os.set_blocking(self.seat.stdin, False)
            final = pump.close_entrance if self.last else lambda: None
            pump.input(self.seat.stdin, final)
        pump.watch(self.seat.channel.fileno(), select.POLLIN, partial(self.go, pump))

    def go(self, pump: Pump) -> None:
        """The guest has left, by whatever door."""
        pump.drop(self.seat.channel.fileno())
        pump.forget(self.seat.stdin)
        for writer in self.writers:
            writer.leave()
        self.writers.clear()
        self.seat.close()
        self.gone = True

    def part(self, code: int) -> None:
        """Give the guest the rest, and the exit status of the process."""
        if self.gone:
            return
        for writer in self.writers:
            writer.finish()
        with suppress(OSError):
            self.seat.channel.send(b"%d" % code)
        self.seat.close()
        self.gone = True


# %% The supervisor's side
def admit(door: socket, terminal: int, *, last: bool) -> Guest | None:
    """Let in who knocks; None for somebody who only wanted to be heard.

    ``terminal`` is the pty's master, or -1.
    """
    channel = socket(fileno=door._accept()[0])  # type: ignore[attr-defined]
    text, fds = receive_rights(channel)
    if text[:2] != b"in" or len(text) - 2 != len(fds):
        channel.close()
        for fd in fds:
            os.close(fd)
        return None
    names = [LETTERS[letter] for letter in text[2:].decode()]
    guest = Guest(Seat(channel, **dict(zip(names, fds, strict=True))), last=last)
    try:
        send_rights(channel, b"sit", (terminal,) if terminal >= 0 else ())
    except OSError:  # gone again
        guest.seat.close()
        return None
    return guest


# %% The guest's side
class Visit:
    """A guest as the guest sees it: from its seat to the end, or to the two keys."""

    def __init__(self, seat: Seat, client: Client, keys: bytes = b"") -> None:
        self.seat, self.client = seat, client
        self.pump = Pump(seat.channel.fileno(), seat.stdin)
        self.keyboard = Keyboard(keys)
        for name in ("stdout", "stderr"):
            if getattr(seat, name) >= 0:
                to = getattr(client, name)
                self.pump.output(getattr(seat, name), partial(write_out, to))
        if seat.stdin >= 0:
            self.pump.through = self.keyboard
            self.pump.input(client.stdin, self.pump.close_entrance)

    def run(self, terminal: int = -1) -> int | None:
        """Stay to the end; return the exit status, None when the supervisor died.

        ``terminal`` is the container's, or -1; it is closed. Raises Detached.
        """
        try:
            with raw_terminal(self.client, terminal):
                self.pump.run()
            text = self.seat.channel.recv(16)
            return int(text) if text else None
        except ConnectionError:
            return None
        finally:
            self.pump.close_entrance()
            self.seat.replace(stdin=-1).close()
            if terminal >= 0:
                os.close(terminal)


# %% The guest's side
def stay(
    seat: Seat, client: Client, terminal: int, keys: bytes = b"", pidfd: int = -1
) -> int:
    """Be a guest to the end; return the exit status. Raises Detached.

    Signals go to the process of ``pidfd``, which is closed; with -1 they are ours.
    """
    with ExitStack() as stack:
        if pidfd >= 0:
            stack.callback(os.close, pidfd)
            stack.enter_context(signals_forwarded(pidfd))
        code = Visit(seat, client, keys).run(terminal)
    return 137 if code is None else code
