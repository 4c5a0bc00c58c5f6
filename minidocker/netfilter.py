# From book/430-netfilter.md. Edit there and tangle, or here and tangle --back.

# %% Netfilter: rewriting packets by little programs
"""Tables, chains and rules of nftables, written as raw nfnetlink messages."""

from __future__ import annotations

import errno
from _struct import pack

from minidocker.records import Record
from minidocker.rtnetlink import (
    ACK,
    CREATE,
    Message,
    Netlink,
    attribute,
    family_of,
    nested,
    packed,
    text_attribute,
)


# %% An expression
ELEMENT, EXPR_NAME, EXPR_DATA = 1, 1, 2
VALUE, VERDICT, CODE = 1, 2, 1
EQUAL, DIFFERENT = 0, 1
DROP, ACCEPT = 0, 1


def big(number: int) -> bytes:
    """Return a number as four bytes, big-endian."""
    return pack(">I", number)


def expression(name: str, *arguments: bytes) -> bytes:
    """Return one step of a rule."""
    return nested(
        ELEMENT, text_attribute(EXPR_NAME, name), nested(EXPR_DATA, *arguments)
    )


def compare(value: bytes, how: int = EQUAL) -> bytes:
    """Go on only where register 1 is ``value``, or is different from it."""
    return expression(
        "cmp",
        attribute(1, big(1)),
        attribute(2, big(how)),
        nested(3, attribute(VALUE, value)),
    )


def load(register: int, value: bytes) -> bytes:
    """Put a constant into a register."""
    value_of = nested(2, attribute(VALUE, value))
    return expression("immediate", attribute(1, big(register)), value_of)


def verdict(code: int) -> bytes:
    """End with ACCEPT or DROP."""
    inside = nested(VERDICT, attribute(CODE, big(code)))
    return expression("immediate", attribute(1, big(0)), nested(2, inside))


# %% The words
NFPROTO, L4PROTO, IIFNAME, OIFNAME = 15, 16, 6, 7
IPV4, IPV6 = 2, 10
STATE, STATUS = 0, 2
ESTABLISHED, RELATED, REDIRECTED = 0x2, 0x4, 0x20
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


def meta(key: int, value: bytes, how: int = EQUAL) -> bytes:
    """Go on where what the kernel knows of a packet is ``value``."""
    known = expression("meta", attribute(1, big(1)), attribute(2, big(key)))
    return known + compare(value, how)


def from_link(name: str, how: int = EQUAL) -> bytes:
    """Go on where the packet came in by the link ``name``."""
    return meta(IIFNAME, name.encode().ljust(16, b"\0"), how)


def to_link(name: str, how: int = EQUAL) -> bytes:
    """Go on where the packet leaves by the link ``name``."""
    return meta(OIFNAME, name.encode().ljust(16, b"\0"), how)


def version_of(address: str) -> bytes:
    """Go on where the packet is of the address's version of IP."""
    return meta(NFPROTO, bytes([IPV6 if ":" in address else IPV4]))


# %% The words
def header(base: int, offset: int, length: int) -> bytes:
    """Put bytes of the packet into register 1: base 1 is IP's header, 2 TCP's."""
    numbers = (1, base, offset, length)
    return expression(
        "payload", *(attribute(n, big(v)) for n, v in enumerate(numbers, 1))
    )


def address_in(subnet: str, bits: int, *, source: bool, how: int = EQUAL) -> bytes:
    """Go on where the packet's source or destination lies in a subnet."""
    raw = packed(subnet)
    start = (12 if source else 16) if len(raw) == 4 else (8 if source else 24)
    mask = (((1 << bits) - 1) << (len(raw) * 8 - bits)).to_bytes(len(raw), "big")
    network = bytes(a & b for a, b in zip(raw, mask, strict=True))
    masked = expression(
        "bitwise",
        attribute(1, big(1)),
        attribute(2, big(1)),
        attribute(3, big(len(raw))),
        nested(4, attribute(VALUE, mask)),
        nested(5, attribute(VALUE, bytes(len(raw)))),
    )
    return (
        version_of(subnet) + header(1, start, len(raw)) + masked + compare(network, how)
    )


def to_port(protocol: str, port: int) -> bytes:
    """Go on where the packet is for a port of a protocol."""
    right = meta(L4PROTO, bytes([PROTOCOLS[protocol]]))
    return right + header(2, 2, 2) + compare(pack(">H", port))


def to_this_host() -> bytes:
    """Go on where the destination is an address of the host's own."""
    local_type, by_destination, local = 3, 2, 2
    asked = (1, local_type, by_destination)
    found = expression("fib", *(attribute(n, big(v)) for n, v in enumerate(asked, 1)))
    return found + compare(pack("=I", local))


# %% The words
def connection(key: int, bits: int) -> bytes:
    """Go on where the connection's state or status has one of ``bits``."""
    found = expression("ct", attribute(1, big(1)), attribute(2, big(key)))
    masked = expression(
        "bitwise",
        attribute(1, big(1)),
        attribute(2, big(1)),
        attribute(3, big(4)),
        nested(4, attribute(VALUE, pack("=I", bits))),
        nested(5, attribute(VALUE, bytes(4))),
    )
    return found + masked + compare(bytes(4), DIFFERENT)


def masquerade() -> bytes:
    """Give the packet the address of the link by which it leaves."""
    return expression("masq")


