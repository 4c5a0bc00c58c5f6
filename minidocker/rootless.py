# From book/405-rootless.md. Edit there and tangle, or here and tangle --back.

# %% Rootless: root where one is nobody
"""Be root without being root: which ids are ours, one namespace per store, why not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from minidocker.calls import SysError
from minidocker.durable import turn
from minidocker.errors import UnsupportedError
from minidocker.idmaps import (
    SUBGID,
    SUBUID,
    IdRange,
    find_program,
    name_of,
    own_ranges,
    write_map,
)
from minidocker.linux import CloneFlags, Prctl, prctl, setns, start_time, unshare
from minidocker.namespaces import first_line, put
from minidocker.records import Record


# %% Which ids are ours
class OwnIds(Record):
    """The maps of a user's namespace, and why there is but one id, or "".

    Both begin with (0, the user's own id, 1).
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    why_one: str = ""


# %% Which ids are ours
def why_powerless(helper: str) -> str:
    """Say why newuidmap or newgidmap can do nothing for us; "" if it can."""
    path = find_program(helper)
    if not path:
        return f"{helper} is not installed"
    if prctl(Prctl.GET_NO_NEW_PRIVS):
        return f"no_new_privs is set, which takes the rights of {helper} away"
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return f"{path} is on a mount with nosuid"
    rights = os.stat(path).st_mode & 0o4000 or "security.capability" in os.listxattr(
        path
    )
    return "" if rights else f"{path} has no set-uid bit"


def own_ids() -> OwnIds:
    """Return the ids that this user may map, many or one."""
    uid, gid = os.geteuid(), os.getegid()
    names = (name_of(uid), str(uid))
    uids, gids = own_ranges(SUBUID, uid, names), own_ranges(SUBGID, gid, names)
    why = ""
    for path, found in ((SUBUID, uids), (SUBGID, gids)):
        if not why and len(found) == 1:
            why = f"{path} sets nothing aside for {names[0] or uid}"
    for helper in ("newuidmap", "newgidmap"):
        why = why or why_powerless(helper)
    return OwnIds(uids[:1], gids[:1], why) if why else OwnIds(uids, gids)


# %% Into it
@contextmanager
def mapped_from_outside(ids: OwnIds) -> Iterator[None]:
    """Write the maps of this process, by a child who is left outside, after the block.

    Raises UnsupportedError when newuidmap or newgidmap refuses.
    """
    ready, begin = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        status = 1
        try:
            os.close(begin)
            if os.read(ready, 1):
                write_map(parent, "uid", ids.uids)
                write_map(parent, "gid", ids.gids)
                status = 0
        finally:
            os._exit(status)
    os.close(ready)
    try:
        yield
        os.write(begin, b"1")
    finally:
        os.close(begin)
        refused = os.waitpid(child, 0)[1]
    if refused:
        what = "newuidmap or newgidmap did not map the ids that are set aside"
        raise UnsupportedError(what, hint=f"see {SUBUID} and {SUBGID}")


def map_one(ids: OwnIds) -> None:
    """Write the maps of one id; ``setgroups`` goes first, or the kernel refuses."""
    put("/proc/self/setgroups", "deny")
    for kind, ranges in (("uid", ids.uids), ("gid", ids.gids)):
        write_map(os.getpid(), kind, ranges)


def enter_user_namespace(ids: OwnIds | None = None) -> None:
    """Move this process into a user and a mount namespace where it is root.

    ``ids`` are those that this user may map when it is None. The process must have
    one thread. Raises UnsupportedError, naming the setting that forbids it.
    Source: user_namespaces(7).
    """
    ids, both = ids or own_ids(), CloneFlags.NEWUSER | CloneFlags.NEWNS
    try:
        if len(ids.uids) == 1:
            unshare(both)
            map_one(ids)
        else:
            with mapped_from_outside(ids):
                unshare(both)
    except OSError as why:
        what = f"this user may not make a user namespace: {why}"
        hint = why_no_user_namespace(why.errno or errno.EPERM)
        raise UnsupportedError(what, hint=hint) from why


# %% One namespace for one store
def note_inside(root: str) -> None:
    """Write down that this process is in the user namespace of a store."""
    pid = os.getpid()
    path = f"{root}/userns/{pid}-{start_time(pid)}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def who_is_inside(place: str) -> list[int]:
    """Return the processes that are written down and live; strike off the others."""
    found = []
    for name in os.listdir(place):
        pid, _, born = name.partition("-")
        if pid.isdecimal() and born.isdecimal() and start_time(int(pid)) == int(born):
            found.append(int(pid))
        else:
            with suppress(FileNotFoundError):
                os.unlink(f"{place}/{name}")
    return found


def follow(pid: int) -> bool:
    """Enter a process's user namespace, with mounts of our own; say if we could."""
    try:
        there = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CloneFlags.NEWUSER)
        finally:
            os.close(there)
    except OSError:  # it has just ended, or is not where it said
        return False
    unshare(CloneFlags.NEWNS)
    return True


def enter_store(root: str) -> None:
    """Enter the user namespace of the store ``root``; make it if nobody is inside.

    Raises UnsupportedError as ``enter_user_namespace`` does.
    """
    place = f"{root}/userns"
    try:
        os.makedirs(place, 0o700, exist_ok=True)
    except OSError:  # who opens the store will say why there is none
        enter_user_namespace()
        return
    with turn(f"{root}/userns.lock"):
        if not any(follow(pid) for pid in who_is_inside(place)):
            enter_user_namespace()
        note_inside(root)
    os.environ["MINIDOCKER_ROOT"] = root  # whoever asks from now on is 0


# %% Who forbids it
FORBIDDERS = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("/proc/sys/user/max_user_namespaces", "0", "15000"),
)


def forbidding_setting() -> str:
    """Name the setting of the kernel that forbids user namespaces; "" if none does."""
    for path, forbids, allows in FORBIDDERS:
        if first_line(path) == forbids:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            return f"{name} is {forbids}: `sysctl -w {name}={allows}`, or run as root"
    return ""


def is_filtered() -> bool:
    """Say whether a seccomp filter is bound to this process."""
    with open("/proc/self/status", "rb") as file:
        return any(line.split() == [b"Seccomp:", b"2"] for line in file)


def is_chrooted() -> bool:
    """Say whether our root is a directory somewhere: no mount is at "/"."""
    with open("/proc/self/mountinfo", "rb") as file:
        return not any(line.split()[4] == b"/" for line in file)


def why_no_user_namespace(number: int = errno.EPERM) -> str:
    """Name what most likely forbids user namespaces; ``number`` is an errno."""
    if named := forbidding_setting():
        return named
    if number == errno.ENOSPC:
        name = "user.max_user_namespaces"
        return f"all that {name} allows are in use, here or in a namespace around us"
    if is_chrooted():
        return "this is a chroot, where none can be made: pivot_root, or run as root"
    if is_filtered():
        how = "`--security-opt seccomp=unconfined`, or run as root"
        return f"a seccomp filter forbids it; where a container is around us: {how}"
    return "no setting or filter that we know forbids it; a chroot may: run as root"


# %% Who forbids it
def no_namespaces(why: SysError) -> UnsupportedError:
    """Phrase that this kernel or this user has no namespaces."""
    if os.geteuid():
        hint = why_no_user_namespace(why.errno or 0)
    else:  # Ubuntu gives the namespace, and no right in it
        hint = forbidding_setting() or "is this root in a container?"
    return UnsupportedError(f"no new namespaces: {why}", hint=hint)
