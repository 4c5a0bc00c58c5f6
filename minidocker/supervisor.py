# From book/462-supervisor.md. Edit there and tangle, or here and tangle --back.

# %% The supervisor: somebody has to wait
"""Attend a container from its start to its end."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from minidocker.blueprint import process_spec
from minidocker.calls import signal
from minidocker.cgroups import (
    Group,
    find_group,
    make_group,
    remove_group,
    was_killed_for_memory,
)
from minidocker.containers import (
    Container,
    ContainerStore,
    State,
    Status,
    event_of,
    signal_process,
    tell,
    throw_away,
    timestamp,
    write_state,
)
from minidocker.door import CHANGED, KEPT, STOPPED, open_door, take_mark
from minidocker.durable import happened
from minidocker.errors import NotFoundError, RuntimeFault
from minidocker.identity import User
from minidocker.program import Network, ProcessSpec
from minidocker.pump import (
    Client,
    JsonLog,
    Pump,
    attend,
)
from minidocker.runtime import Plan, Process, start


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from minidocker.attach import Guest, Seat
    from minidocker.networks import Endpoint


# %% A container's life, in one function
class Supervisor:
    """Who looks after a container: the one mutable record of a process that does.

    ``started`` is called when the program runs for the first time, with its terminal or
    -1. ``seat`` is that of a guest who is there from the beginning, or None.
    """

    def __init__(
        self,
        store: ContainerStore,
        container: Container,
        client: Client | None = None,
        started: Callable[[int], None] = lambda _: None,
        seat: Seat | None = None,
    ) -> None:
        self.store, self.container, self.client = store, container, client
        self.started, self.state = started, State()
        self.door: socket | None = None
        self.guests: list[Guest] = []
        self.began, self.quick = 0.0, 0  # for the restart policy
        self.endpoints: list[Endpoint] = []
        if seat:
            from minidocker.attach import Guest

            self.guests.append(Guest(seat, last=is_last(container)))

    def run(self) -> int:
        """Run the container to its end, and again if its policy says so.

        Its lock is held all the while. With ``auto_remove`` nothing is left of it
        afterwards, whatever happened. Returns the exit status.
        """
        lock = self.store.lock(self.container)
        os.ftruncate(lock, 0)
        take_mark(self.store, self.container, STOPPED)
        code, error = 125, ""
        try:
            code = self.live()
            while self.lives_again(code):
                code = self.live()
        except RuntimeFault as why:
            code, error = why.status, why.what
            raise
        finally:
            os.write(lock, b"%d" % code)
            self.conclude(code, error)
            os.close(lock)
            self.part(code)
        return code

    def live(self) -> int:
        """Run the container once; return the exit status."""
        store, container = self.store, self.container
        self.began = time.monotonic()
        self.state = State(
            Status.RUNNING, started=timestamp(), restarts=self.state.restarts
        )
        group: Group | None = None
        try:
            log = log_of(store, container)
            group = container_group(container)
            with network_for(store, container) as netns:
                self.look_around(netns)
                spec = whole_spec(spec_of(store, container), container, group)
                spec = spec.replace(netns=netns)
                if self.guests:
                    spec = spec.replace(stdout=self.guests[0].seat.screen)
                launch = partial(start, told=self.write_down)
                stdin = container.config.open_stdin
                return attend(spec, launch, self.client, log, self.welcome, stdin=stdin)
        finally:
            killed = leave_group(store, container, group)
            self.state = self.state.replace(oom_killed=killed)

    def write_down(self, plan: Plan, user: User) -> None:
        """Write the bundle of a container that is about to run as ``user``."""
        from minidocker.bundling import write_config

        write_config(self.store, self.container, plan, user)

    def welcome(self, pump: Pump, process: Process) -> None:
        """Write down that the program runs, and let guests sit down with it."""
        self.state = self.state.replace(pid=process.pid, start_time=process.start_time)
        self.write()
        if os.path.exists(self.store.path(self.container.id, STOPPED)):
            signal_process(self.state, signal.SIGKILL)
        events = [*self.around("connect", "mount"), event_of(self.container, "start")]
        happened(os.path.dirname(self.store.root), *events)
        self.started(process.terminal)
        self.started = lambda _: None
        if self.door is None:
            self.door = open_door(self.store.path(self.container.id))
        admit = partial(self.admit, pump, process.terminal)
        pump.watch(self.door.fileno(), select.POLLIN, admit)
        for guest in self.guests:
            guest.sit(pump)
        if self.container.config.healthcheck:
            self.monitor(pump, process.pid)

    def monitor(self, pump: Pump, pid: int) -> None:
        """Ask the container how it is, for as long as it runs."""
        from minidocker.health import Health, Monitor, check_of, write_health

        store, container = self.store, self.container
        check = check_of(container)
        if check is None:
            return
        group = find_group(container.id) if store.has_group(container) else None

        def note(health: Health) -> None:
            write_health(store.path(container.id, "health.json"), health)
            before, self.state = self.state, self.state.replace(health=health.status)
            if before.health != health.status:
                self.write()
                if before.health:
                    tell(store, container, f"health_status: {health.status}")

        Monitor(
            pump,
            container,
            check,
            (pid, group, store.path(container.id, "paused")),
            note,
        )

    def admit(self, pump: Pump, terminal: int) -> None:
        """Let in whoever knocks."""
        from minidocker.attach import admit

        last = is_last(self.container)
        if self.door and (guest := admit(self.door, terminal, last=last)):
            self.guests.append(guest)
            guest.sit(pump)

    def look_around(self, netns: int) -> None:
        """Note on which networks the container is, if it is on any."""
        if netns >= 0:
            from minidocker.sandbox import read_settings

            self.endpoints = read_settings(self.store, self.container.id)[0]

    def around(self, network: str, volume: str) -> list[dict[str, Any]]:
        """Return what happens to networks and volumes as the container comes or goes.

        ``network`` and ``volume`` are the words for it.
        """
        events = []
        if self.endpoints:
            from minidocker.sandbox import network_event

            events += [network_event(one, network) for one in self.endpoints]
        if self.container.mounts:
            from minidocker.storing import volume_events

            events += volume_events(self.container, volume)
        return events

    def lives_again(self, code: int) -> bool:
        """Say whether the restart policy wants another life, when it is time for it."""
        self.refresh()
        if not self.container.host.restart:
            return False
        from minidocker.restarts import rest

        return rest(self, code)

    def refresh(self) -> None:
        """Read the container anew if somebody has changed it."""
        if take_mark(self.store, self.container, CHANGED):
            with suppress(NotFoundError):
                self.container = self.store.get(self.container.id)

    def conclude(self, code: int, error: str) -> None:
        """Write down how it ended, or remove all of it with ``auto_remove``."""
        store, container = self.store, self.container
        events = [event_of(container, "oom")] if self.state.oom_killed else []
        events.append(event_of(container, "die", exitCode=str(code)))
        if self.state.pid:  # it came to be somewhere
            events += self.around("disconnect", "unmount")
        kept = os.path.exists(store.path(container.id, KEPT))
        if container.host.auto_remove and not kept:
            throw_away(store, container.id, container.name)
            if container.mounts:
                from minidocker.storing import remove_anonymous

                happened(os.path.dirname(store.root), *events)
                events.clear()
                remove_anonymous(store, container)
            events.append(event_of(container, "destroy"))
        else:
            status = Status.CREATED if error else Status.EXITED
            self.state = self.state.replace(
                status=status,
                pid=0,
                exit_code=code,
                error=error,
                restarting=False,
                finished=timestamp(),
            )
            self.write()
        happened(os.path.dirname(store.root), *events)
        if self.door:
            self.door.close()

    def part(self, code: int) -> None:
        """Tell the guests how it ended."""
        for guest in self.guests:
            guest.part(code)
        self.guests.clear()

    def write(self) -> None:
        """Write the state for others to read."""
        write_state(self.store.path(self.container.id, "state.json"), self.state)


# %% A container's life, in one function
def is_last(container: Container) -> bool:
    """Say whether the first guest's end of input is the program's."""
    return container.config.stdin_once and not container.config.tty


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


# %% A container's life, in one function
def log_of(store: ContainerStore, container: Container) -> JsonLog | None:
    """Return the log that a container's driver and options ask for."""
    if container.host.log_driver == "none":
        return None
    path = store.path(container.id, f"{container.id}-json.log")
    if not container.host.log_opts and container.host.log_driver == "json-file":
        return JsonLog(path)
    from minidocker.logs import log_for

    return log_for(container, path)


