# From book/426-rtnetlink.md. Edit there and tangle, or here and tangle --back.

# %% Rtnetlink: a cable, byte by byte
"""Talk to the kernel about links, addresses and routes: raw rtnetlink."""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton, socket
from _struct import pack, unpack_from
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.linux import CloneFlags, setns, unshare
from minidocker.records import Record


# %% The envelope
REQUEST, ACK, EXCL, CREATE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute: length, type, value, padding.

    >>> attribute(3, b"lo\\0").hex(" ", 4)
    '07000300 6c6f0000'
    """
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inside: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(inside))


def text_attribute(kind: int, text: str) -> bytes:
    """Return an attribute that holds a text, which ends with a zero byte."""
    return attribute(kind, text.encode() + b"\0")


def attributes_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute in ``data``."""
    while len(data) >= 4:
        length, kind = unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


# %% The envelope
class Message(Record):
    """A request: its type, its flags beyond REQUEST, what follows the header."""

    kind: int
    body: bytes
    flags: int = ACK

    def encoded(self, number: int) -> bytes:
        """Return the bytes with the sequence ``number``."""
        length, flags = 16 + len(self.body), self.flags | REQUEST
        return pack("=IHHII", length, self.kind, flags, number, 0) + self.body


# %% The envelope
AF_NETLINK, ROUTE, NETFILTER = 16, 0, 12
SOL_NETLINK, CAP_ACK, EXT_ACK = 270, 10, 11
ERROR, DONE, HAS_WORDS = 2, 3, 0x200


def kernel_words(data: bytes) -> str:
    """Return what the kernel says in an error message beyond its number."""
    flags = unpack_from("=H", data, 6)[0]
    words = dict(attributes_in(data[36:])) if flags & HAS_WORDS else {}
    return words.get(1, b"").rstrip(b"\0").decode("ascii", "replace")


def parts(data: bytes) -> Iterator[bytes]:
    """Yield the messages in what one ``recv`` returned."""
    while len(data) >= 16:
        length = unpack_from("=I", data)[0]
        yield data[:length]
        data = data[(length + 3) & ~3 :]


# %% The envelope
class Netlink:
    """A socket to the kernel of the namespace in which it is made."""

    def __init__(self, family: int = ROUTE) -> None:
        self.socket = socket(AF_NETLINK, 0x80003, family)  # SOCK_RAW | SOCK_CLOEXEC
        for option in (CAP_ACK, EXT_ACK):
            self.socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def talk(self, *messages: Message) -> None:
        """Send messages together and wait for every answer.

        Raises OSError with the first errno that the kernel answers, and its words.
        """
        numbered = enumerate(messages, 1)
        self.socket.send(b"".join(m.encoded(number) for number, m in numbered))
        waiting = sum(1 for m in messages if m.flags & ACK)
        failed: OSError | None = None
        while waiting:
            for part in parts(self.socket.recv(1 << 16)):
                if unpack_from("=H", part, 4)[0] == ERROR:
                    waiting -= 1
                    code = -unpack_from("=i", part, 16)[0]
                    if code and not failed:
                        words = kernel_words(part)
                        failed = OSError(code, words or os.strerror(code))
        if failed:
            raise failed

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Yield what follows the header in each answer to a question for all."""
        question = Message(kind, body, DUMP)
        self.socket.send(question.encoded(1))
        while True:
            for part in parts(self.socket.recv(1 << 16)):
                answer = unpack_from("=H", part, 4)[0]
                if answer == DONE:
                    return
                if answer == ERROR:
                    code = -unpack_from("=i", part, 16)[0]
                    raise OSError(code, os.strerror(code))
                yield part[16:]


# %% Links
NEWLINK, DELLINK, NEWADDR, NEWROUTE, GETROUTE = 16, 17, 20, 24, 26
ADDRESS, IFNAME, MTU, MASTER, LINKINFO, NET_NS_FD = 1, 3, 4, 10, 18, 28
INFO_KIND, INFO_DATA, VETH_PEER, UP = 1, 2, 1, 1


def link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """Return an ``ifinfomsg``."""
    return pack("=BxHiII", 0, 0, index, flags, change)


class Plug(Record):
    """The far end of a cable: its name, its hardware address, the namespace's fd."""

    name: str
    mac: str
    netns: int