def rewrite(kind: int, address: str, port: int) -> bytes:
    """Give the connection another source (kind 0) or destination (kind 1)."""
    family = IPV6 if ":" in address else IPV4
    registers = attribute(3, big(1)) + attribute(5, big(2))
    return (
        load(1, packed(address))
        + load(2, pack(">H", port))
        + expression(
            "nat", attribute(1, big(kind)), attribute(2, big(family)), registers
        )
    )


# %% Tables and chains
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE = 0, 2, 3, 6
BEGIN, END, SUBSYSTEM = 16, 17, 10
INET = 1  # a table for both versions of IP
OWNED, APPEND = 2, 0x800


class Chain(Record):
    """A chain on a hook: its rules are tuples of expressions, already bytes."""

    hook: str
    rules: tuple[bytes, ...]


HOOKS = {  # kind, number of the hook, priority
    "prerouting": ("nat", 0, -100),
    "forward": ("filter", 2, 0),
    "output": ("nat", 3, -100),
    "postrouting": ("nat", 4, 100),
}


# %% Tables and chains
def nft(kind: int, *attributes: bytes, flags: int = ACK | CREATE) -> Message:
    """Return a message to nftables."""
    body = pack(">BBH", INET, 0, 0) + b"".join(attributes)
    return Message(SUBSYSTEM << 8 | kind, body, flags)


def chain_messages(table: str, chain: Chain) -> list[Message]:
    """Return the messages that make a chain and its rules."""
    kind, number, priority = HOOKS[chain.hook]
    hook = attribute(1, big(number)) + attribute(2, pack(">i", priority))
    made = nft(
        NEWCHAIN,
        text_attribute(1, table),
        text_attribute(3, chain.hook),
        nested(4, hook),
        text_attribute(7, kind),
    )
    return [made, *(rule_message(table, chain.hook, rule) for rule in chain.rules)]


def rule_message(table: str, chain: str, expressions: bytes) -> Message:
    """Return the message that appends a rule to a chain."""
    return nft(
        NEWRULE,
        text_attribute(1, table),
        text_attribute(2, chain),
        nested(4, expressions),
        flags=ACK | CREATE | APPEND,
    )


# %% Tables and chains
def transaction(*messages: Message) -> list[Message]:
    """Return ``messages`` as one transaction."""
    around = pack(">BBH", 0, 0, SUBSYSTEM)
    return [Message(BEGIN, around, 0), *messages, Message(END, around, 0)]


def make_table(
    netfilter: Netlink, name: str, chains: tuple[Chain, ...], *, owned: bool = False
) -> None:
    """Make a table with its chains at once; ``owned``: it ends with the socket.

    Raises OSError: EPERM without CAP_NET_ADMIN, EOPNOTSUPP or ENOENT where the kernel
    lacks a kind of expression.
    """
    flags = attribute(2, big(OWNED)) if owned else b""
    made = [nft(NEWTABLE, text_attribute(1, name) + flags)]
    for chain in chains:
        made += chain_messages(name, chain)
    netfilter.talk(*transaction(*made))


def delete_table(netfilter: Netlink, name: str) -> bool:
    """Delete a table and all that is in it; say whether it was there."""
    gone = nft(DELTABLE, text_attribute(1, name), flags=ACK)
    try:
        netfilter.talk(*transaction(gone))
    except OSError as why:
        if why.errno != errno.ENOENT:
            raise
        return False
    return True


# %% The rules of a network
def network_chains(
    bridge: str,
    subnets: tuple[tuple[str, int], ...],
    *,
    internal: bool = False,
    talking: bool = True,
    disguised: bool = True,
) -> tuple[Chain, ...]:
    """Return the chains of a network behind ``bridge``.

    ``internal`` keeps its packets in; ``talking`` lets its containers reach each
    other; ``disguised`` gives what leaves the host's address.
    """
    out, back = to_link(bridge), from_link(bridge)
    among = verdict(ACCEPT if talking else DROP)
    rules = [back + out + among]
    if internal:
        rules += [back + verdict(DROP)]
    else:
        rules += [
            out + connection(STATE, ESTABLISHED | RELATED) + verdict(ACCEPT),
            out + connection(STATUS, REDIRECTED) + verdict(ACCEPT),
        ]
    leaving = tuple(
        address_in(subnet, bits, source=True)
        + to_link(bridge, DIFFERENT)
        + masquerade()
        for subnet, bits in subnets
        if disguised and not internal
    )
    forward = Chain("forward", (*rules, out + verdict(DROP)))
    return forward, Chain("postrouting", leaving)


# %% The rules of a container
class Rewriting(Record):
    """A published port: where on the host, and the container's address and port.

    ``host`` is an address, or one of zeros for every address of its version of IP.
    """

    protocol: str
    host: str
    host_port: int
    address: str
    port: int


def arriving(one: Rewriting) -> bytes:
    """Go on where a packet is for a published port of this host."""
    anywhere = not any(packed(one.host))
    bits = 8 * len(packed(one.host))
    where = version_of(one.host) + to_this_host()
    if not anywhere:
        where = address_in(one.host, bits, source=False)
    return where + to_port(one.protocol, one.host_port)


def container_chains(bridge: str, ports: tuple[Rewriting, ...]) -> tuple[Chain, ...]:
    """Return the chains that send published ports to a container."""
    came, sent = [], []
    for one in ports:
        there = rewrite(1, one.address, one.port)
        came.append(from_link(bridge, DIFFERENT) + arriving(one) + there)
        loop = ("127.0.0.0", 8) if family_of(one.host) == IPV4 else ("::1", 128)
        outward = address_in(*loop, source=False, how=DIFFERENT)
        sent.append(outward + arriving(one) + there)
    return Chain("prerouting", tuple(came)), Chain("output", tuple(sent))
