# From book/482-oci-start.md. Edit there and tangle, or here and tangle --back.

# %% Start: a byte in a pipe
"""Let a created container run its program."""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress

from minidocker.calls import SysError
from minidocker.errors import ConflictError, RuntimeFault
from minidocker.hooks import hook_state, run_hooks
from minidocker.linux import open_process, pidfd_send_signal
from minidocker.oci_state import OciContainer, Phase, phase_of


# %% A signal to the first process
def signal_first(container: OciContainer, number: int) -> None:
    """Send a signal to the first process, and to no other that has its number.

    Raises ConflictError when it does not run.
    """
    try:
        pidfd = open_process(container.pid, container.start_time)
    except SysError as why:
        raise ConflictError("container not running") from why
    try:
        pidfd_send_signal(pidfd, number)
    except SysError as why:
        if why.errno != errno.ESRCH:
            raise
        raise ConflictError("container not running") from why
    finally:
        os.close(pidfd)


# %% Who reads, and until when
def start_created(container: OciContainer) -> None:
    """Let a created container run its program; return when it does.

    Raises ConflictError for one that waits no more, or is paused; RuntimeFault for a
    hook of ``poststart`` that fails, when the container has been killed.
    """
    phase = phase_of(container)
    if phase is Phase.STOPPED:
        raise ConflictError("cannot start a container that has stopped")
    if phase is Phase.PAUSED:
        raise ConflictError("cannot start a container in the paused state")
    try:
        fifo = os.open(container.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.unlink(container.fifo)
    except OSError as why:
        raise ConflictError("cannot start an already running container") from why
    os.write(fifo, b"1")
    waiting = select.poll()
    waiting.register(fifo, 0)
    waiting.poll()
    os.close(fifo)
    config = container.document
    state = hook_state(container.id, container.pid, "running", container.bundle, config)
    try:
        run_hooks(config, "poststart", state)
    except RuntimeFault:
        with suppress(ConflictError):  # it has ended by itself
            signal_first(container, signal.SIGKILL)
        raise
