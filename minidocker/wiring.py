# From book/434-wiring.md. Edit there and tangle, or here and tangle --back.

# %% Wiring: a bridge for as long as it is needed
"""Bring networks up and take them down; put a container on one, and off again."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _socket import AF_UNIX, SOCK_STREAM, if_nameindex, if_nametoindex, socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from minidocker.durable import write_whole
from minidocker.errors import (
    MinidockerError,
    NotFoundError,
    RuntimeFault,
    UnsupportedError,
)
from minidocker.netfilter import delete_table, make_table, network_chains
from minidocker.networks import (
    DEFAULT,
    BridgeNetwork,
    Endpoint,
    NetworkStore,
    check_wish,
    default_network,
    free_subnet,
    gateway_of,
    host_routes,
    live_endpoints,
    overlap,
    take_place,
)
from minidocker.records import json_text, plain
from minidocker.rtnetlink import (
    NETFILTER,
    OWN,
    Netlink,
    Plug,
    delete_link,
    inside,
    link_up,
    new_address,
    new_bridge,
    new_default_route,
    new_veth,
)


# %% Up
NET = "/proc/sys/net"


def set_sysctl(name: str, value: str) -> None:
    """Write a setting of the network namespace we are in, where it is not so yet.

    Where /proc/sys is read-only or lacks the setting, it stays as it is.
    """
    path = f"{NET}/{name}"
    with suppress(OSError):
        with open(path, "rb") as file:
            if file.read().split() == value.encode().split():
                return
        with open(path, "wb") as file:
            file.write(value.encode())


def table_of(network: BridgeNetwork) -> str:
    """Return the name of a network's table of rules."""
    return f"minidocker-{network.id[:12]}"


# %% Up
def make_rules(network: BridgeNetwork) -> None:
    """Make the table of a network. Raises UnsupportedError without nftables."""
    chains = network_chains(
        network.bridge,
        tuple((subnet.address, subnet.bits) for subnet in network.used),
        internal=network.internal,
        talking=network.allows("enable_icc"),
        disguised=network.allows("enable_ip_masquerade"),
    )
    try:
        with Netlink(NETFILTER) as netfilter:
            make_table(netfilter, table_of(network), chains)
    except OSError as why:
        raise refusal("the kernel takes no rules of nftables", why) from why


LACKING = (
    errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT,
    errno.ENOENT, errno.ENODEV,
)  # fmt: skip


def refusal(what: str, why: OSError) -> MinidockerError:
    """Phrase why the kernel did not do something: it cannot, or it failed."""
    hint = "`minidocker info` tells what is missing; --network none needs nothing"
    if why.errno in LACKING:
        return UnsupportedError(f"{what}: {why.strerror}", hint=hint)
    return RuntimeFault(f"{what}: {why.strerror}")


def make_bridge(host: Netlink, network: BridgeNetwork) -> int:
    """Make the bridge of a network with its gateway's addresses; return its index."""
    mac = f"02:42:{os.urandom(4).hex(':')}"
    host.talk(new_bridge(network.bridge, mac, network.mtu))
    index = if_nametoindex(network.bridge)
    gateways = [(s.gateway, s.bits) for s in network.used if s.gateway]
    host.talk(*(new_address(index, ip, bits) for ip, bits in gateways), link_up(index))
    return index


# %% Up
def marker(store: NetworkStore, name: str = "") -> str:
    """Return the path of the mark that a network is up, or of all marks."""
    marks = f"{store.place}/up"
    return f"{marks}/{name}" if name else marks


def moved(store: NetworkStore, network: BridgeNetwork) -> BridgeNetwork:
    """Return a network whose subnet, if it is ours to choose, overlaps no route.

    The host may have got new routes since the network was made.
    """
    (first, *rest) = network.subnets
    here = host_routes()
    if not network.chosen or not any(
        overlap((first.address, first.bits), one) for one in here
    ):
        return network
    subnet = gateway_of(free_subnet([*here, *store.subnets()]))
    network = network.replace(subnets=(subnet, *rest))
    store.write(network)
    return network


