# From book/463-background.md. Edit there and tangle, or here and tangle --back.

# %% Background: left behind on purpose
"""Do something in a process of its own that outlives the command: `run -d`."""

from __future__ import annotations

import os
from collections.abc import Callable

from minidocker.containers import Container, ContainerStore
from minidocker.dialogue import in_child, listen, new_channel, send_terminal
from minidocker.pump import let_go
from minidocker.supervisor import Supervisor


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from minidocker.attach import Seat


# %% Two forks
def in_background(
    work: Callable[[Callable[[int], None]], object], seat: Seat | None = None
) -> int:
    """Do ``work`` in a process of its own; return when it calls what it is given.

    It calls with a terminal or -1; ours is a copy, which is returned. Raises what
    ``work`` raises before. Nothing of the caller is kept open but ``seat``, which is
    closed here.
    """
    ours, theirs = new_channel()
    middle = os.fork()
    if middle == 0:
        ours.close()
        os.setsid()
        if os.fork():
            os._exit(0)
        in_child(theirs, lambda: leave(work, theirs, seat))
    theirs.close()
    if seat:
        seat.close()
    os.waitpid(middle, 0)
    return listen(ours)


def leave(
    work: Callable[[Callable[[int], None]], object],
    channel: socket,
    seat: Seat | None,
) -> None:
    """Let go, work, and end."""
    os.chdir("/")
    let_go(channel.fileno(), *(seat.fds if seat else ()))

    def report(terminal: int) -> None:
        if seat and terminal >= 0:
            send_terminal(channel, os.dup(terminal))
        channel.close()

    work(report)
    os._exit(0)


# %% Two forks
def run_detached(
    store: ContainerStore, container: Container, seat: Seat | None = None
) -> int:
    """Start a container under a supervisor of its own; return when it runs.

    Returns a copy of its terminal's master for who has ``seat``, else -1. Raises what
    the start raised.
    """

    def work(started: Callable[[int], None]) -> None:
        root = os.path.dirname(store.root)
        if os.path.exists(f"{root}/userns"):
            from minidocker.rootless import note_inside

            note_inside(root)
        Supervisor(store, container, None, started, seat).run()

    return in_background(work, seat)
