# From book/469-oci-life.md. Edit there and tangle, or here and tangle --back.

# %% The life of a bundle: kill, exec, delete
"""Kill, delete, pause and update containers of bundles; run one more process in one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from minidocker.bundle import hooks_of, identity_of, process_of
from minidocker.cgroups import move_into
from minidocker.documents import Part
from minidocker.errors import ConflictError, RuntimeFault
from minidocker.first_process import (
    be_root_here,
    check_program,
    keep_open,
    say,
    variables,
    wait_for_go,
)
from minidocker.hooks import hook_state, run_hook
from minidocker.identity import Identity, set_labels, size_console, take_identity
from minidocker.joining import namespaces_to_join, owner_namespace
from minidocker.linux import (
    CloneFlags,
    Prctl,
    SysError,
    clone3,
    pidfd_open,
    pidfd_send_signal,
    prctl,
    setns,
)
from minidocker.namespaces import PLACE
from minidocker.oci_groups import limit_group, pids_in, remove_at, set_frozen
from minidocker.oci_runtime import Launch, taken, write_pid
from minidocker.oci_state import (
    OciContainer,
    Phase,
    load,
    phase_of,
    remove_home,
)
from minidocker.program import DEFAULT_PATH, ProcessSpec, execute
from minidocker.records import Record
from minidocker.runtime import (
    Process,
    in_child,
    new_channel,
    new_terminal,
    received_error,
    settle,
    start_time,
)
from minidocker.security import prepared


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


# %% Signals
def signal_first(container: OciContainer, number: int) -> None:
    """Send a signal to the first process, and to no other that has its number.

    Raises ConflictError when it does not run.
    """
    try:
        pidfd = pidfd_open(container.pid)
    except SysError as why:
        raise ConflictError("container not running") from why
    try:
        if start_time(container.pid) != container.start_time:
            raise ConflictError("container not running")
        pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def kill_container(container: OciContainer, number: int, *, everyone: bool) -> None:
    """Send a signal to the first process, or to every process in the groups.

    KILL thaws: a frozen process dies only when it runs again.
    """
    if not everyone:
        signal_first(container, number)
    for pid in pids_in(container.group) if everyone else ():
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    if number == signal.SIGKILL and phase_of(container) is Phase.PAUSED:
        set_frozen(container.group, frozen=False)


def wait_for_end(container: OciContainer, seconds: float = 10) -> bool:
    """Wait until a container has stopped; say whether it has."""
    end = time.monotonic() + seconds
    while phase_of(container) is not Phase.STOPPED:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# %% delete
def delete(root: str, id: str, *, force: bool = False) -> list[str]:
    """Remove a stopped or created container; any one by force.

    Returns what hooks of ``poststop`` had to complain: the container goes all the
    same. Raises ConflictError for one that runs, NotFoundError where there is none.
    """
    container = load(root, id)
    phase = phase_of(container)
    if phase in (Phase.RUNNING, Phase.PAUSED) and not force:
        what = f"cannot delete container {id} that is not stopped: {phase.value}"
        raise ConflictError(what)
    if phase is not Phase.STOPPED:
        kill_container(container, signal.SIGKILL, everyone=False)
        wait_for_end(container)
    for pid in pids_in(container.group):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    remove_at(container.group)
    complaints = after_the_end(container)
    remove_home(container)
    return complaints


def after_the_end(container: OciContainer) -> list[str]:
    """Run the hooks of ``poststop``, each whatever the others say."""
    config, said = container.document, []
    state = hook_state(container.id, 0, "stopped", container.bundle, config)
    for hook in hooks_of(config, "poststop"):
        try:
            run_hook(hook, state)
        except RuntimeFault as why:
            said.append(str(why))
    return said


# %% pause, resume, update
def pause(container: OciContainer) -> None:
    """Freeze a container's processes. Raises ConflictError for one that waits."""
    if phase_of(container) is not Phase.RUNNING:
        raise ConflictError("container not running")
    set_frozen(container.group, frozen=True)


