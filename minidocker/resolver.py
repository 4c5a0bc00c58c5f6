# From book/448-resolver.md. Edit there and tangle, or here and tangle --back.

# %% Resolver: the name server at 127.0.0.11
"""A DNS server for one container: its network's names, and the host's for others."""

from __future__ import annotations

import _thread
from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, socket
from _struct import pack, unpack_from
from collections.abc import Callable, Iterable
from contextlib import suppress

from minidocker.etc_files import EMBEDDED
from minidocker.netfilter import Chain, address_in, make_table, rewrite, to_port
from minidocker.networks import Endpoint, NetworkStore, live_endpoints
from minidocker.records import Record
from minidocker.rtnetlink import NETFILTER, Netlink, family_of, inside, packed


# %% A question
A, PTR, AAAA, INTERNET = 1, 12, 28, 1
RESPONSE, WANTED, AVAILABLE = 0x8000, 0x0100, 0x0080
REFUSED_BY_ALL = 2  # SERVFAIL
TTL = 600  # seconds, as Docker's


class Question(Record):
    """What is asked: a name in lower case, without its last point, and a type."""

    name: str
    kind: int
    end: int


def read_question(message: bytes) -> Question | None:
    """Return the only question of a message, or None for anything else.

    >>> ask = bytes(4) + b"\\0\\1" + bytes(6) + b"\\3Web\\3net\\0\\0\\1\\0\\1"
    >>> read_question(ask)
    Question(name='web.net', kind=1, end=25)
    """
    if len(message) < 17 or unpack_from(">H", message, 4)[0] != 1 or message[2] & 0x80:
        return None
    pieces, at = [], 12
    while at < len(message) and 0 < message[at] < 64:
        pieces.append(message[at + 1 : at + 1 + message[at]])
        at += 1 + message[at]
    if at + 5 > len(message) or message[at]:
        return None
    kind = unpack_from(">H", message, at + 1)[0]
    name = b".".join(pieces).decode("ascii", "replace").lower()
    return Question(name, kind, at + 5)


# %% A question
def encoded(name: str) -> bytes:
    """Return a name as pieces behind their lengths.

    >>> encoded("web.net")
    b'\\x03web\\x03net\\x00'
    """
    parts = [part.encode() for part in name.split(".") if part]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def answered(
    message: bytes, asked: Question, kind: int, found: Iterable[bytes]
) -> bytes:
    """Return an answer with a record for each of ``found``; none is an answer too."""
    records = [
        b"\xc0\x0c" + pack(">HHIH", kind, INTERNET, TTL, len(one)) + one
        for one in found
    ]
    wanted = unpack_from(">H", message, 2)[0] & WANTED
    flags = RESPONSE | AVAILABLE | wanted
    head = message[:2] + pack(">HHHHH", flags, 1, len(records), 0, 0)
    return head + message[12 : asked.end] + b"".join(records)


def failed(message: bytes, asked: Question) -> bytes:
    """Return the answer that nobody could be asked."""
    flags = RESPONSE | AVAILABLE | WANTED | REFUSED_BY_ALL
    return message[:2] + pack(">HHHHH", flags, 1, 0, 0, 0) + message[12 : asked.end]


# %% Who is that?
def reversed_name(address: str) -> str:
    """Return the name under which the name of an address is asked for.

    >>> reversed_name("172.17.0.2")
    '2.0.17.172.in-addr.arpa'
    """
    if ":" in address:
        return ".".join(reversed(packed(address).hex())) + ".ip6.arpa"
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def is_called(one: Endpoint, name: str) -> bool:
    """Say whether a container on a network goes by a name."""
    names = {known.lower() for known in one.names}
    return name in names or name.removesuffix(f".{one.network.lower()}") in names


def known_answer(
    asked: Question, neighbours: Iterable[Endpoint]
) -> tuple[int, list[bytes]] | None:
    """Return the type and the data of an answer from the network, or None."""
    everybody = list(neighbours)
    if asked.kind == PTR:
        for one in everybody:
            if asked.name in (reversed_name(ip) for ip in (one.ip, one.ip6) if ip):
                return PTR, [encoded(f"{one.name}.{one.network}")]
        return None
    named = [one for one in everybody if is_called(one, asked.name)]
    if not named:
        return None
    if asked.kind == AAAA:
        return AAAA, [packed(one.ip6) for one in named if one.ip6]
    return asked.kind, [packed(one.ip) for one in named if asked.kind == A]


