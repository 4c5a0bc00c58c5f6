# From book/456-commons.md. Edit there and tangle, or here and tangle --back.

# %% Commons: where a user's networks are
"""One network namespace for the networks of a user without root, while it is used."""

from __future__ import annotations

import _thread
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from minidocker.calls import signal
from minidocker.durable import turn, write_whole
from minidocker.errors import MinidockerError, RuntimeFault
from minidocker.linux import CloneFlags, setns, start_time
from minidocker.pump import let_go
from minidocker.rtnetlink import Netlink, link_up, open_netns
from minidocker.uplink import find_uplink, netns_of_child, uplink
from minidocker.wiring import set_sysctl


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% To be there for a moment
def within(netns: int, work: Callable[[], Any]) -> Any:
    """Do ``work`` in a thread that is in another network namespace; return its value.

    What it raises is raised here. The thread has gone when this returns.
    """
    found: list[tuple[bool, Any]] = []
    done, who = _thread.allocate_lock(), []
    done.acquire()

    def go() -> None:
        who.append(_thread.get_native_id())
        try:
            setns(netns, CloneFlags.NEWNET)
            found.append((True, work()))
        except BaseException as why:  # noqa: BLE001
            found.append((False, why))
        finally:
            done.release()

    _thread.start_new_thread(go, ())
    done.acquire()
    while os.path.exists(f"/proc/self/task/{who[0]}"):
        time.sleep(0.0001)
    good, value = found[0]
    if not good:
        raise value
    return value


# %% Who keeps it
def living_keeper(place: str) -> tuple[int, int]:
    """Return the process that keeps the commons, and which descriptor of it they are.

    Zeros where there is none.
    """
    try:
        with open(f"{place}/keeper", encoding="ascii") as file:
            pid, born, netns = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return (pid, netns) if start_time(pid) == born else (0, 0)


def prepare_commons() -> None:
    """Make this new namespace one that passes packets on."""
    with Netlink() as own:
        own.talk(link_up(1))
    set_sysctl("ipv4/ip_forward", "1")


def be_keeper(place: str, told: int) -> None:
    """Make the commons, say so in the pipe ``told``, and keep it while it is used.

    What is said is ``+``, and a reason where there is no way out of it.
    """
    let_go(told)
    netns = netns_of_child(prepare_commons)
    with ExitStack() as stack:
        why = b""
        try:
            stack.enter_context(uplink(find_uplink(), netns, place))
        except MinidockerError as none:
            why = none.what.encode()
        born = start_time(os.getpid())
        write_whole(f"{place}/keeper", f"{os.getpid()} {born} {netns}")
        os.write(told, b"+" + why)
        os.close(told)
        members = os.open(f"{place}/members", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(members, fcntl.LOCK_EX)


# %% Who keeps it
def start_keeper(place: str) -> str:
    """Start the keeper; return why there is no way out of the commons, or nothing.

    Raises RuntimeFault where there can be no commons.
    """
    heard, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                be_keeper(place, told)
        except (OSError, MinidockerError) as why:
            os.write(told, str(why).encode())
        finally:
            os._exit(0)
    os.close(told)
    os.waitpid(middle, 0)
    with open(heard, encoding="utf-8", errors="replace") as file:
        said = file.read()
    if said[:1] != "+":
        raise RuntimeFault(f"no namespace for networks: {said or 'its keeper died'}")
    return said[1:]


# %% To be a member
def become_member(place: str) -> int:
    """Return a descriptor that makes us a member for as long as it is open.

    A keeper that is about to go is ended. The caller has the turn.
    """
    members = os.open(f"{place}/members", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(members, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        keeper, _ = living_keeper(place)
        with suppress(ProcessLookupError):
            if keeper:
                os.kill(keeper, signal.SIGKILL)
        fcntl.flock(members, fcntl.LOCK_SH)
    return members


@contextmanager
def commons(root: str, tell: Callable[[str], None]) -> Iterator[int]:
    """Be a member of a store's commons for a ``with`` block; yield its descriptor.

    ``tell`` hears why there is no way out of it. Raises RuntimeFault.
    """
    place = f"{root}/commons"
    os.makedirs(place, 0o700, exist_ok=True)
    with turn(f"{place}/lock"):
        members = become_member(place)
        try:
            if not living_keeper(place)[0] and (why := start_keeper(place)):
                tell(why)
            keeper, number = living_keeper(place)
            netns = open_netns(f"/proc/{keeper}/fd/{number}")
        except BaseException:
            os.close(members)
            raise
    try:
        yield netns
    finally:
        os.close(netns)
        os.close(members)
