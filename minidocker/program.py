# From book/416-program.md. Edit there and tangle, or here and tangle --back.

# %% Program: what to run, with which words, and where
"""What a container runs: the program, its variables, limits and directory.

Everything here happens inside: in a process whose root is the container's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from minidocker.calls import SysError, signal
from minidocker.cgroups import NO_LIMITS, Group, Limits
from minidocker.destinations import directory_in_root
from minidocker.errors import RuntimeFault
from minidocker.linux import setrlimit
from minidocker.namespaces import MountStep, Sysctl, first_line, put
from minidocker.records import Enum, Record
from minidocker.security import (
    DOCKER_SECURITY,
    SHM_SIZE,
    Security,
    make_security,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.drivers import RootView


# %% The nouns: what to run
class Network(Enum):
    """Which network a container gets."""

    NONE = "none"  # a namespace of its own with the loopback only
    HOST = "host"  # the namespace of whoever starts it
    CONTAINER = "container"  # that of another container
    BRIDGE = "bridge"  # one of its own with a cable to a bridge


# %% The nouns: what to run
class ProcessSpec(Record):
    """A process to start: in a new container, or with exec in one that is there.

    ``env`` holds ``NAME=value``. ``user`` is ``name``, ``uid``, ``uid:gid`` or
    ``name:group``, empty for root. ``cwd`` is made when it is missing. ``view`` is
    mounted at ``rootfs``, an empty directory on the host; exec needs neither.
    ``mounts`` come after Docker's own, ``docker_mounts`` is told ``sysctls`` and
    ``shm_size``. ``shares`` pairs a kind of namespace with the process whose it is, 0
    for the host's. ``group`` is there already. ``ulimits`` are (number, soft, hard).
    ``init`` is the descriptor of a program that becomes the first process, or -1;
    ``netns`` that of a network namespace that is ready to be used, or -1. The
    descriptors stay the caller's. ``groups`` are further groups of the user.
    ``console`` is the size of a terminal, rows and columns, or empty.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    tty: bool = False
    hostname: str = ""
    view: RootView | None = None
    rootfs: str = ""
    mounts: tuple[MountStep, ...] = ()
    network: Network = Network.NONE
    readonly: bool = False
    security: Security = DOCKER_SECURITY
    shares: tuple[tuple[str, int], ...] = ()
    group: Group | None = None
    sysctls: tuple[Sysctl, ...] = ()
    shm_size: int = SHM_SIZE
    ulimits: tuple[tuple[int, int, int], ...] = ()
    oom_score_adj: int = 0
    init: int = -1
    netns: int = -1
    groups: tuple[str, ...] = ()
    console: tuple[int, ...] = ()
    stdin: int = 0
    stdout: int = 1
    stderr: int = 2

    @property
    def shared(self) -> tuple[str, ...]:
        """The kinds of namespaces that are not made for this process."""
        kinds = tuple(kind for kind, _ in self.shares)
        own = self.network is not Network.HOST and self.netns < 0
        return kinds if own else (*kinds, "net")


# %% The nouns: what to run
class PortBinding(Record):
    """A published port: ``80/tcp`` inside; outside an address and a port, or "".

    ``host_port`` may be a range, ``8000-8010``: the first that is free.
    """

    port: str
    host: str = ""
    host_port: str = ""


