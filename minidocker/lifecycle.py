# From book/442-lifecycle.md. Edit there and tangle, or here and tangle --back.

# %% Lifecycle: from create to remove
"""A container's life: how it is started; signal, wait, stop, remove."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress

from minidocker.calls import signal
from minidocker.containers import (
    Container,
    ContainerStore,
    State,
    Status,
    check_name,
    claim_name,
    description,
    discard,
    is_torn,
    names_of,
    no_such,
    signal_process,
    tell,
    throw_away,
)
from minidocker.durable import (
    looking,
    marked,
    store_lock,
    sync_path,
    write_lasting,
)
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
    RuntimeFault,
    UsageError,
    WordFault,
    did_you_mean,
)
from minidocker.etc_files import network_binds
from minidocker.linux import pidfd_open, start_time
from minidocker.mounts import MountFlags
from minidocker.namespaces import QUIET, Bind, Filesystem, MountStep, Sysctl
from minidocker.oci import ContainerConfig
from minidocker.program import ULIMITS, HostConfig, Network, ProcessSpec
from minidocker.records import json_text


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
        name = option.partition("=")[0]
        if option in TMPFS_FLAGS:
            on, flag = TMPFS_FLAGS[option]
            flags = flags | flag if on else flags & ~flag
        elif name in ("size", "mode", "nr_inodes", "uid", "gid"):
            data.append(option)
        else:
            raise UsageError(f'invalid tmpfs option "{option}"')
    return Filesystem(
        os.path.normpath(path), "tmpfs", flags, ",".join(data), links=True
    )


def device_step(text: str) -> Bind:
    """Return the step for ``HOST:CONTAINER:rwm`` of ``--device``."""
    host, inside, _ = text.split(":")
    return Bind(host, inside, devices=True)


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


# %% To the runtime
def shares_of(store: ContainerStore, host: HostConfig) -> tuple[tuple[str, int], ...]:
    """Return the kinds of namespaces that a container shares, and whose they are.

    Raises ConflictError when the other container does not run.
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
                raise ConflictError(f"{what}: {other.name}")
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
        shm_size=host.shm_size,
        ulimits=ulimits_of(host.ulimits),
        oom_score_adj=host.oom_score_adj,
        groups=host.group_add,
    )


# %% Kill, wait, stop
def signal_number(text: str) -> int:
    """Return a signal's number from ``KILL``, ``SIGKILL`` or ``9``.

    >>> [int(signal_number(text)) for text in ("SIGTERM", "hup", "9")]
    [15, 1, 9]
    """
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = f"SIG{text.upper().removeprefix('SIG')}"
    from signal import Signals

    known = Signals.__members__
    if name not in known:
        raise WordFault(f"invalid signal: {text}", hint=did_you_mean(name, known))
    return known[name]


def kill(store: ContainerStore, container: Container, number: int) -> None:
    """Send a signal to the first process. Raises ConflictError when none runs.

    After one that is to end the container, its restart policy does nothing.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    ending = signal_number(container.config.stop_signal or "TERM")
    if number in (signal.SIGKILL, ending):
        make_mark(store, container, STOPPED)
        thaw(store, container)
    tell(store, container, "kill", signal=str(int(number)))
    signal_process(state, number)


# %% Kill, wait, stop
def wait(store: ContainerStore, container: Container) -> int:
    """Wait until a container does not run; return its exit status.

    Works also when the container removes itself meanwhile.
    """
    try:
        handle = os.open(store.path(container.id, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as why:
        raise no_such(container.name) from why
    with open(handle, encoding="ascii") as file:
        fcntl.flock(handle, fcntl.LOCK_SH)
        written = file.read()
    return int(written) if written else store.state(container.id).exit_code


def wait_until_gone(state: State, seconds: float) -> bool:
    """Wait for the end of the process that a state names; say whether it came.

    Negative ``seconds`` wait for ever.
    """
    try:
        handle = pidfd_open(state.pid)
    except OSError:
        return True
    try:
        if start_time(state.pid) != state.start_time:
            return True
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        return bool(waiting.poll(seconds * 1000 if seconds >= 0 else None))
    finally:
        os.close(handle)


# %% Kill, wait, stop
def stop(
    store: ContainerStore, container: Container, seconds: float | None = None
) -> None:
    """Send the stop signal, and KILL after ``seconds``; return when it has ended.

    A container that does not run is left as it is. The first process of a pid
    namespace ignores every signal that it has no handler for, so TERM often does
    nothing: that is why `docker stop` so often takes ten seconds.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        return
    make_mark(store, container, STOPPED)
    state = past_pause(store, container, state)
    number = signal_number(container.config.stop_signal or "TERM")
    tell(store, container, "kill", signal=str(int(number)))
    signal_process(state, number)
    if not wait_until_gone(state, stop_seconds(container, seconds)):
        tell(store, container, "kill", signal=str(int(signal.SIGKILL)))
        signal_process(state, signal.SIGKILL)
    with suppress(NotFoundError):  # --rm: it may be gone altogether
        wait(store, container)
    tell(store, container, "stop")


def stop_seconds(container: Container, seconds: float | None) -> float:
    """Return how long the stop signal is given: as asked for, as made with, or 10."""
    if seconds is not None:
        return seconds
    own = container.config.stop_timeout
    return 10 if own is None else own


def past_pause(store: ContainerStore, container: Container, state: State) -> State:
    """Thaw, and wait for a supervisor that is about to start the program again."""
    thaw(store, container)
    while state.restarting and state.status is Status.RUNNING:
        ring(store.path(container.id))
        time.sleep(0.01)
        state = store.state(container.id)
    return state


