"""Run a command of ours so that every call that changes a file system asks us first.

A seccomp filter with a *user notification* is put on a forked child, and the kernel
hands it on to every process and thread that comes of it: no call escapes, whoever
makes it. Each such call waits until we let it go on, fail it, or kill its maker. It is
all one program without exec, so that a run takes milliseconds and not an interpreter.
"""

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from minidocker.seccomp import (
    ALLOW,
    Compare,
    Op,
    Profile,
    Rule,
    compile_profile,
    this_machine,
)


TREE = """
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
symlinkat mknod mknodat creat openat2 bind
"""
ATTRIBUTES = """
chmod fchmod fchmodat chown fchown lchown fchownat utime utimes futimesat utimensat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
"""
DATA = """
write pwrite64 writev pwritev pwritev2 truncate ftruncate fallocate sendfile
copy_file_range splice
"""
SYNC = "fsync fdatasync syncfs sync sync_file_range msync"
MOUNT = "mount umount2 move_mount fsmount open_tree mount_setattr pivot_root"
DEVICES = {0xFD: (3, 4, 6, 9, 14), 0x4C: (0x00, 0x01, 0x04, 0x07, 0x0A, 0x82)}
"""Kinds of ioctl(2), and the numbers of those that change something: device-mapper, loops."""
CHANGING = " ".join((TREE, ATTRIBUTES, DATA, SYNC, MOUNT)).split()
OPENING = {"open": 1, "openat": 2}  # which argument has the flags
PATHS = {  # which arguments are paths
    "open": (0,), "openat": (1,), "openat2": (1,), "creat": (0,), "mkdir": (0,),
    "mkdirat": (1,), "rmdir": (0,), "unlink": (0,), "unlinkat": (1,), "rename": (0, 1),
    "renameat": (1, 3), "renameat2": (1, 3), "link": (0, 1), "linkat": (1, 3),
    "symlink": (0, 1), "symlinkat": (0, 2), "mknod": (0,), "mknodat": (1,),
    "chmod": (0,), "fchmodat": (1,), "chown": (0,), "lchown": (0,), "fchownat": (1,),
    "utimensat": (1,), "truncate": (0,), "mount": (1,), "umount2": (0,),
    "setxattr": (0,), "lsetxattr": (0,), "removexattr": (0,), "lremovexattr": (0,),
    "move_mount": (3,), "open_tree": (1,), "pivot_root": (0,),
}  # fmt: skip
DESCRIPTORS = {  # which argument is the file
    **dict.fromkeys(["write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate"], 0),
    **dict.fromkeys(["sendfile", "fsync", "fdatasync", "syncfs", "fchmod", "fchown", "fsetxattr"], 0),
    "copy_file_range": 2, "splice": 2, "fremovexattr": 0,
}  # fmt: skip
TAKES_ROOM = {
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "creat",
}
TAKES_ROOM |= {
    "openat2",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "fallocate",
}
TAKES_ROOM |= {
    "sendfile",
    "copy_file_range",
    "splice",
    "open",
    "openat",
    "rename",
    "renameat",
}

RECV, SEND, VALID = 0xC0502100, 0xC0182101, 0x40082102
CONTINUE, NEW_LISTENER, SET_FILTER = 1, 8, 1
NOTIFY = 0x7FC00000
NOTICE, ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = this_machine().numbers()


def program() -> bytes:
    """Return the filter: the calls above ask, the others go on."""
    bits = (os.O_ACCMODE, os.O_WRONLY), (os.O_ACCMODE, os.O_RDWR)
    bits += (os.O_CREAT, os.O_CREAT), (os.O_TRUNC, os.O_TRUNC)
    opens = tuple(
        Rule((name,), NOTIFY, (Compare(at, Op.MASKED_EQ, mask, wanted),))
        for name, at in OPENING.items()
        for mask, wanted in bits
    )
    devices = tuple(
        Rule(("ioctl",), NOTIFY, (Compare(1, Op.MASKED_EQ, 0xFF00, kind << 8),))
        for kind in DEVICES
    )
    profile = Profile(ALLOW, (*opens, *devices, Rule(tuple(CHANGING), NOTIFY)))
    return compile_profile(profile, this_machine())


