"""The first process of a User-Mode-Linux guest: mount a world, run one command.

machine.py starts it with the guest's kernel. /tty1 and /tty2 carry the command's
output, /tty3 says ``ready`` and then ``exit N`` or ``fail WHY``. The root is the
host's, read-only, under an overlay in memory: whatever is written is thrown away.
Standard library only, without site: it runs before anything is mounted.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import traceback


LIBC = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = 313
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
PLAIN = NOSUID | NODEV | NOEXEC
NEW = "/mnt/root"


def check(what: str, result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode())
    options = data.encode() or None
    check(f"mount {target}", LIBC.mount(*words, ctypes.c_ulong(flags), options))


def line(number: int) -> int:
    """Open one of the guest's lines to machine.py."""
    return os.open(f"/dev/tty{number}", os.O_RDWR | os.O_NOCTTY)


def raw(terminal: int) -> int:
    """Let bytes through as they are."""
    attributes = termios.tcgetattr(terminal)
    attributes[0] = attributes[1] = attributes[3] = 0
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    return terminal


def load_modules(directory: str, names: list[str]) -> None:
    """Load modules, what they depend on first; a built-in one has no file."""
    files: dict[str, list[str]] = {}
    with open(f"{directory}/modules.dep") as lines:
        for text in lines:
            first, _, rest = text.partition(":")
            key = os.path.basename(first)[:-3].replace("-", "_")
            files[key] = [first, *rest.split()]
    for name in names:
        for path in reversed(files.get(name.replace("-", "_"), [])):
            fd = os.open(f"{directory}/{path}", os.O_RDONLY)
            loaded = LIBC.syscall(FINIT_MODULE, fd, b"", 0)
            os.close(fd)
            if loaded < 0 and ctypes.get_errno() != 17:  # EEXIST: it is there
                check(f"load {path}", loaded)


def cover(lower: str, target: str, number: int) -> None:
    """Mount ``lower`` on ``target`` with a writable layer that is thrown away."""
    upper, work = f"/mnt/u{number}", f"/mnt/w{number}"
    os.mkdir(upper)
    os.mkdir(work)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount("overlay", target, "overlay", 0, options)


def mount_kernel_trees(conf: dict) -> None:
    """Mount proc, sys, dev, and fresh memory on /tmp and /run."""
    size = conf["tmpfs"]
    mount("proc", f"{NEW}/proc", "proc", PLAIN)
    mount("sysfs", f"{NEW}/sys", "sysfs", PLAIN)
    mount("dev", f"{NEW}/dev", "devtmpfs", NOSUID)
    for name in ("pts", "shm", "mapper"):
        os.makedirs(f"{NEW}/dev/{name}", exist_ok=True)
    pts = "ptmxmode=666,mode=620,gid=5"
    mount("devpts", f"{NEW}/dev/pts", "devpts", NOSUID | NOEXEC, pts)
    mount("tmpfs", f"{NEW}/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777")
    mount("tmpfs", f"{NEW}/tmp", "tmpfs", NOSUID | NODEV, f"mode=1777,size={size}")
    mount("tmpfs", f"{NEW}/run", "tmpfs", NOSUID | NODEV, "mode=755")
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        if not os.path.lexists(f"{NEW}/dev/{name}"):
            os.symlink(target, f"{NEW}/dev/{name}")


def mount_world(conf: dict) -> None:
    """Build the guest's root below NEW, and make it the root."""
    mount("tmpfs", "/mnt", "tmpfs", 0, f"mode=755,size={conf['tmpfs']}")
    os.mkdir(NEW)
    cover("/", NEW, 0)
    mount_kernel_trees(conf)
    for number, place in enumerate(conf["see"], 1):
        os.makedirs(NEW + place, exist_ok=True)
        cover(place, NEW + place, number)
    for place in conf["writable"]:
        os.makedirs(NEW + place, exist_ok=True)
        mount("none", NEW + place, "hostfs", 0, place)
    os.makedirs(f"{NEW}/mnt/.old", exist_ok=True)
    os.chdir(NEW)
    check("pivot_root", LIBC.pivot_root(b".", b"mnt/.old"))
    os.chdir("/")
    check("umount", LIBC.umount2(b"/mnt/.old", 2))
    os.rmdir("/mnt/.old")


