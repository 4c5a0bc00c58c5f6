# From book/432-networks.md. Edit there and tangle, or here and tangle --back.

# %% Networks: who has which address
"""Networks on disk: records, subnets that overlap nothing, addresses given once."""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress

from minidocker.durable import (
    is_written,
    looking,
    make_lasting,
    marked,
    read_json,
    turn,
    write_lasting,
)
from minidocker.errors import ConflictError, NotFoundError, UsageError, WordFault
from minidocker.records import Record, json_text, plain
from minidocker.rtnetlink import Netlink, address_of, family_of, number_of, routes
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Subnets
def width_of(address: str) -> int:
    """Return how many bits an address of this family has."""
    return 32 if family_of(address) == AF_INET else 128


class Subnet(Record):
    """A range of addresses: ``address`` with ``bits`` of network, and its gateway.

    ``pool`` and ``pool_bits`` narrow down what is given out; ``reserved`` are
    addresses that are not. ``gateway`` is "" until one is chosen; ``told``: it was
    asked for, or belongs to a subnet that we chose for somebody.
    """

    address: str
    bits: int
    gateway: str = ""
    pool: str = ""
    pool_bits: int = 0
    reserved: tuple[tuple[str, str], ...] = ()
    told: bool = False

    @property
    def text(self) -> str:
        """The subnet as it was written."""
        return f"{self.address}/{self.bits}"


# %% Subnets
def ends_of(address: str, bits: int) -> tuple[int, int]:
    """Return the first and the last number of a subnet.

    >>> [hex(end) for end in ends_of("10.1.2.3", 16)]
    ['0xa010000', '0xa01ffff']
    """
    rest = (1 << (width_of(address) - bits)) - 1
    first = number_of(address) & ~rest
    return first, first | rest


def is_in(address: str, subnet: str, bits: int) -> bool:
    """Say whether an address lies in a subnet.

    >>> is_in("10.1.9.9", "10.1.0.0", 16), is_in("::1", "10.1.0.0", 16)
    (True, False)
    """
    first, last = ends_of(subnet, bits)
    same = family_of(address) == family_of(subnet)
    return same and first <= number_of(address) <= last


def overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Say whether two subnets have an address in common.

    >>> overlap(("10.1.0.0", 16), ("10.0.0.0", 8))
    True
    """
    return is_in(one[0], *other) or is_in(other[0], *one)


def read_cidr(text: str) -> tuple[str, int]:
    """Return ``ADDRESS/BITS`` as its parts. Raises UsageError for anything else.

    >>> read_cidr("10.1.0.0/16")
    ('10.1.0.0', 16)
    """
    address, slash, bits = text.partition("/")
    try:
        width = width_of(address_of(number_of(address), family_of(address)))
    except (OSError, ValueError):
        width = -1
    if not slash or not bits.isdecimal() or int(bits) > width:
        raise UsageError(f"invalid CIDR address: {text}", hint="such as 10.9.0.0/16")
    return address, int(bits)


# %% Subnets
def candidates() -> Iterator[tuple[str, int]]:
    """Yield Docker's subnets in its order."""
    for second in range(17, 32):
        yield f"172.{second}.0.0", 16
    for third in range(0, 256, 16):
        yield f"192.168.{third}.0", 20


def free_subnet(taken: Iterable[tuple[str, int]]) -> Subnet:
    """Return the first subnet that overlaps none of ``taken``.

    Raises ConflictError when there is none left.

    >>> free_subnet([("172.17.0.0", 16), ("172.18.5.0", 24)]).text
    '172.19.0.0/16'
    """
    others = list(taken)
    for one in candidates():
        if not any(overlap(one, other) for other in others):
            return Subnet(*one)
    raise ConflictError(
        "could not find an available, non-overlapping IPv4 address pool among the "
        "defaults to assign to the network",
        hint="give one with --subnet",
    )


def host_routes() -> list[tuple[str, int]]:
    """Return the destinations that this host has routes to, of both families."""
    with Netlink() as kernel:
        return [*routes(kernel, AF_INET), *routes(kernel, AF_INET6)]


# %% Addresses
def free_address(subnet: Subnet, taken: Iterable[str], wanted: str = "") -> str:
    """Return ``wanted``, or the lowest address of a subnet that is not ``taken``.

    Raises ConflictError when it is in use, or none is left.

    >>> free_address(Subnet("10.1.0.0", 16, "10.1.0.1"), ["10.1.0.2"])
    '10.1.0.3'
    """
    family = family_of(subnet.address)
    first, last = ends_of(subnet.address, subnet.bits)
    used = {number_of(one) for one in (*taken, *(ip for _, ip in subnet.reserved))}
    used |= {number_of(subnet.gateway)} if subnet.gateway else set()
    used |= {first, last} if family == AF_INET else {first}
    if wanted:
        if number_of(wanted) in used:
            raise ConflictError("Address already in use", where=wanted)
        return wanted
    if subnet.pool:
        first, last = ends_of(subnet.pool, subnet.pool_bits)
    for number in range(first, last + 1):
        if number not in used:
            return address_of(number, family)
    raise ConflictError("no available addresses on this pool", where=subnet.text)