class HostConfig(Record):
    """What holds for a container on this host only, as the command line has it.

    ``binds`` are ``SOURCE:TARGET[:ro]``, where SOURCE is absolute or a volume;
    ``mounts`` Docker's documents for ``--mount``; ``devices`` ``HOST:CONTAINER:rwm``;
    ``tmpfs`` ``PATH:OPTIONS``; ``ulimits`` ``NAME=SOFT:HARD``; ``sysctls``
    and ``log_opts`` ``NAME=VALUE``; ``restart`` ``POLICY[:COUNT]`` or "". The modes are
    "", ``host`` or ``container:ID``. ``network_of`` is the other container, or the name
    of the network (``default`` where none was said). ``further`` are fields that few
    containers have, under Docker's names.
    """

    auto_remove: bool = False
    network: Network = Network.NONE
    readonly: bool = False
    binds: tuple[str, ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    volumes_from: tuple[str, ...] = ()
    network_of: str = ""
    limits: Limits = NO_LIMITS
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    privileged: bool = False
    devices: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    shm_size: int = SHM_SIZE
    oom_score_adj: int = 0
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = ""
    userns_mode: str = ""
    cgroupns_mode: str = ""
    init: bool = False
    restart: str = ""
    log_driver: str = "json-file"
    log_opts: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    publish_all: bool = False
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    further: tuple[tuple[str, Any], ...] = ()

    @property
    def mode(self) -> str:
        """The network as Docker's NetworkMode says it."""
        if self.network is Network.BRIDGE:
            return self.network_of or "default"
        word = self.network.value
        return f"{word}:{self.network_of}" if self.network_of else word

    @property
    def narrow(self) -> bool:
        """Whether a device is given with fewer rights than all."""
        return any(not text.endswith(":rwm") for text in self.devices)

    @property
    def limited(self) -> bool:
        """Whether the container has control groups from its beginning."""
        asked = self.limits != NO_LIMITS or bool(self.pid_mode) or bool(self.further)
        return asked or self.narrow

    @property
    def security(self) -> Security:
        """What the processes may do."""
        return make_security(
            self.cap_add, self.cap_drop, self.security_opt, privileged=self.privileged
        )

    def to_dict(self) -> dict[str, Any]:
        """Return Docker's names for the fields, as in hostconfig.json."""
        found = {name: getattr(self, key) for key, name in HOST_NAMES.items()}
        found |= {n: list(getattr(self, k)) or None for k, n in LIST_NAMES.items()}
        found |= {name: getattr(self.limits, key) for key, name in LIMIT_NAMES.items()}
        found |= {n: found[n] or None for n in ("Init", "PidsLimit")}
        found |= {n: found[n] or "private" for n in ("IpcMode", "CgroupnsMode")}
        found["NetworkMode"] = self.mode
        found["PortBindings"] = ports_json(self.ports)
        found |= {n: found[n] or [] for n in ("Dns", "DnsOptions", "DnsSearch")}
        name, _, count = self.restart.partition(":")
        policy = {"Name": name or "no", "MaximumRetryCount": int(count or 0)}
        options = dict(sorted(text.split("=", 1) for text in self.log_opts))
        found |= {
            "RestartPolicy": policy,
            "LogConfig": {"Type": self.log_driver, "Config": options},
        }
        if not self.mounts:
            del found["Mounts"]
        found["Devices"] = [device_json(text) for text in self.devices]
        found["Ulimits"] = [ulimit_json(text) for text in self.ulimits] or None
        for key, texts, mark in (
            ("Tmpfs", self.tmpfs, ":"),
            ("Sysctls", self.sysctls, "="),
        ):
            if texts:
                pairs = (text.partition(mark) for text in texts)
                found[key] = {name: value for name, _, value in pairs}
        return found | dict(self.further)


# %% The nouns: what to run
HOST_NAMES = {
    "auto_remove": "AutoRemove", "readonly": "ReadonlyRootfs",
    "privileged": "Privileged", "shm_size": "ShmSize", "oom_score_adj": "OomScoreAdj",
    "pid_mode": "PidMode", "ipc_mode": "IpcMode", "uts_mode": "UTSMode",
    "userns_mode": "UsernsMode", "cgroupns_mode": "CgroupnsMode", "init": "Init",
    "publish_all": "PublishAllPorts",
}  # fmt: skip
LIST_NAMES = {
    "binds": "Binds", "mounts": "Mounts", "volumes_from": "VolumesFrom",
    "cap_add": "CapAdd", "cap_drop": "CapDrop",
    "security_opt": "SecurityOpt", "dns": "Dns", "dns_search": "DnsSearch",
    "dns_options": "DnsOptions", "extra_hosts": "ExtraHosts", "links": "Links",
    "group_add": "GroupAdd",
}  # fmt: skip
LIMIT_NAMES = {
    "memory": "Memory", "memory_swap": "MemorySwap",
    "memory_reservation": "MemoryReservation", "nano_cpus": "NanoCpus",
    "cpu_shares": "CpuShares", "cpuset_cpus": "CpusetCpus",
    "cpuset_mems": "CpusetMems", "pids": "PidsLimit", "blkio_weight": "BlkioWeight",
}  # fmt: skip
FURTHER = (
    "BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps", "BlkioWeightDevice", "CpuPeriod", "CpuQuota",
    "CpuRealtimePeriod", "CpuRealtimeRuntime", "Isolation", "KernelMemory",
    "MemorySwappiness", "OomKillDisable", "Runtime", "VolumeDriver",
)  # fmt: skip


def ports_json(ports: Iterable[PortBinding]) -> dict[str, list[dict[str, str]]]:
    """Return Docker's fields for published ports, by the container's port."""
    found: dict[str, list[dict[str, str]]] = {}
    for one in ports:
        there = {"HostIp": one.host, "HostPort": one.host_port}
        found.setdefault(one.port, []).append(there)
    return found


def ports_from(found: dict[str, Any]) -> tuple[PortBinding, ...]:
    """Read what ``ports_json`` wrote."""
    return tuple(
        PortBinding(port, one["HostIp"], one["HostPort"])
        for port, places in found.items()
        for one in places or ()
    )


# %% The nouns: what to run
def network_mode(text: str) -> tuple[Network, str]:
    """Return a NetworkMode's kind, and whose or which it is.

    >>> network_mode("container:ab"), network_mode("web")
    ((<Network.CONTAINER: 'container'>, 'ab'), (<Network.BRIDGE: 'bridge'>, 'web'))
    """
    word, _, of = text.partition(":")
    for one in (Network.NONE, Network.HOST, Network.CONTAINER):
        if word == one.value:
            return one, of
    return Network.BRIDGE, text


def device_json(text: str) -> dict[str, str]:
    """Return Docker's fields for a device."""
    host, inside, mode = text.split(":")
    names = ("PathOnHost", "PathInContainer", "CgroupPermissions")
    return dict(zip(names, (host, inside, mode), strict=True))


def ulimit_json(text: str) -> dict[str, Any]:
    """Return Docker's fields for a limit of a process."""
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    return {"Name": name, "Hard": int(hard), "Soft": int(soft)}


# %% The nouns: what to run
def lifecycle_fields(found: dict[str, Any]) -> dict[str, Any]:
    """Return the restart policy and the log of a hostconfig.json."""
    policy = found.get("RestartPolicy") or {"Name": "no"}
    name, count = policy["Name"], policy.get("MaximumRetryCount")
    log = found.get("LogConfig") or {}
    options = (log.get("Config") or {}).items()
    return {
        "restart": "" if name in ("", "no") else f"{name}:{count}" if count else name,
        "log_driver": log.get("Type") or "json-file",
        "log_opts": tuple(f"{key}={value}" for key, value in options),
    }


def host_config(found: dict[str, Any]) -> HostConfig:
    """Read what ``HostConfig.to_dict`` wrote."""
    said = {k: found.get(n) for k, n in HOST_NAMES.items()}
    given = {k: value for k, value in said.items() if value not in (None, "private")}
    given |= {k: tuple(found.get(n) or ()) for k, n in LIST_NAMES.items()}
    limits = {k: found[n] for k, n in LIMIT_NAMES.items() if found.get(n)}
    network, of = network_mode(found.get("NetworkMode") or "none")
    given |= lifecycle_fields(found)
    devices = (":".join(each.values()) for each in found.get("Devices") or ())
    ulimits = found.get("Ulimits") or ()
    return HostConfig(
        network=network,
        network_of=of,
        limits=Limits(**limits) if limits else NO_LIMITS,
        ports=ports_from(found.get("PortBindings") or {}),
        devices=tuple(devices),
        ulimits=tuple(f"{u['Name']}={u['Soft']}:{u['Hard']}" for u in ulimits),
        tmpfs=tuple(
            f"{k}:{v}" if v else k for k, v in (found.get("Tmpfs") or {}).items()
        ),
        sysctls=tuple(f"{k}={v}" for k, v in (found.get("Sysctls") or {}).items()),
        further=tuple((name, found[name]) for name in FURTHER if name in found),
        **given,
    )


PLAIN_HOST = HostConfig()


# %% With which words: the environment
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def default_env(spec: ProcessSpec) -> tuple[str, ...]:
    """Return the variables that Docker gives to a process, then the spec's own."""
    found = [f"PATH={DEFAULT_PATH}"]
    if spec.hostname:
        found.append(f"HOSTNAME={spec.hostname}")
    if spec.tty:
        found.append("TERM=xterm")
    return (*found, *spec.env)


def variables(env: Iterable[str], home: str) -> dict[str, str]:
    """Return variables by name; HOME is the user's where it is not given.

    >>> variables(("A=1", "A=2"), "/root")
    {'A': '2', 'HOME': '/root'}
    """
    found = dict(line.partition("=")[::2] for line in env)
    if not found.get("HOME"):
        found["HOME"] = home
    return found


# %% Where, and with which signals
# getrlimit(2): a resource's number is its place here
ULIMITS = """
cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice
rtprio rttime
"""


def ulimits_of(texts: Iterable[str]) -> tuple[tuple[int, int, int], ...]:
    """Return limits of ``NAME=SOFT:HARD`` as the kernel numbers them.

    >>> ulimits_of(["nofile=10:20"])
    ((7, 10, 20),)
    """
    found = []
    for text in texts:
        name, _, values = text.partition("=")
        soft, _, hard = values.partition(":")
        found.append((ULIMITS.split().index(name), int(soft), int(hard)))
    return tuple(found)


def set_ulimits(limits: Iterable[tuple[int, int, int]]) -> None:
    """Set limits of this process: (number, soft, hard), -1 for none.

    Raises RuntimeFault where one would be higher than our own and we may not.
    """
    for number, soft, hard in limits:
        try:
            setrlimit(number, soft, hard)
        except SysError as why:
            what = f"cannot set ulimit {ULIMITS.split()[number]} to {soft}:{hard}"
            text = (why.strerror or "").lower()
            raise RuntimeFault(f"{what}: {text}") from why


def set_score(score: int, process: str = "self") -> None:
    """Make a process a victim sooner or later; RuntimeFault without the right."""
    file = f"/proc/{process}/oom_score_adj"
    try:
        put(file, str(score))
    except PermissionError as why:
        what = f"cannot write {score}: only root on the host may lower a score"
        hint = f"ask for {first_line(file)} or more"
        raise RuntimeFault(what, where=file, hint=hint) from why


def reset_signals() -> None:
    """Give every signal its default: Python ignores SIGPIPE, `nohup` SIGHUP."""
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def go_to(root: int, cwd: str) -> None:
    """Enter the working directory, made when missing, which lies inside the root.

    A path such as /proc/self/fd/7 would lead out again through a descriptor that is
    open here (CVE-2024-21626); the open refuses it.
    """
    try:
        place = directory_in_root(root, os.path.join("/", cwd))
    except OSError as why:
        what = f"cannot enter the working directory: {why}"
        raise RuntimeFault(what, where=cwd) from why
    os.fchdir(place)
    os.close(place)
