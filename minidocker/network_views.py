# From book/620-network-views.md. Edit there and tangle, or here and tangle --back.

# %% Network views: addresses and ports as Docker tells them
"""What `inspect`, `ps` and `port` tell of networks and ports, in Docker's fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from minidocker.containers import Container, ContainerStore
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.networks import (
    DEFAULT,
    BridgeNetwork,
    Endpoint,
    NetworkStore,
    Subnet,
    Wish,
    default_network,
    live_endpoints,
)
from minidocker.oci import sha256_text
from minidocker.program import Network
from minidocker.records import Record
from minidocker.sandbox import network_store, read_settings, wishes_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% One endpoint
def address_fields(one: Endpoint | None) -> dict[str, Any]:
    """Return Docker's fields for the addresses of an endpoint, or of none."""
    return {
        "EndpointID": one.id if one else "",
        "Gateway": one.gateway if one else "",
        "GlobalIPv6Address": one.ip6 if one else "",
        "GlobalIPv6PrefixLen": one.bits6 if one else 0,
        "IPAddress": one.ip if one else "",
        "IPPrefixLen": one.bits if one else 0,
        "IPv6Gateway": one.gateway6 if one else "",
        "MacAddress": one.mac if one else "",
    }


def endpoint_fields(
    container: Container, name: str, id: str, wish: Wish, one: Endpoint | None
) -> dict[str, Any]:
    """Return Docker's fields for a container on the network ``name``."""
    asked = {"IPv4Address": wish.ip, "IPv6Address": wish.ip6}
    named = name not in (DEFAULT, "host", "none")
    return {
        "IPAMConfig": {key: value for key, value in asked.items() if value} or None,
        "Links": None,
        "Aliases": [*wish.aliases, container.id[:12]] if named else None,
        "NetworkID": id,
        **address_fields(one),
        "DriverOpts": None,
    }


def fixed_id(name: str) -> str:
    """Return the id of the networks ``host`` and ``none``, the same in every store."""
    return sha256_text(f"minidocker network {name}".encode()).removeprefix("sha256:")


# %% All of a container's
def networks_of(
    store: ContainerStore, container: Container, endpoints: Iterable[Endpoint]
) -> dict[str, Any]:
    """Return Docker's fields for every network of a container, by name."""
    kind = container.host.network
    if kind is Network.CONTAINER:
        return {}
    if kind is not Network.BRIDGE:
        name = kind.value
        none = endpoint_fields(container, name, fixed_id(name), Wish(), None)
        return {name: none}
    here = {one.network: one for one in endpoints}
    found, wishes = {}, dict[str, Wish]()
    with suppress(IntegrityError):  # `start` and `system check` tell of it
        wishes = wishes_of(store, container)
    for text, wish in sorted(wishes.items()):
        try:
            network = network_store(store).resolve(text)
            name, id = network.name, network.id
        except NotFoundError:  # removed since, or never yet needed
            name, id = text, ""
        found[name] = endpoint_fields(container, name, id, wish, here.get(name))
    return found


def network_settings(
    store: ContainerStore, container: Container, *, running: bool
) -> dict[str, Any]:
    """Return what `inspect` shows as NetworkSettings."""
    endpoints, ports = read_settings(store, container.id) if running else ([], {})
    default = next((one for one in endpoints if one.network == DEFAULT), None)
    return {
        "Bridge": "",
        "SandboxID": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "Ports": ports,
        "SandboxKey": "",
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        **address_fields(default),
        "Networks": networks_of(store, container, endpoints),
    }


# %% Ports in one line
class Leading(Record):
    """A port of a container: its number and protocol, and where on the host, or ""."""

    port: int
    host: str
    host_port: int
    protocol: str


def leadings(ports: Mapping[str, Any]) -> list[Leading]:
    """Return Docker's ``Ports`` as records, in the order of numbers."""
    found = []
    for text, places in ports.items():
        number, _, protocol = text.partition("/")
        for one in places or [{"HostIp": "", "HostPort": "0"}]:
            where = (one["HostIp"], int(one["HostPort"]))
            found.append(Leading(int(number), *where, protocol))
    return sorted(found, key=lambda p: (p.port, p.host, p.host_port, p.protocol))


