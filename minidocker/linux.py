# From book/105-linux.md. Edit there and tangle, or here and tangle --back.

# %% Linux: system calls from Python
"""System calls that Python does not wrap; one thin function each.

Every function raises SysError, an OSError whose text reads like a line of strace.
Flags are IntFlags that print by name.
"""

from __future__ import annotations

import errno
import os
from _ctypes import addressof, byref
from _struct import pack, unpack

from minidocker.calls import (
    LIBC,
    PYTHON,
    Constants,
    Flags,
    Int,
    Raw,
    SysError,
    Word,
    check,
    number,
    room,
    signal,
    syscall,
)


# %% Flags that print by name
class CloneFlags(Flags, prefix="CLONE_"):
    """What a new process shares, and which namespaces are new (clone(2))."""

    NEWTIME = 0x80
    PIDFD = 0x1000
    PARENT = 0x8000
    NEWNS = 0x20000
    NEWCGROUP = 0x2000000
    NEWUTS = 0x4000000
    NEWIPC = 0x8000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    INTO_CGROUP = 0x200000000


class Resolve(Flags, prefix="RESOLVE_"):
    """How openat2(2) may walk a path."""

    NO_XDEV = 1
    NO_MAGICLINKS = 2
    NO_SYMLINKS = 4
    BENEATH = 8
    IN_ROOT = 16


class OpenFlags(Flags, prefix="O_"):
    """Flags of openat2(2); reading is the absence of WRONLY and RDWR."""

    WRONLY = os.O_WRONLY
    RDWR = os.O_RDWR
    CREAT = os.O_CREAT
    EXCL = os.O_EXCL
    NOCTTY = os.O_NOCTTY
    TRUNC = os.O_TRUNC
    NONBLOCK = os.O_NONBLOCK
    DIRECTORY = os.O_DIRECTORY
    NOFOLLOW = os.O_NOFOLLOW
    CLOEXEC = os.O_CLOEXEC
    PATH = os.O_PATH


# %% Flags that print by name
class Capability(Constants, prefix="CAP_"):
    """The parts of root's power, by bit number (capabilities(7))."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34
    WAKE_ALARM = 35
    BLOCK_SUSPEND = 36
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40


class Prctl(Constants, prefix="PR_"):
    """Operations of prctl(2)."""

    SET_PDEATHSIG = 1
    GET_DUMPABLE = 3
    SET_DUMPABLE = 4
    SET_KEEPCAPS = 8
    SET_NAME = 15
    SET_SECCOMP = 22
    CAPBSET_READ = 23
    CAPBSET_DROP = 24
    SET_CHILD_SUBREAPER = 36
    SET_NO_NEW_PRIVS = 38
    GET_NO_NEW_PRIVS = 39
    CAP_AMBIENT = 47


# %% Namespaces and the root
def unshare(flags: CloneFlags) -> None:
    """Move this process into new namespaces (NEWPID: its next children).

    Raises EPERM without CAP_SYS_ADMIN, ENOSPC over the limit in /proc/sys/user,
    EINVAL for NEWUSER in a process with threads. Source: unshare(2).
    """
    check("unshare", LIBC.unshare(int(flags)), flags)


def setns(descriptor: int, flags: CloneFlags) -> None:
    """Enter the namespace that ``descriptor`` refers to, or those of a pidfd.

    Raises EPERM, EINVAL for a descriptor of another kind. Source: setns(2).
    """
    check("setns", LIBC.setns(descriptor, int(flags)), descriptor, flags)


def pivot_root(new: str, old: str) -> None:
    """Make the mount ``new`` the root, and put the old root on the directory ``old``.

    Both may be ``.``: the old root is then stacked below and can be unmounted.
    Raises EINVAL where ``new`` is no mount, or its parent is shared.
    Source: pivot_root(2).
    """
    syscall("pivot_root", new, old)


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace.

    Raises EPERM without CAP_SYS_ADMIN over it, EINVAL over 64 bytes.
    Source: sethostname(2).
    """
    raw = os.fsencode(name)
    check("sethostname", LIBC.sethostname(raw, len(raw)), name, len(raw))


def setdomainname(name: str) -> None:
    """Set the NIS domain name of this UTS namespace. Raises as ``sethostname``.

    Source: setdomainname(2).
    """
    raw = os.fsencode(name)
    check("setdomainname", LIBC.setdomainname(raw, len(raw)), name, len(raw))


