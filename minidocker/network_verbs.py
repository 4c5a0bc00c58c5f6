# From book/664-network-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Network verbs: make, show, remove
"""The commands that make networks, show them and remove them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from minidocker.container_verbs import (
    each_named,
    inspect_each,
    label_map,
    open_engine,
    print_text,
)
from minidocker.containers import timestamp
from minidocker.durable import event_fields, happened, store_lock
from minidocker.engine import Engine
from minidocker.errors import (
    ConflictError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    WordFault,
)
from minidocker.filters import Filters, all_labels_match, parse_filters
from minidocker.flags import (
    FILTER,
    FORMAT,
    LIST,
    NO_TRUNC,
    QUIET,
    TEXT,
    Command,
    Flag,
    Given,
    Takes,
    is_address,
    refused,
)
from minidocker.mounts import is_first_user_namespace
from minidocker.network_views import every_network, find_one, inspect_network
from minidocker.networks import (
    PREDEFINED,
    BridgeNetwork,
    NetworkStore,
    Subnet,
    default_network,
    free_subnet,
    gateway_of,
    host_routes,
    is_in,
    live_endpoints,
    overlap,
    read_cidr,
    width_of,
)
from minidocker.oci import matches
from minidocker.removal import may_prune
from minidocker.sandbox import network_store
from minidocker.tables import (
    formatted,
    label_in,
    local_time,
    nanoseconds_of,
    seconds_of,
    view_of,
)
from minidocker.wiring import remove_lost_bridges, sweep_network


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Create
def belonging(
    subnets: Iterable[str], given: Iterable[str], what: str
) -> dict[str, str]:
    """Return which of ``given`` belongs to which subnet. Raises WordFault."""
    wanted, found = list(subnets), {}
    for text in given:
        address = text.partition("/")[0]
        if not is_address(address):
            raise WordFault(f"invalid {what}: {text}")
        homes = [s for s in wanted if is_in(address, *read_cidr(s))]
        if not wanted or (homes and homes[0] in found):
            what = "every ip-range or gateway must have a corresponding subnet"
            raise WordFault(what)
        if not homes:
            raise WordFault(f"no matching subnet for {what} {text}")
        found[homes[0]] = text
    return found


def reserved_in(subnets: Iterable[str], given: Iterable[str]) -> dict[str, Any]:
    """Return the reserved addresses of each subnet, of ``NAME=ADDRESS``."""
    found: dict[str, list[tuple[str, str]]] = {}
    for text in given:
        name, _, address = text.partition("=")
        home = next(iter(belonging(subnets, [address], "aux-address")))
        found.setdefault(home, []).append((name, address))
    return found


def asked_subnets(given: Given) -> list[Subnet]:
    """Return the subnets that a command line asks for. Raises WordFault."""
    texts = given.list("subnet")
    for text in texts:
        try:
            read_cidr(text)
        except UsageError as why:
            raise WordFault(f"Invalid subnet {text} : {why.what}") from why
    gateways = belonging(texts, given.list("gateway"), "gateway")
    ranges = belonging(texts, given.list("ip-range"), "range")
    reserved = reserved_in(texts, given.list("aux-address"))
    found = []
    for text in texts:
        pool = read_cidr(ranges[text]) if text in ranges else ("", 0)
        kept = tuple(reserved.get(text, ()))
        gateway = gateways.get(text, "")
        told = bool(gateway)
        found.append(Subnet(*read_cidr(text), gateway, *pool, kept, told))
    return found


# %% Create
NAME = "[a-zA-Z0-9][a-zA-Z0-9_.-]*"
OWN_NAME = "com.docker.network.bridge.name"
MTU = "com.docker.network.driver.mtu"


def check_options(options: dict[str, str], store: NetworkStore) -> None:
    """Refuse options that a bridge cannot have. Raises WordFault, ConflictError."""
    bridge = options.get(OWN_NAME, "")
    if len(bridge) > 15 or "/" in bridge or bridge in (".", "..") or " " in bridge:
        raise WordFault(f'invalid bridge name "{bridge}"', hint="at most 15 letters")
    if bridge and os.path.exists(f"/sys/class/net/{bridge}"):
        raise ConflictError(f"a link {bridge} is there already")
    for other in store.all():
        if bridge and other.bridge == bridge:
            what = f"conflicts with network {other.id} ({bridge})"
            raise ConflictError(f"{what}: networks have same bridge name")
    mtu = options.get(MTU, "1500")
    if not mtu.isdecimal() or not 68 <= int(mtu) <= 65535:
        raise WordFault(f"invalid MTU: {mtu}")


def check_driver(driver: str) -> None:
    """Refuse every kind of network but bridges."""
    if driver in ("host", "null"):
        raise ConflictError(f'only one instance of "{driver}" network is allowed')
    if driver != "bridge":
        what = f'could not find plugin {driver} in v1 plugin registry: "{driver}"'
        raise UnsupportedError(f"{what} not found", hint="the only driver is bridge")


def whole_subnets(
    store: NetworkStore, asked: list[Subnet], *, ipv6: bool
) -> tuple[Subnet, ...]:
    """Return the subnets of a new network, one of them chosen where none was asked.

    Raises ConflictError, WordFault. The caller holds the lock.
    """
    four = [one for one in asked if width_of(one.address) == 32]
    six = [one for one in asked if width_of(one.address) == 128]
    if len(four) > 1 or len(six) > 1:
        raise WordFault("bridge driver doesn't support multiple subnets")
    if ipv6 and not six:
        what = "could not find an available, non-overlapping IPv6 address pool among "
        hint = "give one: --ipv6 --subnet fd00:1::/64"
        raise WordFault(f"{what}the defaults to assign to the network", hint=hint)
    for one in asked:
        if any(overlap((one.address, one.bits), other) for other in store.subnets()):
            raise ConflictError("Pool overlaps with other one on this address space")
    if not four:
        chosen = free_subnet([*host_routes(), *store.subnets()])
        four = [chosen.replace(told=True)]
    return tuple(map(gateway_of, (*four, *six)))


# %% Create
def create(given: Given) -> int:
    """``network create [OPTIONS] NETWORK``"""
    name, asked = given.args[0], asked_subnets(given)
    check_driver(given.text("driver"))
    for flag, only in (("ipam-driver", "default"), ("scope", "local")):
        if given.text(flag) not in ("", only):
            raise WordFault(f"--{flag} {given.text(flag)} is not here", hint=only)
    if name in PREDEFINED:
        raise ConflictError(f"operation is not permitted on predefined {name} network")
    if not matches(NAME, name):
        raise WordFault(f'invalid network name "{name}": only {NAME} are allowed')
    store = network_store(open_engine(given).containers)
    options = label_map(given.list("opt"))
    with store_lock(store.root), store.turn():
        with suppress(NotFoundError):
            store.get(name)
            raise ConflictError(f"network with name {name} already exists")
        check_options(options, store)
        default_network(store)  # has the first choice of a subnet
        network = BridgeNetwork(
            os.urandom(32).hex(),
            name,
            timestamp(),
            whole_subnets(store, asked, ipv6=given.on("ipv6")),
            internal=given.on("internal"),
            ipv6=given.on("ipv6"),
            attachable=given.on("attachable"),
            chosen=not any(width_of(one.address) == 32 for one in asked),
            labels=label_map(given.list("label")),
            options=options,
        )
        store.write(network)
    tell_of_network(store, network, "create")
    print(network.id)
    return 0


def tell_of_network(store: NetworkStore, network: BridgeNetwork, action: str) -> None:
    """Write down that a network was made, or has gone."""
    about = {"name": network.name, "type": "bridge"}
    fields = event_fields("network", action, network.id, about)
    happened(store.root, fields)


# %% Show
HEADS = {
    "ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE",
    "IPv6": "IPV6", "Internal": "INTERNAL", "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}  # fmt: skip
FILTERS = ("driver", "id", "label", "name", "scope", "type", "dangling")


def network_row(network: BridgeNetwork, driver: str, *, whole: bool) -> dict[str, Any]:
    """Return Docker's fields for a line of `network ls`."""
    labels = ",".join(f"{key}={value}" for key, value in network.labels.items())
    return {
        "ID": network.id if whole else network.id[:12],
        "Name": network.name,
        "Driver": driver,
        "Scope": "local",
        "IPv6": str(network.ipv6).lower(),
        "Internal": str(network.internal).lower(),
        "Label": label_in(network.labels),
        "Labels": labels,
        "CreatedAt": local_time(seconds_of(network.created)),
    }


