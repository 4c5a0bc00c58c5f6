# From book/459-neighbours.md. Edit there and tangle, or here and tangle --back.

# %% Neighbours: a container that knows another by name
"""``--link``: the name, the address and the variables of another container."""

from __future__ import annotations

from collections.abc import Iterator

from minidocker.containers import Container, ContainerRecords, Status
from minidocker.errors import NotFoundError, RuntimeFault, UsageError
from minidocker.networks import DEFAULT, Endpoint, NetworkStore, live_endpoints
from minidocker.program import HostConfig
from minidocker.records import Record


# %% The noun
class Neighbour(Record):
    """Another container as a link shows it: under ``alias``, at ``address``."""

    alias: str
    other: Container
    address: str


def parse_link(text: str) -> tuple[str, str]:
    """Return the name and the alias of a link, ``NAME[:ALIAS]``.

    Raises UsageError.

    >>> parse_link("db:data"), parse_link("/db")
    (('db', 'data'), ('db', 'db'))
    """
    name, _, alias = text.removeprefix("/").partition(":")
    if not name or text.count(":") > 1:
        what = f'invalid argument "{text}" for "--link" flag: bad format for links'
        raise UsageError(f"{what}: {text}", hint="NAME[:ALIAS]")
    return name, alias or name


# %% Look them up
def neighbours(
    store: ContainerRecords, networks: NetworkStore, container: Container
) -> Iterator[Neighbour]:
    """Yield the containers that one is linked to. Raises RuntimeFault.

    They must run, on the network that it is on.
    """
    network = network_of(container)
    here = {one.container: one for one in live_endpoints(networks, network)}
    for text in container.host.links:
        other, alias = parse_link(text)
        found = store.resolve(other)
        endpoint = here.get(found.id)
        if store.state(found.id).status is not Status.RUNNING or endpoint is None:
            what = f"cannot link to a non running container: /{found.name}"
            raise RuntimeFault(f"{what} AS /{container.name}/{alias}")
        yield Neighbour(alias, found, address_of(endpoint))


def network_of(container: Container) -> str:
    """Return the network that a container was made on."""
    name = container.host.network_of
    return DEFAULT if name in ("", "default") else name


def address_of(endpoint: Endpoint) -> str:
    """Return the address of version 4, or the other one where there is none."""
    return endpoint.ip or endpoint.ip6


# %% What it is told
def host_lines(found: Iterator[Neighbour]) -> str:
    """Return the lines of /etc/hosts: alias, host name and name of each."""
    return "".join(f"{one.address}\t{' '.join(names_of(one))}\n" for one in found)


def names_of(one: Neighbour) -> list[str]:
    """Return the names of a neighbour, each once."""
    return [*dict.fromkeys((one.alias, one.other.config.hostname, one.other.name))]


def variables(container: Container, one: Neighbour) -> Iterator[str]:
    """Yield the variables that tell of a neighbour, as Docker names them."""
    word = one.alias.upper().replace("-", "_")
    ports = sorted(one.other.config.exposed_ports or (), key=number_of)
    for first, port in enumerate(ports):
        number, _, protocol = port.partition("/")
        place = f"{protocol}://{one.address}:{number}"
        if not first:
            yield f"{word}_PORT={place}"
        prefix = f"{word}_PORT_{number}_{protocol.upper()}"
        yield f"{prefix}={place}"
        yield f"{prefix}_ADDR={one.address}"
        yield f"{prefix}_PORT={number}"
        yield f"{prefix}_PROTO={protocol}"
    yield f"{word}_NAME=/{container.name}/{one.alias}"
    for line in one.other.config.env or ():
        if line.partition("=")[0] not in ("HOME", "PATH"):
            yield f"{word}_ENV_{line}"


def number_of(port: str) -> tuple[int, str]:
    """Return by what ports are in order: their numbers, tcp first."""
    number, _, protocol = port.partition("/")
    return int(number), protocol


def link_environment(
    store: ContainerRecords, networks: NetworkStore, container: Container
) -> tuple[str, ...]:
    """Return the variables of all neighbours of a container on the default network.

    On another the names alone are told.
    """
    if network_of(container) != DEFAULT:
        return ()
    found = neighbours(store, networks, container)
    return tuple(line for one in found for line in variables(container, one))


def without_link(container: Container, alias: str) -> HostConfig:
    """Return a HostConfig without the link of an alias. Raises NotFoundError."""
    links = container.host.links
    kept = tuple(text for text in links if parse_link(text)[1] != alias)
    if len(kept) == len(links):
        raise NotFoundError(f"no such link: {container.name}/{alias}")
    return container.host.replace(links=kept)
