# From book/441-blueprint.md. Edit there and tangle, or here and tangle --back.

# %% Blueprint: from an image to a process to run
"""What a container is to run: two configs in one, and the record for the runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping

from minidocker.calls import signal
from minidocker.containers import Container, ContainerStore, Status
from minidocker.errors import (
    RuntimeFault,
    UsageError,
    WordFault,
    did_you_mean,
)
from minidocker.etc_files import network_binds
from minidocker.mounts import MountFlags
from minidocker.namespaces import QUIET, Bind, Filesystem, MountStep, Sysctl
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network, ProcessSpec, ulimits_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% From image to container: merging two configs
def merged_env(
    image: tuple[str, ...] | None, own: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Return the command line's variables, then those of the image it left alone.

    A variable given twice keeps its first place and its last value.

    >>> merged_env(("PATH=/bin", "A=1"), ("A=2", "B=1", "A=3"))
    ('A=3', 'B=1', 'PATH=/bin')
    """
    named = {line.partition("=")[0]: line for line in own or ()}
    for line in image or ():
        named.setdefault(line.partition("=")[0], line)
    return tuple(named.values()) or None


# %% From image to container: merging two configs
def complete_config(image: ContainerConfig, own: ContainerConfig) -> ContainerConfig:
    """Return the command line's config, completed from the image's.

    Source: moby, daemon/commit.go, merge.
    """
    check_config(own)
    entrypoint, cmd = own.entrypoint, own.cmd
    if not entrypoint:
        entrypoint, cmd = image.entrypoint, cmd or image.cmd
    if entrypoint == ("",):  # `--entrypoint ""` takes the image's away
        entrypoint = None
    return own.replace(
        user=own.user or image.user,
        env=merged_env(image.env, own.env),
        entrypoint=entrypoint,
        cmd=cmd,
        working_dir=own.working_dir or image.working_dir,
        exposed_ports=either(image.exposed_ports, own.exposed_ports),
        volumes=either(image.volumes, own.volumes),
        labels=either(image.labels, own.labels),
        stop_signal=own.stop_signal or image.stop_signal,
        healthcheck=merged_check(image.healthcheck, own.healthcheck),
    )


