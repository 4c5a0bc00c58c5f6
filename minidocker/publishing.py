# From book/452-publishing.md. Edit there and tangle, or here and tangle --back.

# %% Publishing: a port of the host that leads inside
"""Published ports: reserved on the host, and passed on where rules do not reach."""

from __future__ import annotations

import _thread
import errno
import os
from _socket import (
    AF_INET6,
    SHUT_WR,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from collections.abc import Iterable, Iterator
from contextlib import suppress

from minidocker.errors import ConflictError, MinidockerError, RuntimeFault
from minidocker.netfilter import PROTOCOLS, Rewriting
from minidocker.networks import Endpoint
from minidocker.program import PortBinding
from minidocker.records import Record
from minidocker.resolver import accepted
from minidocker.rtnetlink import family_of


# %% Taking a port
IPV6_ONLY = (41, 26, 1)  # IPPROTO_IPV6, IPV6_V6ONLY: leave IPv4 to the other socket
ANYWHERE, ANYWHERE6 = "0.0.0.0", "::"  # noqa: S104


class Opening(Record):
    """A port of the host that was taken: ``protocol``, where, for which port inside."""

    protocol: str
    host: str
    host_port: int
    port: int
    socket: socket

    @property
    def inside(self) -> str:
        """The port inside, as Docker writes it."""
        return f"{self.port}/{self.protocol}"


def take_port(protocol: str, host: str, port: int) -> socket:
    """Return a socket that has a port of the host, 0 for any; it listens.

    Raises OSError: EADDRINUSE, EACCES, EADDRNOTAVAIL; EPROTONOSUPPORT for SCTP where
    the kernel has none.
    """
    family = family_of(host)
    kind = SOCK_DGRAM if protocol == "udp" else SOCK_STREAM
    handle = socket(family, kind, PROTOCOLS[protocol] if protocol == "sctp" else 0)
    try:
        if family == AF_INET6:
            handle.setsockopt(*IPV6_ONLY)
        if kind == SOCK_STREAM:
            handle.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        handle.bind((host, port))
        if kind == SOCK_STREAM:
            handle.listen(4096)
    except BaseException:
        handle.close()
        raise
    return handle


# %% Taking a port
def places_of(host: str, default: str) -> tuple[str, ...]:
    """Return the addresses of the host that a binding means."""
    if host:
        return (host,)
    return (default,) if default not in ("", ANYWHERE) else (ANYWHERE, ANYWHERE6)


def has_ipv6() -> bool:
    """Say whether this kernel and this namespace can listen at ``::``."""
    try:
        socket(AF_INET6, SOCK_DGRAM).close()
    except OSError:
        return False
    return os.path.exists("/proc/net/if_inet6")


def take_everywhere(
    protocol: str, hosts: tuple[str, ...], host_port: int, port: int
) -> list[Opening]:
    """Take a port at each of ``hosts``, or none of them. Raises OSError."""
    found: list[Opening] = []
    try:
        for host in hosts:
            if host == ANYWHERE6 and found and not has_ipv6():
                continue
            handle = take_port(protocol, host, host_port)
            host_port = handle.getsockname()[1]
            found.append(Opening(protocol, host, host_port, port, handle))
    except OSError:
        close_openings(found)
        raise
    return found


def close_openings(openings: Iterable[Opening]) -> None:
    """Give ports back."""
    for one in openings:
        one.socket.close()


def numbers_in(text: str) -> range:
    """Return the ports of ``80`` or ``80-90``; port 0, which is any, for nothing.

    >>> numbers_in("80-82"), numbers_in("")
    (range(80, 83), range(0, 1))
    """
    low, _, high = text.partition("-")
    return range(int(low or 0), int(high or low or 0) + 1)


# %% Taking a port
ATTEMPTS = 5  # at a port that is free for IPv4 and for IPv6


def open_one(binding: PortBinding, default: str = "") -> list[Opening]:
    """Take the port of a binding: the first that is free of a range, or any.

    Raises ConflictError in Docker's words, RuntimeFault where the kernel has another
    reason.
    """
    port, _, protocol = binding.port.partition("/")
    hosts = places_of(binding.host, default)
    numbers: Iterable[int] = numbers_in(binding.host_port)
    if not binding.host_port or binding.host_port == "0":
        numbers = [0] * ATTEMPTS
    failed: OSError | None = None
    number = 0
    for number in numbers:
        try:
            return take_everywhere(protocol, hosts, number, int(port))
        except OSError as why:
            failed = why
            if why.errno != errno.EADDRINUSE:
                break
    raise not_free(failed, protocol, hosts[0], number) from failed


def not_free(
    why: OSError | None, protocol: str, host: str, port: int
) -> MinidockerError:
    """Phrase why a port cannot be had."""
    if why is None or why.errno == errno.EADDRINUSE:
        what = f"Bind for {host}:{port} failed: port is already allocated"
        hint = f"`ss -lp sport = {port}` names who has it; or publish another port"
        return ConflictError(what, hint=hint)
    if why.errno == errno.EPROTONOSUPPORT:
        return RuntimeFault(f"this kernel has no {protocol}")
    return RuntimeFault(f"Bind for {host}:{port} failed: {why.strerror}")


# %% Taking a port
def open_ports(bindings: Iterable[PortBinding], default: str = "") -> list[Opening]:
    """Take the ports of all bindings, or of none. Raises as ``open_one``."""
    found: list[Opening] = []
    try:
        for binding in bindings:
            found += open_one(binding, default)
    except BaseException:
        close_openings(found)
        raise
    return found


def ports_json(
    openings: Iterable[Opening], exposed: Iterable[str]
) -> dict[str, object]:
    """Return Docker's fields for the ports of a container that runs."""
    found: dict[str, object] = dict.fromkeys(exposed)
    for one in openings:
        there = {"HostIp": one.host, "HostPort": str(one.host_port)}
        before = found.get(one.inside)
        found[one.inside] = [*(before if isinstance(before, list) else []), there]
    return found


# %% Which rules
def rewritings(openings: Iterable[Opening], who: Endpoint) -> Iterator[Rewriting]:
    """Yield the rules that lead published ports to a container on a bridge."""
    for one in openings:
        six = family_of(one.host) == AF_INET6
        address = who.ip6 if six else who.ip
        if address and not one.host.startswith("127.") and one.host != "::1":
            yield Rewriting(one.protocol, one.host, one.host_port, address, one.port)


# %% Passing on
CHUNK = 1 << 18


def move(source: socket, target: socket) -> None:
    """Move what ``source`` says to ``target`` until it has said all."""
    exit_, entrance = os.pipe()
    try:
        while count := os.splice(source.fileno(), entrance, CHUNK):
            while count:
                count -= os.splice(exit_, target.fileno(), count)
    except OSError:  # one of the two has gone
        with suppress(OSError):
            source.shutdown(2)
    finally:
        with suppress(OSError):
            target.shutdown(SHUT_WR)
        os.close(exit_)
        os.close(entrance)


# %% Passing on
def pass_on(visitor: socket, address: str, port: int, protocol: int = 0) -> None:
    """Connect a visitor to a port inside; return when both have said all."""
    there = socket(family_of(address), SOCK_STREAM, protocol)
    done = _thread.allocate_lock()
    done.acquire()

    def back() -> None:
        move(there, visitor)
        done.release()

    try:
        there.connect((address, port))
        _thread.start_new_thread(back, ())
        move(visitor, there)
        done.acquire()
    except OSError:
        pass  # nobody listens there: the visitor sees the end
    finally:
        there.close()
        visitor.close()


def serve_stream(one: Opening, address: str) -> None:
    """Accept visitors for ever, each in a thread of its own."""
    protocol = PROTOCOLS[one.protocol] if one.protocol == "sctp" else 0
    while True:
        visitor = accepted(one.socket)
        _thread.start_new_thread(pass_on, (visitor, address, one.port, protocol))


# %% Passing on
QUIET_TIME = 90.0  # seconds, as Docker's


def serve_datagrams(one: Opening, address: str) -> None:
    """Pass datagrams on for ever, and the answers back to whoever asked."""
    known: dict[tuple[str, int], socket] = {}

    def answers(who: tuple[str, int], there: socket) -> None:
        with suppress(OSError):  # silence for QUIET_TIME, or nobody listens there
            while True:
                one.socket.sendto(there.recv(65535), who)
        known.pop(who, None)
        there.close()

    while True:
        data, who = one.socket.recvfrom(65535)
        there = known.get(who)
        with suppress(OSError):
            if there is None:
                there = socket(family_of(address), SOCK_DGRAM)
                there.settimeout(QUIET_TIME)
                there.connect((address, one.port))
                known[who] = there
                _thread.start_new_thread(answers, (who, there))
            there.send(data)


def serve(one: Opening, address: str) -> None:
    """Pass on what comes to a port of the host, for ever."""
    if one.protocol == "udp":
        serve_datagrams(one, address)
    else:
        serve_stream(one, address)