def whole_spec(
    spec: ProcessSpec, container: Container, group: Group | None
) -> ProcessSpec:
    """Return a spec with what is made for one start: its groups, and its init."""
    spec = spec.replace(group=group)
    if not container.host.init:
        return spec
    from minidocker.elf import init_file

    return spec.replace(init=init_file())


def spec_of(store: ContainerStore, container: Container) -> ProcessSpec:
    """Return how a container is started, with the variables of its links."""
    spec = process_spec(store, container)
    if not container.host.links:
        return spec
    from minidocker.neighbours import link_environment
    from minidocker.sandbox import network_store

    told = link_environment(store, network_store(store), container)
    return spec.replace(env=(*told, *spec.env))


def container_group(container: Container) -> Group:
    """Make the groups of a container that is about to start.

    A container in somebody else's pid namespace leaves processes behind when its first
    one ends; its group is how they are found, where we may have one.
    """
    limits = container.host.limits
    if container.host.narrow or container.host.further:
        return special_group(container)
    if container.host.pid_mode:
        with suppress(RuntimeFault):
            return make_group(container.id, limits, "freezer")
    return make_group(container.id, limits)


def special_group(container: Container) -> Group:
    """Make the groups of a container with finer limits, or rules for devices."""
    from minidocker.device_rules import restrict_devices, rules_for
    from minidocker.finer_limits import finer_settings, limit_finely

    host, narrow = container.host, container.host.narrow
    plan = finer_settings(dict(host.further))
    also = [one.controller for one in plan] + ["devices"] * narrow
    also += ["freezer"] * bool(host.pid_mode)
    group = make_group(container.id, host.limits, *also)
    try:
        if narrow:
            restrict_devices(group, rules_for(host.devices))
        limit_finely(group, plan)
    except BaseException:
        remove_group(container.id)
        raise
    return group


# %% A container's life, in one function
def leave_group(
    store: ContainerStore, container: Container, group: Group | None
) -> bool:
    """Remove a container's groups; say whether it was killed for want of memory."""
    if group is None or not store.has_group(container):
        return False
    killed = was_killed_for_memory(find_group(container.id))
    remove_group(container.id)
    for name in ("grouped", "paused"):
        with suppress(FileNotFoundError):
            os.unlink(store.path(container.id, name))
    return killed


# %% A container's life, in one function
def run_foreground(
    store: ContainerStore, container: Container, client: Client | None = None
) -> int:
    """Run a container attached to ``client``, or 0, 1, 2; return its exit status."""
    return Supervisor(store, container, client or Client()).run()
