# From book/454-restarts.md. Edit there and tangle, or here and tangle --back.

# %% Restarts: another life, if the policy says so
"""Whether, and when, a container that has ended is started again."""

from __future__ import annotations

import os
import select
import time
from _socket import socket
from contextlib import suppress

from minidocker.containers import State, tell, timestamp
from minidocker.door import STOPPED
from minidocker.errors import WordFault, did_you_mean
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from minidocker.containers import Container, ContainerStore

    class Keeper(Protocol):
        """What we need of a supervisor."""

        store: ContainerStore
        container: Container
        state: State
        door: socket | None
        began: float
        quick: int

        def write(self) -> None:
            """Write the state for others to read."""

        def part(self, code: int) -> None:
            """Tell the guests how it ended."""


# %% The noun: a policy
NAMES = ("no", "always", "on-failure", "unless-stopped")


class Policy(Record):
    """When a container is started again; ``most`` times at most, 0 for no end."""

    name: str
    most: int = 0

    def wants(self, code: int, restarts: int) -> bool:
        """Say whether it wants another start after ``restarts`` and an exit status.

        >>> [Policy("on-failure", 2).wants(*pair) for pair in ((1, 1), (1, 2), (0, 0))]
        [True, False, False]
        """
        if self.name == "on-failure":
            return code != 0 and (not self.most or restarts < self.most)
        return self.name in ("always", "unless-stopped")


# %% The noun: a policy
def parse_policy(text: str) -> Policy:
    """Return the policy of ``--restart``. Raises WordFault in Docker's words.

    >>> parse_policy("on-failure:3")
    Policy(name='on-failure', most=3)
    """
    name, colon, count = text.partition(":")
    if name and name not in NAMES:
        hint = did_you_mean(name, NAMES, other=", ".join(NAMES))
        raise WordFault(f"invalid restart policy '{name}'", hint=hint)
    if colon and not count.removeprefix("-").isdecimal():
        raise WordFault("maximum retry count must be an integer")
    if colon and name != "on-failure":
        what = f"maximum retry count cannot be used with restart policy '{name}'"
        raise WordFault(what)
    if count.startswith("-"):
        raise WordFault("maximum retry count cannot be negative")
    return Policy(name or "no", int(count or 0))


# %% When
FIRST, LONGEST, HEALTHY = 0.1, 60.0, 10.0  # seconds


def wait_before(restarts: int) -> float:
    """Return how long to wait, after so many restarts in quick succession.

    >>> [wait_before(number) for number in (0, 1, 2, 20)]
    [0.1, 0.2, 0.4, 60.0]
    """
    return float(min(FIRST * 2 ** min(restarts, 20), LONGEST))


def wait_at_door(door: socket | None, seconds: float) -> None:
    """Wait; return early when somebody connects to the door."""
    if door is None:
        return
    waiting = select.poll()
    waiting.register(door.fileno(), select.POLLIN)
    if waiting.poll(seconds * 1000):
        with suppress(OSError):
            os.close(door._accept()[0])  # type: ignore[attr-defined]


# %% When
def rest(keeper: Keeper, code: int) -> bool:
    """Wait until the next start is due; say whether there is to be one.

    The state says ``restarting`` meanwhile, and guests are told of the end.
    """
    policy = parse_policy(keeper.container.host.restart)
    mark = keeper.store.path(keeper.container.id, STOPPED)
    if os.path.exists(mark) or not policy.wants(code, keeper.state.restarts):
        return False
    tell(keeper.store, keeper.container, "die", exitCode=str(code))
    keeper.state = keeper.state.replace(
        restarting=True,
        pid=0,
        exit_code=code,
        finished=timestamp(),
        restarts=keeper.state.restarts + 1,
    )
    keeper.write()
    keeper.part(code)
    lived = time.monotonic() - keeper.began
    keeper.quick = 0 if lived >= HEALTHY else keeper.quick
    wait_at_door(keeper.door, wait_before(keeper.quick))
    keeper.quick += 1
    return not os.path.exists(mark)