def is_wanted(
    store: NetworkStore, network: BridgeNetwork, driver: str, filters: Filters
) -> bool:
    """Whether all filters let a network through."""
    own = network.name not in PREDEFINED
    used = own and any(True for _ in live_endpoints(store, network.name))
    kinds = ("custom",) if own else ("builtin",)
    truths = ("true", "1") if own and not used else ("false", "0")
    tests: dict[str, Callable[[str], bool]] = {
        "driver": lambda text: text == driver,
        "id": lambda text: text in network.id,
        "name": lambda text: text in network.name,
        "scope": lambda text: text == "local",
        "type": lambda text: text in kinds,
        "dangling": lambda text: text in truths,
    }
    labels = all_labels_match(network.labels, filters)
    return labels and all(
        any(tests[name](text) for text in texts)
        for name, texts in filters.items()
        if name in tests
    )


# %% Show
def ls(given: Given) -> int:
    """``network ls [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), FILTERS)
    store = network_store(open_engine(given).containers)
    rows = [
        network_row(network, driver, whole=given.on("no-trunc"))
        for network, driver in every_network(store)
        if is_wanted(store, network, driver, filters)
    ]
    if given.on("quiet"):
        print_text("\n".join(row["ID"] for row in rows))
    else:
        view = view_of(HEADS, ("ID", "Name", "Driver", "Scope"))
        print_text(formatted(view, rows, given.text("format")))
    return 0


def inspect(given: Given) -> int:
    """``network inspect [OPTIONS] NETWORK [NETWORK...]``"""
    store = network_store(open_engine(given).containers)
    return inspect_each(given, lambda text: inspect_network(store, text))


# %% Remove
def remove_network(store: NetworkStore, text: str) -> str:
    """Remove a network that nobody is on; return its name. Raises ConflictError."""
    network, _ = find_one(store, text)
    if network.name in PREDEFINED:
        what = f"{network.name} is a pre-defined network and cannot be removed"
        raise ConflictError(what)
    with store_lock(store.root), store.turn():
        if any(True for _ in live_endpoints(store, network.name)):
            what = f"network {network.name} id {network.id} has active endpoints"
            raise ConflictError(f"error while removing network: {what}")
        sweep_network(store, network.name)
        store.remove(network.name)
    tell_of_network(store, network, "destroy")
    return network.name


def rm(given: Given) -> int:
    """``network rm NETWORK [NETWORK...]``"""
    store = network_store(open_engine(given).containers)

    def action(text: str) -> None:
        remove_network(store, text)

    return each_named(given, action)


PRUNED = (
    "WARNING! This will remove all custom networks not used by at least one container."
)


def prune(given: Given) -> int:
    """``network prune [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), ("until", "label", "label!"))
    if not agreed(given, PRUNED):
        return 0
    prune_networks(open_engine(given), filters)
    return 0