def resume(container: OciContainer) -> None:
    """Let a paused container go on. Raises ConflictError for one that is not."""
    if phase_of(container) is not Phase.PAUSED:
        raise ConflictError("container not paused")
    set_frozen(container.group, frozen=False)


def update(container: OciContainer, resources: Part) -> None:
    """Change the limits of a container that has not stopped."""
    if phase_of(container) is Phase.STOPPED:
        raise ConflictError("container not running")
    limit_group(container.group, resources, new=False)


# %% exec
class Entry(Record):
    """One more process: what it is, beside the container's own ``config``."""

    spec: ProcessSpec
    identity: Identity


def entry_of(container: OciContainer, process: Part) -> Entry:
    """Return a process document as an entry into a container."""
    seccomp = container.document.get("linux").get("seccomp")
    spec = process_of(process, seccomp)
    return Entry(spec.replace(security=prepared(spec.security)), identity_of(process))


def be_entry(
    entry: Entry, target: int, owner: int, flags: CloneFlags, channel: socket
) -> NoReturn:
    """Go into a container's namespaces, and become the program."""
    wait_for_go(channel)
    set_labels(entry.identity)
    prctl(Prctl.SET_DUMPABLE, 0)  # processes inside may not look into us
    if flags & CloneFlags.NEWUSER:
        setns(owner, CloneFlags.NEWUSER)
        be_root_here()
        prctl(Prctl.SET_DUMPABLE, 0)
    setns(target, flags & ~(CloneFlags.NEWUSER | CloneFlags.NEWPID))
    slave = -1
    if entry.spec.tty:
        slave = new_terminal(os.open("/", PLACE), entry.spec, channel)
        size_console(slave, entry.identity.console)
    root, user = settle(entry.spec, slave)
    env = variables(entry.spec.env, user.home)
    check_program(root, entry.spec.argv[0], env.get("PATH", DEFAULT_PATH))
    keep_open(entry.identity.preserve)
    take_identity(user, entry.identity, entry.spec.security)
    execute(root, entry.spec.argv, env)


# %% exec
def execute_in(container: OciContainer, entry: Entry, launch: Launch) -> Process:
    """Run one more process in a container; return when its program runs.

    Its terminal goes to the console socket where there is one, otherwise it is in the
    Process. Raises what the start raised; ConflictError for a stopped container.
    """
    phase = phase_of(container)
    if phase is Phase.STOPPED:
        raise ConflictError("cannot exec in a stopped container")
    if phase is Phase.PAUSED:
        raise ConflictError("cannot exec in a paused container (use --ignore-paused)")
    target, owner = pidfd_open(container.pid), owner_namespace(container.pid)
    flags = namespaces_to_join(container.pid)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    ours, theirs = new_channel()
    setns(target, CloneFlags.NEWPID)
    pid, pidfd = clone3(CloneFlags(0))
    if pid == 0:
        in_child(theirs, lambda: be_entry(entry, target, owner, flags, theirs))
    setns(home, CloneFlags.NEWPID)
    theirs.close()
    for fd in (target, owner, home):
        os.close(fd)
    process = Process(pid, pidfd, start_time(pid))
    move_into(container.group, [pid])
    terminal = watch_entry(process, ours, launch)
    write_pid(launch, pid)
    return process.replace(terminal=terminal)


def watch_entry(process: Process, channel: socket, launch: Launch) -> int:
    """Wait until the program runs; return its terminal's master, or -1.

    Where it cannot, the process is reaped and its error raised.
    """
    terminal = -1
    try:
        say(channel, b"g")
        while message := channel.recvmsg(65536, 64):
            word, rights = message[:2]
            for _, _, data in rights:
                terminal = taken(int.from_bytes(data[:4], "little"), launch)
            if word[:1] == b"E":
                raise received_error(word)
            if not word:
                return terminal
    except BaseException:
        with suppress(SysError):
            pidfd_send_signal(process.pidfd, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise
    finally:
        channel.close()
    return terminal