# %% A process in new namespaces
# struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack,
# stack_size, tls, set_tid, set_tid_size, cgroup; each is a 64-bit word.
def clone3(flags: CloneFlags, *, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces; return (pid, pidfd), or (0, -1) in the child.

    ``cgroup`` is a descriptor of a cgroup v2 directory that the child starts in. With
    PARENT the child is our parent's, who gets the signal that we would give. The
    caller waits for the child and closes the pidfd. Use only without threads.
    Raises EPERM, ENOSYS (also where a seccomp profile hides it), ENOSPC as unshare.
    Source: clone(2), "clone3()".
    """
    pidfd = Int(-1)
    flags |= CloneFlags.PIDFD
    if cgroup >= 0:
        flags |= CloneFlags.INTO_CGROUP
    death = 0 if flags & CloneFlags.PARENT else signal.SIGCHLD
    last = max(cgroup, 0)
    args = pack("=11Q", flags, addressof(pidfd), 0, 0, death, 0, 0, 0, 0, 0, last)
    PYTHON.PyOS_BeforeFork()
    pid = PYTHON.syscall(number("clone3"), args, Word(len(args)))
    if pid == 0:
        PYTHON.PyOS_AfterFork_Child()
        return 0, -1
    PYTHON.PyOS_AfterFork_Parent()
    check("clone3", pid, flags)
    return int(pid), pidfd.value


# %% A process in new namespaces
def pidfd_open(pid: int) -> int:
    """Return a descriptor of a process; the caller closes it.

    Raises ESRCH where there is none. Source: pidfd_open(2).
    """
    return syscall("pidfd_open", pid, 0)


def start_time(pid: int) -> int:
    """Return when a process was born, in clock ticks since boot; 0 when it is gone.

    The name in the second field may hold blanks and brackets, so we count from the
    last bracket. A zombie counts as gone. Source: proc(5), /proc/pid/stat.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def open_process(pid: int, born: int) -> int:
    """Open the process that has a number and was born then; the caller closes.

    The pidfd is there before the birth is compared, so the process compared is the
    process opened. Raises ESRCH where it has gone, whoever has its number now.
    """
    handle = pidfd_open(pid)
    if start_time(pid) == born:
        return handle
    os.close(handle)
    raise SysError(errno.ESRCH, "pidfd_open", pid, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Send a signal to the process of a pidfd. Raises ESRCH once it is gone.

    Source: pidfd_send_signal(2).
    """
    syscall("pidfd_send_signal", pidfd, int(signal), None, 0)


# %% A process in new namespaces
def prctl(operation: Prctl, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """Change or ask an attribute of this process, or of this thread.

    Raises EINVAL for an operation or value that the kernel does not know, EPERM.
    Source: prctl(2).
    """
    result = LIBC.prctl(operation, Word(a), Word(b), Word(c), Word(d))
    return check("prctl", result, operation, a, b, c, d)


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """Set a limit of this process, by its number; -1 is no limit.

    Raises EPERM for more than one had, EINVAL. Source: setrlimit(2).
    """
    limits = pack("=2q", soft, hard)
    check("setrlimit", LIBC.setrlimit(resource, limits), resource, Raw(limits.hex()))


def ioprio_set(which: int, who: int, priority: int) -> None:
    """Set the priority of input and output. Raises EPERM, EINVAL.

    Source: ioprio_set(2).
    """
    syscall("ioprio_set", which, who, priority)


def new_session_keyring(name: str) -> None:
    """Leave the caller's session keyring for one of this name.

    Raises ENOSYS where the kernel has no keys, EDQUOT. Source: keyctl(2).
    """
    syscall("keyctl", 1, name)  # KEYCTL_JOIN_SESSION_KEYRING


def personality(kind: int) -> None:
    """Choose which kind of kernel this process is to see: 0 Linux, 8 a 32-bit one.

    Source: personality(2).
    """
    check("personality", LIBC.personality(Word(kind)), kind)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close the descriptors from ``first`` to ``last``; ``flags`` 4 marks CLOEXEC.

    Those that are not open are passed over. Source: close_range(2).
    """
    syscall("close_range", first, last, flags)


# %% Capabilities
CAPABILITY_VERSION_3 = 0x20080522


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capability masks of this thread; bit N is Capability N.

    Raises EPERM where a mask would gain a bit. Source: capset(2).
    """
    header = pack("=II", CAPABILITY_VERSION_3, 0)
    masks = (effective, permitted, inheritable)
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    show = tuple(Raw(f"{mask:#x}") for mask in masks)
    syscall("capset", header, pack("=6I", *words), show=show)


def capget() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable masks of this thread.

    Source: capget(2).
    """
    found = room(24)
    syscall("capget", pack("=II", CAPABILITY_VERSION_3, 0), byref(found), show=())
    data = unpack("=6I", found.raw)
    effective, permitted, inheritable = (data[i] | data[i + 3] << 32 for i in range(3))
    return effective, permitted, inheritable


# %% Opening a file inside a tree that is not to be trusted
ATTEMPTS = 128


def openat2(
    directory: int,
    path: str | bytes,
    flags: int,
    *,
    mode: int = 0,
    resolve: Resolve = Resolve.IN_ROOT,
) -> int:
    """Open ``path`` below a directory's descriptor; return a descriptor.

    O_CLOEXEC is added. The caller closes it. Raises ELOOP for a link that ``resolve``
    forbids, EXDEV for a way out, EAGAIN where a rename or a mount, of whomever, kept
    the kernel from being sure of a ``..``, ATTEMPTS times. Source: openat2(2).
    """
    raw = os.fsencode(path)
    how = pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    show = (directory, path, lambda: how_text(flags, mode, resolve), len(how))
    for _ in range(ATTEMPTS):
        try:
            return syscall("openat2", directory, raw, how, len(how), show=show)
        except SysError as why:
            if why.errno != errno.EAGAIN:
                raise
            again = why
    raise again


# %% Opening a file inside a tree that is not to be trusted
def how_text(flags: int, mode: int, resolve: Resolve) -> Raw:
    """Return a struct open_how as strace prints it."""
    reading = "" if flags & (os.O_WRONLY | os.O_RDWR) else "O_RDONLY|"
    parts = [f"flags={reading}{OpenFlags(flags | os.O_CLOEXEC).strace()}"]
    parts += [f"mode=0{mode:o}"] * bool(mode)
    return Raw(f"{{{', '.join([*parts, f'resolve={resolve.strace()}'])}}}")


def syncfs(descriptor: int) -> None:
    """Write the whole file system of ``descriptor`` to disk; return when it is there.

    Raises EIO, ENOSPC. Source: syncfs(2).
    """
    check("syncfs", LIBC.syncfs(descriptor), descriptor)
