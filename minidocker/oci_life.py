# From book/486-oci-life.md. Edit there and tangle, or here and tangle --back.

# %% The life of a bundle: kill, pause, delete
"""Kill, delete, pause, resume and update the containers of bundles."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from minidocker.documents import Part
from minidocker.errors import ConflictError, RuntimeFault
from minidocker.freezer import set_frozen
from minidocker.hooks import hook_state, hooks_of, run_hook
from minidocker.oci_groups import limit_group, pids_in, remove_at
from minidocker.oci_start import signal_first
from minidocker.oci_state import OciContainer, Phase, load, phase_of, remove_home


# %% Signals
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
        with suppress(ConflictError):  # it ended meanwhile
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
    """Freeze a container's processes, also one that waits for its start.

    Raises ConflictError for one that has stopped, or is paused.
    """
    if phase_of(container) not in (Phase.CREATED, Phase.RUNNING):
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
