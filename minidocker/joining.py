# From book/428-joining.md. Edit there and tangle, or here and tangle --back.

# %% Joining: one more process in a container that is there
"""Start one more process in a container that runs."""

from __future__ import annotations

import errno
import fcntl
import os

from minidocker.cgroups import join
from minidocker.errors import ConflictError
from minidocker.linux import CloneFlags, Prctl, clone3, pidfd_open, prctl, setns
from minidocker.namespaces import NAMESPACES, PLACE, put
from minidocker.program import ProcessSpec, die_with_parent
from minidocker.runtime import (
    Process,
    clone_into,
    in_child,
    labelled,
    new_channel,
    new_terminal,
    run_program,
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


def join_container(
    pidfd: int, owner: int, flags: CloneFlags, spec: ProcessSpec, channel: socket
) -> NoReturn:
    """Enter the namespaces, and run the program in a child there."""
    die_with_parent(channel)
    if spec.security.profile:
        from minidocker.labels import label_next_execve

        label_next_execve(spec.security.profile)
    if spec.group:
        join(spec.group.joined)
    if spec.oom_score_adj:
        put("/proc/self/oom_score_adj", str(spec.oom_score_adj))
    prctl(Prctl.SET_DUMPABLE, 0)  # processes inside may not look into us
    if flags & CloneFlags.NEWUSER:
        setns(owner, CloneFlags.NEWUSER)
    setns(pidfd, flags & ~CloneFlags.NEWUSER)
    pid, _ = clone3(CloneFlags(0))
    if pid:
        channel.close()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    slave = -1
    if spec.tty:
        slave = new_terminal(os.open("/", PLACE), spec, channel)
    run_program(spec, channel, slave)


def target_of(pid: int) -> tuple[int, int]:
    """Open a process and the user namespace that owns its mounts; the caller closes.

    Raises ConflictError for a process that has gone.
    """
    try:
        owner = owner_namespace(pid)
        return pidfd_open(pid), owner
    except OSError as why:
        if why.errno in {errno.ESRCH, errno.ENOENT}:
            raise ConflictError("the container is not running any more") from why
        raise


def exec_in(pid: int, spec: ProcessSpec) -> Process:
    """Start a process in the container whose first process is ``pid``.

    The returned Process is the one in the middle; its end is the program's. Works
    from outside the container's user namespace, for its owner. Raises as ``start``.
    """
    spec = labelled(spec.replace(security=prepared(spec.security)))
    target, owner = target_of(pid)
    try:
        flags = namespaces_to_join(pid)
        ours, theirs = new_channel()
        child, pidfd = clone_into(spec, CloneFlags(0), {})
        if child == 0:
            ours.close()
            in_child(theirs, lambda: join_container(target, owner, flags, spec, theirs))
        theirs.close()
    finally:
        os.close(target)
        os.close(owner)
    return watch_start(child, pidfd, ours)
