# From book/45-runtime.md. Edit there and tangle, or here and tangle --back.

# %% Runtime: from a root file system to a process
"""Start a process in a container, or in one that is there; say why it failed."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress

from minidocker.drivers import RootView, mount_root
from minidocker.errors import (
    CommandNotFoundError,
    MinidockerError,
    NotExecutableError,
    RuntimeFault,
    UnsupportedError,
)
from minidocker.linux import (
    CloneFlags,
    Prctl,
    SysError,
    clone3,
    close_range,
    pidfd_open,
    prctl,
    sethostname,
    setns,
)
from minidocker.mounts import AT_EMPTY_PATH, MountAttr, mount_setattr
from minidocker.namespaces import (
    NAMESPACES,
    PLACE,
    Bind,
    apply_mounts,
    container_flags,
    docker_mounts,
    keep_mounts_private,
    magic,
    open_in_root,
    pivot,
    raise_loopback,
    why_no_user_namespace,
)
from minidocker.overlayfs import is_first_user_namespace
from minidocker.program import (
    Network,
    ProcessSpec,
    User,
    become,
    execute,
    find_user,
    go_to,
    program_env,
    reset_signals,
)
from minidocker.records import Record


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


# %% The noun: what runs
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


def run_program(spec: ProcessSpec, slave: int = -1) -> NoReturn:
    """Turn this process, which is inside the container, into the program."""
    root = os.open("/", PLACE)
    user = find_user(root, spec.user)
    go_to(root, spec.cwd)
    os.setsid()
    take_stdio(spec, slave)
    if slave >= 0:
        fcntl.ioctl(0, TIOCSCTTY, 0)
    give_stdio(user)
    reset_signals()
    os.umask(0o022)
    become(user, spec.security)
    execute(root, spec.argv, program_env(spec, user.home))


# %% A terminal from inside
TIOCSPTLCK, TIOCGPTPEER, TIOCSCTTY = 0x40045431, 0x5441, 0x540E
TIOCGWINSZ, TIOCSWINSZ = 0x5413, 0x5414


def make_terminal(root: int) -> tuple[int, int]:
    """Make a pty in the devpts below ``root``; return its master and its slave."""
    both = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = open_in_root(root, "/dev/pts/ptmx", both, links=False)
    fcntl.ioctl(master, TIOCSPTLCK, bytes(4))
    return master, fcntl.ioctl(master, TIOCGPTPEER, both)


def copy_window_size(source: int, target: int) -> None:
    """Give the pty ``target`` the size of the terminal ``source``, if it is one."""
    with suppress(OSError, ValueError):  # not a terminal, or -1
        fcntl.ioctl(target, TIOCSWINSZ, fcntl.ioctl(source, TIOCGWINSZ, bytes(8)))


def new_terminal(root: int, spec: ProcessSpec, channel: socket) -> int:
    """Make the pty, send its master to the parent, return its slave.

    It has the size of the terminal ``spec.stdout`` before the program can ask.
    """
    master, slave = make_terminal(root)
    copy_window_size(spec.stdout, master)
    send_terminal(channel, master)
    return slave


# %% A line to the parent
FAULTS = {126: NotExecutableError, 127: CommandNotFoundError}


def new_channel() -> tuple[socket, socket]:
    """Return two connected sockets that keep messages apart and close on exec."""
    from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair  # `socket` costs 16 ms

    return socketpair(AF_UNIX, SOCK_SEQPACKET)


def send_terminal(channel: socket, master: int) -> None:
    """Send the master to the parent, and close it here."""
    from _socket import SCM_RIGHTS, SOL_SOCKET

    rights = (SOL_SOCKET, SCM_RIGHTS, master.to_bytes(4, "little"))
    channel.sendmsg([b"T"], [rights])
    os.close(master)


def send_error(channel: socket, why: BaseException) -> None:
    """Send an error as status, what, where and hint."""
    if not isinstance(why, MinidockerError):
        text = str(why) if isinstance(why, OSError) else repr(why)
        why = RuntimeFault(text)
    parts = (str(why.status), why.what, why.where or "", why.hint or "")
    channel.send(b"E" + os.fsencode("\0".join(parts))[:60000])


def listen(channel: socket) -> int:
    """Wait until the program runs; return its terminal's master, or -1.

    Raises the child's error, as the class that has its status. Closes the channel.
    """
    terminal = -1
    try:
        while message := channel.recvmsg(65536, 64):
            text, rights = message[:2]
            for _, _, data in rights:
                terminal = int.from_bytes(data[:4], "little")
            if not text:
                return terminal
            if text[:1] == b"E":
                status, what, where, hint = os.fsdecode(text[1:]).split("\0")
                fault = FAULTS.get(int(status), RuntimeFault)
                raise fault(what, where=where or None, hint=hint or None)
    finally:
        channel.close()
    return terminal


# %% Three files from outside
HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
INSIDE = ("resolv.conf", "hostname", "hosts")


def network_files(hostname: str, network: Network) -> dict[str, str]:
    """Return the text of the three files under /etc that a container is given."""
    found = {"hostname": f"{hostname}\n", "hosts": HOSTS, "resolv.conf": ""}
    from_host = (
        ("hosts", "resolv.conf") if network is Network.HOST else ("resolv.conf",)
    )
    for name in from_host:
        with suppress(OSError), open(f"/etc/{name}", encoding="utf-8") as file:
            found[name] = file.read()
    return found


def write_network_files(place: str, hostname: str, network: Network) -> None:
    """Write the three files into the directory ``place`` on the host."""
    for name, text in network_files(hostname, network).items():
        with open(f"{place}/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def network_binds(place: str) -> tuple[Bind, ...]:
    """Return the steps that show the three files of ``place`` in a container."""
    return tuple(Bind(f"{place}/{name}", f"/etc/{name}") for name in INSIDE)


# %% A new container
def mount_view(view: RootView, rootfs: str) -> int:
    """Mount a root file system at ``rootfs``; return a descriptor of its top."""
    mount_root(view, rootfs)
    return os.open(rootfs, PLACE | os.O_DIRECTORY)


def enter_container(spec: ProcessSpec, channel: socket) -> int:
    """Build the container around this process; return the terminal's slave, or -1.

    The process was cloned into new namespaces. What it mounts goes with it.
    """
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    own_network = spec.network is Network.NONE
    keep_mounts_private()
    if spec.view is None:
        raise RuntimeFault("no root file system was given")
    root = mount_view(spec.view, spec.rootfs)
    apply_mounts(
        docker_mounts(rootless=not is_first_user_namespace(), network=own_network), root
    )
    apply_mounts(spec.mounts, root)
    slave = -1
    if spec.tty:
        slave = new_terminal(root, spec, channel)
        Bind(magic(slave), "/dev/console").apply(root)
    if spec.readonly:
        mount_setattr(root, "", MountAttr.RDONLY, flags=AT_EMPTY_PATH)
    pivot(root)
    if spec.hostname:
        sethostname(spec.hostname)
    if own_network:
        raise_loopback()
    return slave


# %% A new container
def in_child(channel: socket, body: Callable[[], object]) -> NoReturn:
    """Run ``body``, which executes a program or fails; never return to the caller."""
    try:
        body()
    except BaseException as why:  # noqa: BLE001
        send_error(channel, why)
    finally:
        os._exit(125)


def start(spec: ProcessSpec) -> Process:
    """Start a container's first process; return when its program runs.

    The process dies with the thread that started it. Whoever calls must reap it, with
    ``Process.wait``. Raises CommandNotFoundError, NotExecutableError, RuntimeFault,
    UnsupportedError where namespaces are forbidden; then nothing is left.
    """
    ours, theirs = new_channel()
    flags = container_flags(network=spec.network is Network.NONE)
    try:
        pid, pidfd = clone3(flags)
    except SysError as why:
        hint = (
            why_no_user_namespace() if os.geteuid() else "is this root in a container?"
        )
        raise UnsupportedError(f"no new namespaces: {why}", hint=hint) from why
    if pid == 0:
        ours.close()
        in_child(theirs, lambda: run_program(spec, enter_container(spec, theirs)))
    theirs.close()
    return watch_start(pid, pidfd, ours)


def watch_start(pid: int, pidfd: int, ours: socket) -> Process:
    """Wait until the child runs its program, or reap it and raise its error."""
    born = start_time(pid)
    try:
        return Process(pid, pidfd, born, listen(ours))
    except BaseException:
        os.close(pidfd)
        os.waitpid(pid, 0)
        raise


# %% One more process in a container that is there
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
    prctl(Prctl.SET_DUMPABLE, 0)  # processes inside may not look into us
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
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
    run_program(spec, slave)


def exec_in(pid: int, spec: ProcessSpec) -> Process:
    """Start a process in the container whose first process is ``pid``.

    The returned Process is the one in the middle; its end is the program's. Works
    from outside the container's user namespace, for its owner. Raises as ``start``.
    """
    target, owner = pidfd_open(pid), owner_namespace(pid)
    try:
        flags = namespaces_to_join(pid)
        ours, theirs = new_channel()
        child, pidfd = clone3(CloneFlags(0))
        if child == 0:
            ours.close()
            in_child(theirs, lambda: join_container(target, owner, flags, spec, theirs))
        theirs.close()
    finally:
        os.close(target)
        os.close(owner)
    return watch_start(child, pidfd, ours)
