# From book/442-lifecycle.md. Edit there and tangle, or here and tangle --back.

# %% Lifecycle: from start to remove
"""A container's life from its start on: signal, wait, stop, rename, remove."""

from __future__ import annotations

import fcntl
import os
import select
import time
from contextlib import suppress

from minidocker.blueprint import signal_number
from minidocker.calls import signal
from minidocker.containers import (
    Container,
    ContainerStore,
    State,
    Status,
    check_name,
    claim_name,
    description,
    discard,
    names_of,
    no_such,
    signal_process,
    tell,
    throw_away,
)
from minidocker.door import CHANGED, KEPT, STOPPED, make_mark, ring
from minidocker.durable import (
    is_written,
    looking,
    marked,
    read_json,
    store_lock,
    sync_path,
    write_lasting,
)
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
)
from minidocker.linux import open_process
from minidocker.program import HostConfig
from minidocker.records import json_text


# %% Kill, wait, stop
def kill(store: ContainerStore, container: Container, number: int) -> None:
    """Send a signal to the first process. Raises ConflictError when none runs.

    After one that is to end the container, its restart policy does nothing.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    ending = signal_number(container.config.stop_signal or "TERM")
    if number in (signal.SIGKILL, ending):
        make_mark(store, container, STOPPED)
        thaw(store, container)
        state = store.state(container.id)  # as it is now that the mark is there
        if state.restarting:
            ring(store.path(container.id))
    tell(store, container, "kill", signal=str(int(number)))
    signal_process(state, number)


# %% Kill, wait, stop
def wait(store: ContainerStore, container: Container) -> int:
    """Wait until a container does not run; return its exit status.

    Works also when the container removes itself meanwhile.
    """
    try:
        handle = os.open(store.path(container.id, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as why:
        raise no_such(container.name) from why
    with open(handle, encoding="ascii") as file:
        fcntl.flock(handle, fcntl.LOCK_SH)
        written = file.read()
    return int(written) if written else store.state(container.id).exit_code


def wait_until_gone(state: State, seconds: float) -> bool:
    """Wait for the end of the process that a state names; say whether it came.

    Negative ``seconds`` wait for ever.
    """
    try:
        handle = open_process(state.pid, state.start_time)
    except OSError:
        return True
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        return bool(waiting.poll(seconds * 1000 if seconds >= 0 else None))
    finally:
        os.close(handle)


# %% Kill, wait, stop
def stop(
    store: ContainerStore, container: Container, seconds: float | None = None
) -> None:
    """Send the stop signal, and KILL after ``seconds``; return when it has ended.

    A container that does not run is left as it is. The first process of a pid
    namespace ignores every signal that it has no handler for, so TERM often does
    nothing: that is why `docker stop` so often takes ten seconds.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        return
    make_mark(store, container, STOPPED)
    state = past_pause(store, container, state)
    number = signal_number(container.config.stop_signal or "TERM")
    tell(store, container, "kill", signal=str(int(number)))
    signal_process(state, number)
    if not wait_until_gone(state, stop_seconds(container, seconds)):
        tell(store, container, "kill", signal=str(int(signal.SIGKILL)))
        signal_process(state, signal.SIGKILL)
    with suppress(NotFoundError):  # --rm: it may be gone altogether
        wait(store, container)
    tell(store, container, "stop")


def stop_seconds(container: Container, seconds: float | None) -> float:
    """Return how long the stop signal is given: as asked for, as made with, or 10."""
    if seconds is not None:
        return seconds
    own = container.config.stop_timeout
    return 10 if own is None else own


def past_pause(store: ContainerStore, container: Container, state: State) -> State:
    """Thaw, and wait for a supervisor that is about to start the program again."""
    thaw(store, container)
    while state.restarting and state.status is Status.RUNNING:
        ring(store.path(container.id))
        time.sleep(0.01)
        state = store.state(container.id)
    return state


def thaw(store: ContainerStore, container: Container) -> None:
    """Let a paused container go on, so that a signal reaches it; else do nothing."""
    if os.path.exists(store.path(container.id, "paused")):
        from minidocker.pausing import unpause

        with suppress(ConflictError):
            unpause(store, container)


