# From book/631-exec-verb.md. Edit there and tangle, or here and tangle --back.

# %% The exec verb: quickly in
"""``exec``: run one more process in a container that runs."""

from __future__ import annotations

import os

from minidocker.containers import Container, ContainerRecords
from minidocker.durable import is_marked
from minidocker.errors import MinidockerError, NotExecutableError, RuntimeFault, recast
from minidocker.executing import exec_detached, exec_foreground
from minidocker.flags import (
    PROCESS,
    TEXT,
    Command,
    Flag,
    Given,
    default_root,
    env_lines,
    need_terminal,
)
from minidocker.program import ProcessSpec
from minidocker.security import DOCKER_SECURITY, PRIVILEGED


# %% The records
def records_of(given: Given) -> ContainerRecords:
    """Return the containers of the store, which is opened whole only if it must be."""
    root = os.path.abspath(given.text("root") or default_root())
    asked = given.text("storage-driver") or given.list("driver-opt")
    if asked or is_marked(root) or not os.path.exists(f"{root}/driver"):
        from minidocker.container_verbs import open_engine  # seldom, and 2 ms

        return open_engine(given).containers
    return ContainerRecords(root)


# %% The two keys
def detach_keys(given: Given, *, tty: bool) -> bytes:
    """Return the keys that say goodbye; none without a terminal."""
    from minidocker.attach import DETACH_KEYS, key_bytes  # few have a terminal

    keys = key_bytes(given.text("detach-keys") or DETACH_KEYS)
    return keys if tty else b""


# %% One more process
def exec_(given: Given) -> int:
    """``exec [OPTIONS] CONTAINER COMMAND [ARG...]``"""
    need_terminal(given)
    if given.text("detach-keys"):
        detach_keys(given, tty=False)
    records = records_of(given)
    container = records.resolve(given.args[0])
    spec = ProcessSpec(
        given.args[1:],
        env=env_lines(given),
        cwd=given.text("workdir"),
        user=given.text("user"),
        tty=given.on("tty"),
        security=PRIVILEGED if given.on("privileged") else DOCKER_SECURITY,
    )
    detached = given.on("detach")
    try:
        return launched(records, container, spec, given)
    except RuntimeFault as why:  # to make a container is not what went wrong
        if type(why) is RuntimeFault or detached:
            kind = MinidockerError if detached else NotExecutableError
            raise recast(why, kind) from why
        raise


def launched(
    store: ContainerRecords, container: Container, spec: ProcessSpec, given: Given
) -> int:
    """Run one more process: in the background, as a guest of it, or as its parent."""
    stdin = given.on("interactive")
    if given.on("detach"):
        exec_detached(store, container, spec)
        return 0
    if spec.tty and stdin:
        return exec_as_guest(store, container, spec, given)
    return exec_foreground(store, container, spec, stdin=stdin)


def exec_as_guest(
    store: ContainerRecords, container: Container, spec: ProcessSpec, given: Given
) -> int:
    """Run one more process in the background, and be its guest."""
    from minidocker.attach import new_seats, stay  # few have a terminal
    from minidocker.pump import Client

    client, keys = Client(), detach_keys(given, tty=True)
    ours, theirs = new_seats(client)
    terminal = exec_detached(store, container, spec, theirs)
    return stay(ours, client, terminal, keys)


# %% The table
KEYS = Flag("detach-keys", "Override the keys for detaching a container", takes=TEXT)
COMMANDS = (
    Command(
        "exec", "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "Run a command in a running container", exec_,
        (
            *PROCESS, KEYS,
            Flag("detach", "Run the command in the background", "d"),
            Flag("privileged", "Give extended privileges to the command"),
        ),
        least=2, greedy=True, example="minidocker exec -it web sh",
    ),
)  # fmt: skip