def thaw(store: ContainerStore, container: Container) -> None:
    """Let a paused container go on, so that a signal reaches it; else do nothing."""
    if os.path.exists(store.path(container.id, "paused")):
        from minidocker.pausing import unpause

        with suppress(ConflictError):
            unpause(store, container)


# %% Kill, wait, stop
@contextmanager
def door_of(place: str) -> Iterator[str]:
    """Yield a short path to the door of a container's directory ``place``."""
    home = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{home}/door"
    finally:
        os.close(home)


def ring(place: str) -> None:
    """Ring at a container's door so that its supervisor looks around; never waits."""
    from _socket import AF_UNIX, SOCK_SEQPACKET, socket

    with closing(socket(AF_UNIX, SOCK_SEQPACKET)) as channel, suppress(OSError):
        channel.setblocking(False)
        with door_of(place) as path:
            channel.connect(path)
        channel.send(b"look")


# %% Kill, wait, stop
STOPPED, CHANGED, KEPT = "stopped", "changed", "kept"


def make_mark(store: ContainerStore, container: Container, name: str) -> None:
    """Leave an empty file in a container's directory."""
    with suppress(FileNotFoundError):  # it may be gone altogether
        path = store.path(container.id, name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


@contextmanager
def kept(store: ContainerStore, container: Container) -> Iterator[None]:
    """Keep a container with ``auto_remove`` although it ends within the block."""
    make_mark(store, container, KEPT)
    try:
        yield
    finally:
        take_mark(store, container, KEPT)


def take_mark(store: ContainerStore, container: Container, name: str) -> bool:
    """Remove an empty file from a container's directory; say whether it was there."""
    try:
        os.unlink(store.path(container.id, name))
    except FileNotFoundError:
        return False
    return True


# %% Another name
def rewrite_host(store: ContainerStore, container: Container, host: HostConfig) -> None:
    """Write down what holds on this host for a container; who attends it reads it."""
    path = store.path(container.id, "hostconfig.json")
    write_lasting(path, json_text(host.to_dict()))
    make_mark(store, container, CHANGED)


def rename(store: ContainerStore, container: Container, name: str) -> None:
    """Give a container another name, running or not.

    Raises ConflictError for a name that is taken, an error for one that is none.
    """
    if not name:
        raise MinidockerError("neither old nor new names may be empty")
    if container.name == name.removeprefix("/"):
        what = "renaming a container with the same name as its current name"
        raise ConflictError(what)
    new = container.replace(name=check_name(name.removeprefix("/")))
    root, place = store.layers.root, store.path(container.id)
    with store_lock(root), marked(root):
        claim_name(store.names, new.name, container.id)
        sync_path(store.names)
        text = json_text(description(new, place))
        write_lasting(f"{place}/config.v2.json", text)
        make_mark(store, container, CHANGED)
        for link in names_of(store, container.id):
            if link != new.name:
                os.unlink(f"{store.names}/{link}")
    tell(store, new, "rename", oldName=f"/{container.name}")


# %% Remove, and what a crash left
def remove(
    store: ContainerStore,
    container: Container,
    *,
    force: bool = False,
    volumes: bool = False,
) -> None:
    """Remove a container; a running one only by force, after KILL.

    With ``volumes`` those that were made for it go as well.
    """
    state = store.state(container.id)
    if state.status is Status.RUNNING and not force:
        what = f'you cannot remove a running container "/{container.name}"'
        hint = "stop it first, or remove it with -f"
        if state.paused:
            what, hint = what.replace("running", "paused"), f"unpause, then {hint}"
        raise ConflictError(what, hint=hint)
    if state.status is Status.RUNNING:
        kill(store, container, signal.SIGKILL)
        wait(store, container)
    try:
        lock = store.lock(container)
    except NotFoundError:
        return  # it was one with --rm
    try:
        throw_away(store, container.id)
    finally:
        os.close(lock)
    if container.mounts and (volumes or container.host.auto_remove):
        from minidocker.storing import remove_anonymous

        remove_anonymous(store, container)
    tell(store, container, "destroy")


# %% Remove, and what a crash left
def sweep_containers(store: ContainerStore) -> None:
    """Remove what crashes left: half-made containers, and ended ones with --rm.

    The caller holds the store's lock alone, so that nobody makes one just now.
    """
    for id in os.listdir(store.root) if os.path.isdir(store.root) else ():
        with looking(store.path(id, "lock")) as taken:
            if taken:
                continue
        if id not in store.ids() or is_torn(store, id):
            discard(store, id)
        elif is_to_go(store, id):
            gone = store.get(id)
            discard(store, id)
            tell(store, gone, "destroy")
    for name in os.listdir(store.names) if os.path.isdir(store.names) else ():
        if not is_called(store, os.readlink(f"{store.names}/{name}"), name):
            os.unlink(f"{store.names}/{name}")


def is_called(store: ContainerStore, id: str, name: str) -> bool:
    """Say whether there is a container of an id, and it has that name or tells none."""
    try:
        return store.get(id).name == name
    except IntegrityError:
        return True
    except NotFoundError:
        return os.path.isdir(store.path(id))  # it was only half made


def is_to_go(store: ContainerStore, id: str) -> bool:
    """Say whether a container has ended and was to be removed at its end."""
    if os.path.exists(store.path(id, KEPT)):
        return False
    return store.get(id).host.auto_remove and bool(store.state(id).finished)
