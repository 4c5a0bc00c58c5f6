# From book/424-runtime.md. Edit there and tangle, or here and tangle --back.

# %% Runtime: from a root file system to a process
"""Start a process in a new container; say why it failed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.calls import SysError
from minidocker.cgroups import join
from minidocker.dialogue import (
    TIOCSCTTY,
    ask_to_go,
    in_child,
    introduce,
    listen,
    new_channel,
    new_terminal,
)
from minidocker.errors import RuntimeFault, UnsupportedError
from minidocker.last_call import execute
from minidocker.linux import (
    CloneFlags,
    Prctl,
    clone3,
    close_range,
    pidfd_open,
    prctl,
    sethostname,
    setns,
    start_time,
    unshare,
)
from minidocker.mounts import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MountAttr,
    is_first_user_namespace,
    mount_setattr,
    open_tree,
)
from minidocker.namespaces import (
    CLONE_TREE,
    PLACE,
    Bind,
    MountStep,
    apply_mounts,
    attach_copy,
    container_flags,
    directory_in_root,
    flags_of,
    keep_mounts_private,
    magic,
    pivot,
    put,
    raise_loopback,
)
from minidocker.program import (
    ProcessSpec,
    become,
    die_with_parent,
    go_to,
    program_env,
    reset_signals,
    set_ulimits,
)
from minidocker.records import Record
from minidocker.security import APPARMOR, docker_mounts, prepared
from minidocker.users import User, find_user, with_groups


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


# %% Becoming the program
def take_stdio(spec: ProcessSpec, slave: int) -> None:
    """Put the three descriptors in place; all others close at the execve."""
    given = (spec.stdin, spec.stdout, spec.stderr) if slave < 0 else (slave,) * 3
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in given]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    close_range(3, 0xFFFFFFFF, 4)  # CLOSE_RANGE_CLOEXEC


def give_stdio(user: User) -> None:
    """Let the user own its pipes or terminal, or it could not open /dev/stderr.

    Files and /dev/null are not ours to give. Source: runc, fixStdioPermissions.
    """
    for number in range(3):
        status = os.fstat(number)
        own = stat.S_ISFIFO(status.st_mode) or os.isatty(number)
        if own and status.st_uid != user.uid:
            with suppress(OSError):  # an id that is not mapped: become() will say so
                os.fchown(number, user.uid, -1)


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
    if slave >= 0:
        fcntl.ioctl(0, TIOCSCTTY, 0)
    give_stdio(user)
    reset_signals()
    os.umask(0o022)
    return root, user


def run_program(
    spec: ProcessSpec, channel: socket, slave: int = -1, user: User | None = None
) -> NoReturn:
    """Turn this process, which is inside the container, into the program.

    With a ``user`` it is the first one, which has told its parent, and waits for it.
    """
    root, found = settle(spec, slave, user)
    security = spec.security
    if user:
        security = security.replace(program=ask_to_go(channel))
    become(found, security, channel)
    env = program_env(spec, found.home)
    alone = bool(user) and "pid" not in spec.shared
    execute(root, spec.argv, env, spec.init, alone=alone)


# %% What is shared
@contextmanager
def joined_processes(spec: ProcessSpec) -> Iterator[dict[str, int]]:
    """Yield pidfds by kind, of the processes whose namespaces are shared."""
    found: dict[str, int] = {}
    try:
        for kind, pid in spec.shares:
            if pid:
                found[kind] = pidfd_open(pid)
        yield found
    finally:
        for pidfd in found.values():
            os.close(pidfd)


# %% What is shared
def clone_by_another(target: int, flags: CloneFlags, group: int) -> tuple[int, int]:
    """Clone in another's pid namespace by a child that enters it, without root.

    Who is there cannot come back to a namespace that the host's root owns. What it
    clones is our child, not its own. ``group`` is closed.
    """
    heard, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            setns(target, CloneFlags.NEWPID)
            pid, _ = clone3(flags | CloneFlags.PARENT, cgroup=group)
        except OSError as why:
            pid = -(why.errno or errno.EPERM)
        if pid:
            os.write(told, b"%d" % pid)
            os._exit(0)
        for fd in (heard, told):
            os.close(fd)
        return 0, -1
    os.close(told)
    os.waitpid(middle, 0)
    with open(heard, encoding="ascii") as file:
        number = int(file.read() or 0)
    if group >= 0:
        os.close(group)
    if number <= 0:
        raise SysError(-number, "clone3", flags)
    return number, pidfd_open(number)


# %% What is shared
def clone_into(
    spec: ProcessSpec, flags: CloneFlags, joined: dict[str, int]
) -> tuple[int, int]:
    """Clone, in another's pid namespace and in a group of version 2 if so said."""
    unified = spec.group.unified if spec.group else ""
    group = os.open(unified, os.O_RDONLY | os.O_DIRECTORY) if unified else -1
    elsewhere = "pid" in joined
    if elsewhere and not is_first_user_namespace():
        return clone_by_another(joined["pid"], flags, group)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if elsewhere else -1
    pid = -1
    try:
        if elsewhere:
            setns(joined["pid"], CloneFlags.NEWPID)
        pid, pidfd = clone3(flags, cgroup=group)
        return pid, pidfd
    finally:
        if elsewhere and pid != 0:  # the child is where it is to be
            setns(home, CloneFlags.NEWPID)
        for fd in {home, group} - {-1}:
            os.close(fd)


