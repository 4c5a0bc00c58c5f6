# From book/654-network-flags.md. Edit there and tangle, or here and tangle --back.

# %% Network flags: ports, addresses and names
"""Read the flags of `run` that are about the network; refuse what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from minidocker.container_verbs import notice
from minidocker.containers import Container
from minidocker.engine import Engine
from minidocker.errors import NotFoundError, UsageError
from minidocker.flags import Given, check_host, is_address, wrong
from minidocker.networks import DEFAULT, Wish, check_wish
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network, PortBinding, network_mode
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
KEYS = ("name", "alias", "ip", "ip6", "mac-address")


def attachment_of(text: str) -> tuple[str, Wish]:
    """Return the network that one ``--network`` names, and what is wanted of it.

    >>> attachment_of("name=web,alias=a,alias=b")
    ('web', Wish(ip='', ip6='', mac='', aliases=('a', 'b'), links=()))
    """
    if "=" not in text:
        return text, Wish()
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in KEYS:
            what = f"invalid field {'key ' * bool(equals)}{key}"
            raise wrong("--network", text, what, hint=", ".join(KEYS))
        found[key].append(value)
    name, ip, ip6, mac = ([*found[key], ""][0] for key in KEYS if key != "alias")
    if not name:
        raise wrong("--network", text, "network name/id is not specified")
    own = (check_address(ip, 4), check_address(ip6, 6), check_mac(mac))
    return name, Wish(*own, tuple(found["alias"]))


def wish_of(given: Given, own: Wish) -> Wish:
    """Return what a container wants of its first network. Raises UsageError."""
    found = Wish(
        check_address(given.text("ip"), 4),
        check_address(given.text("ip6"), 6),
        check_mac(given.text("mac-address")),
        given.list("network-alias"),
    )
    for one, other, flag, what in (
        (found.aliases, own.aliases, "--network-alias", "alias"),
        (found.ip, own.ip, "--ip", "IPv4 address"),
        (found.ip6, own.ip6, "--ip6", "IPv6 address"),
        (found.mac, own.mac, "--mac-address", "MAC address"),
    ):
        if one and other:
            both = f"cannot specify both {flag} and per-network {what}"
            raise UsageError(f"conflicting options: {both}")
    return found if own == Wish() else merged(found, own)


def merged(one: Wish, other: Wish) -> Wish:
    """Return two wishes in one; no field is in both."""
    return Wish(
        one.ip or other.ip,
        one.ip6 or other.ip6,
        one.mac or other.mac,
        one.aliases or other.aliases,
    )


# %% Two halves again
def wishes_given(given: Given) -> dict[str, Wish]:
    """Return the networks of a command line by name, and what is wanted of each."""
    found: dict[str, Wish] = {}
    for text in given.list("network") or (UNSAID,):
        name, wish = attachment_of(text)
        if name in found:
            raise UsageError(f'network "{name}" is specified multiple times')
        found[name] = wish if found else wish_of(given, wish)
    if len(found) > 1 and not all(map(is_named, found)):
        what = "cannot attach both user-defined and non-user-defined network-modes"
        raise UsageError(f"conflicting options: {what}")
    return found


def is_named(text: str) -> bool:
    """Whether a network is one that somebody made."""
    return text not in (DEFAULT, UNSAID) and network_mode(text)[0] is Network.BRIDGE


def check_networks(
    engine: Engine, host: HostConfig, wishes: Mapping[str, Wish]
) -> None:
    """Refuse networks that are not there, what they cannot give, and ports in use.

    Raises NotFoundError, UsageError, ConflictError.
    """
    first, *others = wishes.items()
    check_first(engine, host, first[1])
    for name, wish in others:
        check_wish(network_store(engine.containers).resolve(name), wish)


def check_first(engine: Engine, host: HostConfig, wish: Wish) -> None:
    """Refuse what the first network of a container cannot give."""
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
def keep_wishes(
    engine: Engine, container: Container, wishes: Mapping[str, Wish]
) -> None:
    """Write down what a container wants of its networks, where that is anything."""
    plain = len(wishes) == 1 and Wish() in wishes.values()
    if container.host.network is Network.BRIDGE and not plain:
        known = {
            DEFAULT if name == UNSAID else name: one for name, one in wishes.items()
        }
        write_wishes(engine.containers, container, known)