# %% Up
@contextmanager
def host_turn() -> Iterator[None]:
    """Hold the lock of this host's network for a ``with`` block, whatever the store.

    The name of an abstract socket is one process's at a time in a network namespace,
    and nobody's when that dies. After two seconds we go on without it.
    """
    name = socket(AF_UNIX, SOCK_STREAM)
    try:
        for _ in range(1000):
            try:
                name.bind("\0minidocker-networks")
                break
            except OSError:
                time.sleep(0.002)
        yield
    finally:
        name.close()


def bring_up(
    store: NetworkStore, host: Netlink, network: BridgeNetwork, *, used: bool
) -> tuple[BridgeNetwork, int]:
    """Return a network that is up, and its bridge's index; the caller holds the lock.

    With ``used``, somebody is on it, and it should be up already. Raises RuntimeFault,
    UnsupportedError.
    """
    with suppress(OSError):
        if used:
            return network, if_nametoindex(network.bridge)
    if os.path.exists(marker(store, network.name)):
        take_down(store, network)
    os.makedirs(marker(store), 0o711, exist_ok=True)
    write_whole(marker(store, network.name), "")
    set_sysctl("ipv4/ip_forward", "1")
    if network.ipv6:
        set_sysctl("ipv6/conf/all/forwarding", "1")
    with host_turn():
        network = moved(store, network)
        make_rules(network)
        try:
            return network, make_bridge(host, network)
        except OSError as why:
            raise refusal(f"cannot make the bridge {network.bridge}", why) from why


# %% Down
def take_down(store: NetworkStore, network: BridgeNetwork) -> None:
    """Remove bridge and rules of a network if they are there; hold the lock."""
    try:
        with Netlink(NETFILTER) as netfilter:
            delete_table(netfilter, table_of(network))
        with Netlink() as host:
            host.talk(delete_link(network.bridge))
    except OSError as why:  # there is none, or this kernel can have none
        if why.errno not in LACKING:
            raise
    with suppress(FileNotFoundError):
        os.unlink(marker(store, network.name))


