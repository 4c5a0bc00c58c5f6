# From book/488-oci-exec.md. Edit there and tangle, or here and tangle --back.

# %% Exec by a runtime: in, and left alone
"""Run one more process in the container of a bundle, and leave it to its caller."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from minidocker.bundle import identity_of, process_of
from minidocker.calls import SysError
from minidocker.cgroups import move_into
from minidocker.destinations import PLACE
from minidocker.dialogue import (
    heard,
    in_child,
    new_channel,
    new_terminal,
    say,
    wait_for_go,
)
from minidocker.documents import Part
from minidocker.errors import ConflictError
from minidocker.first_process import be_root_here, check_program, keep_open
from minidocker.identity import set_labels
from minidocker.joining import namespaces_to_join, owner_namespace
from minidocker.linux import (
    CloneFlags,
    Prctl,
    clone3,
    pidfd_open,
    pidfd_send_signal,
    prctl,
    setns,
    start_time,
)
from minidocker.oci_runtime import Launch, taken, write_pid
from minidocker.oci_state import OciContainer, Phase, phase_of
from minidocker.program import DEFAULT_PATH
from minidocker.runtime import Moments, Plan, Process, run_program
from minidocker.security import prepared


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


# %% No process in the middle
def plan_within(container: OciContainer, process: Part, preserve: int = 0) -> Plan:
    """Return a process document as a plan in which nothing is left to be built.

    ``preserve`` descriptors after the first three stay open for it.
    """
    spec = process_of(process, container.document.get("linux").get("seccomp"))
    identity = identity_of(process).replace(preserve=preserve)
    return Plan(spec.replace(security=prepared(spec.security)), identity=identity)


class Checked(Moments):
    """The moments of one more process: its program is looked for first."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def ready(self, root: int, env: dict[str, str]) -> None:
        """Raise where there is no such program; let descriptors outlive the execve."""
        program, identity = self.plan.spec.argv[0], self.plan.identity
        check_program(root, program, env.get("PATH", DEFAULT_PATH))
        keep_open(identity.preserve if identity else 0)


def be_entry(
    plan: Plan, target: int, owner: int, flags: CloneFlags, channel: socket
) -> NoReturn:
    """Go into a container's namespaces, and become the program."""
    spec, label = plan.spec, plan.identity.label if plan.identity else ""
    wait_for_go(channel)
    set_labels(spec.security.profile, label)
    prctl(Prctl.SET_DUMPABLE, 0)  # processes inside may not look into us
    if flags & CloneFlags.NEWUSER:
        setns(owner, CloneFlags.NEWUSER)
        be_root_here()
        prctl(Prctl.SET_DUMPABLE, 0)
    setns(target, flags & ~(CloneFlags.NEWUSER | CloneFlags.NEWPID))
    slave = new_terminal(os.open("/", PLACE), spec, channel) if spec.tty else -1
    run_program(plan, Checked(plan), slave)


# %% No process in the middle
def execute_in(container: OciContainer, plan: Plan, launch: Launch) -> Process:
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
        in_child(theirs, lambda: be_entry(plan, target, owner, flags, theirs))
    setns(home, CloneFlags.NEWPID)
    theirs.close()
    for fd in (target, owner, home):
        os.close(fd)
    process = Process(pid, pidfd, start_time(pid))
    move_into(container.group, [pid])
    terminal = watch_entry(process, ours, launch)
    write_pid(launch, pid)
    return process.replace(terminal=terminal)


# %% No process in the middle
def watch_entry(process: Process, channel: socket, launch: Launch) -> int:
    """Wait until the program runs; return its terminal's master, or -1.

    Where it cannot, the process is reaped and its error raised.
    """
    terminal = -1
    try:
        say(channel, b"g")
        for _, fd in heard(channel):
            if fd >= 0:
                terminal = taken(fd, launch)
    except BaseException:
        with suppress(SysError):
            pidfd_send_signal(process.pidfd, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise
    finally:
        channel.close()
    return terminal
