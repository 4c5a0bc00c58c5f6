# From book/428-joining.md. Edit there and tangle, or here and tangle --back.

# %% Joining: one more process in a container that is there
"""Start one more process in a container that runs."""

from __future__ import annotations

import errno
import fcntl
import os

from minidocker.destinations import PLACE, open_in_root
from minidocker.dialogue import in_child, new_channel, new_terminal
from minidocker.errors import ConflictError, RuntimeFault
from minidocker.identity import die_with_parent
from minidocker.linux import CloneFlags, Prctl, clone3, pidfd_open, prctl, setns
from minidocker.mounts import is_first_user_namespace
from minidocker.namespaces import NAMESPACES
from minidocker.program import ProcessSpec, default_env
from minidocker.runtime import (
    Moments,
    Plan,
    Process,
    clone_into,
    labelled,
    run_program,
    take_place,
    watch_start,
)
from minidocker.security import prepared


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


# %% Which namespaces, and whose
def namespaces_to_join(pid: int) -> CloneFlags:
    """Return the kinds in which a process differs from us."""
    flags = CloneFlags(0)
    for kind in NAMESPACES:
        theirs, ours = f"/proc/{pid}/ns/{kind.name}", f"/proc/self/ns/{kind.name}"
        if os.path.exists(ours) and os.readlink(theirs) != os.readlink(ours):
            flags |= kind.flag
    return flags


NS_GET_USERNS = 0xB701


def owner_namespace(pid: int) -> int:
    """Open the user namespace that owns a process's mounts; the caller closes.

    It is not the process's own when that renamed its id. Source: ioctl_ns(2).
    """
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(fcntl.ioctl(mounts, NS_GET_USERNS))
    finally:
        os.close(mounts)


# %% Which namespaces, and whose
def needs_middle(flags: CloneFlags, spec: ProcessSpec) -> bool:
    """Say whether the program must be the child of a process that has gone inside.

    So it is without root: who enters another pid namespace must come back to the
    host's, which belongs to another user namespace than ours.
    """
    may_return = not flags & CloneFlags.NEWUSER and is_first_user_namespace()
    return not may_return or bool(spec.oom_score_adj)


def stand_between(channel: socket) -> None:
    """Clone; return in the child. The parent waits for it, and ends as it does."""
    pid, _ = clone3(CloneFlags(0))
    if pid:
        channel.close()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)


# %% Which namespaces, and whose
def join_container(
    pidfd: int, owner: int, flags: CloneFlags, spec: ProcessSpec, channel: socket
) -> NoReturn:
    """Enter the namespaces, and run the program; in a child where NEWPID is one."""
    die_with_parent(channel)
    take_place(spec)
    prctl(Prctl.SET_DUMPABLE, 0)  # processes inside may not look into us
    if flags & CloneFlags.NEWUSER:
        setns(owner, CloneFlags.NEWUSER)
    setns(pidfd, flags & ~CloneFlags.NEWUSER)
    if flags & CloneFlags.NEWPID:
        stand_between(channel)
    slave = -1
    if spec.tty:
        slave = new_terminal(os.open("/", PLACE), spec, channel)
    need_directory(spec.cwd)
    run_program(Plan(spec), Moments(channel), slave)


def need_directory(path: str) -> None:
    """Raise RuntimeFault where there is no such directory: an exec makes none."""
    root = os.open("/", PLACE)
    try:
        os.close(open_in_root(root, path, PLACE | os.O_DIRECTORY))
    except OSError as why:
        raise RuntimeFault(f"chdir to cwd failed: {why}", where=path) from why
    finally:
        os.close(root)


def target_of(pid: int) -> tuple[int, int]:
    """Open a process and the user namespace that owns its mounts; the caller closes.

    Raises ConflictError for a process that has gone.
    """
    try:
        owner = owner_namespace(pid)
        return pidfd_open(pid), owner
    except OSError as why:
        raise_if_ended(why)
        raise


def raise_if_ended(why: OSError) -> None:
    """Raise ConflictError for an error that means that a container has ended.

    Nobody is born in a pid namespace whose first process has ended: ENOMEM.
    """
    if why.errno in {errno.ESRCH, errno.ENOENT, errno.ENOMEM}:
        raise ConflictError("the container is not running any more") from why


def clone_there(
    spec: ProcessSpec, target: int, flags: CloneFlags
) -> tuple[int, int, CloneFlags]:
    """Clone, in the pid namespace if we may; return what of ``flags`` is left to do.

    The child is born hidden: processes inside may not look into it.
    """
    if needs_middle(flags, spec) or not flags & CloneFlags.NEWPID:
        return *clone_into(spec, CloneFlags(0)), flags
    seen = prctl(Prctl.GET_DUMPABLE) == 1
    prctl(Prctl.SET_DUMPABLE, 0)
    child = -1
    try:
        child, pidfd = clone_into(spec, CloneFlags(0), target)
    except OSError as why:
        raise_if_ended(why)
        raise
    finally:
        if child and seen:
            prctl(Prctl.SET_DUMPABLE, 1)
    return child, pidfd, flags & ~CloneFlags.NEWPID


def exec_in(pid: int, spec: ProcessSpec) -> Process:
    """Start a process in the container whose first process is ``pid``.

    The returned Process may be one in the middle; its end is the program's. Works
    from outside the container's user namespace, for its owner. Raises as ``start``.
    """
    security, env = prepared(spec.security), default_env(spec)
    spec = labelled(spec.replace(security=security, env=env))
    target, owner = target_of(pid)
    try:
        flags = namespaces_to_join(pid)
        ours, theirs = new_channel()
        child, pidfd, rest = clone_there(spec, target, flags)
        if child == 0:
            ours.close()
            in_child(theirs, lambda: join_container(target, owner, rest, spec, theirs))
        theirs.close()
    finally:
        os.close(target)
        os.close(owner)
    return watch_start(child, pidfd, ours)
