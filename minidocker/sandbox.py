# From book/449-sandbox.md. Edit there and tangle, or here and tangle --back.

# %% Sandbox: a network for one run of a container
"""The network of a container for one run: made before it starts, gone after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from minidocker.containers import Container, ContainerStore, timestamp
from minidocker.durable import read_json, write_whole
from minidocker.errors import MinidockerError, RuntimeFault, UnsupportedError
from minidocker.etc_files import network_files, write_network_files
from minidocker.networks import (
    DEFAULT,
    Endpoint,
    NetworkStore,
    Wish,
    endpoint_from,
    plain,
    wish_from,
)
from minidocker.records import json_text
from minidocker.rtnetlink import new_netns
from minidocker.wiring import forget, join, open_up, sweep_later


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% What it belongs to
UNSAID = "default"


def network_store(store: ContainerStore) -> NetworkStore:
    """Return the networks that belong to a store of containers."""
    return NetworkStore(os.path.dirname(store.root), timestamp)


def wishes_of(store: ContainerStore, container: Container) -> dict[str, Wish]:
    """Return the networks of a container by name, and what it wants of each."""
    try:
        found = read_json(store.path(container.id, "networks.json"))
    except FileNotFoundError:
        name = container.host.network_of
        own = Wish(mac=container.config.mac_address)
        return {DEFAULT if name in ("", UNSAID) else name: own}
    return {name: wish_from(wish) for name, wish in found.items()}


def write_wishes(
    store: ContainerStore, container: Container, wishes: Mapping[str, Wish]
) -> None:
    """Write down which networks a container belongs to."""
    found = {name: plain(wish) for name, wish in wishes.items()}
    write_whole(store.path(container.id, "networks.json"), json_text(found))


# %% What it got
def settings_file(store: ContainerStore, id: str) -> str:
    """Return the path of the file that tells what a running container got."""
    return store.path(id, "network.json")


def write_settings(
    store: ContainerStore, container: Container, endpoints: list[Endpoint], **more: Any
) -> None:
    """Write down what a container got: its endpoints and its ports."""
    found = {"endpoints": [plain(one) for one in endpoints], **more}
    write_whole(settings_file(store, container.id), json_text(found))


def read_settings(store: ContainerStore, id: str) -> tuple[list[Endpoint], Any]:
    """Return the endpoints of a container that runs, and its published ports.

    The ports are in Docker's form: ``{"80/tcp": [{"HostIp": ..., "HostPort": ...}]}``.
    """
    try:
        found = read_json(settings_file(store, id))
    except FileNotFoundError:
        return [], {}
    return [endpoint_from(one) for one in found["endpoints"]], found.get("ports", {})


# %% From start to end
def blank(container: Container, wish: Wish) -> Endpoint:
    """Return the endpoint of a container before it has a place."""
    names = (container.name, *wish.aliases, container.id[:12])
    who = Endpoint("", "", container.id, container.name, "", "", "", 0, "")
    return who.replace(wish=wish, names=names)


def join_all(store: ContainerStore, container: Container, netns: int) -> list[Endpoint]:
    """Put a new namespace on all networks of a container. Raises RuntimeFault.

    Who asked for no network, on a kernel that can make none, gets none and is told so.
    """
    networks, found = network_store(store), []
    try:
        for name, wish in wishes_of(store, container).items():
            found.append(join(networks, name, blank(container, wish), netns))
    except MinidockerError as why:
        leave_all(store, container, found)
        unsaid = container.host.network_of in ("", UNSAID)
        if isinstance(why, UnsupportedError) and unsaid:
            os.write(2, f"minidocker: no network: {why.what}\n".encode())
            return []
        raise RuntimeFault(why.what, where=why.where, hint=why.hint) from why
    return found


def leave_all(
    store: ContainerStore, container: Container, endpoints: list[Endpoint]
) -> None:
    """Take a container off its networks; those that are empty now go down."""
    networks = network_store(store)
    for one in endpoints:
        forget(networks, one.network, container.id)
    if endpoints:
        sweep_later(networks)


def write_files(
    store: ContainerStore, container: Container, endpoints: list[Endpoint]
) -> None:
    """Write the three files of a container that knows its addresses now."""
    addresses = [ip for one in endpoints for ip in (one.ip, one.ip6) if ip]
    gateway = endpoints[0].gateway if endpoints else ""
    files = network_files(container.config, container.host, addresses, gateway)
    write_network_files(store.path(container.id), files)


@contextmanager
def sandbox(store: ContainerStore, container: Container) -> Iterator[int]:
    """Make a container's network for a ``with`` block; yield its namespace's fd.

    Raises RuntimeFault when that fails; then nothing is left.
    """
    netns = new_netns()
    endpoints: list[Endpoint] = []
    try:
        open_up(netns)
        endpoints = join_all(store, container, netns)
        write_files(store, container, endpoints)
        write_settings(store, container, endpoints)
        yield netns
    finally:
        os.close(netns)
        with suppress(FileNotFoundError):
            os.unlink(settings_file(store, container.id))
        leave_all(store, container, endpoints)
