# From book/439-door.md. Edit there and tangle, or here and tangle --back.

# %% The door: what others say to a supervisor
"""Tell a supervisor something: a socket to knock at, and marks that are files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from minidocker.containers import Container, ContainerRecords


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


# %% Marks
STOPPED, CHANGED, KEPT = "stopped", "changed", "kept"


def make_mark(store: ContainerRecords, container: Container, name: str) -> None:
    """Leave an empty file in a container's directory."""
    with suppress(FileNotFoundError):  # it may be gone altogether
        path = store.path(container.id, name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def take_mark(store: ContainerRecords, container: Container, name: str) -> bool:
    """Remove an empty file from a container's directory; say whether it was there."""
    try:
        os.unlink(store.path(container.id, name))
    except FileNotFoundError:
        return False
    return True


@contextmanager
def kept(store: ContainerRecords, container: Container) -> Iterator[None]:
    """Keep a container with ``auto_remove`` although it ends within the block."""
    make_mark(store, container, KEPT)
    try:
        yield
    finally:
        take_mark(store, container, KEPT)


# %% The door
@contextmanager
def door_of(place: str) -> Iterator[str]:
    """Yield a short path to the door of a container's directory ``place``."""
    home = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{home}/door"
    finally:
        os.close(home)


def open_door(place: str) -> socket:
    """Return a socket that listens at the door; the caller closes it."""
    from _socket import AF_UNIX, SOCK_SEQPACKET, socket  # `socket` costs 16 ms

    with door_of(place) as path:
        with suppress(FileNotFoundError):
            os.unlink(path)
        door = socket(AF_UNIX, SOCK_SEQPACKET)
        door.bind(path)
        door.listen(8)
    return door


def ring(place: str) -> None:
    """Ring at a container's door so that its supervisor looks around; never waits."""
    from _socket import AF_UNIX, SOCK_SEQPACKET, socket

    with closing(socket(AF_UNIX, SOCK_SEQPACKET)) as channel, suppress(OSError):
        channel.setblocking(False)
        with door_of(place) as path:
            channel.connect(path)
        channel.send(b"look")