def install() -> int:
    """Put the filter on this process and all that come of it; return who is asked."""
    code = program()
    buffer = ctypes.create_string_buffer(code)
    head = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    number = NUMBERS["seccomp"]
    fd = LIBC.syscall(number, SET_FILTER, NEW_LISTENER, head)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(fd)


@dataclass
class Call:
    """A call that waits. ``place`` is its path, or that of its descriptor."""

    id: int
    pid: int
    name: str
    args: tuple[int, ...]
    place: str

    def __str__(self) -> str:
        return f"{self.name}({self.place})"


NAMES = {number: name for name, number in NUMBERS.items()}


def text_at(pid: int, address: int) -> str:
    """Return the text that a pointer of another process points at."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while b"\0" not in found and len(found) < 4096:
            found += memory.read(256 - (address + len(found)) % 256) or b"\0"
    return os.fsdecode(found.partition(b"\0")[0])


def place_of(pid: int, name: str, args: tuple[int, ...]) -> str:
    """Return what a call is about; "" when its maker has gone."""
    try:
        if name == "ioctl":
            device = os.readlink(f"/proc/{pid}/fd/{args[0] & 0xFFFFFFFF}")
            return f"{device} {args[1] & 0xFF}"
        if name in DESCRIPTORS:
            return os.readlink(f"/proc/{pid}/fd/{args[DESCRIPTORS[name]] & 0xFFFFFFFF}")
        return " ".join(
            text_at(pid, args[at]) for at in PATHS.get(name, ()) if args[at]
        )
    except (OSError, ValueError, OverflowError):
        return ""


def how_of(call: Call) -> int:
    """Return the flags in the structure of an openat2."""
    try:
        with open(f"/proc/{call.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(call.args[2])
            return int.from_bytes(memory.read(8), "little")
    except OSError:
        return os.O_CREAT


NOT_FILES = ("/dev/", "/proc/", "/memfd:", "pipe:", "socket:", "anon_inode:")


def counts(call: Call) -> bool:
    """Whether a call changes a file system that lasts: not pipes, not /dev, not /proc."""
    if call.name == "ioctl":
        return call.args[1] & 0xFF in DEVICES[call.args[1] >> 8 & 0xFF]
    if call.place.startswith(NOT_FILES) and not call.place.startswith("/dev/shm/"):
        return False
    if call.name == "openat2" and not how_of(call) & (os.O_ACCMODE | os.O_CREAT):
        return False
    if call.name in DESCRIPTORS:
        try:
            mode = os.stat(
                f"/proc/{call.pid}/fd/{call.args[DESCRIPTORS[call.name]]}"
            ).st_mode
        except OSError:
            return True
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return True


Decide = Callable[[int, Call], int]  # an errno, 0 to go on, -1 to kill


@dataclass
class Outcome:
    """What became of a run: its status (minus the signal), its words, its calls."""

    where: str
    status: int = 0
    said: str = ""
    calls: list[str] = field(default_factory=list)


def traced(
    work: Callable[[], int], decide: Decide, said: str, seconds: float = 20
) -> Outcome:
    """Fork, do ``work`` there with its output in the file ``said``, decide on each call."""
    ours, theirs = socket.socketpair()
    main = os.fork()
    if main == 0:
        ours.close()
        be_child(work, theirs, said)
    theirs.close()
    listener = receive(ours)
    ours.close()
    outcome = Outcome(said)
    try:
        attend(main, listener, decide, outcome, seconds)
    finally:
        os.close(listener)
    with open(said, encoding="utf-8", errors="replace") as file:
        outcome.said = file.read()
    return outcome


def receive(channel: socket.socket) -> int:
    """Receive the descriptor on which the kernel asks."""
    _, found, _, _ = socket.recv_fds(channel, 1, 1)
    if not found:
        raise RuntimeError("the child could not install its filter")
    return found[0]


def speak_plainly() -> None:
    """Print to the descriptors 1 and 2, whatever the tests' own runner captures."""
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def be_child(work: Callable[[], int], channel: socket.socket, said: str) -> None:
    """Be the command, and end."""
    status = 99
    try:
        os.setsid()
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        for old, new in ((null, 0), (out, 1), (out, 2)):
            os.dup2(old, new)
        speak_plainly()
        fd = install()
        socket.send_fds(channel, [b"x"], [fd])
        os.close(fd)
        channel.close()
        os.closerange(3, 256)
        status = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def attend(
    main: int, listener: int, decide: Decide, outcome: Outcome, seconds: float
) -> None:
    """Answer every question until nobody is left who could ask."""
    until, ended = time.monotonic() + seconds, False
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    pids = {main}
    while True:
        events = poll.poll(200)
        if events and events[0][1] & select.POLLIN:
            answer_one(main, listener, decide, outcome, pids)
        elif events:  # POLLHUP: they are all gone
            break
        if not ended:
            ended = reap(main, outcome)
        if time.monotonic() > until:
            for pid in pids:
                kill(pid)
            if not ended:
                os.waitpid(main, 0)
            raise TimeoutError(f"still there after {seconds} s: {outcome.calls[-3:]}")
    while not ended:
        ended = reap(main, outcome, wait=True)


