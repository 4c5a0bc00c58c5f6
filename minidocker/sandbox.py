# From book/460-sandbox.md. Edit there and tangle, or here and tangle --back.

# %% Sandbox: a network for one run of a container
"""The network of a container for one run: made before it starts, gone after it."""

from __future__ import annotations

import _thread
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from minidocker.calls import signal
from minidocker.containers import Container, ContainerRecords, ContainerStore, timestamp
from minidocker.durable import event_fields, read_json, write_lasting, write_whole
from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    RuntimeFault,
    UnsupportedError,
    recast,
)
from minidocker.etc_files import name_servers, network_files, write_network_files
from minidocker.linux import CloneFlags, Prctl, prctl, setns
from minidocker.mounts import is_first_user_namespace
from minidocker.networks import (
    DEFAULT,
    OPTION,
    TORN,
    Endpoint,
    NetworkStore,
    Wish,
    endpoint_from,
    wish_from,
)
from minidocker.program import PortBinding
from minidocker.pump import let_go
from minidocker.records import json_text, plain
from minidocker.rtnetlink import NETFILTER, Netlink, new_netns
from minidocker.wiring import forget, join, open_up, prepare_namespace, sweep_later


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.publishing import Opening


# %% What it belongs to
UNSAID = "default"


def network_store(store: ContainerRecords) -> NetworkStore:
    """Return the networks that belong to a store of containers."""
    return NetworkStore(os.path.dirname(store.root), timestamp)


def wishes_of(store: ContainerStore, container: Container) -> dict[str, Wish]:
    """Return the networks of a container by name, and what it wants of each.

    Raises IntegrityError where that cannot be read: it gets on no other than asked for.
    """
    path = store.path(container.id, "networks.json")
    try:
        return {name: wish_from(wish) for name, wish in read_json(path).items()}
    except FileNotFoundError:
        name = container.host.network_of
        own = Wish(mac=container.config.mac_address)
        return {DEFAULT if name in ("", UNSAID) else name: own}
    except TORN as why:
        what = "the record of this container's networks is damaged"
        raise IntegrityError(what, where=path, hint=f"rm {container.name}") from why


def write_wishes(
    store: ContainerStore, container: Container, wishes: Mapping[str, Wish]
) -> None:
    """Write down which networks a container belongs to, for as long as it is there."""
    found = {name: plain(wish) for name, wish in wishes.items()}
    write = write_whole if container.host.auto_remove else write_lasting
    write(store.path(container.id, "networks.json"), json_text(found))


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


# %% On its networks, and off
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
        leave_all(store, container)
        if isinstance(why, UnsupportedError) and is_unsaid(container):
            tell_once(store, why.what)
            return []
        raise recast(why, RuntimeFault) from why
    return found


def is_unsaid(container: Container) -> bool:
    """Say whether nobody asked for the network that a container has."""
    return container.host.network_of in ("", UNSAID)


def tell_once(store: ContainerStore, why: str) -> None:
    """Tell the person who waits that containers have no network here; only once.

    Who cannot hear it (2 is /dev/null) is told the next time.
    """
    deaf = os.fstat(2).st_rdev == os.stat("/dev/null").st_rdev
    told = f"{os.path.dirname(store.root)}/no-network-told"
    if not deaf and not os.path.exists(told):
        write_whole(told, why)
        os.write(2, f"minidocker: containers have no network here: {why}\n".encode())


def leave_all(store: ContainerStore, container: Container) -> None:
    """Take a container off all networks; those that are empty now go down."""
    networks = network_store(store)
    with suppress(FileNotFoundError):
        for name in os.listdir(f"{networks.place}/each"):
            forget(networks, name, container.id)
    sweep_later(networks)


# %% On its networks, and off
def write_files(
    store: ContainerStore, container: Container, endpoints: list[Endpoint]
) -> None:
    """Write the three files of a container that knows its addresses now."""
    addresses = [ip for one in endpoints for ip in (one.ip, one.ip6) if ip]
    gateway = endpoints[0].gateway if endpoints else ""
    files = network_files(
        container.config,
        container.host,
        addresses,
        gateway,
        embedded=has_names(endpoints),
    )
    if container.host.links:
        from minidocker.neighbours import host_lines, neighbours

        known = neighbours(store, network_store(store), container)
        files["hosts"] += host_lines(known)
    write_network_files(store.path(container.id), files)


def has_names(endpoints: list[Endpoint]) -> bool:
    """Say whether a container is told the others' names: not on the default network."""
    return any(one.network != DEFAULT for one in endpoints)


def network_event(one: Endpoint, action: str) -> dict[str, Any]:
    """Return what happens to a network as a container comes or goes."""
    attributes = {"container": one.container, "name": one.network, "type": "bridge"}
    return event_fields("network", action, one.network_id, attributes)