def merged_check(
    image: Mapping[str, Any] | None, own: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return the image's health check with the command line's fields over it.

    >>> merged_check({"Test": ["CMD", "a"], "Retries": 2}, {"Retries": 5})
    {'Test': ['CMD', 'a'], 'Retries': 5}
    """
    if not own:
        return image
    return {**(image or {}), **{key: value for key, value in own.items() if value}}


def check_config(own: ContainerConfig) -> None:
    """Refuse early what could only fail in the container. Raises RuntimeFault."""
    if own.working_dir and not own.working_dir.startswith("/"):
        what = f'the working directory "{own.working_dir}" is invalid'
        raise RuntimeFault(what, hint="it needs to be an absolute path")
    if len(own.hostname) > 64:
        raise RuntimeFault("the host name is longer than 64 bytes")
    if own.stop_signal:
        signal_number(own.stop_signal)


def signal_number(text: str) -> int:
    """Return a signal's number from ``KILL``, ``SIGKILL``, ``9`` or ``RTMIN+3``.

    >>> [int(signal_number(text)) for text in ("SIGTERM", "hup", "9", "SIGRTMIN+3")]
    [15, 1, 9, 37]
    """
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = f"SIG{text.upper().removeprefix('SIG')}"
    if number := realtime_number(name):
        return number
    from signal import Signals

    known = Signals.__members__
    if name not in known:
        raise WordFault(f"invalid signal: {text}", hint=did_you_mean(name, known))
    return known[name]


def realtime_number(name: str) -> int:
    """Return the number of ``SIGRTMIN+N`` or ``SIGRTMAX-N``; 0 for another name."""
    first, last = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    for start, sign, base in (("SIGRTMIN+", 1, first), ("SIGRTMAX-", -1, last)):
        steps = name.removeprefix(start)
        if steps != name and steps.isdecimal():
            number = base + sign * int(steps)
            return number if first <= number <= last else 0
    return 0


def either(
    image: Mapping[str, Any] | None, own: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return both mappings in one; the command line's wins."""
    return {**image, **(own or {})} if image else own


# %% To the runtime
TMPFS_FLAGS = {
    "rw": (False, MountFlags.RDONLY), "ro": (True, MountFlags.RDONLY),
    "exec": (False, MountFlags.NOEXEC), "noexec": (True, MountFlags.NOEXEC),
    "suid": (False, MountFlags.NOSUID), "nosuid": (True, MountFlags.NOSUID),
    "dev": (False, MountFlags(0)), "nodev": (True, MountFlags.NODEV),
    "noatime": (True, MountFlags.NOATIME),
}  # fmt: skip


TRAVELLING = ("shared", "rshared", "slave", "rslave")


def bind_step(text: str) -> Bind:
    """Return the step that ``-v SOURCE:TARGET[:ro]`` asks for.

    >>> bind_step("/srv:/data:ro").describe()
    ('/data', 'bind', 'ro')
    """
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not (source.startswith("/") and target.startswith("/")):
        hint = "SOURCE:TARGET[:ro], both absolute paths"
        raise UsageError(f'invalid volume "{text}"', hint=hint)
    words = mode.split(",")
    travels = [word.removeprefix("r") for word in words if word in TRAVELLING]
    return Bind(
        source,
        os.path.normpath(target),
        "ro" in words,
        propagation=travels[0] if travels else "",
    )


# %% To the runtime
def tmpfs_step(text: str) -> Filesystem:
    """Return the step that ``--tmpfs PATH[:OPTIONS]`` asks for.

    >>> tmpfs_step("/run:size=1m,exec").describe()
    ('/run', 'tmpfs', 'nosuid,nodev,size=1m')
    """
    path, _, options = text.partition(":")
    if not path.startswith("/") or os.path.normpath(path) == "/":
        raise UsageError(f'invalid tmpfs "{text}"', hint="--tmpfs /PATH[:OPTIONS]")
    flags, data = QUIET, []
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if option in TMPFS_FLAGS:
            on, flag = TMPFS_FLAGS[option]
            flags = flags | flag if on else flags & ~flag
        elif name in TMPFS_VALUES and is_value(name, value):
            data.append(option)
        else:
            hint = TMPFS_VALUES.get(name)
            raise UsageError(f'invalid tmpfs option ["{option}"]', hint=hint)
    return Filesystem(
        os.path.normpath(path), "tmpfs", flags, ",".join(data), links=True
    )


TMPFS_VALUES = {
    "size": "size=BYTES, with k, m, g or %", "nr_inodes": "nr_inodes=NUMBER",
    "mode": "mode=OCTAL", "uid": "uid=NUMBER", "gid": "gid=NUMBER",
}  # fmt: skip


def is_value(name: str, text: str) -> bool:
    """Say whether the kernel can read a value of a tmpfs. Source: tmpfs(5).

    >>> is_value("size", "64m"), is_value("size", "abc"), is_value("mode", "9")
    (True, False, False)
    """
    units = {"size": "kmgtpe%", "nr_inodes": "kmgtpe"}.get(name, "")
    digits = "01234567" if name == "mode" else "0123456789"
    number = text[:-1] if text[-1:].lower() in units else text
    return bool(number) and not number.strip(digits)


def device_step(text: str) -> Bind:
    """Return the step for ``HOST:CONTAINER:rwm`` of ``--device``."""
    host, inside, _ = text.split(":")
    return Bind(host, inside, devices=True)


# %% To the runtime
def shares_of(store: ContainerStore, host: HostConfig) -> tuple[tuple[str, int], ...]:
    """Return the kinds of namespaces that a container shares, and whose they are.

    Raises RuntimeFault when the other container does not run.
    """
    modes = {
        "pid": host.pid_mode, "ipc": host.ipc_mode, "uts": host.uts_mode,
        "cgroup": host.cgroupns_mode,
        "net": host.mode if host.network is Network.CONTAINER else "",
    }  # fmt: skip
    found = [("net", 0)] if host.network is Network.HOST else []
    for kind, mode in modes.items():
        if mode == "host":
            found.append((kind, 0))
        elif mode.startswith("container:"):
            other = store.get(mode.partition(":")[2])
            state = store.state(other.id)
            if state.status is not Status.RUNNING:
                what = f"cannot join {kind} of a container that does not run"
                raise RuntimeFault(f"{what}: {other.name}")
            found.append((kind, state.pid))
    return tuple(found)


# %% To the runtime
def sysctls_of(config: ContainerConfig, host: HostConfig) -> tuple[Sysctl, ...]:
    """Return the settings of a container's namespaces, its domain's name among them."""
    found = [Sysctl(*text.split("=", 1)) for text in host.sysctls]
    if config.domainname and not host.uts_mode:
        found.append(Sysctl("kernel.domainname", config.domainname))
    return tuple(found)


def mount_steps(container: Container) -> tuple[MountStep, ...]:
    """Return the steps that mount what ``-v`` and ``--mount`` ask for."""
    if container.mounts:
        return tuple(point.step() for point in container.mounts)
    return tuple(map(bind_step, container.host.binds))


def files_place(store: ContainerStore, container: Container) -> str:
    """Return where the files under /etc lie that a container is shown.

    Who shares another's network shares its names too.
    """
    host = container.host
    shares = host.network is Network.CONTAINER
    return store.path(host.network_of if shares else container.id)


def process_spec(store: ContainerStore, container: Container) -> ProcessSpec:
    """Return how a container's first process is started; descriptors are 0, 1, 2."""
    config, host, place = container.config, container.host, store.path(container.id)
    return ProcessSpec(
        container.argv,
        env=config.env or (),
        cwd=config.working_dir or "/",
        user=config.user,
        tty=config.tty,
        hostname=config.hostname,
        view=store.layers.rw_view(container.id, volatile=host.auto_remove),
        rootfs=f"{place}/rootfs",
        mounts=(
            *network_binds(files_place(store, container)),
            *map(tmpfs_step, host.tmpfs),
            *map(device_step, host.devices),
            *mount_steps(container),
        ),
        network=host.network,
        readonly=host.readonly,
        security=host.security,
        shares=shares_of(store, host),
        sysctls=sysctls_of(config, host),
        shm_size=0 if host.ipc_mode == "none" else host.shm_size,
        ulimits=ulimits_of(host.ulimits),
        oom_score_adj=host.oom_score_adj,
        groups=host.group_add,
    )
