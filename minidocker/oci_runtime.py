# From book/484-oci-runtime.md. Edit there and tangle, or here and tangle --back.

# %% The OCI runtime: create
"""Create a container from an OCI bundle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minidocker.bundle import Bundle, bundle_of, read_config
from minidocker.calls import SysError
from minidocker.cgroups import Group, move_into
from minidocker.dialogue import heard, in_child, new_channel, say, send_rights
from minidocker.documents import Part
from minidocker.durable import write_whole
from minidocker.errors import RuntimeFault, UsageError
from minidocker.first_process import be_first
from minidocker.hooks import annotations_of, hook_state, run_hooks
from minidocker.idmaps import write_map
from minidocker.linux import (
    CloneFlags,
    clone3,
    new_session_keyring,
    setns,
    start_time,
    unshare,
)
from minidocker.namespaces import MountStep, first_line, flags_of, put
from minidocker.oci_groups import clean_path, group_at, limit_group, make_at, remove_at
from minidocker.oci_mounts import Attach, GroupView
from minidocker.oci_state import (
    OciContainer,
    load,
    new_home,
    remove_home,
    save,
)
from minidocker.program import set_score
from minidocker.records import Record, json_text
from minidocker.runtime import Plan, enter_paths, opened
from minidocker.security import prepared


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


# %% How it is wanted
class Launch(Record):
    """How a runtime's caller wants it: files and sockets on the host, or "".

    ``preserve`` more descriptors are kept open for the program. ``attended``: who calls
    stays until the end, and takes the terminal where there is no console socket.
    """

    pid_file: str = ""
    console_socket: str = ""
    preserve: int = 0
    new_keyring: bool = True
    attended: bool = False


# %% How it is wanted
def taken(terminal: int, launch: Launch) -> int:
    """Send a terminal's master to the console socket and close it; then return -1.

    Without such a socket it is ours to attend, and is returned. Raises RuntimeFault
    where nobody listens.
    """
    if not launch.console_socket:
        return terminal
    from _socket import AF_UNIX, SOCK_STREAM
    from _socket import socket as new_socket

    line = new_socket(AF_UNIX, SOCK_STREAM)
    try:
        line.connect(launch.console_socket)
        send_rights(line, b"/dev/ptmx", (terminal,))
    except OSError as why:
        what = f"console socket: {why.strerror}"
        raise RuntimeFault(what, where=launch.console_socket) from why
    finally:
        line.close()
        os.close(terminal)
    return -1


# %% The parent
@contextmanager
def going_to(bundle: Bundle) -> Iterator[None]:
    """Have children be born in the pid and time namespaces of a bundle, for a block.

    These two are not entered by a process itself, only by its children.
    """
    homes = []
    try:
        if path := dict(bundle.plan.paths).get("pid"):
            homes.append(("pid", os.open("/proc/self/ns/pid", os.O_RDONLY)))
            with opened(path) as handle:
                setns(handle, CloneFlags.NEWPID)
        if "time" in bundle.plan.kinds:
            homes.append(("time", os.open("/proc/self/ns/time", os.O_RDONLY)))
            unshare(CloneFlags.NEWTIME)
            for clock, seconds, rest in bundle.offsets:
                put("/proc/self/timens_offsets", f"{clock} {seconds} {rest}")
        yield
    finally:
        for kind, home in homes:
            setns(home, flags_of([kind]))
            os.close(home)


# %% The parent
def clone_first(bundle: Bundle, container: OciContainer, theirs: socket) -> int:
    """Clone the first process, which goes on in ``be_first``; return its number."""
    fifo = os.open(container.fifo, os.O_RDWR | os.O_CLOEXEC)
    flags = flags_of(k for k in bundle.plan.kinds if k not in ("cgroup", "time"))

    def body() -> None:
        be_first(bundle, container.id, theirs, fifo)

    try:
        if "user" in dict(bundle.plan.paths):
            return clone_through(bundle, flags, theirs, body)
        return clone_born(bundle, flags, theirs, body)
    finally:
        os.close(fifo)


def clone_born(
    bundle: Bundle, flags: CloneFlags, theirs: socket, body: Callable[[], None]
) -> int:
    """Clone a child in new namespaces that does ``body``; return its number."""
    with going_to(bundle):
        pid, pidfd = clone3(flags)
        if pid == 0:
            in_child(theirs, body)
    os.close(pidfd)
    return pid


def clone_through(
    bundle: Bundle, flags: CloneFlags, theirs: socket, body: Callable[[], None]
) -> int:
    """Clone a child into a user namespace that is there already; return its number.

    What is new in the container must belong to that namespace. So a process in the
    middle enters it, clones a brother, and tells its number; 0 when it failed, and the
    channel has the reason.
    """
    reading, writing = os.pipe()

    def go() -> None:
        enter_paths(bundle.plan.paths)
        pid = clone_born(bundle, flags | CloneFlags.PARENT, theirs, body)
        os.write(writing, b"%d" % pid)
        os._exit(0)

    middle = os.fork()
    if middle == 0:
        in_child(theirs, go)
    os.close(writing)
    number = os.read(reading, 32)
    os.close(reading)
    os.waitpid(middle, 0)
    return int(number or 0)


# %% The parent
def give_place(container: OciContainer, bundle: Bundle, pid: int) -> None:
    """Do for the first process what only we may: its ids, groups, score."""
    for kind, ranges in zip(("uid", "gid"), bundle.maps, strict=True):
        if ranges and "user" in bundle.plan.kinds:
            write_map(pid, kind, ranges)
    score = bundle.config.get("process").get("oomScoreAdj")
    file = f"/proc/{pid}/oom_score_adj"
    if score.value is not None and first_line(file) != str(score.number()):
        set_score(score.number(), str(pid))
    move_into(container.group, [pid])


# %% The parent
def attend_first(
    container: OciContainer, config: Part, launch: Launch, channel: socket
) -> int:
    """Answer the child until it is ready; return its terminal if nobody took it, or -1.

    Raises what the child reports.
    """
    pid, terminal = container.pid, -1
    state = hook_state(container.id, pid, "creating", container.bundle, config)
    say(channel, b"g")
    for word, fd in heard(channel):
        if fd >= 0:
            terminal = taken(fd, launch)
        if word == b"H":
            run_hooks(config, "prestart", state)
            run_hooks(config, "createRuntime", state)
            say(channel, b"g")
        elif word == b"R":
            return terminal
    raise RuntimeFault("the container's first process ended before its start")


# %% create
def check_launch(bundle: Bundle, launch: Launch) -> None:
    """Refuse a console socket without a terminal, and the reverse, as runc does."""
    if bundle.spec.tty and not launch.console_socket and not launch.attended:
        what = "cannot allocate tty if runc will detach without setting console socket"
        raise UsageError(what.replace("runc", "we"))
    if launch.console_socket and not bundle.spec.tty:
        raise UsageError("cannot use console socket without a terminal")


def make_groups(bundle: Bundle, group: Group) -> Group:
    """Make a container's groups and set its limits; return what there is.

    Without root, and with no limit asked for, there may be none.
    """
    try:
        make_at(group)
    except OSError as why:
        remove_at(group)
        if os.geteuid() == 0 and bundle.resources.value:
            raise RuntimeFault(f"cannot make the control group: {why}") from why
        return group.replace(places=())
    limit_group(group, bundle.resources)
    return group


def create(root: str, id: str, path: str, launch: Launch) -> tuple[OciContainer, int]:
    """Create a container: all of it but the program, which waits for ``start``.

    With it comes its terminal's master where ``launch`` leaves that to us, or -1.
    Raises RuntimeFault, UsageError, ConflictError; then nothing is left.
    """
    path = os.path.abspath(path)
    config = read_config(path)
    group = group_at(clean_path(config.get("linux").get("cgroupsPath").text(), id))
    bundle = bundle_of(config, path, group)
    check_launch(bundle, launch)
    home = new_home(root, id)
    text, rootfs = json_text(config.value), bundle.spec.rootfs
    container = OciContainer(id, home, path, rootfs, time.time_ns(), group, text)
    try:
        return create_in(container, bundle, launch)
    except BaseException:
        undo(load(root, id) if os.path.exists(f"{home}/state.json") else container)
        raise


# %% create
def create_in(
    container: OciContainer, bundle: Bundle, launch: Launch
) -> tuple[OciContainer, int]:
    """Create a container whose directory is there; ``undo`` removes what fails here."""
    save(container)
    container = container.replace(group=make_groups(bundle, container.group))
    os.mkfifo(container.fifo, 0o600)
    if launch.new_keyring:
        with suppress(SysError):  # no keys in this kernel, or too many
            new_session_keyring(f"_ses.{container.id}")
    bundle = bundle.replace(plan=ready_plan(bundle, container.group, launch))
    ours, theirs = new_channel()
    try:
        pid = clone_first(bundle, container, theirs)
        theirs.close()
        if pid:
            container = container.replace(pid=pid, start_time=start_time(pid))
            save(container)
            give_place(container, bundle, pid)
        terminal = attend_first(container, bundle.config, launch, ours)
    finally:
        ours.close()
    write_pid(launch, container.pid)
    return container, terminal


def write_pid(launch: Launch, pid: int) -> None:
    """Write a process's number to the pid file, if there is to be one."""
    if launch.pid_file:
        write_whole(launch.pid_file, str(pid))


def ready_plan(bundle: Bundle, group: Group, launch: Launch) -> Plan:
    """Return a bundle's plan with its filter compiled, and all that only we can give.

    That is also the init of chapter ``elf``, for a container of ours that asks for it.
    """
    spec, init = bundle.spec, -1
    if annotations_of(bundle.config).get("minidocker.init") == "true":
        from minidocker.elf import init_file

        init = init_file()
    return bundle.plan.replace(
        spec=spec.replace(security=prepared(spec.security), init=init),
        steps=tuple(ready(step, group) for step in bundle.plan.steps),
        identity=bundle.identity.replace(preserve=launch.preserve),
    )


def ready(step: MountStep, group: Group) -> MountStep:
    """Return a step with what only we can give it: a copy, or the groups there are."""
    if isinstance(step, Attach) and (step.uids or step.gids):
        return step.taken()
    return step.replace(group=group) if isinstance(step, GroupView) else step


def undo(container: OciContainer) -> None:
    """Remove what a failed ``create`` left: process, groups, directory."""
    if container.pid and start_time(container.pid) == container.start_time:
        with suppress(ProcessLookupError):
            os.kill(container.pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        if container.pid:
            os.waitpid(container.pid, 0)
    remove_at(container.group)
    remove_home(container)