# %% Another name
def rewrite_host(store: ContainerStore, container: Container, host: HostConfig) -> None:
    """Write down what holds on this host for a container; who attends it reads it."""
    path = store.path(container.id, "hostconfig.json")
    write_lasting(path, json_text(host.to_dict()))
    make_mark(store, container, CHANGED)


def rename(store: ContainerStore, container: Container, name: str) -> None:
    """Give a container another name, running or not.

    Raises ConflictError for a name that is taken, an error for one that is none.
    """
    if not name:
        raise MinidockerError("neither old nor new names may be empty")
    if container.name == name.removeprefix("/"):
        what = "renaming a container with the same name as its current name"
        raise ConflictError(what)
    new = container.replace(name=check_name(name.removeprefix("/")))
    root, place = store.layers.root, store.path(container.id)
    with store_lock(root), marked(root):
        claim_name(store.names, new.name, container.id)
        sync_path(store.names)
        text = json_text(description(new, place))
        write_lasting(f"{place}/config.v2.json", text)
        make_mark(store, container, CHANGED)
        for link in names_of(store, container.id):
            if link != new.name:
                os.unlink(f"{store.names}/{link}")
    tell(store, new, "rename", oldName=f"/{container.name}")


# %% Remove, and what a crash left
def remove(
    store: ContainerStore,
    container: Container,
    *,
    force: bool = False,
    volumes: bool = False,
) -> None:
    """Remove a container; a running one only by force, after KILL.

    With ``volumes`` those that were made for it go as well.
    """
    state = store.state(container.id)
    if state.status is Status.RUNNING and not force:
        what = f'you cannot remove a running container "/{container.name}"'
        hint = "stop it first, or remove it with -f"
        if state.paused:
            what, hint = what.replace("running", "paused"), f"unpause, then {hint}"
        raise ConflictError(what, hint=hint)
    if state.status is Status.RUNNING:
        kill(store, container, signal.SIGKILL)
        wait(store, container)
    try:
        lock = store.lock(container)
    except NotFoundError:
        return  # it was one with --rm
    try:
        throw_away(store, container.id)
    finally:
        os.close(lock)
    if container.mounts and (volumes or container.host.auto_remove):
        from minidocker.storing import remove_anonymous

        remove_anonymous(store, container)
    tell(store, container, "destroy")


# %% Remove, and what a crash left
def sweep_containers(store: ContainerStore) -> None:
    """Remove what crashes left: half-made containers, and ended ones with --rm.

    The caller holds the store's lock alone, so that nobody makes one just now.
    """
    for id in os.listdir(store.root) if os.path.isdir(store.root) else ():
        with looking(store.path(id, "lock")) as taken:
            if taken:
                continue
        if id not in store.ids() or is_torn(store, id):
            discard(store, id)
        elif is_to_go(store, id):
            gone = store.get(id)
            discard(store, id)
            tell(store, gone, "destroy")
    for name in os.listdir(store.names) if os.path.isdir(store.names) else ():
        if not is_called(store, os.readlink(f"{store.names}/{name}"), name):
            os.unlink(f"{store.names}/{name}")


RECORDS = ("config.v2.json", "hostconfig.json")  # each tells whether it removes itself


def is_torn(store: ContainerStore, id: str) -> bool:
    """Say whether a power cut has left only a part of one that removes itself.

    One whose records are both empty is such a one: those of others are synced.
    """
    there = [n for n in RECORDS if is_written(store.path(id, n))]
    for name in there:
        try:
            goes = read_json(store.path(id, name)).get("AutoRemove")
        except (FileNotFoundError, ValueError):
            return False  # it is damaged, and by no power cut
        if not goes:
            return False
    return len(there) < len(RECORDS) or not store.layers.rw_is_whole(id)


def is_called(store: ContainerStore, id: str, name: str) -> bool:
    """Say whether there is a container of an id, and it has that name or tells none."""
    try:
        return store.get(id).name == name
    except IntegrityError:
        return True
    except NotFoundError:
        return os.path.isdir(store.path(id))  # it was only half made


def is_to_go(store: ContainerStore, id: str) -> bool:
    """Say whether a container has ended and was to be removed at its end."""
    if os.path.exists(store.path(id, KEPT)):
        return False
    return store.get(id).host.auto_remove and bool(store.state(id).finished)
