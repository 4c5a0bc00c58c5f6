# From book/423-dialogue.md. Edit there and tangle, or here and tangle --back.

# %% Dialogue: what a child says to its parent
"""What a child that becomes a container tells its parent: who, a terminal, an error."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from minidocker.destinations import open_in_root
from minidocker.errors import (
    CommandNotFoundError,
    MinidockerError,
    NotExecutableError,
    RuntimeFault,
)
from minidocker.identity import User
from minidocker.linux import close_range
from minidocker.program import ProcessSpec


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


# %% A line to the parent
def new_channel() -> tuple[socket, socket]:
    """Return two connected sockets that keep messages apart and close on exec."""
    from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair  # `socket` costs 16 ms

    return socketpair(AF_UNIX, SOCK_SEQPACKET)


def send_rights(channel: socket, text: bytes, fds: tuple[int, ...]) -> None:
    """Send a message and copies of descriptors."""
    from _socket import SCM_RIGHTS, SOL_SOCKET

    data = b"".join(fd.to_bytes(4, "little") for fd in fds)
    channel.sendmsg([text], [(SOL_SOCKET, SCM_RIGHTS, data)] if fds else [])


def receive_rights(channel: socket) -> tuple[bytes, tuple[int, ...]]:
    """Receive a message and descriptors, which are then ours; b"" at the end."""
    text, rights, *_ = channel.recvmsg(65536, 64)
    fds = [
        int.from_bytes(data[at : at + 4], "little")
        for _, _, data in rights
        for at in range(0, len(data) - 3, 4)
    ]
    for fd in fds:
        os.set_inheritable(fd, False)
    return text, tuple(fds)


# %% A line to the parent
FAULTS = {126: NotExecutableError, 127: CommandNotFoundError}


def send_error(channel: socket, why: BaseException) -> None:
    """Send an error as status, what, where and hint."""
    if not isinstance(why, MinidockerError):
        text = str(why) if isinstance(why, OSError) else repr(why)
        why = RuntimeFault(text)
    parts = (str(why.status), why.what, why.where or "", why.hint or "")
    channel.send(b"E" + os.fsencode("\0".join(parts))[:60000])


def received_error(message: bytes) -> RuntimeFault:
    """Return the error that a child sent, as the class that has its status."""
    status, what, where, hint = os.fsdecode(message[1:]).split("\0")
    fault = FAULTS.get(int(status), RuntimeFault)
    return fault(what, where=where or None, hint=hint or None)


def heard(channel: socket) -> Iterator[tuple[bytes, int]]:
    """Yield each word of a child, and the descriptor that came with it, or -1.

    Ends where the child closes its side. Raises the child's error, as the class that
    has its status.
    """
    while True:
        word, fds = receive_rights(channel)
        if not word:
            return
        if word[:1] == b"E":
            raise received_error(word)
        yield word, fds[0] if fds else -1


def in_child(channel: socket, body: Callable[[], object]) -> NoReturn:
    """Run ``body``, which executes a program or fails; never return to the caller."""
    try:
        body()
    except BaseException as why:  # noqa: BLE001
        send_error(channel, why)
    finally:
        os._exit(125)


# %% A line to the parent
def say(channel: socket, word: bytes) -> None:
    """Send a word of the dialogue."""
    channel.send(word)


def wait_for_go(channel: socket) -> bytes:
    """Wait until the parent has done its part; end with it when it has gone.

    Returns what it has to give: a filter of system calls, or nothing.
    """
    word = channel.recv(65536)
    if word[:1] != b"g":
        os._exit(125)
    return word[1:]


def ask_to_go(channel: socket) -> bytes:
    """Say that all is ready; return the filter when the parent has done its part.

    A word that nobody reads would reset the line, and what was said on it is lost; so
    the parent answers, and says nothing by itself.
    """
    say(channel, b"W")
    return wait_for_go(channel)


def introduce(channel: socket, user: User) -> None:
    """Tell the parent who this process is to be."""
    groups = ",".join(map(str, user.groups))
    channel.send(b"U" + os.fsencode(f"{user.uid}:{user.gid}:{groups}:{user.home}"))


def received_user(message: bytes) -> User:
    """Return the user that a child named."""
    uid, gid, groups, home = os.fsdecode(message[1:]).split(":", 3)
    more = tuple(map(int, filter(None, groups.split(","))))
    return User(int(uid), int(gid), more, home)


# %% A line to the parent
def listen(
    channel: socket,
    told: Callable[[User], None] = lambda _: None,
    program: bytes = b"",
) -> int:
    """Wait until the program runs; return its terminal's master, or -1.

    ``told`` is called when the child has said who it is to be; ``program`` is its
    filter. Raises what ``told`` raises, and the child's error. Closes the channel.
    """
    terminal = -1
    try:
        for word, fd in heard(channel):
            terminal = fd if fd >= 0 else terminal
            if word[:1] == b"U":
                told(received_user(word))
            if word == b"W":
                say(channel, b"g" + program)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was killed, which whoever waits for it will see
    finally:
        channel.close()
    return terminal


# %% A terminal from inside
TIOCSPTLCK, TIOCGPTPEER, TIOCSCTTY = 0x40045431, 0x5441, 0x540E
TIOCGWINSZ, TIOCSWINSZ = 0x5413, 0x5414


def make_terminal(root: int) -> tuple[int, int]:
    """Make a pty in the devpts below ``root``; return its master and its slave."""
    both = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = open_in_root(root, "/dev/pts/ptmx", both, links=False)
    fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
    return master, fcntl.ioctl(master, TIOCGPTPEER, both)


def set_window_size(terminal: int, rows: int, columns: int) -> None:
    """Give a terminal its size."""
    words = (rows, columns, 0, 0)
    size = b"".join(word.to_bytes(2, sys.byteorder) for word in words)
    fcntl.ioctl(terminal, TIOCSWINSZ, size)


def copy_window_size(source: int, target: int) -> None:
    """Give the pty ``target`` the size of the terminal ``source``, if it is one."""
    with suppress(OSError, ValueError):  # not a terminal, or -1
        fcntl.ioctl(target, TIOCSWINSZ, fcntl.ioctl(source, TIOCGWINSZ, bytes(8)))


def send_terminal(channel: socket, master: int) -> None:
    """Send the master to the parent, and close it here."""
    send_rights(channel, b"T", (master,))
    os.close(master)


def new_terminal(root: int, spec: ProcessSpec, channel: socket) -> int:
    """Make the pty, send its master to the parent, return its slave.

    It has the size that is asked for, or that of the terminal ``spec.stdout``, before
    the program can ask.
    """
    master, slave = make_terminal(root)
    if spec.console:
        set_window_size(master, *spec.console)
    else:
        copy_window_size(spec.stdout, master)
    send_terminal(channel, master)
    return slave


# %% A terminal from inside
def take_stdio(spec: ProcessSpec, slave: int) -> None:
    """Put the three descriptors in place; all others close at the execve.

    A terminal is that of this session, which is new.
    """
    given = (spec.stdin, spec.stdout, spec.stderr) if slave < 0 else (slave,) * 3
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in given]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    close_range(3, 0xFFFFFFFF, 4)  # CLOSE_RANGE_CLOEXEC
    if slave >= 0:
        fcntl.ioctl(0, TIOCSCTTY, 0)


def give_stdio(user: User) -> None:
    """Let the user own its pipes or terminal, or it could not open /dev/stderr.

    Files and /dev/null are not ours to give. Source: runc, fixStdioPermissions.
    """
    for number in range(3):
        status = os.fstat(number)
        own = stat.S_ISFIFO(status.st_mode) or os.isatty(number)
        if own and status.st_uid != user.uid:
            with suppress(OSError):  # an id that is not mapped: become() will say so
                os.fchown(number, user.uid, -1)
