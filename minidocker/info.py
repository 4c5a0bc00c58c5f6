# From book/606-info.md. Edit there and tangle, or here and tangle --back.

# %% Info: what this kernel lets us do
"""Try what containers need from the kernel, and say what follows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from minidocker.cgroups import find_hierarchies
from minidocker.errors import MinidockerError, UnsupportedError
from minidocker.labels import verdict
from minidocker.linux import Capability, CloneFlags, capget, unshare
from minidocker.namespaces import (
    QUIET,
    Filesystem,
    container_kinds,
    flags_of,
    keep_mounts_private,
)
from minidocker.netfilter import make_table, network_chains
from minidocker.overlayfs import supported
from minidocker.records import Record
from minidocker.rootless import enter_user_namespace, forbidding_setting, own_ids
from minidocker.rtnetlink import NETFILTER, Netlink, new_bridge
from minidocker.security import (
    ALL_CAPABILITIES,
    DOCKER_CAPABILITIES,
    DOCKER_SECURITY,
    confine,
)
from minidocker.uplink import find_uplink


# %% A finding
class Finding(Record):
    """What was tried, whether it works, and what follows."""

    name: str
    works: bool
    follows: str


# %% A finding
def attempt(action: Callable[[], None]) -> str:
    """Do ``action`` in a child; return nothing, or why it failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except MinidockerError as why:
            line = f"{why.what}; {why.hint}" if why.hint else why.what
            os.write(write, line.encode()[:1000])
        except OSError as why:
            os.write(write, str(why).encode()[:1000])
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def new_namespaces() -> None:
    """Enter the namespaces of a container, and mount what shows its processes."""
    if os.geteuid() != 0:
        enter_user_namespace()
    unshare(flags_of(container_kinds()))
    keep_mounts_private()
    top = os.open("/", os.O_PATH | os.O_DIRECTORY)
    proc = Filesystem("/proc", "proc", QUIET)
    if refused := attempt(lambda: proc.apply(top)):  # only a child is in there
        raise UnsupportedError(refused)


def user_namespaces() -> Finding:
    """Say who is root in a container of a user without root, or what forbids it."""
    name, ids = "User namespaces", own_ids()
    refused = attempt(enter_user_namespace)
    if os.geteuid() == 0:
        refused = refused or forbidding_setting()
        return judged(name, refused, "users without root can run containers")
    count = sum(one[2] for one in ids.uids)
    follows = (
        f"{count} users in a container" if count > 1 else "one user in a container"
    )
    return judged(
        name, refused, f"{follows}: {ids.why_one}" if ids.why_one else follows
    )


def an_overlay(place: str | None = None) -> None:
    """Mount an overlay on a directory of our own, below ``place`` if one is given."""
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        if os.geteuid() == 0:
            unshare(CloneFlags.NEWNS)
            keep_mounts_private()
        else:
            enter_user_namespace()
        supported(scratch)


def driver_reason(name: str, root: str) -> str:
    """Say why the store below ``root`` has the storage driver ``name``."""
    refused = attempt(lambda: an_overlay(root))
    if name != ("vfs" if refused else "overlay2"):
        return "it was asked for when the store was made"
    return (
        f"overlay2 does not work here: {refused}"
        if refused
        else "the kernel mounts overlays"
    )


# %% The list
def usable(path: str) -> bool:
    """Whether a device is there and may be opened for reading and writing."""
    return os.access(path, os.R_OK | os.W_OK)


def a_filter() -> None:
    """Load Docker's filter of system calls."""
    confine(DOCKER_SECURITY.replace(no_new_privileges=True))


LIMITING = ("memory", "cpu", "cpuset", "pids")


# %% The list
def control_groups() -> Finding:
    """Say which limits can be kept here, and what forbids the others."""
    found = find_hierarchies()
    here = [n for n in LIMITING if os.access(found.root(n) or "/no", os.W_OK)]
    missing = ", ".join(n for n in LIMITING if n not in here)
    if not found.version:
        follows = "no limits: none are mounted at /sys/fs/cgroup"
    elif not missing:
        follows = f"version {found.version}"
    elif os.geteuid():
        follows = f"no limits of {missing}: systemd's Delegate= gives them to a user"
    else:
        follows = f"no limits of {missing}: see /proc/cgroups, cgroup_disable="
    return Finding("Control groups", bool(found.version and not missing), follows)


# %% The list
def capabilities() -> Finding:
    """Say which of Docker's capabilities we could not give."""
    held = ALL_CAPABILITIES if os.geteuid() else capget()[1]
    missing = [c.name for c in Capability if ALL_CAPABILITIES & ~held >> c & 1]
    names = ", ".join(missing)
    return Finding(
        "Capabilities",
        not DOCKER_CAPABILITIES & ~held,
        f"all but {names}, which whoever started us keeps back" if names else "all",
    )


# %% The list
def judged(name: str, refused: str, works: str, else_: str = "") -> Finding:
    """Return a finding: what follows where it works, and where it is refused."""
    return Finding(name, not refused, f"{else_}{refused}" if refused else works)


def a_bridge() -> None:
    """Make a bridge and its rules in a network namespace of our own."""
    unshare(CloneFlags.NEWNET)
    with Netlink() as links, Netlink(NETFILTER) as rules:
        links.talk(new_bridge("try", "02:42:00:00:00:01", 1500))
        make_table(rules, "try", network_chains("try", (("10.0.0.0", 8),)))


def network() -> Finding:
    """Say how containers are connected here, or why they are not."""
    refused, how = "", "bridges, published ports and names"
    if os.geteuid() == 0:
        refused = attempt(a_bridge)
    else:
        try:
            how = f"by {find_uplink().name}; named networks by bridges of one's own"
        except MinidockerError as why:
            refused = why.what
    return judged("Network", refused, how, "containers have the loopback only: ")


def findings() -> list[Finding]:
    """Try everything; the names are those of `info`."""
    lone = "" if os.geteuid() == 0 else ", without root"
    mapper, fuse = usable("/dev/mapper/control"), usable("/dev/fuse")
    filters = "only --security-opt seccomp=unconfined: "
    thin = "thin snapshots are possible" if mapper else "no driver devicemapper"
    fused = "file systems in user space" if fuse else "not needed by any driver"
    return [
        judged("Namespaces", attempt(new_namespaces), f"containers are isolated{lone}"),
        user_namespaces(),
        judged(
            "Overlayfs",
            attempt(an_overlay),
            "driver overlay2",
            "layers are copied (vfs): ",
        ),
        judged("Seccomp", attempt(a_filter), "system calls are filtered", filters),
        Finding("AppArmor", *verdict()),
        capabilities(),
        control_groups(),
        Finding("Device mapper", mapper, thin),
        Finding("FUSE", fuse, fused),
        network(),
    ]
