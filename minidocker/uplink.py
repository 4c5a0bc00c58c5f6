# From book/455-uplink.md. Edit there and tangle, or here and tangle --back.

# %% Uplink: a network without root
"""Connect the container of a user without root, by pasta or by slirp4netns."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.calls import signal
from minidocker.destinations import magic
from minidocker.errors import RuntimeFault, UnsupportedError
from minidocker.idmaps import find_program
from minidocker.linux import CloneFlags, Prctl, prctl, unshare
from minidocker.mounts import MountFlags, UmountFlags, mount, umount2
from minidocker.program import reset_signals
from minidocker.records import Record
from minidocker.rtnetlink import open_netns


# %% A namespace without a way back
def netns_of_child(prepare: Callable[[], None]) -> int:
    """Make a network namespace in a child, which does ``prepare`` there; return its fd.

    Raises RuntimeFault with what the child met.
    """
    heard, told = os.pipe()
    stay, go = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"+"
        try:
            unshare(CloneFlags.NEWNET)
            prepare()
        except OSError as why:
            said = str(why).encode()
        os.write(told, said)
        os.close(go)
        os.read(stay, 1)
        os._exit(0)
    try:
        said = os.read(heard, 1000)
        if said != b"+":
            raise RuntimeFault(f"no network namespace: {said.decode()}")
        return open_netns(f"/proc/{child}/ns/net")
    finally:
        for fd in (heard, told, stay, go):
            os.close(fd)
        os.waitpid(child, 0)


# %% Two programs
class Uplink(Record):
    """A program between a container and the host: its name, and where it is."""

    name: str
    path: str

    def argv(self, netns: str, ready: str) -> list[str]:
        """Return its command line, for a namespace at a path; ``ready`` is a FIFO."""
        if self.name == "pasta":
            quiet = "-q -f -t none -u none -T none -U none --no-map-gw --netns-only"
            own = ["--config-net", "--ns-ifname", "eth0", "--pid", ready]
            return [self.path, *quiet.split(), *own, "--netns", netns]
        options = "--configure --mtu=65520 --disable-host-loopback --netns-type=path"
        return [self.path, *options.split(), f"--ready-fd={READY}", netns, "eth0"]


NAMES = ("pasta", "slirp4netns")
READY = 3


def find_uplink(path: str | None = None) -> Uplink:
    """Return the first of the two programs that is installed.

    Raises UnsupportedError when there is none, or no device for it to open.
    """
    for name in NAMES:
        if program := find_program(name, path):
            if os.access(TUN, os.R_OK | os.W_OK):
                return Uplink(name, program)
            what = f"{TUN}, which {name} needs, may not be opened"
            raise UnsupportedError(what, hint=f"as root: chmod 666 {TUN}")
    what = "neither pasta nor slirp4netns is installed"
    raise UnsupportedError(what, hint="as root, install one of them")


TUN = "/dev/net/tun"


# %% For as long as the container lives
PATIENCE = 10_000  # milliseconds until one of them must be ready


def be_uplink(program: Uplink, netns: str, fifo: str, parent: int) -> None:
    """Turn this child into the program; its words go to the file ``FIFO.log``.

    It ends with ``parent``, also with one that has gone already.
    """
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    reset_signals()  # a pasta of 2023 fails where SIGPIPE is ignored already
    log = os.open(f"{fifo}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    ready = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)  # a reader is there
    for source, target in ((null, 0), (log, 1), (log, 2), (ready, READY)):
        os.dup2(os.dup(source) if source <= READY else source, target)
    os.closerange(READY + 1, 1 << 16)
    os.execv(program.path, program.argv(netns, fifo))  # noqa: S606


# %% For as long as the container lives
def wait_ready(fifo: int, child: int, log: str) -> None:
    """Wait until the program has written to the FIFO. Raises RuntimeFault."""
    waiting = select.poll()
    waiting.register(fifo, select.POLLIN)
    spent = 0
    while spent < PATIENCE:
        for _, event in waiting.poll(20):
            if event & select.POLLIN and os.read(fifo, 100):
                return
        spent += 20
        if os.waitpid(child, os.WNOHANG)[0]:
            break
    with open(log, encoding="utf-8", errors="replace") as file:
        said = " ".join(file.read().split())[-300:]
    raise RuntimeFault(f"the network could not be set up: {said or 'it took too long'}")


# %% For as long as the container lives
@contextmanager
def uplink(program: Uplink, netns: int, place: str) -> Iterator[None]:
    """Connect a namespace for a ``with`` block; ``place`` is a directory for files."""
    path, fifo = f"{place}/netns", f"{place}/uplink"
    for stale in (path, fifo):
        with suppress(FileNotFoundError):
            os.unlink(stale)
    os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.mkfifo(fifo, 0o600)
    mount(magic(netns), path, None, MountFlags.BIND)
    heard = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            be_uplink(program, path, fifo, parent)
        os._exit(127)
    try:
        wait_ready(heard, child, f"{fifo}.log")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
        os.close(heard)
        umount2(path, UmountFlags.DETACH)
        for file in (path, fifo, f"{fifo}.log"):
            os.unlink(file)