def mount_cgroups(version: str) -> None:
    """Mount version 2 with all controllers, or version 1, one hierarchy each."""
    top = "/sys/fs/cgroup"
    os.makedirs(top, exist_ok=True)
    if version == "v2":
        mount("cgroup2", top, "cgroup2", PLAIN)
        with open(f"{top}/cgroup.controllers") as file:
            names = file.read().split()
        for name in names:
            with open(f"{top}/cgroup.subtree_control", "w") as file:
                file.write(f"+{name}")
    elif version == "v1":
        mount("cgroup", top, "tmpfs", PLAIN, "mode=755")
        with open("/proc/cgroups") as lines:
            names = [text.split()[0] for text in lines if text[0] != "#"]
        for name in names:
            os.mkdir(f"{top}/{name}")
            mount("cgroup", f"{top}/{name}", "cgroup", PLAIN, name)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, 0x8914, struct.pack("16sh22x", b"lo", 0x49))


def boot(conf: dict) -> int:
    """Make the world; return what the command reads."""
    stdin = os.open("/dev/null", os.O_RDONLY)
    load_modules(conf["modules_at"], ["overlay"])
    mount_world(conf)
    os.makedirs("/lib/modules", exist_ok=True)
    link = f"/lib/modules/{os.uname().release}"
    if not os.path.lexists(link):
        os.symlink(conf["modules_at"], link)
    mount_cgroups(conf["cgroup"])
    load_modules(conf["modules_at"], conf["modules"])
    raise_loopback()
    socket.sethostname("uml")
    return stdin


def become(conf: dict, stdin: int, out: int, err: int) -> None:
    """Be the command."""
    try:
        os.setsid()
        for source, target in ((stdin, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        os.chdir(conf["cwd"])
        os.execvpe(conf["argv"][0], conf["argv"], conf["env"])
    except OSError as why:
        os.write(2, f"machine: {conf['argv'][0]}: {why}\n".encode())
        os._exit(127 if isinstance(why, FileNotFoundError) else 126)


def reap(child: int) -> int | None:
    """Reap whoever has ended; the command's status if it is among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if not pid:
            return status
        if pid == child:
            found = os.waitstatus_to_exitcode(code)
            status = found if found >= 0 else 128 - found
            try:
                os.kill(-1, signal.SIGKILL)  # what it left running ends with it
            except ProcessLookupError:
                pass


def run(conf: dict, stdin: int, lines: dict[int, int]) -> int:
    """Run the command, carry its output; return its exit status."""
    pipes = {number: os.pipe() for number in lines}
    child = os.fork()
    if not child:
        become(conf, stdin, pipes[1][1], pipes[2][1])
    for _, end in pipes.values():
        os.close(end)
    carried = {pipes[number][0]: lines[number] for number in lines}
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    status = None
    while carried or status is None:
        for fd in select.select([*carried, wake], [], [], 1)[0]:
            data = os.read(fd, 65536)
            if fd != wake and not data:
                os.close(fd)
                del carried[fd]
            while fd in carried and data:
                data = data[os.write(carried[fd], data) :]
        ended = reap(child)
        status = status if ended is None else ended
    return status


def main(place: str) -> None:
    with open(f"{place}/conf") as file:
        conf = json.load(file)
    lines = {number: raw(line(number)) for number in (1, 2, 3)}
    control = lines.pop(3)
    try:
        stdin = boot(conf)
        os.write(control, b"ready\n")
        status = run(conf, stdin, lines)
        for number in lines.values():
            termios.tcdrain(number)
        os.sync()
        os.write(control, b"exit %d\n" % status)
    except BaseException as why:  # noqa: BLE001
        os.write(line(0), traceback.format_exc().encode())
        os.write(control, f"fail {why!r}\n".encode())
    termios.tcdrain(control)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    finally:
        os.sync()
        LIBC.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF
