# From book/417-identity.md. Edit there and tangle, or here and tangle --back.

# %% Identity: who a word means, and with which rights
"""Who a process is to be: looked up in the image, and with five sets of rights."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from minidocker.calls import SysError, signal
from minidocker.destinations import open_in_root
from minidocker.errors import RuntimeFault
from minidocker.linux import (
    Capability,
    CloneFlags,
    Prctl,
    capget,
    capset,
    ioprio_set,
    prctl,
    unshare,
)
from minidocker.namespaces import first_line, put
from minidocker.records import Record
from minidocker.security import SELINUX, Security, confine, drop_capabilities


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


# %% Three rules
MOST_OF_A_FILE = 4 << 20  # bytes of passwd or group that anybody could need
HIGHEST_ID = (1 << 31) - 1


class User(Record):
    """Who a process runs as, and where that user lives."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def read_table(root: int, path: str, fields: int) -> list[list[str]]:
    """Return the lines of a passwd or group file, split; none when it is missing.

    Lines with another count of fields are kept, as evidence for the error.
    """
    try:
        handle = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RuntimeFault("not a regular file", where=path)
    with open(handle, "rb") as file:  # as many bytes as it has: asked for are mapped
        text = os.fsdecode(file.read(min(status.st_size, MOST_OF_A_FILE)))
    lines = (line.strip() for line in text.split("\n"))
    return [line.split(":", fields) for line in lines if line and line[0] != "#"]


# %% Three rules
def identifier(text: str) -> int | None:
    """Return a user or group id, or None when the text is no number.

    >>> identifier("1001"), identifier("www-data")
    (1001, None)
    """
    if not (text.isascii() and text.lstrip("-").isdigit()):
        return None
    if not 0 <= int(text) <= HIGHEST_ID:
        raise RuntimeFault(f'id "{text}" is not between 0 and {HIGHEST_ID}')
    return int(text)


def number_in(row: list[str], column: int, count: int, where: str) -> int:
    """Return a number of a table's row; RuntimeFault when the row is odd."""
    number = identifier(row[column]) if len(row) == count else None
    if number is None:
        raise RuntimeFault(f'the line of "{row[0]}" is malformed', where=where)
    return number


def find_group(root: int, text: str) -> int:
    """Return the id of a group given by number or by name in the image."""
    number = identifier(text)
    if number is not None:
        return number
    for row in read_table(root, "/etc/group", 4):
        if row[0] == text:
            return number_in(row, 2, 4, "/etc/group")
    raise RuntimeFault(f'unable to find group "{text}" in the image\'s /etc/group')


def groups_of(root: int, name: str) -> tuple[int, ...]:
    """Return the groups that list ``name`` as a member."""
    rows = read_table(root, "/etc/group", 4)
    mine = (row for row in rows if len(row) == 4 and name in row[3].split(","))
    return tuple(number_in(row, 2, 4, "/etc/group") for row in mine)


# %% Three rules
def find_user(root: int, text: str) -> User:
    """Look a user up in the image below ``root``: ``user[:group]``, each id or name.

    A number need not be in the files; it then gets group 0 and home ``/``, as in
    Docker. With a group given there are no supplementary groups.
    """
    who, colon, group = text.partition(":")
    who = who or "0"
    number = identifier(who)
    wanted = who if number is None else str(number)
    column = 0 if number is None else 2
    user = User(number or 0, 0)
    for row in read_table(root, "/etc/passwd", 7):
        if len(row) > column and row[column] == wanted:
            uid, gid = (number_in(row, n, 7, "/etc/passwd") for n in (2, 3))
            groups = () if colon else groups_of(root, row[0])
            user = User(uid, gid, groups, row[5] or "/")
            break
    else:
        if number is None:
            what = f'unable to find user "{who}" in the image\'s /etc/passwd'
            raise RuntimeFault(what)
    return user.replace(gid=find_group(root, group)) if colon and group else user


def with_groups(root: int, user: User, texts: Iterable[str]) -> User:
    """Return a user who is in further groups, given by name or number."""
    more = (find_group(root, text) for text in texts)
    return user.replace(groups=tuple(dict.fromkeys((*user.groups, *more))))


# %% What it has: five sets
class Rights(Record):
    """The five sets of capabilities, as masks (capabilities(7))."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0

    def within(self, held: int, inherited: int) -> Rights:
        """Return what of it can be given by who holds two sets; the rest is no error.

        >>> Rights(7, 6, 6, 1).within(held=3, inherited=0)
        Rights(bounding=3, effective=2, permitted=2, inheritable=1, ambient=0)
        """
        permitted = self.permitted & held
        inheritable = self.inheritable & (held | inherited)
        return Rights(
            self.bounding & held,
            self.effective & permitted,
            permitted,
            inheritable,
            self.ambient & permitted & inheritable,
        )


def docker_rights(mask: int, uid: int) -> Rights:
    """Return the sets as Docker has them: who is not root may only be given some."""
    own = mask if uid == 0 else 0
    return Rights(mask, own, own)


# %% What it has: five sets
class Identity(Record):
    """Who a process is to be beside its uid and gid.

    ``groups`` are all its groups, ``label`` is SELinux's. ``io`` is (class, priority),
    ``scheduler`` (policy, priority, nice), each empty when not asked for. ``preserve``
    descriptors after the first three stay open. ``exact``: what cannot be is an error;
    otherwise an id without a map is made by a new name for ours.
    """

    groups: tuple[int, ...] = ()
    rights: Rights = Rights()
    umask: int = 0o022
    label: str = ""
    io: tuple[int, ...] = ()
    scheduler: tuple[int, ...] = ()
    preserve: int = 0
    exact: bool = False


def docker_identity(user: User, security: Security) -> Identity:
    """Return who a process of a container of ours is to be, as ``user``."""
    rights = docker_rights(security.capabilities, user.uid)
    return Identity((user.gid, *user.groups), rights)


# %% Ids
def take_ids(user: User, identity: Identity, held: int, inherited: int) -> None:
    """Take the ids of ``user``; who is not root keeps the right to load a filter.

    The permitted set stays ``held``, the inheritable one ``inherited``.
    """
    if first_line("/proc/self/setgroups") != "deny":
        os.setgroups(identity.groups)
    elif identity.exact and identity.groups:
        raise RuntimeFault("additional groups are denied in this user namespace")
    os.setresgid(user.gid, user.gid, user.gid)
    if user.uid:
        prctl(Prctl.SET_KEEPCAPS, 1)
    os.setresuid(user.uid, user.uid, user.uid)
    if user.uid:
        capset(held & 1 << Capability.SYS_ADMIN, held, inherited)


# %% Ids
def is_mapped(kind: str, number: int) -> bool:
    """Whether an id (``kind`` is uid or gid) exists in our user namespace."""
    with open(f"/proc/self/{kind}_map", "rb") as file:  # no codec can be loaded here
        ranges = [line.split() for line in file]
    return any(int(a) <= number < int(a) + int(count) for a, _, count in ranges)


def has_ids(user: User) -> bool:
    """Whether both ids of a user exist in our user namespace."""
    return is_mapped("uid", user.uid) and is_mapped("gid", user.gid)


def rename_our_id(user: User, bounding: int) -> None:
    """Enter a user namespace where our one id has the numbers of ``user``.

    The bounding set is full in a new namespace, and is lowered again.

    /proc/self belongs to nobody while we are not dumpable, so for the two writes we
    are. Source: user_namespaces(7), "Defining user and group ID mappings".
    """
    unshare(CloneFlags.NEWUSER)
    prctl(Prctl.SET_DUMPABLE, 1)
    put("/proc/self/uid_map", f"{user.uid} 0 1")
    put("/proc/self/gid_map", f"{user.gid} 0 1")
    prctl(Prctl.SET_DUMPABLE, 0)
    drop_capabilities(bounding)


# %% Ids
def die_with_parent(channel: socket) -> None:
    """Ask to be killed when the parent ends; end now if it has done so already."""
    from _socket import MSG_DONTWAIT

    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    with suppress(BlockingIOError):  # nothing was said: it is there
        if not channel.recv(1, MSG_DONTWAIT):
            os._exit(125)


# %% Rights
AMBIENT_RAISE, AMBIENT_CLEAR_ALL = 2, 4


def set_rights(rights: Rights) -> None:
    """Give this process its sets; the bounding set is set already.

    The kernel itself lowers the ambient set to what is inheritable.
    """
    capset(rights.effective, rights.permitted, rights.inheritable)
    if not rights.inheritable:
        return
    try:
        prctl(Prctl.CAP_AMBIENT, AMBIENT_CLEAR_ALL)
        for number in range(rights.ambient.bit_length()):
            if rights.ambient >> number & 1:
                prctl(Prctl.CAP_AMBIENT, AMBIENT_RAISE, number)
    except SysError as why:
        raise RuntimeFault(f"cannot set the ambient capabilities: {why}") from why


# %% Rights
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


def set_labels(profile: str, label: str = "") -> None:
    """Choose the labels that the next execve gives: AppArmor's and SELinux's.

    To be called while /proc is the host's. Raises RuntimeFault where the kernel does
    not have what is asked for.
    """
    if profile:
        from minidocker.labels import is_enabled, label_next_execve

        if not is_enabled():
            what = "apparmor failed to apply profile: it is not enabled here"
            raise RuntimeFault(what)
        label_next_execve(profile)
    if label and not os.path.exists(SELINUX):
        raise RuntimeFault("selinux label: SELinux is not enabled here")
    if label:
        put("/proc/self/attr/exec", label)


# %% All of it
def become(
    user: User, identity: Identity, security: Security, parent: socket | None = None
) -> None:
    """Become ``user`` for good. All that may follow is the execve.

    ``parent`` is the channel to one that stays, and with which this process dies.
    Raises RuntimeFault for ids that have no map here.
    """
    _, held, inherited = capget()
    rights = identity.rights.within(held, inherited)
    drop_capabilities(rights.bounding)
    set_priorities(identity)
    try:
        if identity.exact or has_ids(user):
            take_ids(user, identity, held, inherited)
        else:
            rename_our_id(user, rights.bounding)
    except OSError as why:
        what = f"cannot become user {user.uid}:{user.gid}: {why}"
        raise RuntimeFault(what) from why
    if parent:
        die_with_parent(parent)
    if not security.no_new_privileges:
        confine(security)
    set_rights(rights)
    if security.no_new_privileges:
        confine(security)
    if identity.umask != 0o022:  # which it is already
        os.umask(identity.umask)
