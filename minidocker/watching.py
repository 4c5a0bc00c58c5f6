# From book/457-watching.md. Edit there and tangle, or here and tangle --back.

# %% Watching: woken when a file grows
"""Sleep until a file in a directory changes: inotify, or looks now and then."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress

from minidocker.calls import LIBC, check


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


# %% Two calls
MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
DELETE_SELF = 0x400
CHANGES = MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF


def inotify_init() -> int:
    """Return a queue of changes, a descriptor that never waits; the caller closes it.

    Raises EMFILE where the user has too many. Source: inotify_init(2).
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    queue = LIBC.inotify_init1(flags)
    check("inotify_init1", queue, flags)
    return int(queue)


def inotify_add_watch(queue: int, path: str, mask: int) -> None:
    """Have changes of a directory and of what is in it put into a queue.

    Raises ENOENT, ENOSPC. Source: inotify_add_watch(2).
    """
    done = LIBC.inotify_add_watch(queue, os.fsencode(path), mask)
    check("inotify_add_watch", done, queue, path, mask)


# %% A sleeper
SOON, LATE = 0.01, 2.0  # seconds


class Sleeper:
    """Sleeps until something in a directory has changed; close it after use.

    After a change it wakes soon again, and then later and later: who made the change
    may be about to do something that no queue tells, such as to let go of a lock.
    Where there is no inotify it wakes ten times a second.
    """

    def __init__(self, directory: str) -> None:
        self.queue, self.pause = -1, SOON
        with suppress(OSError):
            self.queue = inotify_init()
            inotify_add_watch(self.queue, directory, CHANGES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.queue >= 0:
            os.close(self.queue)

    def sleep(self, most: float = LATE) -> None:
        """Sleep until a change, but not for more than ``most`` seconds."""
        if self.queue < 0:
            time.sleep(min(0.1, most))
            return
        waiting = select.poll()
        waiting.register(self.queue, select.POLLIN)
        woken = waiting.poll(min(self.pause, max(most, 0)) * 1000)
        self.pause = SOON if woken else min(self.pause * 2, LATE)
        with suppress(BlockingIOError):
            while os.read(self.queue, 65536):
                pass
