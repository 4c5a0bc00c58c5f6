# From book/482-oci-start.md. Edit there and tangle, or here and tangle --back.

# %% Start: a byte in a pipe
"""Let a created container run its program."""

from __future__ import annotations

import os
import select

from minidocker.errors import ConflictError
from minidocker.hooks import hook_state, run_hooks
from minidocker.oci_state import OciContainer, Phase, phase_of


# %% Who reads, and until when
def start_created(container: OciContainer) -> None:
    """Let a created container run its program; return when it does.

    Raises ConflictError for one that waits no more.
    """
    phase = phase_of(container)
    if phase is Phase.STOPPED:
        raise ConflictError("cannot start a container that has stopped")
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
    run_hooks(config, "poststart", state)