# %% What is shared
def join_namespaces(spec: ProcessSpec, joined: dict[str, int]) -> int:
    """Enter others' namespaces; return a copy of their /dev/shm with ``ipc``, or -1.

    The network may be one that was made ready for us.
    """
    if spec.netns >= 0:
        setns(spec.netns, CloneFlags.NEWNET)
    for kind, pidfd in joined.items():
        if kind != "pid":
            setns(pidfd, flags_of([kind]))
    return borrowed_shm(joined["ipc"]) if "ipc" in joined else -1


def borrowed_shm(pidfd: int) -> int:
    """Return a detached copy of the mount at another container's /dev/shm.

    It must be copied from inside its mount namespace, and may then be carried out.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(pidfd, CloneFlags.NEWNS)
        try:
            return open_tree(AT_FDCWD, "/dev/shm", CLONE_TREE)  # noqa: S108
        finally:
            setns(home, CloneFlags.NEWNS)
    finally:
        os.close(home)


# %% A new container
def mount_view(spec: ProcessSpec) -> int:
    """Mount the root file system of a spec; return a descriptor of its top."""
    if spec.view is None:
        raise RuntimeFault("no root file system was given")
    spec.view.mount(spec.rootfs)
    return os.open(spec.rootfs, PLACE | os.O_DIRECTORY)


def new_console(root: int, spec: ProcessSpec, channel: socket) -> int:
    """Make the terminal, show it as /dev/console, return its slave."""
    slave = new_terminal(root, spec, channel)
    Bind(magic(slave), "/dev/console", devices=True).apply(root)
    return slave


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


def enter_container(
    spec: ProcessSpec, plan: tuple[MountStep, ...], channel: socket, shm: int = -1
) -> tuple[int, User]:
    """Build the container around this process; return its terminal's slave, or -1.

    With it comes who the process is to be. It was cloned into new namespaces, and what
    it mounts goes with it. ``plan`` has Docker's mounts. ``shm`` is a copy of another
    container's /dev/shm, or -1; it is closed.
    """
    die_with_parent(channel)
    shared = spec.shared
    mounts = tuple(step.ahead() for step in spec.mounts)
    keep_mounts_private()
    root = mount_view(spec)
    user = whole_user(root, spec)
    introduce(channel, user)
    apply_mounts(plan, root)
    if shm >= 0:
        attach_copy(shm, directory_in_root(root, "/dev/shm"), MountAttr.NODEV)  # noqa: S108
    apply_mounts(mounts, root)
    if spec.oom_score_adj:
        put("/proc/self/oom_score_adj", str(spec.oom_score_adj))
    slave = new_console(root, spec, channel) if spec.tty else -1
    guard_root(spec, root, devices=spec.security.privileged)
    pivot(root)
    if spec.hostname and "uts" not in shared:
        sethostname(spec.hostname)
    if "net" not in shared:
        raise_loopback()
    return slave, user


# %% A new container
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


# %% A new container
def labelled(spec: ProcessSpec) -> ProcessSpec:
    """Return ``spec`` with the profile of AppArmor that it gets, or none.

    Raises as ``chosen_profile`` of chapter labels, which is read where there is one.
    """
    security = spec.security
    if not security.profile and not os.path.exists(APPARMOR):
        return spec
    from minidocker.labels import chosen_profile

    return spec.replace(security=security.replace(profile=chosen_profile(security)))


def start(spec: ProcessSpec, told: Callable[[User], None] = lambda _: None) -> Process:
    """Start a container's first process; return when its program runs.

    ``told`` is called with who that will be, before it runs. The process dies with the
    thread that started it. Whoever calls must reap it, with ``Process.wait``. Raises
    CommandNotFoundError, NotExecutableError, RuntimeFault, what ``told`` raises, and
    UnsupportedError where namespaces are forbidden; then nothing is left.
    """
    spec = labelled(spec)
    ours, theirs = new_channel()
    late = CloneFlags.NEWCGROUP if spec.group and spec.group.places else CloneFlags(0)
    flags, plan = container_flags(shared=spec.shared), default_mounts(spec)
    with joined_processes(spec) as joined:
        try:
            pid, pidfd = clone_into(spec, flags & ~late, joined)
        except SysError as why:
            ours.close()
            theirs.close()
            raise no_namespaces(why) from why
        if pid == 0:
            ours.close()
            in_child(theirs, lambda: live(spec, plan, theirs, joined, flags & late))
    theirs.close()
    return watch_start(pid, pidfd, ours, told, lambda: prepared(spec.security).program)


# %% A new container
def no_namespaces(why: SysError) -> UnsupportedError:
    """Phrase that this kernel or this user has no namespaces."""
    from minidocker.rootless import forbidding_setting, why_no_user_namespace

    if os.geteuid():
        hint = why_no_user_namespace(why.errno or 0)
    else:  # Ubuntu gives the namespace, and no right in it
        hint = forbidding_setting() or "is this root in a container?"
    return UnsupportedError(f"no new namespaces: {why}", hint=hint)


def take_place(spec: ProcessSpec) -> None:
    """Choose the label of the next execve, and join the groups, which are the host's.

    To be called while /proc and /sys are the host's, too.
    """
    if spec.security.profile:
        from minidocker.labels import label_next_execve

        label_next_execve(spec.security.profile)
    if spec.group:
        join(spec.group.joined)


def live(
    spec: ProcessSpec,
    plan: tuple[MountStep, ...],
    channel: socket,
    joined: dict[str, int],
    late: CloneFlags,
) -> NoReturn:
    """Be the container's first process: take its groups, build it, run the program."""
    take_place(spec)
    if late:
        unshare(late)
    if "pid" in spec.shared:  # those who are there may not look into us
        prctl(Prctl.SET_DUMPABLE, 0)
    shm = join_namespaces(spec, joined)
    slave, user = enter_container(spec, plan, channel, shm)
    run_program(spec, channel, slave, user)


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