def reap(main: int, outcome: Outcome, *, wait: bool = False) -> bool:
    """Note how the command ended, if it has."""
    pid, status = os.waitpid(main, 0 if wait else os.WNOHANG)
    if pid:
        outcome.status = os.waitstatus_to_exitcode(status)
    return bool(pid)


def answer_one(
    main: int, listener: int, decide: Decide, outcome: Outcome, pids: set[int]
) -> None:
    """Receive one question and answer it."""
    buffer = bytearray(NOTICE.size)
    try:
        fcntl.ioctl(listener, RECV, buffer)
    except OSError as why:
        if why.errno in (errno.ENOENT, errno.EINTR):
            return
        raise
    id, pid, _, number, _, _, *args = NOTICE.unpack(buffer)
    name = NAMES.get(number, str(number))
    call = Call(id, pid, name, tuple(args), place_of(pid, name, tuple(args)))
    pids.add(pid)
    verdict = 0
    if counts(call) and call.place != outcome.where:
        outcome.calls.append(str(call))
        verdict = decide(len(outcome.calls), call)
    if verdict < 0:
        kill(pid)
        kill(main)
        return
    answer = ANSWER.pack(id, 0, -verdict, 0 if verdict else CONTINUE)
    try:
        fcntl.ioctl(listener, SEND, answer)
    except OSError as why:
        if why.errno != errno.ENOENT:  # its maker was killed meanwhile
            raise


def kill(pid: int) -> None:
    """Kill a process, if it is there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def go_on(number: int, call: Call) -> int:
    """Let every call go on."""
    return 0


def kill_at(wanted: int) -> Decide:
    """Kill at the call of a number, counted from 1."""
    return lambda number, call: -1 if number == wanted else 0


def fail_at(wanted: int, code: int) -> Decide:
    """Let one call fail."""
    return lambda number, call: code if number == wanted else 0


def full_from(wanted: int) -> Decide:
    """From a call on there is no room on the disk."""
    return lambda number, call: (
        errno.ENOSPC if number >= wanted and takes_room(call) else 0
    )


def takes_room(call: Call) -> bool:
    """Whether a call needs room; to open a file for writing does only if it is new."""
    if call.name in OPENING:
        return bool(call.args[OPENING[call.name]] & os.O_CREAT)
    return call.name in TAKES_ROOM
