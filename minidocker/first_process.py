# From book/478-first-process.md. Edit there and tangle, or here and tangle --back.

# %% The first process: a container that waits
"""Be the first process of an OCI container: stop for its parent, for hooks, wait."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from minidocker.bundle import Bundle
from minidocker.destinations import open_in_root
from minidocker.dialogue import say, wait_for_go
from minidocker.errors import CommandNotFoundError, NotExecutableError, RuntimeFault
from minidocker.hooks import hook_state, run_hooks
from minidocker.identity import set_labels
from minidocker.last_call import candidates, refusal
from minidocker.linux import CloneFlags, Prctl, prctl, unshare
from minidocker.program import DEFAULT_PATH
from minidocker.runtime import Moments, be_container, enter_paths


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, NoReturn


# %% Before it builds
def be_root_here() -> None:
    """Take the ids 0 of a new user namespace, where they have a map."""
    with suppress(OSError):
        os.setgroups(())
    with suppress(OSError):
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


# %% The stops
def check_program(root: int, program: str, path: str) -> None:
    """Raise what Docker would say of a program that cannot be executed."""
    fault: RuntimeFault | None = None
    for place in candidates(program, path):
        inside = os.path.join(os.getcwd(), place)
        try:
            handle = open_in_root(root, inside)
        except OSError as why:
            fault = refusal(program, inside, why.errno or 0, missing=True)
            continue
        mode = os.fstat(handle).st_mode
        os.close(handle)
        if mode & 0o111 and mode & 0o170000 == 0o100000:
            return
        if "/" in program:
            raise NotExecutableError(f'exec: "{program}": permission denied')
    if "/" in program and fault:
        raise fault
    raise CommandNotFoundError(f'exec: "{program}": executable file not found in $PATH')


# %% The stops
class Waiting(Moments):
    """The moments of a container that waits: for hooks, and then for ``start``."""

    def __init__(
        self, bundle: Bundle, channel: socket, fifo: int, state: dict[str, Any]
    ) -> None:
        super().__init__()
        self.bundle, self.channel = bundle, channel
        self.fifo, self.state = fifo, state

    def mounted(self) -> None:
        """Let the parent, and then the hooks of ``createContainer``, do their part."""
        bundle, channel = self.bundle, self.channel
        set_labels(bundle.spec.security.profile, bundle.identity.label)
        say(channel, b"H")
        wait_for_go(channel)
        run_hooks(bundle.config, "createContainer", self.state)
        prctl(Prctl.SET_DUMPABLE, 0)  # who comes in while we wait may not look into us

    def ready(self, root: int, env: dict[str, str]) -> None:
        """Say that all is ready, and wait for ``start``, and for the last hooks."""
        bundle = self.bundle
        check_program(root, bundle.spec.argv[0], env.get("PATH", DEFAULT_PATH))
        keep_open(bundle.identity.preserve)
        heed_signals()
        say(self.channel, b"R")
        self.channel.close()
        os.read(self.fifo, 1)
        state = {**self.state, "status": "created"}
        run_hooks(bundle.config, "startContainer", state)


# %% The stops
ENDING = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGTERM,
)  # fmt: skip


def heed_signals() -> None:
    """End at a signal that ends others; the execve takes this back.

    Process 1 of a namespace gets only what it asks for. Source: pid_namespaces(7).
    """
    for number in ENDING:
        signal.signal(number, lambda number, _: os._exit(128 + number))


# %% The stops
def keep_open(count: int) -> None:
    """Let the first ``count`` descriptors after 0, 1, 2 outlive the execve."""
    for number in range(3, 3 + count):
        with suppress(OSError):
            os.set_inheritable(number, True)


# %% The stops
def be_first(bundle: Bundle, id: str, channel: socket, fifo: int) -> NoReturn:
    """Be the first process of a container, from the clone to the program."""
    plan = bundle.plan
    wait_for_go(channel)
    if bundle.maps[0] or "user" in dict(plan.paths):
        be_root_here()
    if "user" not in dict(plan.paths):
        enter_paths(plan.paths)
    if "cgroup" in plan.kinds:
        unshare(CloneFlags.NEWCGROUP)
    pid = int(os.readlink("/proc/self"))  # /proc is the host's: the number is, too
    state = hook_state(id, pid, "creating", bundle.path, bundle.config)
    try:
        be_container(plan, channel, Waiting(bundle, channel, fifo, state))
    except (OSError, RuntimeFault) as why:
        if channel.fileno() >= 0:
            raise
        os.write(2, os.fsencode(f"{why}\n"))
        os._exit(1)
