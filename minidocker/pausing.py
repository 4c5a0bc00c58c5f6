# From book/438-pausing.md. Edit there and tangle, or here and tangle --back.

# %% Pausing: all of a container, and nobody else
"""Who belongs to a container; stop all of it where it stands, and let it go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.cgroups import (
    NO_LIMITS,
    Group,
    find_group,
    make_group,
    move_into,
    read,
)
from minidocker.containers import Container, ContainerStore, Status, tell
from minidocker.errors import ConflictError, NotFoundError, RuntimeFault
from minidocker.freezer import set_frozen


# %% Who is inside
def has_own_numbers(pid: int) -> bool:
    """Say whether a process is number 1 of its pid namespace."""
    lines = read(f"/proc/{pid}/status").splitlines()
    return any(n.startswith("NSpid:") and n.split()[-1] == "1" for n in lines)


def members_of(id: str, pid: int) -> list[int]:
    """Return the processes of a container; ``pid`` is its first one.

    They share its pid namespace. Where that is not the container's own (``--pid
    host``), they are those of the group in which all of them were born.
    """
    if has_own_numbers(pid):
        return processes_of(pid)
    group = find_group(id)
    place = group.unified or group.place("freezer")
    return [int(n) for n in read(f"{place}/cgroup.procs").split()] if place else [pid]


def processes_of(pid: int) -> list[int]:
    """Return the processes that share the pid namespace of ``pid``, itself included."""
    own = os.readlink(f"/proc/{pid}/ns/pid")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # gone, or not ours to look at
                if os.readlink(f"/proc/{name}/ns/pid") == own:
                    found.append(int(name))
    return found


# %% A group that holds them all
def freezer_group(id: str, pid: int) -> Group:
    """Return a container's groups with a freezer among them that holds everybody."""
    group = find_group(id)
    if group.version == 2 and group.places:
        return group
    if not has_own_numbers(pid):
        if not group.place("freezer"):
            raise RuntimeFault("a container among others needs a freezer of its own")
        return group
    group = make_group(id, NO_LIMITS, "freezer")
    only = group.replace(places=(("freezer", group.place("freezer")),))
    inside: set[int] = set()
    while others := set(members_of(id, pid)) - inside:
        move_into(only, others)
        inside |= others
    return group


def freeze(id: str, pid: int, *, frozen: bool) -> None:
    """Stop the processes of a container, or let them go on; return when it is so.

    ``pid`` is the first process. Raises RuntimeFault without a freezer.
    """
    set_frozen(freezer_group(id, pid), frozen=frozen)


# %% The verbs
def pause(store: ContainerStore, container: Container) -> None:
    """Stop all processes of a container where they are."""
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    if state.paused:
        raise ConflictError(f"container {container.name} is already paused")
    for name in ("grouped", "paused"):
        with open(store.path(container.id, name), "wb"):
            pass
    try:
        freeze(container.id, state.pid, frozen=True)
    except BaseException:
        os.unlink(store.path(container.id, "paused"))
        raise
    tell(store, container, "pause")


@contextmanager
def paused(store: ContainerStore, container: Container) -> Iterator[None]:
    """Let a container stand still for a ``with`` block, if it runs.

    Where nobody may freeze it, it goes on.
    """
    state, stood = store.state(container.id), False
    if state.status is Status.RUNNING and not state.paused and not state.restarting:
        with suppress(ConflictError, RuntimeFault, OSError):
            pause(store, container)
            stood = True
    try:
        yield
    finally:
        if stood:
            with suppress(ConflictError, NotFoundError):
                unpause(store, container)


def unpause(store: ContainerStore, container: Container) -> None:
    """Let all processes of a container go on."""
    state = store.state(container.id)
    if not state.paused:
        raise ConflictError(f"container {container.name} is not paused")
    freeze(container.id, state.pid, frozen=False)
    with suppress(FileNotFoundError):
        os.unlink(store.path(container.id, "paused"))
    tell(store, container, "unpause")
