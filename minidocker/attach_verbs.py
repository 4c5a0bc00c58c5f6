# From book/632-attach-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Attach verbs: a hand on the keyboard
"""``attach`` and ``start``: connect a terminal with a program inside."""

from __future__ import annotations

import os
from contextlib import suppress

from minidocker.container_verbs import Needs, each_container, open_engine
from minidocker.engine import Engine
from minidocker.errors import ConflictError, MinidockerError, RuntimeFault, recast
from minidocker.exec_verb import KEYS, detach_keys
from minidocker.flags import Command, Flag, Given


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.containers import Container, ContainerStore
    from minidocker.pump import Client


# %% To be a guest
def process_of(store: ContainerStore, container: Container) -> int:
    """Open the pidfd of a container's first process; -1 when it has gone already."""
    from minidocker.linux import open_process

    state = store.state(container.id)
    with suppress(OSError):
        return open_process(state.pid, state.start_time)
    return -1


# %% To be a guest
def run_as_guest(
    store: ContainerStore, container: Container, client: Client, given: Given
) -> int:
    """Start a container in the background, and be its guest from the first byte."""
    from minidocker.attach import new_seats, stay
    from minidocker.background import run_detached

    keys = detach_keys(given, tty=container.config.tty)
    ours, theirs = new_seats(client)
    terminal = run_detached(store, container, theirs)
    pidfd = process_of(store, container) if given.on("sig-proxy") else -1
    return stay(ours, client, terminal, keys, pidfd)


# %% attach and start
def need_attachable(store: ContainerStore, container: Container) -> None:
    """Raise ConflictError where there is nothing to attach to."""
    from minidocker.containers import Status

    state = store.state(container.id)
    for wrong, word, todo in (
        (state.status is not Status.RUNNING, "stopped", "start it first"),
        (state.paused, "paused", "unpause it first"),
        (state.restarting, "restarting", "wait until it is running"),
    ):
        if wrong:
            raise ConflictError(f"you cannot attach to a {word} container, {todo}")


def attach_to(
    store: ContainerStore, container: Container, given: Given, *, stdin: bool
) -> int:
    """Be a guest of a container that runs."""
    from minidocker.attach import knock, stay
    from minidocker.containers import tell
    from minidocker.pump import Client

    config = container.config
    stdin = stdin and config.open_stdin
    if config.tty and stdin and not os.isatty(0):
        raise MinidockerError("the input device is not a TTY")
    client = Client(stdin=0 if stdin else -1)
    keys = detach_keys(given, tty=config.tty)
    seat, terminal = knock(store.path(container.id), client)
    tell(store, container, "attach")
    proxied = given.on("sig-proxy") and not config.tty
    pidfd = process_of(store, container) if proxied else -1
    return stay(seat, client, terminal, keys, pidfd)


def attach(given: Given) -> int:
    """``attach [OPTIONS] CONTAINER``"""
    store = open_engine(given).containers
    container = store.resolve(given.args[0])
    need_attachable(store, container)
    return attach_to(store, container, given, stdin=not given.on("no-stdin"))


# %% attach and start
def start_attached(given: Given) -> int:
    """Start one container, and be its guest."""
    from minidocker.attach import Detached
    from minidocker.containers import Status
    from minidocker.pump import Client

    if len(given.args) > 1:
        what = "you cannot start and attach multiple containers at once"
        raise MinidockerError(what)
    store = open_engine(given, Needs.TREES).containers
    container = store.resolve(given.args[0])
    stdin = given.on("interactive") and container.config.open_stdin
    if container.config.tty and stdin and not os.isatty(0):
        raise MinidockerError("the input device is not a TTY")
    with suppress(Detached):
        if store.state(container.id).status is Status.RUNNING:
            return attach_to(store, container, given, stdin=stdin)
        client = Client(stdin=0 if stdin else -1)
        try:
            return run_as_guest(store, container, client, given)
        except RuntimeFault as why:  # only `run` has statuses of its own for these
            raise recast(why, MinidockerError) from why
    return 0


def start(given: Given) -> int:
    """``start [OPTIONS] CONTAINER [CONTAINER...]``"""
    from minidocker.background import run_detached
    from minidocker.containers import Status

    given = given.replace(flags={"sig-proxy": True, **given.flags})
    if given.on("attach") or given.on("interactive"):
        return start_attached(given)

    def action(engine: Engine, container: Container) -> None:
        state = engine.containers.state(container.id)
        if state.paused:
            what = "cannot start a paused container, try unpause instead"
            raise ConflictError(what)
        if state.status is not Status.RUNNING:
            run_detached(engine.containers, container)

    return min(each_container(given, action, Needs.TREES), 1)


# %% The table
PROXY = Flag("sig-proxy", "Proxy all received signals to the process", default="true")
COMMANDS = (
    Command(
        "attach", "[OPTIONS] CONTAINER",
        "Attach local standard input, output, and error streams", attach,
        (KEYS, Flag("no-stdin", "Do not attach STDIN"), PROXY), least=1, most=1,
    ),
    Command(
        "start", "[OPTIONS] CONTAINER [CONTAINER...]", "Start stopped containers",
        start,
        (
            Flag("attach", "Attach STDOUT/STDERR and forward signals", "a"), KEYS,
            Flag("interactive", "Attach container's STDIN", "i"),
        ),
        least=1,
    ),
)  # fmt: skip