# %% Everything else is passed on
PATIENCE = 4.0  # seconds for each server


def ask(server: str, message: bytes, kind: int) -> bytes:
    """Return what a server answers, over UDP or TCP. Raises OSError."""
    handle = socket(family_of(server), kind)
    try:
        handle.settimeout(PATIENCE)
        handle.connect((server, 53))
        if kind == SOCK_DGRAM:
            handle.send(message)
            return handle.recv(65535)
        handle.sendall(pack(">H", len(message)) + message)
        return read_framed(handle)
    finally:
        handle.close()


def read_framed(handle: socket) -> bytes:
    """Return a message of a TCP connection, which its length precedes."""
    data, wanted = b"", 2
    while len(data) < wanted:
        more = handle.recv(65535)
        if not more:
            raise OSError("the other side hung up")
        data += more
        if len(data) >= 2:
            wanted = 2 + unpack_from(">H", data)[0]
    return data[2:wanted]


# %% Everything else is passed on
class Directory(Record):
    """Where a resolver looks: the networks' files, whose it is, and further servers."""

    store: NetworkStore
    mine: Callable[[], Iterable[str]]  # the names of the networks I am on
    servers: tuple[str, ...]

    def neighbours(self) -> list[Endpoint]:
        """Return everybody on my networks, the same name on several once each."""
        return [one for name in self.mine() for one in live_endpoints(self.store, name)]


def reply_to(message: bytes, kind: int, book: Directory) -> bytes:
    """Return the answer to a message; nothing for what is no question."""
    asked = read_question(message)
    if asked is None:
        return b""
    found = known_answer(asked, book.neighbours())
    if found:
        return answered(message, asked, *found)
    for server in book.servers:
        with suppress(OSError):
            return ask(server, message, kind)
    return failed(message, asked)


# %% In front of a container
class Listener(Record):
    """The two sockets of a resolver, for datagrams and for connections."""

    datagrams: socket
    connections: socket


def listen_inside(netns: int) -> Listener:
    """Open a resolver's sockets in a container's namespace, and lead port 53 there."""
    with inside(netns):
        found = Listener(socket(AF_INET, SOCK_DGRAM), socket(AF_INET, SOCK_STREAM))
        rules = []
        for handle, protocol in ((found.datagrams, "udp"), (found.connections, "tcp")):
            handle.bind((EMBEDDED, 0))
            port = handle.getsockname()[1]
            there = address_in(EMBEDDED, 32, source=False) + to_port(protocol, 53)
            rules.append(there + rewrite(1, EMBEDDED, port))
        found.connections.listen(16)
        with Netlink(NETFILTER) as netfilter:
            make_table(netfilter, "minidocker", (Chain("output", tuple(rules)),))
    return found


# %% In front of a container
def serve_datagrams(handle: socket, book: Directory) -> None:
    """Answer questions that come as datagrams, each in a thread of its own."""

    def one(message: bytes, who: tuple[str, int]) -> None:
        with suppress(OSError):
            if answer := reply_to(message, SOCK_DGRAM, book):
                handle.sendto(answer, who)

    while True:
        message, who = handle.recvfrom(65535)
        _thread.start_new_thread(one, (message, who))


def accepted(listening: socket) -> socket:
    """Wait for a visitor and return its socket.

    The module ``socket`` would do it in the same way, and takes longer to import.
    """
    fd, _ = listening._accept()  # type: ignore[attr-defined]
    return socket(fileno=fd)


def serve_connections(handle: socket, book: Directory) -> None:
    """Answer a question of each connection, each in a thread of its own."""

    def one(visitor: socket) -> None:
        with suppress(OSError):
            try:
                visitor.settimeout(PATIENCE)
                answer = reply_to(read_framed(visitor), SOCK_STREAM, book)
                visitor.sendall(pack(">H", len(answer)) + answer)
            finally:
                visitor.close()

    while True:
        _thread.start_new_thread(one, (accepted(handle),))