def range_words(first: int, last: int, host: str, protocol: str) -> str:
    """Return a range of ports with equal numbers outside and inside."""
    numbers = f"{first}" if first == last else f"{first}-{last}"
    return (
        f"{host}:{numbers}->{numbers}/{protocol}" if host else f"{numbers}/{protocol}"
    )


# %% Ports in one line
def ports_words(ports: Mapping[str, Any]) -> str:
    """Return Docker's ``Ports`` as the column PORTS of `ps`.

    >>> place = [{"HostIp": "::", "HostPort": "81"}]
    >>> ports_words({"80/tcp": place, "81/tcp": place, "90/udp": None, "91/udp": None})
    ':::81->81/tcp, 90-91/udp, :::81->80/tcp'
    """
    done, moved = [], []
    open_ranges: dict[tuple[str, str], tuple[int, int]] = {}
    for one in leadings(ports):
        if one.host and one.host_port != one.port:
            there = f"{one.host}:{one.host_port}"
            moved.append(f"{there}->{one.port}/{one.protocol}")
            continue
        key = (one.host, one.protocol)
        first, last = open_ranges.get(key, (one.port, one.port))
        if one.port > last + 1:
            done.append(range_words(first, last, *key))
            first = one.port
        open_ranges[key] = (first, one.port)
    rest = [range_words(*ends, *key) for key, ends in open_ranges.items()]
    return ", ".join([*done, *rest, *moved])


def port_lines(ports: Mapping[str, Any]) -> list[str]:
    """Return the lines of `port`: each port inside, and where it is on the host."""
    return [
        f"{port} -> {one['HostIp']}:{one['HostPort']}"
        for port in sorted(ports)
        for one in ports[port] or ()
    ]


# %% A network
def subnet_fields(subnet: Subnet) -> dict[str, Any]:
    """Return Docker's fields for a subnet."""
    found: dict[str, Any] = {"Subnet": subnet.text}
    if subnet.pool:
        found["IPRange"] = f"{subnet.pool}/{subnet.pool_bits}"
    if subnet.told:
        found["Gateway"] = subnet.gateway
    if subnet.reserved:
        found["AuxiliaryAddresses"] = dict(subnet.reserved)
    return found


def member_fields(one: Endpoint) -> dict[str, str]:
    """Return Docker's fields for who is on a network."""
    return {
        "Name": one.name,
        "EndpointID": one.id,
        "MacAddress": one.mac,
        "IPv4Address": f"{one.ip}/{one.bits}" if one.ip else "",
        "IPv6Address": f"{one.ip6}/{one.bits6}" if one.ip6 else "",
    }


def network_fields(
    network: BridgeNetwork, driver: str, members: Iterable[Endpoint]
) -> dict[str, Any]:
    """Return what `network inspect` tells of a network."""
    own = network.name not in (DEFAULT, "host", "none")
    ipam: dict[str, Any] = {
        "Driver": "default",
        "Options": {} if own else None,
        "Config": [subnet_fields(subnet) for subnet in network.subnets],
    }
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv6": network.ipv6,
        "IPAM": ipam,
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {one.container: member_fields(one) for one in members},
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }


# %% Every network
def every_network(store: NetworkStore) -> list[tuple[BridgeNetwork, str]]:
    """Return all networks with their drivers, by name; the three first ones too."""
    with store.turn():
        born = default_network(store).created
    fixed = {"host": "host", "none": "null"}
    found = [(one, "bridge") for one in store.all()]
    found += [(BridgeNetwork(fixed_id(n), n, born, ()), d) for n, d in fixed.items()]
    return sorted(found, key=lambda pair: pair[0].name)


def find_one(store: NetworkStore, text: str) -> tuple[BridgeNetwork, str]:
    """Find a network and its driver by name, id, or the beginning of its id."""
    known = every_network(store)
    for pair in known:
        if text in (pair[0].name, pair[0].id):
            return pair
    begins = [pair for pair in known if text and pair[0].id.startswith(text)]
    return begins[0] if len(begins) == 1 else (store.resolve(text), "bridge")


def inspect_network(store: NetworkStore, text: str) -> dict[str, Any]:
    """Return what `inspect` tells of a network. Raises NotFoundError."""
    network, driver = find_one(store, text)
    members = sorted(live_endpoints(store, network.name), key=lambda one: one.ip)
    return network_fields(network, driver, members)
