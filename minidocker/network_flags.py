# From book/654-network-flags.md. Edit there and tangle, or here and tangle --back.

# %% Network flags: ports, addresses and names
"""Read the flags of `run` that are about the network; refuse what cannot be."""

from __future__ import annotations

from collections.abc import Iterable

from minidocker.container_verbs import notice
from minidocker.containers import Container
from minidocker.engine import Engine
from minidocker.errors import NotFoundError, UsageError
from minidocker.flags import Given, check_host, is_address, wrong
from minidocker.networks import DEFAULT, Wish, check_wish
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network, PortBinding
from minidocker.publishing import close_openings, numbers_in, open_ports
from minidocker.sandbox import UNSAID, network_store, write_wishes


# %% Ports
def check_ports(text: str, what: str) -> str:
    """Return ``80`` or ``80-90`` as it is. Raises UsageError, naming ``what``."""
    low, dash, high = text.partition("-")
    ends = (low, high) if dash else (low,)
    if not all(n.isascii() and n.isdecimal() and int(n) < 65536 for n in ends):
        raise UsageError(f"invalid {what}: {text}")
    if dash and int(low) > int(high):
        raise UsageError(f"invalid range specified for {what}: {text}")
    return text


def protocol_of(text: str) -> tuple[str, str]:
    """Return a port and its protocol, ``tcp`` where none is said."""
    port, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"invalid proto: {protocol}", hint="tcp, udp or sctp")
    return port, protocol


def split_port(text: str) -> tuple[str, str, str]:
    """Return address, host port and container port of ``[[ADDRESS:]PORT:]PORT``.

    >>> split_port("[::1]:8080:80"), split_port("127.0.0.1::80"), split_port("80")
    (('::1', '8080', '80'), ('127.0.0.1', '', '80'), ('', '', '80'))
    """
    rest, _, port = text.rpartition(":")
    address, _, host_port = rest.rpartition(":")
    return address.removeprefix("[").removesuffix("]"), host_port, port


# %% Ports
def bindings(text: str) -> list[PortBinding]:
    """Return what one ``-p`` asks for.

    >>> bindings("127.0.0.1:8000-8001:80-81/udp")[1]
    PortBinding(port='81/udp', host='127.0.0.1', host_port='8001')
    """
    ports, protocol = protocol_of(text)
    address, outside, inside = split_port(ports)
    if not inside:
        raise UsageError(f"no port specified: {text}<empty>")
    if address and not is_address(address):
        raise UsageError(f"invalid IP address: {address}")
    check_ports(inside, "containerPort")
    own = numbers_in(inside)
    theirs = numbers_in(check_ports(outside, "hostPort")) if outside else range(0)
    if len(own) == 1 or not outside:
        return [PortBinding(f"{n}/{protocol}", address, outside) for n in own]
    if len(own) != len(theirs):
        what = "invalid ranges specified for container and host Ports"
        raise UsageError(f"{what}: {inside} and {outside}")
    pairs = zip(own, theirs, strict=True)
    return [PortBinding(f"{n}/{protocol}", address, str(m)) for n, m in pairs]


def exposed(text: str) -> list[str]:
    """Return the ports of one ``--expose``.

    >>> exposed("80-81/udp")
    ['80/udp', '81/udp']
    """
    ports, protocol = protocol_of(text)
    check_ports(ports, "range format for --expose")
    return [f"{number}/{protocol}" for number in numbers_in(ports)]


# %% Addresses and names
def check_address(text: str, version: int) -> str:
    """Return the address of ``--ip`` (4) or ``--ip6`` (6), or nothing."""
    if text and (not is_address(text) or (":" in text) != (version == 6)):
        raise UsageError(f"invalid IPv{version} address: {text}")
    return text


def check_mac(text: str) -> str:
    """Return a hardware address in lower case, or nothing.

    >>> check_mac("02-42-AC-11-00-02")
    '02:42:ac:11:00:02'
    """
    parts = text.lower().replace("-", ":").split(":")
    digits = set("0123456789abcdef")
    good = len(parts) == 6 and all(len(p) == 2 and set(p) <= digits for p in parts)
    if text and not good:
        raise UsageError(f"{text} is not a valid mac address")
    return ":".join(parts)


