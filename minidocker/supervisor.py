# From book/450-supervisor.md. Edit there and tangle, or here and tangle --back.

# %% The supervisor: somebody has to wait
"""Attend a container from its start to its end; detach; exec; read its log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.cgroups import (
    NO_LIMITS,
    Group,
    find_group,
    is_version_2,
    make_group,
    remove_group,
    was_killed_for_memory,
)
from minidocker.containers import (
    Container,
    ContainerStore,
    State,
    Status,
    discard,
    timestamp,
    write_state,
)
from minidocker.durable import looking
from minidocker.errors import ConflictError, RuntimeFault
from minidocker.lifecycle import process_spec, ulimits_of
from minidocker.program import Network, ProcessSpec
from minidocker.pump import (
    Client,
    JsonLog,
    make_ends,
    pump_process,
    raw_terminal,
    signals_forwarded,
)
from minidocker.records import Record, parse_json
from minidocker.runtime import (
    Process,
    in_child,
    listen,
    new_channel,
    start,
)
from minidocker.security import ALL_CAPABILITIES, Security


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any


# %% A container's life, in one function
def attend(
    spec: ProcessSpec,
    launch: Callable[[ProcessSpec], Process],
    client: Client | None,
    log: JsonLog | None = None,
    started: Callable[[Process], None] = lambda _: None,
    *,
    stdin: bool = False,
) -> int:
    """Launch a process, attend it to its end, return its exit status.

    ``started`` is called when the program runs. Every descriptor that is made here
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
        started(process)
        client = client if stdin else deaf(client)
        with signals_forwarded(process), raw_terminal(client, process.terminal):
            pump_process(process, ends, client, log)
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