# %% On its networks, and off
def rename_endpoints(store: ContainerStore, container: Container) -> None:
    """Make the new name of a container that runs known on its networks."""
    endpoints, ports = read_settings(store, container.id)
    if not endpoints:
        return
    name, networks = container.name, network_store(store)
    found = [one.replace(name=name, names=(name, *one.names[1:])) for one in endpoints]
    for one in found:
        path = networks.path(one.network, "on", container.id)
        write_whole(path, json_text(plain(one)))
    write_settings(store, container, found, ports=ports)


# %% Its attendant
Service = Callable[[], None]


# %% Its attendant
def be_attendant(
    services: list[Service], keep: Iterable[int], netns: int, parent: int
) -> None:
    """Serve as long as ``parent`` lives, in a namespace if one is given (not -1)."""
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.setsid()
    if netns >= 0:
        setns(netns, CloneFlags.NEWNET)
    let_go(*keep)
    for service in services:
        _thread.start_new_thread(service, ())
    while True:
        signal.pause()


@contextmanager
def attendant(
    services: list[Service], keep: Iterable[int], netns: int = -1
) -> Iterator[None]:
    """Have services done by a child for a ``with`` block; none needs no child."""
    if not services:
        yield
        return
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            be_attendant(services, keep, netns, parent)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# %% Its attendant
def bindings_of(container: Container) -> list[PortBinding]:
    """Return the ports to publish: those named, and with ``-P`` all the others."""
    found = list(container.host.ports)
    if container.host.publish_all:
        named = {one.port for one in found}
        exposed = sorted(container.config.exposed_ports or ())
        found += [PortBinding(port) for port in exposed if port not in named]
    return found


def names_service(
    store: ContainerStore, container: Container, netns: int, stack: ExitStack
) -> tuple[list[Service], list[int]]:
    """Return the services of a resolver for a container, and their descriptors."""
    from minidocker import resolver

    def mine() -> list[str]:
        found, _ = read_settings(store, container.id)
        return [one.network for one in found if one.network != DEFAULT]

    listener = resolver.listen_inside(netns)
    book = resolver.Directory(network_store(store), mine, name_servers(container.host))
    stack.callback(listener.datagrams.close)
    stack.callback(listener.connections.close)
    services: list[Service] = [
        partial(resolver.serve_datagrams, listener.datagrams, book),
        partial(resolver.serve_connections, listener.connections, book),
    ]
    return services, [listener.datagrams.fileno(), listener.connections.fileno()]


# %% Its attendant
def serve_names(store: ContainerStore, container: Container, netns: int) -> None:
    """Have names resolved for a container that runs without it, until its end.

    The process that does it is nobody's child, and waits for the container's lock.
    """
    with ExitStack() as stack:
        services, keep = names_service(store, container, netns, stack)
        lock = os.open(store.path(container.id, "lock"), os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, lock)
        middle = os.fork()
        if middle == 0:
            with suppress(BaseException):
                os.setsid()
                if os.fork() == 0:
                    let_go(*keep, lock)
                    for service in services:
                        _thread.start_new_thread(service, ())
                    fcntl.flock(lock, fcntl.LOCK_SH)
            os._exit(0)
        os.waitpid(middle, 0)


# %% Its attendant
def lead_ports(
    store: ContainerStore,
    container: Container,
    openings: list[Opening],
    who: Endpoint,
    stack: ExitStack,
) -> None:
    """Lead packets for published ports to a container until the stack unwinds."""
    from minidocker.netfilter import container_chains, make_table
    from minidocker.publishing import rewritings

    bridge = network_store(store).get(who.network).bridge
    rules = tuple(rewritings(openings, who))
    netfilter = stack.enter_context(Netlink(NETFILTER))
    name = f"minidocker-{container.id[:12]}"
    try:
        make_table(netfilter, name, container_chains(bridge, rules), owned=True)
    except OSError as why:
        raise RuntimeFault(f"cannot lead ports inside: {why.strerror}") from why


# %% From start to end
def open_all(
    store: ContainerStore, container: Container, stack: ExitStack
) -> list[Opening]:
    """Take the ports of a container until the stack unwinds. Raises RuntimeFault."""
    bindings = bindings_of(container)
    if not bindings:
        return []
    from minidocker.publishing import close_openings, open_ports

    default = ""
    with suppress(MinidockerError):
        network = network_store(store).resolve(next(iter(wishes_of(store, container))))
        default = network.options.get(f"{OPTION}bridge.host_binding_ipv4", "")
    try:
        openings = open_ports(bindings, default)
    except MinidockerError as why:
        raise recast(why, RuntimeFault) from why
    stack.callback(close_openings, openings)
    return openings


