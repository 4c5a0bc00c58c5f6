# From book/424-runtime.md. Edit there and tangle, or here and tangle --back.

# %% Runtime: from a root file system to a process
"""Build a container around a process that becomes its program; say why it failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from minidocker.calls import SysError
from minidocker.cgroups import join
from minidocker.destinations import PLACE, directory_in_root, magic
from minidocker.dialogue import (
    ask_to_go,
    give_stdio,
    in_child,
    introduce,
    listen,
    new_channel,
    new_terminal,
    take_stdio,
)
from minidocker.errors import RuntimeFault
from minidocker.identity import (
    Identity,
    User,
    become,
    die_with_parent,
    docker_identity,
    find_user,
    set_labels,
    with_groups,
)
from minidocker.last_call import execute
from minidocker.linux import (
    CloneFlags,
    Prctl,
    clone3,
    personality,
    prctl,
    setdomainname,
    sethostname,
    setns,
    start_time,
    unshare,
)
from minidocker.mounts import (
    AT_EMPTY_PATH,
    MountAttr,
    MountFlags,
    is_first_user_namespace,
    mount,
    mount_setattr,
    mountinfo,
)
from minidocker.namespaces import (
    Bind,
    MountStep,
    apply_mounts,
    container_kinds,
    flags_of,
    pivot,
    raise_loopback,
)
from minidocker.program import (
    ProcessSpec,
    default_env,
    go_to,
    reset_signals,
    set_score,
    set_ulimits,
    variables,
)
from minidocker.records import Record
from minidocker.security import APPARMOR, docker_mounts, prepared


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


# %% The noun: what runs
class Process(Record):
    """A started process: its number and its birth name it beyond doubt.

    ``start_time`` is in clock ticks since boot, field 22 of /proc/PID/stat.
    ``terminal`` is the master side of its pty, or -1; the caller closes both
    descriptors.
    """

    pid: int
    pidfd: int
    start_time: int
    terminal: int = -1

    def wait(self) -> int:
        """Wait for the end; return the exit status, or 128 + the signal's number."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code


# %% The noun: what it is to become
PRIVATE = MountFlags.PRIVATE | MountFlags.REC


