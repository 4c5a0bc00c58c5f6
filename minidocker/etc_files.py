# From book/422-etc-files.md. Edit there and tangle, or here and tangle --back.

# %% Three files: what a program knows about names
"""The texts of /etc/hosts, hostname and resolv.conf, as Docker writes them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from minidocker.namespaces import Bind
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network


# %% hosts
HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def whole_name(config: ContainerConfig) -> str:
    """Return a container's host name with its domain, if it has one."""
    domain = f".{config.domainname}" if config.domainname else ""
    return f"{config.hostname}{domain}"


def own_lines(config: ContainerConfig, addresses: Iterable[str]) -> str:
    """Return the lines of /etc/hosts with a container's own names.

    >>> own_lines(ContainerConfig(hostname="a.b"), ["10.1.0.2"]).split()
    ['10.1.0.2', 'a.b', 'a']
    """
    name = whole_name(config)
    short = name.partition(".")[0]
    names = name if name == short else f"{name} {short}"
    return "".join(f"{address}\t{names}\n" for address in addresses)


def added_lines(extra: Iterable[str], gateway: str = "") -> str:
    """Return the lines of ``--add-host NAME:ADDRESS``; ``host-gateway`` is the host.

    >>> added_lines(["db:10.0.0.5", "up:host-gateway"], "172.17.0.1").split()
    ['10.0.0.5', 'db', '172.17.0.1', 'up']
    """
    found = ""
    for text in extra:
        name, _, address = text.partition(":")
        address = gateway if address == "host-gateway" else address
        found += f"{address}\t{name}\n" if address else ""
    return found


# %% resolv.conf
PUBLIC = ("8.8.8.8", "8.8.4.4")
EMBEDDED = "127.0.0.11"


def host_text(name: str) -> str:
    """Return the host's /etc/NAME; nothing where there is none."""
    with suppress(OSError), open(f"/etc/{name}", encoding="utf-8") as file:
        return file.read()
    return ""


def words_after(text: str, keyword: str) -> tuple[str, ...]:
    """Return what lines of resolv.conf that begin with ``keyword`` say.

    >>> words_after("search a b\\nnameserver ::1\\n", "search")
    ('a', 'b')
    """
    lines = (line.split() for line in text.splitlines())
    return tuple(w for words in lines if words[:1] == [keyword] for w in words[1:])


def is_loopback(address: str) -> bool:
    """Say whether an address means the machine that asks."""
    return address.startswith("127.") or address == "::1"


def name_servers(host: HostConfig) -> tuple[str, ...]:
    """Return whom a container, or the server in front of it, is to ask."""
    if host.dns:
        return host.dns
    found = words_after(host_text("resolv.conf"), "nameserver")
    return tuple(one for one in found if not is_loopback(one)) or PUBLIC


# %% resolv.conf
def resolv_text(host: HostConfig, *, embedded: bool = False) -> str:
    """Return the text of /etc/resolv.conf."""
    text = host_text("resolv.conf")
    if host.network is Network.HOST and not (host.dns or host.dns_search):
        return text
    servers = words_after(text, "nameserver")
    given = host.dns or host.dns_search or host.dns_options
    if not (given or embedded or any(map(is_loopback, servers))) and servers:
        return text
    search = host.dns_search or words_after(text, "search")
    options = host.dns_options or words_after(text, "options")
    if embedded and not any(one.startswith("ndots:") for one in options):
        options = (*options, "ndots:0")
    lines = [f"search {' '.join(search)}"] if search and search != (".",) else []
    lines += [
        f"nameserver {one}" for one in ((EMBEDDED,) if embedded else name_servers(host))
    ]
    lines += [f"options {' '.join(options)}"] if options else []
    return "".join(f"{line}\n" for line in lines)


# %% On disk
INSIDE = ("resolv.conf", "hostname", "hosts")


def network_files(
    config: ContainerConfig,
    host: HostConfig,
    addresses: Iterable[str] = (),
    gateway: str = "",
    *,
    embedded: bool = False,
) -> dict[str, str]:
    """Return the text of the three files under /etc that a container is given."""
    first = HOSTS
    if host.network is Network.HOST:
        first = host_text("hosts") or HOSTS
    added = added_lines(host.extra_hosts, gateway)
    return {
        "hosts": first + added + own_lines(config, addresses),
        "hostname": f"{config.hostname}\n",
        "resolv.conf": resolv_text(host, embedded=embedded),
    }


def write_network_files(place: str, files: dict[str, str]) -> None:
    """Write the three files into the directory ``place`` on the host, in place.

    A container that runs has them bound, and sees the new text.
    """
    for name, text in files.items():
        with open(f"{place}/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def network_binds(place: str) -> tuple[Bind, ...]:
    """Return the steps that show the three files of ``place`` in a container."""
    return tuple(Bind(f"{place}/{name}", f"/etc/{name}") for name in INSIDE)