def prune_networks(engine: Engine, filters: Filters) -> None:
    """Remove the networks that users made and nobody is on; tell their names."""
    store, gone = network_store(engine.containers), []
    for network, _ in every_network(store):
        old = may_prune(nanoseconds_of(network.created), filters)
        if old and all_labels_match(network.labels, filters):
            with suppress(ConflictError, NotFoundError):  # somebody was quicker
                gone.append(remove_network(store, network.name))
    if is_first_user_namespace():
        remove_lost_bridges(store)
    if gone:
        print("Deleted Networks:", *gone, "", sep="\n")


def agreed(given: Given, warning: str) -> bool:
    """Whether the person agrees, or has agreed before by ``--force``."""
    if given.on("force"):
        return True
    print(f"{warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() == "y"


# %% Remove
CREATE_FLAGS = (
    Flag("attachable", "Enable manual container attachment"),
    Flag("aux-address", "Auxiliary addresses used by the network driver", takes=LIST),
    Flag("driver", "Driver to manage the Network", "d", TEXT, "bridge"),
    Flag("gateway", "Gateway for the master subnet", takes=LIST),
    Flag("internal", "Restrict external access to the network"),
    Flag("ip-range", "Allocate container ip from a sub-range", takes=LIST),
    Flag("ipv6", "Enable IPv6 networking"),
    Flag("label", "Set metadata on a network", takes=LIST),
    Flag("opt", "Set driver specific options", "o", LIST),
    Flag("subnet", "Subnet in CIDR format", takes=LIST),
    Flag("ipam-driver", "What gives addresses: default", takes=TEXT),
    Flag("scope", "How far the network reaches: local", takes=TEXT),
    *(
        refused(name, "it is for the networks of a swarm, which is not here", takes)
        for name, takes in (
            ("config-from", TEXT),
            ("config-only", Takes.NOTHING),
            ("ingress", Takes.NOTHING),
            ("ipam-opt", LIST),
        )
    ),
)
FORCE = Flag("force", "Do not prompt for confirmation", "f")
COMMANDS = (
    Command(
        "network create", "[OPTIONS] NETWORK", "Create a network", create, CREATE_FLAGS,
        least=1, most=1, example="minidocker network create --subnet 10.9.0.0/16 shop",
    ),
    Command(
        "network ls", "[OPTIONS]", "List networks", ls,
        (FILTER, FORMAT, NO_TRUNC, QUIET), most=0,
    ),
    Command(
        "network inspect", "[OPTIONS] NETWORK [NETWORK...]",
        "Display detailed information on one or more networks", inspect,
        (
            Flag("format", "Format the output: json, or a template", "f", TEXT),
            Flag("verbose", "Verbose output for diagnostics", "v"),
        ),
        least=1,
    ),
    Command(
        "network rm", "NETWORK [NETWORK...]", "Remove one or more networks", rm,
        least=1,
    ),
    Command(
        "network prune", "[OPTIONS]", "Remove all unused networks", prune,
        (Flag("filter", "Provide filter values", takes=LIST), FORCE), most=0,
    ),
)  # fmt: skip