# %% A container's life, in one function
def supervise(
    store: ContainerStore,
    container: Container,
    client: Client | None,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Run a container to its end; keep its state and log; return its exit status.

    The container's lock is held all the while. With ``auto_remove`` nothing is left
    of it afterwards, whatever happened.
    """
    lock = store.lock(container)
    os.ftruncate(lock, 0)
    file = store.path(container.id, "state.json")
    state = State(Status.RUNNING, started=timestamp())
    group: Group | None = None

    def note(process: Process) -> None:
        nonlocal state
        state = state.replace(pid=process.pid, start_time=process.start_time)
        write_state(file, state)
        started()

    code, error = 125, ""
    try:
        log = JsonLog(store.path(container.id, f"{container.id}-json.log"))
        group = container_group(container)
        with network_for(store, container) as netns:
            spec = whole_spec(store, container, group).replace(netns=netns)
            wants_input = container.config.open_stdin
            code = attend(spec, start, client, log, note, stdin=wants_input)
    except RuntimeFault as why:
        code, error = why.status, why.what
        raise
    finally:
        os.write(lock, b"%d" % code)
        killed = leave_group(store, container, group)
        state = state.replace(exit_code=code, error=error, oom_killed=killed)
        conclude(store, container, state)
        os.close(lock)
    return code


# %% A container's life, in one function
@contextmanager
def network_for(store: ContainerStore, container: Container) -> Iterator[int]:
    """Yield the descriptor of the network made for a container, or -1 for none."""
    if container.host.network is not Network.BRIDGE:
        yield -1
        return
    from minidocker.sandbox import sandbox

    with sandbox(store, container) as netns:
        yield netns


def conclude(store: ContainerStore, container: Container, state: State) -> None:
    """Remove what is left with ``auto_remove``; otherwise write down how it ended."""
    if container.host.auto_remove:
        discard(store, container.id, container.name)
        return
    status = Status.CREATED if state.error else Status.EXITED
    state = state.replace(status=status, pid=0, finished=timestamp())
    write_state(store.path(container.id, "state.json"), state)


def whole_spec(
    store: ContainerStore, container: Container, group: Group | None
) -> ProcessSpec:
    """Return what the first process is started with: its groups, and its init."""
    spec = process_spec(store, container).replace(group=group)
    if not container.host.init:
        return spec
    from minidocker.elf import init_file

    return spec.replace(init=init_file())


def container_group(container: Container) -> Group:
    """Make the groups of a container that is about to start.

    A container in somebody else's pid namespace leaves processes behind when its first
    one ends; its group is how they are found, where we may have one.
    """
    limits = container.host.limits
    if container.host.pid_mode:
        with suppress(RuntimeFault):
            return make_group(container.id, limits, "freezer")
    return make_group(container.id, limits)


def has_group(store: ContainerStore, container: Container) -> bool:
    """Say whether a container can have groups: by its limits, or made later on."""
    host = container.host
    later = os.path.exists(store.path(container.id, "grouped"))
    return host.limits != NO_LIMITS or bool(host.pid_mode) or later or is_version_2()


def leave_group(
    store: ContainerStore, container: Container, group: Group | None
) -> bool:
    """Remove a container's groups; say whether it was killed for want of memory."""
    if group is None or not has_group(store, container):
        return False
    killed = was_killed_for_memory(find_group(container.id))
    remove_group(container.id)
    for name in ("grouped", "paused"):
        with suppress(FileNotFoundError):
            os.unlink(store.path(container.id, name))
    return killed


def run_foreground(
    store: ContainerStore, container: Container, client: Client | None = None
) -> int:
    """Run a container attached to ``client``, or 0, 1, 2; return its exit status."""
    return supervise(store, container, client or Client())


# %% Left behind on purpose
def let_go(keep: int) -> None:
    """Close every descriptor but ``keep``; the first three become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def run_detached(store: ContainerStore, container: Container) -> None:
    """Start a container under a supervisor of its own; return when it runs.

    Raises what the start raised. Nothing of the caller is kept open by it.
    """
    ours, theirs = new_channel()
    middle = os.fork()
    if middle == 0:
        ours.close()
        os.setsid()
        if os.fork():
            os._exit(0)
        in_child(theirs, lambda: be_supervisor(store, container, theirs))
    theirs.close()
    os.waitpid(middle, 0)
    listen(ours)


def be_supervisor(store: ContainerStore, container: Container, channel: socket) -> None:
    """Live as the supervisor of a detached container, and end with it."""
    os.chdir("/")
    let_go(channel.fileno())
    supervise(store, container, None, channel.close)
    os._exit(0)


# %% exec
def exec_security(container: Container, asked: Security) -> Security:
    """Return what one more process may do: what the container may.

    With ``asked`` privileged it has all capabilities, and the container's filter.
    """
    security = container.host.security
    if asked.privileged:
        filtered = security.replace(filter_for=security.capabilities)
        return filtered.replace(capabilities=ALL_CAPABILITIES)
    return security


def exec_foreground(
    store: ContainerStore,
    container: Container,
    spec: ProcessSpec,
    client: Client | None = None,
    *,
    stdin: bool = False,
) -> int:
    """Run one more process in a running container; return its exit status.

    Of ``spec`` its argv, env, cwd, user, tty and security are used; the container's
    own come first for env, and fill in for an empty cwd and user.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    if state.paused:
        what = (
            f"container {container.name} is paused, unpause the container before exec"
        )
        raise ConflictError(what)
    config = container.config
    spec = spec.replace(
        env=(config.env or ()) + spec.env,
        cwd=spec.cwd or config.working_dir or "/",
        user=spec.user or config.user,
        hostname=config.hostname,
        group=find_group(container.id) if has_group(store, container) else None,
        security=exec_security(container, spec.security),
        ulimits=ulimits_of(container.host.ulimits),
        oom_score_adj=container.host.oom_score_adj,
    )

    def launch(piped: ProcessSpec) -> Process:
        from minidocker.joining import exec_in

        return exec_in(state.pid, piped)

    return attend(spec, launch, client or Client(), stdin=stdin)


# %% logs
class LogEntry(Record):
    """A line that a container wrote: its stream, its time (RFC 3339), its text."""

    stream: str
    time: str
    log: str


def read_log(file: Any) -> Iterator[LogEntry]:
    """Return the whole lines of an open log from where it stands."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(place)
            return
        found = parse_json(line.decode())
        yield LogEntry(found["stream"], found["time"], found["log"])


def logs(
    store: ContainerStore,
    container: Container,
    *,
    tail: int | None = None,
    follow: bool = False,
) -> Iterator[LogEntry]:
    """Yield what a container wrote: the last ``tail`` lines; all of them for None.

    With ``follow``, goes on until the container does not run.
    """
    path = store.path(container.id, f"{container.id}-json.log")
    while follow and not os.path.exists(path) and is_attended(store, container):
        time.sleep(0.05)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        entries = list(read_log(file))
        yield from entries if tail is None else entries[max(len(entries) - tail, 0) :]
        while follow:
            attended = is_attended(store, container)
            yield from read_log(file)
            if not attended:
                return
            time.sleep(0.05)


def is_attended(store: ContainerStore, container: Container) -> bool:
    """Say whether a supervisor looks after a container just now."""
    with looking(store.path(container.id, "lock")) as taken:
        return taken
