# From book/668-connection-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Connection verbs: join and leave while it runs
"""The commands `network connect`, `network disconnect` and `port`."""

from __future__ import annotations

import os
from functools import partial

from minidocker.container_verbs import Needs, open_engine, print_text
from minidocker.containers import Container, Status
from minidocker.durable import happened
from minidocker.engine import Engine
from minidocker.errors import ConflictError, NotFoundError, UnsupportedError
from minidocker.flags import LIST, TEXT, Command, Flag, Given, refused
from minidocker.mounts import is_first_user_namespace
from minidocker.network_flags import check_address, protocol_of
from minidocker.network_views import find_one, port_lines
from minidocker.networks import BridgeNetwork, Wish, check_wish
from minidocker.program import Network
from minidocker.rtnetlink import open_netns
from minidocker.sandbox import (
    blank,
    has_names,
    network_event,
    network_store,
    read_settings,
    serve_names,
    where_bridges_are,
    wishes_of,
    write_files,
    write_settings,
    write_wishes,
)
from minidocker.wiring import join, part


# %% Join and leave
def check_connectable(container: Container, name: str) -> None:
    """Refuse what cannot be on one more network. Raises ConflictError."""
    kind = container.host.network
    if name == "host" or kind is Network.HOST:
        what = "container cannot be disconnected from host network or connected to host"
        raise ConflictError(f"{what} network")
    if kind is Network.CONTAINER:
        what = "container sharing network namespace with another container or host "
        raise ConflictError(f"{what}cannot be connected to any other network")
    if name == "none" or kind is Network.NONE:
        what = "container cannot be connected to multiple networks with one of the "
        raise ConflictError(f"{what}networks in private (none) mode")


# %% Join and leave
def connect(given: Given) -> int:
    """``network connect [OPTIONS] NETWORK CONTAINER``"""
    wish = Wish(
        check_address(given.text("ip"), 4),
        check_address(given.text("ip6"), 6),
        aliases=given.list("alias"),
    )
    text, who = given.args
    engine = open_engine(given, Needs.TREES)
    container = engine.containers.resolve(who)
    check_connectable(container, text)
    store = network_store(engine.containers)
    network = find_one(store, text)[0]
    check_wish(network, wish)
    wishes = wishes_of(engine.containers, container)
    state = engine.containers.state(container.id)
    if state.status is Status.RUNNING:
        if network.name in wishes:
            what = f"endpoint with name {container.name} already exists in network"
            raise ConflictError(f"{what} {network.name}")
        connect_running(engine, container, network, wish, state.pid)
    write_wishes(engine.containers, container, {**wishes, network.name: wish})
    return 0


def connect_running(
    engine: Engine, container: Container, network: BridgeNetwork, wish: Wish, pid: int
) -> None:
    """Put a container that runs on one more network."""
    store = engine.containers
    before, ports = read_settings(store, container.id)
    if not before and not is_first_user_namespace():
        what = f"container {container.name} has an uplink of its own while it runs"
        raise UnsupportedError(what, hint="stop it, connect it, and start it again")
    netns = open_netns(f"/proc/{pid}/ns/net")

    def plug_in() -> None:
        who = blank(container, wish)
        after = [*before, join(network_store(store), network.name, who, netns)]
        write_settings(store, container, after, ports=ports)
        happened(engine.root, network_event(after[-1], "connect"))
        if has_names(after) and not has_names(before):
            serve_names(store, container, netns)
        write_files(store, container, after)

    try:
        where_bridges_are(store, plug_in)
    finally:
        os.close(netns)


# %% Join and leave
def disconnect(given: Given) -> int:
    """``network disconnect [OPTIONS] NETWORK CONTAINER``"""
    text, who = given.args
    engine = open_engine(given, Needs.TREES)
    store, container = engine.containers, engine.containers.resolve(who)
    if text == "host" or container.host.network is Network.HOST:
        check_connectable(container, "host")
    network = find_one(network_store(store), text)[0]
    wishes = wishes_of(store, container)
    if network.name not in wishes:
        what = f"container {container.id} is not connected to network {network.name}"
        raise ConflictError(what)
    state = store.state(container.id)
    before, ports = read_settings(store, container.id)
    del wishes[network.name]
    write_wishes(store, container, wishes)
    if state.status is Status.RUNNING:
        netns = open_netns(f"/proc/{state.pid}/ns/net")
        try:
            gone = [one for one in before if one.network == network.name]
            rest = [one for one in before if one.network != network.name]
            for one in gone:
                pull = partial(part, network_store(store), one, rest, netns)
                where_bridges_are(store, pull)
                happened(engine.root, network_event(one, "disconnect"))
        finally:
            os.close(netns)
        write_settings(store, container, rest, ports=ports)
        write_files(store, container, rest)
    return 0


# %% Which port was it?
def port(given: Given) -> int:
    """``port CONTAINER [PRIVATE_PORT[/PROTO]]``"""
    engine = open_engine(given)
    container = engine.containers.resolve(given.args[0])
    running = engine.containers.state(container.id).status is Status.RUNNING
    ports = read_settings(engine.containers, container.id)[1] if running else {}
    if len(given.args) == 1:
        print_text("\n".join(port_lines(ports)))
        return 0
    text = "/".join(protocol_of(given.args[1]))
    if not ports.get(text):
        raise NotFoundError(f"no public port '{text}' published for {given.args[0]}")
    for one in ports[text]:
        print(f"{one['HostIp']}:{one['HostPort']}")
    return 0


JOIN_FLAGS = (
    Flag("alias", "Add network-scoped alias for the container", takes=LIST),
    Flag("ip", "IPv4 address (e.g., 172.30.100.104)", takes=TEXT),
    Flag("ip6", "IPv6 address (e.g., 2001:db8::33)", takes=TEXT),
    refused("driver-opt", "a bridge has no options for one container"),
    refused("link", "names are resolved on this network; --alias gives one more"),
    refused("link-local-ip", "an interface has the addresses of its network, only"),
)
COMMANDS = (
    Command(
        "network connect", "[OPTIONS] NETWORK CONTAINER",
        "Connect a container to a network", connect, JOIN_FLAGS, least=2, most=2,
    ),
    Command(
        "network disconnect", "[OPTIONS] NETWORK CONTAINER",
        "Disconnect a container from a network", disconnect,
        (Flag("force", "Force the container to disconnect from a network", "f"),),
        least=2, most=2,
    ),
    Command(
        "port", "CONTAINER [PRIVATE_PORT[/PROTO]]",
        "List port mappings or a specific mapping for the container", port,
        least=1, most=2,
    ),
)  # fmt: skip