def new_veth(name: str, bridge: int, mtu: int, plug: Plug) -> Message:
    """Return the request for a cable from ``name``, in a bridge, to ``plug``."""
    peer = link() + text_attribute(IFNAME, plug.name)
    peer += attribute(ADDRESS, bytes.fromhex(plug.mac.replace(":", "")))
    peer += attribute(MTU, pack("=I", mtu))
    peer += attribute(NET_NS_FD, pack("=I", plug.netns))
    kind = text_attribute(INFO_KIND, "veth")
    body = link(flags=UP, change=UP) + text_attribute(IFNAME, name)
    body += attribute(MTU, pack("=I", mtu)) + attribute(MASTER, pack("=i", bridge))
    body += nested(LINKINFO, kind, nested(INFO_DATA, attribute(VETH_PEER, peer)))
    return Message(NEWLINK, body, ACK | CREATE | EXCL)


# %% Links
def new_bridge(name: str, mac: str, mtu: int) -> Message:
    """Return the request for a bridge, down; EEXIST where the name is taken."""
    body = link() + text_attribute(IFNAME, name)
    body += attribute(ADDRESS, bytes.fromhex(mac.replace(":", "")))
    body += attribute(MTU, pack("=I", mtu))
    body += nested(LINKINFO, text_attribute(INFO_KIND, "bridge"))
    return Message(NEWLINK, body, ACK | CREATE | EXCL)


def link_up(index: int) -> Message:
    """Return the request to bring a link up."""
    return Message(NEWLINK, link(index, UP, UP))


def delete_link(name: str) -> Message:
    """Return the request to delete a link; ENODEV where there is none."""
    return Message(DELLINK, link() + text_attribute(IFNAME, name))


# %% Addresses and routes
def family_of(address: str) -> int:
    """Return AF_INET or AF_INET6 for the text of an address."""
    return AF_INET6 if ":" in address else AF_INET


def packed(address: str) -> bytes:
    """Return the bytes of an address. Raises OSError for what is none."""
    return inet_pton(family_of(address), address)


def number_of(address: str) -> int:
    """Return an address as a number.

    >>> number_of("0.0.1.2"), number_of("::1")
    (258, 1)
    """
    return int.from_bytes(packed(address), "big")


def address_of(number: int, family: int) -> str:
    """Return a number as an address.

    >>> address_of(258, AF_INET), address_of(1, AF_INET6)
    ('0.0.1.2', '::1')
    """
    return inet_ntop(family, number.to_bytes(4 if family == AF_INET else 16, "big"))


# %% Addresses and routes
LOCAL, BROADCAST, NODAD = 2, 4, 0x02
GATEWAY, OIF, DST, MAIN_TABLE = 5, 4, 1, 254


def new_address(index: int, address: str, bits: int) -> Message:
    """Return the request to give a link an address, with ``bits`` of network."""
    family, raw = family_of(address), packed(address)
    flags = NODAD if family == AF_INET6 else 0
    body = pack("=BBBBi", family, bits, flags, 0, index)
    body += attribute(LOCAL, raw) + attribute(ADDRESS, raw)
    if family == AF_INET and bits < 31:
        last = number_of(address) | ((1 << (32 - bits)) - 1)
        body += attribute(BROADCAST, last.to_bytes(4, "big"))
    return Message(NEWADDR, body, ACK | CREATE | EXCL)


def new_default_route(gateway: str, index: int) -> Message:
    """Return the request to send everything that has no route to ``gateway``."""
    family = family_of(gateway)
    boot, everywhere, unicast = 3, 0, 1
    body = pack("=BBBBBBBBI", family, 0, 0, 0, MAIN_TABLE, boot, everywhere, unicast, 0)
    body += attribute(GATEWAY, packed(gateway)) + attribute(OIF, pack("=i", index))
    return Message(NEWROUTE, body, ACK | CREATE | EXCL)


# %% Addresses and routes
def routes(kernel: Netlink, family: int) -> Iterator[tuple[str, int]]:
    """Yield destination and bits of every route in the main table but the default."""
    for answer in kernel.dump(GETROUTE, pack("=B11x", family)):
        bits, table = answer[1], answer[4]
        found = dict(attributes_in(answer[12:]))
        if bits and table == MAIN_TABLE and DST in found:
            yield inet_ntop(family, found[DST]), bits


# %% A namespace to be prepared
OWN = "/proc/thread-self/ns/net"


def open_netns(path: str = OWN) -> int:
    """Open a network namespace, by default our own; the caller closes."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def inside(netns: int) -> Iterator[None]:
    """Be in another network namespace for a ``with`` block: this thread only."""
    home = open_netns()
    try:
        setns(netns, CloneFlags.NEWNET)
        try:
            yield
        finally:
            setns(home, CloneFlags.NEWNET)
    finally:
        os.close(home)


def new_netns() -> int:
    """Make a network namespace and return its descriptor; we stay where we are."""
    home = open_netns()
    try:
        unshare(CloneFlags.NEWNET)
        try:
            return open_netns()
        finally:
            setns(home, CloneFlags.NEWNET)
    finally:
        os.close(home)