def gateway_of(subnet: Subnet) -> Subnet:
    """Return the subnet with a gateway: its first address if it has none yet."""
    return subnet.replace(gateway=subnet.gateway or free_address(subnet, ()))


def mac_of(address: str) -> str:
    """Return the hardware address that Docker derives from an IPv4 address.

    >>> mac_of("172.17.0.2")
    '02:42:ac:11:00:02'
    """
    return ":".join(f"{byte:02x}" for byte in b"\x02B" + number_of(address).to_bytes(4))


# %% The nouns
OPTION = "com.docker.network."


class BridgeNetwork(Record):
    """A network of containers behind a bridge of its own.

    ``created`` is RFC 3339. ``options`` are Docker's, by their whole names.
    """

    id: str
    name: str
    created: str
    subnets: tuple[Subnet, ...]
    internal: bool = False
    ipv6: bool = False
    attachable: bool = False
    chosen: bool = True  # the subnet is ours to change
    labels: Mapping[str, str] = {}
    options: Mapping[str, str] = {}

    @property
    def bridge(self) -> str:
        """The name of the bridge."""
        return self.options.get(f"{OPTION}bridge.name") or f"md-{self.id[:12]}"

    @property
    def mtu(self) -> int:
        """How long a packet may be, in bytes."""
        return int(self.options.get(f"{OPTION}driver.mtu") or 1500)

    @property
    def used(self) -> tuple[Subnet, ...]:
        """The subnets that are in use: those of IPv6 only where that was asked for."""
        return tuple(s for s in self.subnets if self.ipv6 or ":" not in s.address)

    def allows(self, what: str) -> bool:
        """Whether ``enable_icc`` or ``enable_ip_masquerade`` is on, as by default."""
        return self.options.get(f"{OPTION}bridge.{what}") != "false"


# %% The nouns
class Wish(Record):
    """What a container wants of a network: addresses, and further names."""

    ip: str = ""
    ip6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


class Endpoint(Record):
    """One container on one network. Addresses that it has not are "".

    ``device`` is the link's name inside, ``cable`` its other end on the host, and
    ``host`` the number of the host's network namespace.
    """

    network: str
    network_id: str
    container: str
    name: str
    id: str
    mac: str
    ip: str
    bits: int
    gateway: str
    ip6: str = ""
    bits6: int = 0
    gateway6: str = ""
    device: str = "eth0"
    cable: str = ""
    host: int = 0
    names: tuple[str, ...] = ()
    wish: Wish = Wish()


# %% The nouns
def wish_from(found: dict[str, Any]) -> Wish:
    """Read what ``plain`` made of a wish."""
    lists = {name: tuple(found[name]) for name in ("aliases", "links")}
    return Wish(**found | lists)


def endpoint_from(found: dict[str, Any]) -> Endpoint:
    """Read what ``plain`` made of an endpoint."""
    more = {"names": tuple(found["names"]), "wish": wish_from(found["wish"])}
    return Endpoint(**found | more)


def network_from(found: dict[str, Any]) -> BridgeNetwork:
    """Read what ``plain`` made of a network."""
    subnets = []
    for one in found["subnets"]:
        pairs = tuple((name, ip) for name, ip in one["reserved"])
        subnets.append(Subnet(**one | {"reserved": pairs}))
    return BridgeNetwork(**found | {"subnets": tuple(subnets)})


# %% On disk
DEFAULT = "bridge"
PREDEFINED = (DEFAULT, "host", "none")
TORN = (ValueError, KeyError, TypeError)  # raised for what is no record of ours


def no_network(text: str) -> NotFoundError:
    """Phrase that there is no network of a name or id."""
    hint = "`minidocker network ls` lists them"
    return NotFoundError(f"network {text} not found", hint=hint)