# %% Addresses and names
def check_dns(text: str) -> str:
    """Return the address of a name server."""
    if not is_address(text):
        raise wrong("--dns", text, f"IP address is not correctly formatted: {text}")
    return text


def check_domain(text: str) -> str:
    """Return a domain to search in; ``.`` means none."""
    pieces = text.removesuffix(".").split(".")
    good = all(p and p.replace("-", "").replace("_", "").isalnum() for p in pieces)
    if text != "." and (not good or len(text) > 255):
        raise wrong("--dns-search", text, f"{text} is not a valid domain")
    return text


# %% Two halves again
def with_network(
    given: Given, config: ContainerConfig, host: HostConfig
) -> tuple[ContainerConfig, HostConfig]:
    """Return both halves of a container with what the network's flags say.

    Raises UsageError for what is nonsense without looking at the store.
    """
    ports = [one for text in given.list("publish") for one in bindings(text)]
    opened = [port for text in given.list("expose") for port in exposed(text)]
    opened += [one.port for one in ports]
    host = host.replace(
        ports=tuple(ports),
        publish_all=given.on("publish-all"),
        dns=tuple(map(check_dns, given.list("dns"))),
        dns_search=tuple(map(check_domain, given.list("dns-search"))),
        dns_options=given.list("dns-option"),
        extra_hosts=tuple(map(check_host, given.list("add-host"))),
    )
    check_conflicts(given, host, opened)
    config = config.replace(
        domainname=given.text("domainname"),
        mac_address=check_mac(given.text("mac-address")),
        exposed_ports={port: {} for port in sorted(set(opened))} or None,
    )
    return config, host


def check_conflicts(given: Given, host: HostConfig, opened: Iterable[str]) -> None:
    """Refuse flags that the network of another container leaves no room for."""
    own = host.network in (Network.BRIDGE, Network.NONE)
    if given.text("mac-address") and not own:
        raise UsageError("conflicting options: mac-address and the network mode")
    if host.network is Network.HOST and host.ports:
        notice("WARNING: Published ports are discarded when using host network mode")
    if host.network is not Network.CONTAINER:
        return
    for what, said in (
        ("port publishing and the container type network mode", host.ports),
        ("port publishing and the container type network mode", host.publish_all),
        ("port exposing and the container type network mode", opened),
        ("dns and the network mode", host.dns),
        ("custom host-to-IP mapping and the network mode", host.extra_hosts),
        ("hostname and the network mode", given.text("domainname")),
    ):
        if said:
            raise UsageError(f"conflicting options: {what}")


# %% Two halves again
def wish_of(given: Given) -> Wish:
    """Return what a container wants of its network. Raises UsageError."""
    return Wish(
        check_address(given.text("ip"), 4),
        check_address(given.text("ip6"), 6),
        check_mac(given.text("mac-address")),
        given.list("network-alias"),
    )


def check_network(engine: Engine, host: HostConfig, wish: Wish) -> None:
    """Refuse a network that is not there, what it cannot give, and ports in use.

    Raises NotFoundError, UsageError, ConflictError.
    """
    name = DEFAULT if host.network_of == UNSAID else host.network_of
    if host.network is not Network.BRIDGE or name == DEFAULT:
        if wish.ip or wish.ip6:
            what = (
                "user specified IP address is supported on user defined networks only"
            )
            raise UsageError(what)
        if wish.aliases:
            what = "network-scoped alias is supported only for containers in user "
            raise UsageError(f"{what}defined networks")
    if host.network is not Network.BRIDGE:
        return
    try:
        check_wish(network_store(engine.containers).resolve(name), wish)
    except NotFoundError:
        if name != DEFAULT:
            raise
    fixed = [one for one in host.ports if one.host_port not in ("", "0")]
    close_openings(open_ports(fixed))


# %% Two halves again
def write_wish(engine: Engine, container: Container, wish: Wish) -> None:
    """Write down what a container wants of its network, where that is anything."""
    if container.host.network is Network.BRIDGE and wish != Wish():
        name = container.host.network_of
        wishes = {DEFAULT if name == UNSAID else name: wish}
        write_wishes(engine.containers, container, wishes)