class Plan(Record):
    """A container as its first process builds it from inside, and what it becomes.

    ``steps`` are all its mounts, in order. Of the namespaces, ``kinds`` are made for
    it, and (kind, path) of ``paths`` entered; the others are the caller's. What of the
    host's mounts travels in says ``propagation``. Device nodes of the root itself can
    be opened only with ``devices``. Without ``identity`` it is Docker's, for the user
    who is looked up. ``personality`` is -1 for the usual one.
    """

    spec: ProcessSpec
    steps: tuple[MountStep, ...] = ()
    kinds: tuple[str, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    propagation: MountFlags = PRIVATE
    devices: bool = True
    identity: Identity | None = None
    domainname: str = ""
    personality: int = -1


# %% The noun: what it is to become
class Moments:
    """What others do at three moments while a container is built: here, nothing.

    ``parent`` is the channel to one that stays, and with which the process dies.
    """

    def __init__(self, parent: socket | None = None) -> None:
        self.parent = parent

    def rooted(self, root: int) -> User | None:
        """Nothing is mounted in the root yet. Return who it is to be, if it matters."""

    def mounted(self) -> None:
        """All is mounted, and the host is still in sight."""

    def ready(self, root: int, env: dict[str, str]) -> bytes | None:
        """Only the rights are to be given up. Return the filter if it comes late."""


# %% Becoming the program
def whole_user(root: int, spec: ProcessSpec) -> User:
    """Look up who a process is to be, in the tree below ``root``, a descriptor."""
    return with_groups(root, find_user(root, spec.user), spec.groups)


def settle(
    spec: ProcessSpec, slave: int = -1, user: User | None = None
) -> tuple[int, User]:
    """Give this process its place, limits, session and descriptors; not yet its user.

    Returns a descriptor of the root, and who it is to be, looked up if that is not
    known yet. ``slave`` is that of its terminal, or -1.
    """
    root = os.open("/", PLACE)
    user = user or whole_user(root, spec)
    go_to(root, spec.cwd)
    set_ulimits(spec.ulimits)
    os.setsid()
    take_stdio(spec, slave)
    give_stdio(user)
    reset_signals()
    os.umask(0o022)
    return root, user


def run_program(
    plan: Plan, moments: Moments, slave: int = -1, user: User | None = None
) -> NoReturn:
    """Turn this process, which is inside the container, into the program.

    It is ``alone`` there if nobody can have come in since it began.
    """
    spec = plan.spec
    root, found = settle(spec, slave, user)
    security, env = spec.security, variables(spec.env, found.home)
    program = moments.ready(root, env)
    if program is not None:
        security = security.replace(program=program)
    identity = plan.identity or docker_identity(found, security)
    become(found, identity, security, moments.parent)
    alone = moments.parent is not None and "pid" in plan.kinds
    execute(root, spec.argv, env, spec.init, alone=alone)


# %% What is shared
@contextmanager
def opened(path: str) -> Iterator[int]:
    """Yield a descriptor of the namespace at a path for a block, or -1 for none."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1
    try:
        yield handle
    finally:
        if handle >= 0:
            os.close(handle)


def enter_paths(paths: Iterable[tuple[str, str]]) -> None:
    """Enter the namespaces at some paths but the pid's, the user's first."""
    for kind, path in sorted(paths, key=lambda pair: pair[0] != "user"):
        if kind != "pid":
            try:
                with opened(path) as handle:
                    setns(handle, flags_of([kind]))
            except OSError as why:
                what = f"cannot enter the {kind} namespace: {why}"
                raise RuntimeFault(what, where=path) from why


# %% What is shared
def clone_into(
    spec: ProcessSpec, flags: CloneFlags, target: int = -1
) -> tuple[int, int]:
    """Clone, in the pid namespace ``target`` and in a group of version 2 if so said."""
    unified = spec.group.unified if spec.group else ""
    group = os.open(unified, os.O_RDONLY | os.O_DIRECTORY) if unified else -1
    elsewhere = target >= 0
    if elsewhere and not is_first_user_namespace():
        from minidocker.sharing import clone_by_another

        return clone_by_another(target, flags, group)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if elsewhere else -1
    pid = -1
    try:
        if elsewhere:
            setns(target, CloneFlags.NEWPID)
        pid, pidfd = clone3(flags, cgroup=group)
        return pid, pidfd
    finally:
        if elsewhere and pid != 0:  # the child is where it is to be
            setns(home, CloneFlags.NEWPID)
        for fd in {home, group} - {-1}:
            os.close(fd)


# %% A new container
def mount_view(spec: ProcessSpec) -> int:
    """Mount the root file system of a spec; return a descriptor of its top."""
    if spec.view is None:
        raise RuntimeFault("no root file system was given")
    spec.view.mount(spec.rootfs)
    return os.open(spec.rootfs, PLACE | os.O_DIRECTORY)


def cut_off(rootfs: str, propagation: MountFlags) -> None:
    """Choose what of the host's mounts travels in; the root's parent keeps apart."""
    mount(None, "/", None, propagation)
    if propagation & MountFlags.SHARED:
        above = [m.target for m in mountinfo() if is_above(m.target, rootfs)]
        mount(None, max(above, key=len), None, MountFlags.PRIVATE)


def is_above(mounted: str, path: str) -> bool:
    """Say whether ``path`` is at or below where something is mounted."""
    return path == mounted or path.startswith(mounted.rstrip("/") + "/")


def new_console(root: int, spec: ProcessSpec, channel: socket) -> int:
    """Make the terminal, show it as /dev/console, return its slave."""
    slave = new_terminal(root, spec, channel)
    Bind(magic(slave), "/dev/console", devices=True).apply(root)
    return slave


# %% A new container
def guard_root(spec: ProcessSpec, root: int, *, devices: bool) -> None:
    """Say what may not be done in the root itself, which is the mount ``root``.

    The working directory is made now, for later it may be too late.
    """
    attributes = MountAttr(0) if devices else MountAttr.NODEV
    if spec.readonly:
        os.close(directory_in_root(root, f"/{spec.cwd}"))
        attributes |= MountAttr.RDONLY
    if attributes:
        mount_setattr(root, "", attributes, flags=AT_EMPTY_PATH)


def name_container(plan: Plan) -> None:
    """Give the container its names, and its loopback where the network is its own."""
    if plan.spec.hostname:
        sethostname(plan.spec.hostname)
    if plan.domainname:
        setdomainname(plan.domainname)
    if "net" in plan.kinds:
        raise_loopback()
    if plan.personality >= 0:
        personality(plan.personality)


# %% A new container
def build_container(
    plan: Plan, channel: socket, moments: Moments
) -> tuple[int, User | None]:
    """Build the container around this process; return its terminal's slave, or -1.

    With it comes who the process is to be, if ``moments`` know. It is in new namespaces
    already, and what it mounts goes with it.
    """
    spec = plan.spec
    steps = tuple(step.ahead() for step in plan.steps)
    cut_off(spec.rootfs, plan.propagation)
    root = mount_view(spec)
    user = moments.rooted(root)
    apply_mounts(steps, root)
    slave = new_console(root, spec, channel) if spec.tty else -1
    moments.mounted()
    guard_root(spec, root, devices=plan.devices)
    pivot(root, travels=not plan.propagation & MountFlags.PRIVATE)
    name_container(plan)
    return slave, user


def be_container(plan: Plan, channel: socket, moments: Moments) -> NoReturn:
    """Build the container around this process, and become its program."""
    slave, user = build_container(plan, channel, moments)
    run_program(plan, moments, slave, user)


# %% Our own plan
def default_mounts(spec: ProcessSpec) -> tuple[MountStep, ...]:
    """Return Docker's mounts as this container has them."""
    security = spec.security
    joined = {kind for kind, pid in spec.shares if pid} - {"net"}
    joined |= {"net"} if spec.netns >= 0 else set()
    return docker_mounts(
        rootless=not is_first_user_namespace(),
        shared=[kind for kind in spec.shared if kind not in joined],
        shm_size=spec.shm_size,
        sysctls=spec.sysctls,
        masked=security.masked,
        privileged=security.privileged,
        group=spec.group,
    )


def labelled(spec: ProcessSpec) -> ProcessSpec:
    """Return ``spec`` with the profile of AppArmor that it gets, or none.

    Raises as ``chosen_profile`` of chapter labels, which is read where there is one.
    """
    security = spec.security
    if not security.profile and not os.path.exists(APPARMOR):
        return spec
    from minidocker.labels import chosen_profile

    return spec.replace(security=security.replace(profile=chosen_profile(security)))


def others_memory(pid: int) -> tuple[MountStep, ...]:
    """Return the step that shows the shared memory of a process's container."""
    from minidocker.sharing import SharedMemory

    return (SharedMemory(f"/proc/{pid}/ns/mnt"),)


def plan_for(spec: ProcessSpec) -> Plan:
    """Return how a container of ours is built: Docker's mounts, then its own.

    Raises as ``labelled``.
    """
    spec = labelled(spec)
    shared, others = spec.shared, {kind: pid for kind, pid in spec.shares if pid}
    paths = [("net", magic(spec.netns))] if spec.netns >= 0 else []
    paths += [(kind, f"/proc/{pid}/ns/{kind}") for kind, pid in others.items()]
    memory = others_memory(others["ipc"]) if "ipc" in others else ()
    name = "" if "uts" in shared else spec.hostname
    return Plan(
        spec.replace(env=default_env(spec), hostname=name),
        (*default_mounts(spec), *memory, *spec.mounts),
        container_kinds(shared),
        tuple(paths),
        devices=spec.security.privileged,
    )


# %% Its parent
def start(
    spec: ProcessSpec, told: Callable[[Plan, User], None] = lambda *_: None
) -> Process:
    """Start a container's first process; return when its program runs.

    ``told`` is called with how and as whom it will run, before it does. The process
    dies with the thread that started it. Whoever calls must reap it, with
    ``Process.wait``. Raises CommandNotFoundError, NotExecutableError, RuntimeFault,
    what ``told`` raises, and UnsupportedError where namespaces are forbidden; then
    nothing is left.
    """
    plan = plan_for(spec)
    late = CloneFlags.NEWCGROUP if spec.group and spec.group.places else CloneFlags(0)
    flags = flags_of(plan.kinds)
    with opened(dict(plan.paths).get("pid", "")) as target:
        ours, theirs = new_channel()
        try:
            pid, pidfd = clone_into(spec, flags & ~late, target)
        except SysError as why:
            from minidocker.rootless import no_namespaces

            ours.close()
            theirs.close()
            raise no_namespaces(why) from why
        if pid == 0:
            ours.close()
            in_child(theirs, lambda: live(plan, theirs, flags & late))
    theirs.close()
    security, tell = spec.security, partial(told, plan)
    return watch_start(pid, pidfd, ours, tell, lambda: prepared(security).program)


# %% Its parent
class Attended(Moments):
    """The moments of a container whose parent stays, and has something to do meanwhile.

    It writes down who the process is to be, and compiles the filter.
    """

    def __init__(self, spec: ProcessSpec, channel: socket) -> None:
        super().__init__(channel)
        self.spec, self.channel = spec, channel

    def rooted(self, root: int) -> User:
        """Look up who it is to be, before anything covers the image's files."""
        user = whole_user(root, self.spec)
        introduce(self.channel, user)
        return user

    def ready(self, root: int, env: dict[str, str]) -> bytes:
        """Wait for the parent, and get the filter."""
        return ask_to_go(self.channel)


# %% Its parent
def take_place(spec: ProcessSpec) -> None:
    """Choose the label of the next execve, join the groups, be a victim when due.

    To be called while /proc and /sys are the host's, and /proc/self is ours.
    """
    if spec.security.profile:
        set_labels(spec.security.profile)
    if spec.group:
        join(spec.group.joined)
    if spec.oom_score_adj:
        set_score(spec.oom_score_adj)


def live(plan: Plan, channel: socket, late: CloneFlags) -> NoReturn:
    """Be the first process of a container whose parent stays: take its place, be it."""
    spec = plan.spec
    take_place(spec)
    if late:
        unshare(late)
    if "pid" not in plan.kinds:  # those who are there may not look into us
        prctl(Prctl.SET_DUMPABLE, 0)
    enter_paths(plan.paths)
    die_with_parent(channel)
    be_container(plan, channel, Attended(spec, channel))


# %% Its parent
def watch_start(
    pid: int,
    pidfd: int,
    ours: socket,
    told: Callable[[User], None] = lambda _: None,
    compiled: Callable[[], bytes | None] = lambda: None,
) -> Process:
    """Wait until the child runs its program, or reap it and raise its error.

    ``compiled`` makes the filter that it asks for, while it is at work itself.
    """
    born = start_time(pid)
    try:
        program = compiled() or b""
        return Process(pid, pidfd, born, listen(ours, told, program))
    except BaseException:
        ours.close()
        os.close(pidfd)
        os.waitpid(pid, 0)
        raise
