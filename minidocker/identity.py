# From book/474-identity.md. Edit there and tangle, or here and tangle --back.

# %% Identity: five sets of rights, and who may keep them
"""Become who a bundle says: ids, the five sets of capabilities, labels, priorities."""

from __future__ import annotations

import fcntl
import os
import struct

from minidocker.calls import SysError
from minidocker.dialogue import TIOCSWINSZ
from minidocker.errors import RuntimeFault
from minidocker.linux import Prctl, capget, capset, ioprio_set, prctl
from minidocker.namespaces import first_line, put
from minidocker.records import Record
from minidocker.security import SELINUX, Security, confine, drop_capabilities
from minidocker.users import User


# %% The nouns
class Rights(Record):
    """The five sets of capabilities, as masks (capabilities(7))."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


class Identity(Record):
    """What a bundle's process may be beyond a ProcessSpec.

    ``umask`` is -1 for the usual one. ``label`` and ``profile`` are SELinux's and
    AppArmor's. ``io`` is (class, priority), ``scheduler`` (policy, priority, nice),
    each empty when not asked for. ``preserve`` descriptors after the first three stay
    open.
    """

    groups: tuple[int, ...] = ()
    rights: Rights = Rights()
    umask: int = -1
    profile: str = ""
    label: str = ""
    io: tuple[int, ...] = ()
    scheduler: tuple[int, ...] = ()
    console: tuple[int, ...] = ()
    preserve: int = 0


# %% Rights that survive a change of user
AMBIENT_RAISE, AMBIENT_CLEAR_ALL = 2, 4


def set_rights(rights: Rights) -> None:
    """Give this process its sets, of what it has; the bounding set is set already.

    A right that we do not have cannot be given, and the specification wants that to
    be no error.
    """
    held = capget()[1]
    permitted = rights.permitted & held
    inheritable = rights.inheritable & (held | capget()[2])
    capset(rights.effective & permitted, permitted, inheritable)
    try:
        prctl(Prctl.CAP_AMBIENT, AMBIENT_CLEAR_ALL)
        ambient = rights.ambient & permitted & inheritable
        for number in range(ambient.bit_length()):
            if ambient >> number & 1:
                prctl(Prctl.CAP_AMBIENT, AMBIENT_RAISE, number)
    except SysError as why:
        raise RuntimeFault(f"cannot set the ambient capabilities: {why}") from why


# %% Rights that survive a change of user
def set_ids(user: User, groups: tuple[int, ...]) -> None:
    """Become a user with exactly these groups; the permitted set is kept.

    Raises RuntimeFault for ids that have no map here.
    """
    try:
        prctl(Prctl.SET_KEEPCAPS, 1)
        if first_line("/proc/self/setgroups") != "deny":
            os.setgroups(groups)
        elif groups:
            raise RuntimeFault("additional groups are denied in this user namespace")
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        prctl(Prctl.SET_KEEPCAPS, 0)
    except OSError as why:
        what = f"cannot become user {user.uid}:{user.gid}: {why}"
        raise RuntimeFault(what) from why


# %% All of it
IO_CLASS_SHIFT, ONE_PROCESS = 13, 1


def set_priorities(identity: Identity) -> None:
    """Set the priorities of input and output, and of the processor, as asked."""
    try:
        if identity.io:
            kind, priority = identity.io
            ioprio_set(ONE_PROCESS, 0, kind << IO_CLASS_SHIFT | priority)
        if identity.scheduler:
            policy, priority, nice = identity.scheduler
            os.sched_setscheduler(0, policy, os.sched_param(priority))
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as why:
        raise RuntimeFault(f"cannot set the priorities: {why}") from why


def set_labels(identity: Identity) -> None:
    """Choose the labels that the next execve gives: AppArmor's and SELinux's.

    To be called while /proc is the host's. Raises RuntimeFault where the kernel does
    not have what is asked for.
    """
    if identity.profile:
        from minidocker.labels import is_enabled, label_next_execve

        if not is_enabled():
            what = "apparmor failed to apply profile: it is not enabled here"
            raise RuntimeFault(what)
        label_next_execve(identity.profile)
    if identity.label and not os.path.exists(SELINUX):
        raise RuntimeFault("selinux label: SELinux is not enabled here")
    if identity.label:
        put("/proc/self/attr/exec", identity.label)


def size_console(terminal: int, size: tuple[int, ...]) -> None:
    """Give a terminal a size of (rows, columns); nothing for none."""
    if size:
        fcntl.ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


# %% All of it
def take_identity(user: User, identity: Identity, security: Security) -> None:
    """Become who the bundle says, for good. All that may follow is the execve."""
    drop_capabilities(identity.rights.bounding)
    set_priorities(identity)
    if not security.no_new_privileges:
        confine(security)
    set_ids(user, identity.groups)
    set_rights(identity.rights)
    if security.no_new_privileges:
        confine(security)
    if identity.umask >= 0:
        os.umask(identity.umask)