def serve_ports(openings: list[Opening], address: str) -> list[Service]:
    """Return the services of published ports that lead to an address."""
    if not openings:
        return []
    from minidocker.publishing import serve

    return [partial(serve, one, address) for one in openings]


# %% From start to end
def settle_in(
    store: ContainerStore,
    container: Container,
    endpoints: list[Endpoint],
    openings: list[Opening],
    stack: ExitStack,
) -> None:
    """Write down where a container is, until the stack unwinds."""
    ports: dict[str, object] = dict.fromkeys(container.config.exposed_ports or ())
    if openings:
        from minidocker.publishing import ports_json

        ports = ports_json(openings, ports)
    write_settings(store, container, endpoints, ports=ports)
    stack.callback(remove_settings, store, container.id)


def remove_settings(store: ContainerStore, id: str) -> None:
    """Remove what tells where a container is."""
    with suppress(FileNotFoundError):
        os.unlink(settings_file(store, id))


# %% From start to end
@contextmanager
def sandbox(store: ContainerStore, container: Container) -> Iterator[int]:
    """Make a container's network for a ``with`` block; yield its namespace's fd.

    Raises RuntimeFault when that fails; then nothing is left.
    """
    with ExitStack() as stack:
        openings = open_all(store, container, stack)
        if is_first_user_namespace():
            netns = bridged(store, container, openings, stack)
        elif set(wishes_of(store, container)) != {DEFAULT}:
            netns = shared(store, container, openings, stack)
        else:
            netns = uplinked(store, container, openings, stack)
        yield netns


# %% From start to end
def bridged(
    store: ContainerStore,
    container: Container,
    openings: list[Opening],
    stack: ExitStack,
) -> int:
    """Put a container on its networks until the stack unwinds; return its namespace."""
    netns = new_netns()
    stack.callback(os.close, netns)
    open_up(netns)
    endpoints = join_all(store, container, netns)
    stack.callback(leave_all, store, container)
    write_files(store, container, endpoints)
    settle_in(store, container, endpoints, openings, stack)
    services: list[Service] = []
    keep = [one.socket.fileno() for one in openings]
    if openings and endpoints:
        lead_ports(store, container, openings, endpoints[0], stack)
        services += serve_ports(openings, endpoints[0].ip)
    if has_names(endpoints):
        more, sockets = names_service(store, container, netns, stack)
        services, keep = services + more, keep + sockets
    stack.enter_context(attendant(services, keep))
    return netns


def where_bridges_are(store: ContainerStore, work: Callable[[], None]) -> None:
    """Do ``work`` in the host's network, or in the commons of a user without root."""
    if is_first_user_namespace():
        work()
        return
    from minidocker.commons import commons, within

    root = os.path.dirname(store.root)
    with commons(root, partial(tell_once, store)) as here:
        within(here, work)


def shared(
    store: ContainerStore,
    container: Container,
    openings: list[Opening],
    stack: ExitStack,
) -> int:
    """Put a container on networks in the commons of a user without root.

    Until the stack unwinds; returns its namespace.
    """
    from minidocker.commons import commons, within
    from minidocker.uplink import netns_of_child

    root = os.path.dirname(store.root)
    here = stack.enter_context(commons(root, partial(tell_once, store)))
    netns = netns_of_child(prepare_namespace)
    stack.callback(os.close, netns)
    endpoints = within(here, lambda: join_all(store, container, netns))
    stack.callback(within, here, lambda: leave_all(store, container))
    write_files(store, container, endpoints)
    settle_in(store, container, endpoints, openings, stack)
    if has_names(endpoints):
        names = partial(names_service, store, container, netns, stack)
        stack.enter_context(attendant(*within(here, names)))
    if openings:
        keep = [one.socket.fileno() for one in openings]
        services = serve_ports(openings, endpoints[0].ip)
        stack.enter_context(attendant(services, keep, here))
    return netns


def uplinked(
    store: ContainerStore,
    container: Container,
    openings: list[Opening],
    stack: ExitStack,
) -> int:
    """Give a container a way out without root until the stack unwinds.

    Published ports lead to its 127.0.0.1, from inside. Returns its namespace.
    """
    from minidocker.uplink import find_uplink, netns_of_child, uplink

    netns = netns_of_child(prepare_namespace)
    stack.callback(os.close, netns)
    try:
        program = find_uplink()
        stack.enter_context(uplink(program, netns, store.path(container.id)))
    except MinidockerError as why:
        if not is_unsaid(container):
            raise
        tell_once(store, why.what)
    files = network_files(container.config, container.host, ["127.0.1.1"])
    write_network_files(store.path(container.id), files)
    settle_in(store, container, [], openings, stack)
    keep = [one.socket.fileno() for one in openings]
    services = serve_ports(openings, "127.0.0.1")
    stack.enter_context(attendant(services, keep, netns))
    return netns
