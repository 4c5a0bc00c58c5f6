# From book/624-container-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Container verbs: one function for each command
"""The commands on containers: take what was given, ask the engine, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from minidocker.durable import is_marked
from minidocker.engine import Engine
from minidocker.errors import (
    ConflictError,
    MinidockerError,
    NotFoundError,
    RuntimeFault,
    UsageError,
)
from minidocker.flags import NUMBER, TEXT, Command, Flag, Given, default_root
from minidocker.records import Enum


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.containers import Container


# %% Rights, and the store
class Needs(Enum):
    """What a command does to the host."""

    NOTHING = 0
    TREES = 1  # writes and removes files of layers
    MOUNTS = 2  # mounts in this process


def notice(line: str) -> None:
    """Tell the person who waits; what a script reads stays clean."""
    print(line, file=sys.stderr, flush=True)


def open_engine(
    given: Given, needs: Needs = Needs.NOTHING, *, sweep: bool = True
) -> Engine:
    """Enter the namespaces that a command needs, and open the store.

    A store that is new tries to mount an overlay, whatever the command. What somebody
    left who was killed is removed, with ``sweep``.
    """
    root = given.text("root") or default_root()
    interrupted = sweep and is_marked(root)
    if not os.path.exists(f"{root}/driver"):
        needs = Needs.MOUNTS
    elif interrupted and needs is Needs.NOTHING:
        needs = Needs.TREES
    if os.geteuid() != 0 and needs is not Needs.NOTHING:
        from minidocker.rootless import enter_store

        enter_store(root)
    elif needs is Needs.MOUNTS:
        own_mounts()
    driver = given.text("storage-driver")
    engine = Engine(root, driver, notice, given.list("driver-opt"))
    if interrupted:
        engine.tidy()
    sweep_bridges(root)
    return engine


def sweep_bridges(root: str) -> None:
    """Take down networks that are up and whose containers have died."""
    with suppress(FileNotFoundError):
        if os.listdir(f"{root}/networks/up"):
            from minidocker.mounts import is_first_user_namespace

            if os.geteuid() or not is_first_user_namespace():
                return  # they are in a namespace of their own, and end with it
            from minidocker.containers import timestamp
            from minidocker.networks import NetworkStore
            from minidocker.wiring import sweep_networks

            sweep_networks(NetworkStore(root, timestamp))


def own_mounts() -> None:
    """Give this process a mount namespace, if it may have one."""
    from minidocker.linux import CloneFlags, unshare
    from minidocker.namespaces import keep_mounts_private

    try:
        unshare(CloneFlags.NEWNS)
        keep_mounts_private()
    except OSError as why:
        notice(f"minidocker: no mount namespace of our own: {why}")


# %% Labels
def label_map(lines: Iterable[str]) -> dict[str, str]:
    """Return ``KEY=VALUE`` lines as a mapping. Raises UsageError for no key."""
    lines = tuple(lines)
    for line in lines:
        if line.startswith("=") or not line:
            raise UsageError(f"invalid label '{line}': empty name")
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


# %% Looking after containers
def each_container(
    given: Given, action: Callable[[Engine, Container], object], needs: Needs
) -> int:
    """Do ``action`` to each container that is named."""
    engine = open_engine(given, needs)
    return each_named(
        given, lambda text: action(engine, engine.containers.resolve(text))
    )


def each_named(given: Given, action: Callable[[str], object]) -> int:
    """Do ``action`` to each name; print the names as given, or what it returns.

    What ``--force`` is to remove, and is not there, is told and no failure.
    """
    status = 0
    for text in given.args:
        try:
            answer = action(text)
            print(text if answer is None else answer, flush=True)
        except MinidockerError as why:
            notice(f"minidocker: {why}")
            gone = isinstance(why, NotFoundError) and given.on("force")
            ours = 1 if isinstance(why, RuntimeFault) else why.status  # 125 is run's
            status = status if gone else ours
    return status


# %% Looking after containers
def inspect_each(given: Given, find: Callable[[str], dict[str, Any]]) -> int:
    """Print the document of each thing that is named, all in a list or by a format."""
    from minidocker.oci import go_json
    from minidocker.values import fill
    from minidocker.views import pretty

    form, found, status = given.text("format"), [], 0
    for text in given.args:
        try:
            found.append(find(text))
            if form:
                one = found[-1]
                print(go_json(one).decode() if form == "json" else fill(form, one))
        except MinidockerError as why:
            if isinstance(why, UsageError):  # of the template, not of one thing
                raise
            notice(f"minidocker: {why}")
            status = why.status
    if not form:
        print(pretty(found))
    return status


# %% Looking after containers
def stop(given: Given) -> int:
    """``stop [OPTIONS] CONTAINER [CONTAINER...]``"""
    from minidocker import lifecycle

    seconds = given.number("time")

    def action(engine: Engine, container: Container) -> None:
        lifecycle.stop(engine.containers, container, seconds)

    return each_container(given, action, Needs.NOTHING)


def restart(given: Given) -> int:
    """``restart [OPTIONS] CONTAINER [CONTAINER...]``"""
    from minidocker import lifecycle
    from minidocker.background import run_detached
    from minidocker.containers import tell
    from minidocker.door import kept

    seconds = given.number("time")

    def action(engine: Engine, container: Container) -> None:
        store = engine.containers
        with kept(store, container):
            lifecycle.stop(store, container, seconds)
            run_detached(store, store.get(container.id))
        tell(store, container, "restart")

    return each_container(given, action, Needs.TREES)


def rename(given: Given) -> int:
    """``rename CONTAINER NEW_NAME``"""
    from minidocker import lifecycle

    engine = open_engine(given)
    container = engine.containers.resolve(given.args[0])
    lifecycle.rename(engine.containers, container, given.args[1])
    if os.path.exists(engine.containers.path(container.id, "network.json")):
        from minidocker.sandbox import rename_endpoints

        rename_endpoints(engine.containers, engine.containers.get(container.id))
    return 0


def kill(given: Given) -> int:
    """``kill [OPTIONS] CONTAINER [CONTAINER...]``"""
    from minidocker import lifecycle
    from minidocker.blueprint import signal_number

    number = signal_number(given.text("signal") or "KILL")

    def action(engine: Engine, container: Container) -> None:
        lifecycle.kill(engine.containers, container, number)

    return each_container(given, action, Needs.NOTHING)


def rm(given: Given) -> int:
    """``rm [OPTIONS] CONTAINER [CONTAINER...]``"""
    from minidocker import lifecycle

    if given.on("link"):
        return unlink(given)

    def action(engine: Engine, container: Container) -> None:
        force, volumes = given.on("force"), given.on("volumes")
        lifecycle.remove(engine.containers, container, force=force, volumes=volumes)

    return each_container(given, action, Needs.TREES)


def unlink(given: Given) -> int:
    """Take links away, each named CONTAINER/ALIAS: ``rm --link``."""
    from minidocker import lifecycle
    from minidocker.neighbours import without_link

    store = open_engine(given).containers

    def action(text: str) -> None:
        name, slash, alias = text.removeprefix("/").partition("/")
        container = store.resolve(name)
        if not slash:
            what = "conflict, cannot remove the default link name of the container"
            raise ConflictError(what)
        lifecycle.rewrite_host(store, container, without_link(container, alias))

    return each_named(given, action)


def wait(given: Given) -> int:
    """``wait CONTAINER [CONTAINER...]``"""
    from minidocker import lifecycle

    def action(engine: Engine, container: Container) -> int:
        return lifecycle.wait(engine.containers, container)

    return each_container(given, action, Needs.NOTHING)


# %% Looking after containers
def print_lines(lines: Iterable[str]) -> None:
    """Print lines, or nothing at all."""
    for line in lines:
        print(line)


def print_text(text: str) -> None:
    """Print a text, or nothing for an empty one."""
    if text:
        print(text)


# %% The table
WAIT_FLAGS = (Flag("time", "Seconds to wait before killing it", "t", NUMBER),)
COMMANDS = (
    Command(
        "stop", "[OPTIONS] CONTAINER [CONTAINER...]", "Stop running containers",
        stop, WAIT_FLAGS, least=1,
    ),
    Command(
        "restart", "[OPTIONS] CONTAINER [CONTAINER...]", "Restart containers",
        restart, WAIT_FLAGS, least=1,
    ),
    Command(
        "rename", "CONTAINER NEW_NAME", "Rename a container", rename, least=2, most=2
    ),
    Command(
        "kill", "[OPTIONS] CONTAINER [CONTAINER...]", "Kill running containers",
        kill,
        (Flag("signal", "Signal to send to the container", "s", TEXT, "KILL"),),
        least=1,
    ),
    Command(
        "rm", "[OPTIONS] CONTAINER [CONTAINER...]", "Remove containers", rm,
        (
            Flag("force", "Kill and remove a running container", "f"),
            Flag("link", "Remove a link: CONTAINER/ALIAS", "l"),
            Flag("volumes", "Remove anonymous volumes of the container", "v"),
        ),
        least=1,
    ),
    Command(
        "wait", "CONTAINER [CONTAINER...]",
        "Block until containers stop, then print their exit codes",
        wait, least=1,
    ),
)  # fmt: skip