# %% Down
def sweep_networks(store: NetworkStore, *, patient: bool = False) -> None:
    """Take down what is up and has nobody on it.

    Where another process is at it, it is left to that one, unless we are ``patient``.
    """
    try:
        names = os.listdir(marker(store))
    except FileNotFoundError:
        return
    lock = os.open(f"{store.place}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if patient else fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in names:
            sweep_network(store, name)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def sweep_network(store: NetworkStore, name: str) -> None:
    """Take a network down if nobody is on it; the caller holds the lock."""
    if name.endswith(".new") or any(True for _ in live_endpoints(store, name)):
        return
    try:
        take_down(store, store.get(name))
    except NotFoundError:
        with suppress(FileNotFoundError):  # another has swept it since we looked
            os.unlink(marker(store, name))


def sweep_later(store: NetworkStore) -> None:
    """Sweep in a process of its own, which keeps nothing of ours open."""
    middle = os.fork()
    if middle == 0:
        with suppress(BaseException):
            os.closerange(0, os.sysconf("SC_OPEN_MAX"))
            os.setsid()
            if os.fork() == 0:
                sweep_networks(store, patient=True)
        os._exit(0)
    os.waitpid(middle, 0)


# %% Down
def bridges_without_cables() -> set[str]:
    """Return the names of the bridges of ours, of whatever store, that nobody is on."""
    from pyroute2 import IPRoute  # takes longer to import than a container to run

    with IPRoute() as kernel:
        links = list(kernel.get_links())
    used = {link.get("master") for link in links}
    found = ((link["index"], link.get("ifname")) for link in links)
    return {
        str(name)
        for index, name in found
        if str(name).startswith("md-") and len(str(name)) == 15 and index not in used
    }


def remove_lost_bridges(store: NetworkStore) -> list[str]:
    """Remove bridges and tables of stores that are gone; return the bridges' names.

    One that is just being made has no cable yet: it must look so twice.
    """
    with store.turn():
        lost = bridges_without_cables()
        if lost:
            time.sleep(0.1)
            lost &= bridges_without_cables()
        for name in lost:
            with Netlink(NETFILTER) as netfilter, Netlink() as host:
                delete_table(netfilter, f"minidocker-{name[3:]}")
                host.talk(delete_link(name))
    return sorted(lost)


# %% On and off
def this_host() -> int:
    """Return the number of the network namespace that we are in."""
    return os.stat(OWN).st_ino


def free_device(netns: int) -> str:
    """Return the first of eth0, eth1, ... that a namespace has not."""
    with inside(netns):
        there = {name for _, name in if_nameindex()}
    return next(name for n in range(len(there) + 1) if (name := f"eth{n}") not in there)


def find_network(store: NetworkStore, name: str) -> BridgeNetwork:
    """Return a network by name or id, the default one also if it is new."""
    return default_network(store) if name == DEFAULT else store.resolve(name)


# %% On and off
def join(store: NetworkStore, name: str, who: Endpoint, netns: int) -> Endpoint:
    """Put the namespace of a container on a network; return where it is there.

    ``who`` says which container, and what it wishes for. Its lock is held by somebody.
    Raises NotFoundError, UsageError, ConflictError, RuntimeFault, UnsupportedError; it
    is not on it then.
    """
    device = free_device(netns)
    with store.turn(), Netlink() as host:
        network = find_network(store, name)
        check_wish(network, who.wish)
        others = list(live_endpoints(store, network.name))
        network, index = bring_up(store, host, network, used=bool(others))
        cable = f"veth{os.urandom(4).hex()[:7]}"
        who = who.replace(network=network.name, network_id=network.id, device=device)
        who = who.replace(id=os.urandom(32).hex(), cable=cable, host=this_host())
        who = take_place(network, others, who)
        write_whole(
            store.path(network.name, "on", who.container), json_text(plain(who))
        )
        try:
            plug = Plug(device, who.mac, netns)
            host.talk(new_veth(cable, index, network.mtu, plug))
            settle(netns, who)
        except OSError as why:
            with suppress(FileNotFoundError):
                os.unlink(store.path(network.name, "on", who.container))
            raise refusal(f"cannot connect to network {network.name}", why) from why
    return who


# %% On and off
def settle(netns: int, who: Endpoint) -> None:
    """Give the new link in a container its addresses and bring it up."""
    places = [(who.ip, who.bits, who.gateway), (who.ip6, who.bits6, who.gateway6)]
    with inside(netns), Netlink() as own:
        if who.ip6:
            set_sysctl(f"ipv6/conf/{who.device}/disable_ipv6", "0")
        index = if_nametoindex(who.device)
        given = [new_address(index, ip, bits) for ip, bits, _ in places if ip]
        own.talk(*given, link_up(index))
        lead_out(own, who, index)


def lead_out(own: Netlink, who: Endpoint, index: int) -> None:
    """Make an endpoint's gateways those of a container that has none yet."""
    for gateway in filter(None, (who.gateway, who.gateway6)):
        with suppress(FileExistsError):  # the network that was first has it
            own.talk(new_default_route(gateway, index))


def prepare_namespace() -> None:
    """Make this new namespace what Docker's containers find: `lo`, no IPv6 unasked."""
    set_sysctl("ipv6/conf/all/disable_ipv6", "1")
    set_sysctl("ipv6/conf/default/disable_ipv6", "1")
    set_sysctl("ipv4/ip_unprivileged_port_start", "0")
    set_sysctl("ipv4/ping_group_range", "0 2147483647")
    with Netlink() as own:
        own.talk(link_up(1))


def open_up(netns: int) -> None:
    """Prepare a namespace that is not ours."""
    with inside(netns):
        prepare_namespace()


# %% On and off
def forget(store: NetworkStore, name: str, container: str) -> None:
    """Take a container's name off a network; its cable goes with its namespace."""
    with suppress(FileNotFoundError):
        os.unlink(store.path(name, "on", container))


def part(
    store: NetworkStore, who: Endpoint, rest: Iterable[Endpoint], netns: int
) -> None:
    """Take a running container off a network: cut its cable, free its address.

    Its way out leads by one of the ``rest`` then.
    """
    with store.turn():
        with inside(netns), Netlink() as own, suppress(OSError):
            own.talk(delete_link(who.device))
            for one in rest:
                lead_out(own, one, if_nametoindex(one.device))
        forget(store, who.network, who.container)
        sweep_network(store, who.network)
