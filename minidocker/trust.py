# From book/515-trust.md. Edit there and tangle, or here and tangle --back.

# %% Trust: registries without a certificate
"""Which registries may be asked without a certificate that is believed."""

from __future__ import annotations

import json
import os
from functools import lru_cache

from minidocker.errors import UsageError


TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


# %% The list
VARIABLE = "MINIDOCKER_INSECURE_REGISTRIES"
KEY = "insecure-registries"


def daemon_file() -> str:
    """Return where Docker's daemon of this user has its settings."""
    if os.geteuid() == 0:
        return "/etc/docker/daemon.json"
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{home}/docker/daemon.json"


@lru_cache(4)
def listed_in(path: str) -> tuple[str, ...]:
    """Return the list in a ``daemon.json``; none where there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file).get(KEY) or []
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, AttributeError, RecursionError) as why:
        raise UsageError(f"cannot be read: {why}", where=path) from why
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UsageError(f'"{KEY}" is not a list of texts', where=path)
    return tuple(found)


# %% The list
def add_insecure(more: tuple[str, ...]) -> None:
    """Add to the list of this process; UsageError for what cannot be on it."""
    for text in more:
        checked(text)
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = ",".join(filter(None, (before, *more)))


def checked(text: str) -> str:
    """Return a line of the list. Raises UsageError for an address with a scheme."""
    if "://" in text or text.count("/") > 1 or not text.strip():
        hint = "HOST, HOST:PORT, or a network such as 10.0.0.0/8"
        raise UsageError(f'bad registry "{text}"', where=KEY, hint=hint)
    if "/" in text:
        network(text)
    return text.strip().lower()


def network(text: str) -> IPv4Network | IPv6Network:
    """Return a network in CIDR form. Raises UsageError."""
    from ipaddress import ip_network

    try:
        return ip_network(text.strip(), strict=False)
    except ValueError as why:
        raise UsageError(f'bad network "{text}"', where=KEY) from why


def insecure_list() -> tuple[str, ...]:
    """Return all lines: of the variable, and of Docker's settings."""
    own = filter(None, os.environ.get(VARIABLE, "").split(","))
    return tuple(checked(text) for text in (*own, *listed_in(daemon_file())))


# %% The question
def is_insecure(place: str) -> bool:
    """Say whether ``HOST[:PORT]`` may do without a certificate."""
    lines = insecure_list()
    host, port = split_place(place.lower())
    if {host, f"{host}:{port}", place.lower()} & set(lines):
        return True
    networks = tuple(line for line in lines if "/" in line)
    return bool(networks) and in_networks(host, networks)


def split_place(place: str) -> tuple[str, str]:
    """Split host and port; brackets stay off.

    >>> split_place("[::1]:5000"), split_place("example.org")
    (('::1', '5000'), ('example.org', ''))
    """
    if place.startswith("["):
        host, _, rest = place[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = place.partition(":")
    return host, port


@lru_cache(64)
def in_networks(host: str, networks: tuple[str, ...]) -> bool:
    """Say whether an address of a host is in one of some networks."""
    import socket
    from ipaddress import ip_address

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = {ip_address(str(one[4][0]).partition("%")[0]) for one in found}
    return any(one in network(text) for one in addresses for text in networks)