# %% On disk
class NetworkStore:
    """The networks below ``root``, each in a directory ``networks/each/NAME``.

    It holds ``network.json``, and a file ``on/ID`` for every container.
    """

    def __init__(self, root: str, now: Callable[[], str]) -> None:
        self.root, self.place, self.now = root, f"{root}/networks", now

    def turn(self) -> AbstractContextManager[None]:
        """Hold the lock of all networks for a ``with`` block."""
        os.makedirs(self.place, 0o711, exist_ok=True)
        return turn(f"{self.place}/lock")

    def path(self, name: str, *more: str) -> str:
        """Return the path of a network's directory, or of a file in it."""
        return "/".join((self.place, "each", name, *more))

    def get(self, name: str) -> BridgeNetwork:
        """Return a network by its name. Raises NotFoundError."""
        try:
            return network_from(read_json(self.path(name, "network.json")))
        except (FileNotFoundError, NotADirectoryError, *TORN) as why:
            raise no_network(name) from why

    def all(self) -> list[BridgeNetwork]:
        """Return every network, by name; the default one once it was used."""
        found = []
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(f"{self.place}/each")):
                with suppress(NotFoundError):
                    found.append(self.get(name))
        return found

    def resolve(self, text: str) -> BridgeNetwork:
        """Find a network by its name, its id, or the only id that begins so."""
        with suppress(NotFoundError):
            return self.get(text)
        begins = [one for one in self.all() if text and one.id.startswith(text)]
        if len(begins) > 1:
            raise ConflictError(f"network {text} is ambiguous ({len(begins)} matches)")
        if not begins:
            raise no_network(text)
        return begins[0]

    def write(self, network: BridgeNetwork) -> None:
        """Write a network's record, to last. The caller holds the lock."""
        path = self.path(network.name, "network.json")
        with marked(self.root):
            make_lasting(self.path(network.name, "on"))
            write_lasting(path, json_text(plain(network)))

    def remove(self, name: str) -> None:
        """Remove a network's record, then its directory. The caller holds the lock."""
        with marked(self.root):
            with suppress(FileNotFoundError):
                os.unlink(self.path(name, "network.json"))
            remove_path(self.path(name))

    def leftovers(self) -> list[str]:
        """Return the names of what was half made or half removed."""
        home = f"{self.place}/each"
        names = sorted(os.listdir(home)) if os.path.isdir(home) else []
        return [n for n in names if not is_written(self.path(n, "network.json"))]

    def sweep(self) -> None:
        """Remove what crashes left. The caller holds the store's lock alone."""
        if self.leftovers():
            with self.turn():
                for name in self.leftovers():
                    self.remove(name)

    def subnets(self) -> list[tuple[str, int]]:
        """Return the subnets that were given to networks."""
        return [(s.address, s.bits) for one in self.all() for s in one.subnets]


# %% On disk
def live_endpoints(store: NetworkStore, name: str) -> Iterator[Endpoint]:
    """Yield who is on a network now; what the dead left is removed."""
    place = store.path(name, "on")
    try:
        ids = os.listdir(place)
    except FileNotFoundError:
        return
    for id in ids:
        if id.endswith(".new"):
            continue
        with looking(f"{store.root}/containers/{id}/lock") as alive:
            if not alive:
                with suppress(FileNotFoundError):
                    os.unlink(f"{place}/{id}")
                continue
        with suppress(FileNotFoundError):
            yield endpoint_from(read_json(f"{place}/{id}"))


# %% On disk
def default_network(store: NetworkStore) -> BridgeNetwork:
    """Return the network ``bridge``, made when it is first needed; hold the lock."""
    with suppress(NotFoundError):
        return store.get(DEFAULT)
    subnet = gateway_of(free_subnet([*host_routes(), *store.subnets()]))
    options = {
        f"{OPTION}bridge.default_bridge": "true",
        f"{OPTION}bridge.enable_icc": "true",
        f"{OPTION}bridge.enable_ip_masquerade": "true",
        f"{OPTION}bridge.host_binding_ipv4": "0.0.0.0",  # noqa: S104
        f"{OPTION}driver.mtu": "1500",
    }
    id = os.urandom(32).hex()
    network = BridgeNetwork(id, DEFAULT, store.now(), (subnet,), options=options)
    store.write(network)
    return network


# %% Twenty at once
def check_wish(network: BridgeNetwork, wish: Wish) -> None:
    """Refuse addresses that a network cannot give. Raises WordFault as Docker says."""
    for address in filter(None, (wish.ip, wish.ip6)):
        if network.name == DEFAULT:
            what = (
                "user specified IP address is supported on user defined networks only"
            )
            raise WordFault(what)
        if network.chosen:
            what = "user specified IP address is supported only when connecting to "
            raise WordFault(f"{what}networks with user configured subnets")
        if not any(is_in(address, s.address, s.bits) for s in network.used):
            what = "It does not belong to any of this network's subnets"
            raise WordFault(f"Invalid address {address}: {what}")


def take_place(
    network: BridgeNetwork, others: Iterable[Endpoint], who: Endpoint
) -> Endpoint:
    """Return ``who`` with addresses that none of ``others`` has; see ``check_wish``."""
    used = [ip for other in others for ip in (other.ip, other.ip6) if ip]
    wish = who.wish
    for subnet in network.used:
        version = family_of(subnet.address)
        same = [ip for ip in used if family_of(ip) == version]
        gateway = "" if network.internal else subnet.gateway
        if version == AF_INET:
            ip = free_address(subnet, same, wish.ip)
            mac = wish.mac or mac_of(ip)
            who = who.replace(ip=ip, bits=subnet.bits, gateway=gateway, mac=mac)
        else:
            ip = free_address(subnet, same, wish.ip6)
            who = who.replace(ip6=ip, bits6=subnet.bits, gateway6=gateway)
    return who
