# From book/466-executing.md. Edit there and tangle, or here and tangle --back.

# %% Executing: one more process inside
"""Run one more process in a container that runs: attended, in the background."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from minidocker.cgroups import find_group
from minidocker.containers import Container, ContainerRecords, Status, tell
from minidocker.errors import ConflictError, NotFoundError, RuntimeFault
from minidocker.joining import exec_in
from minidocker.program import ProcessSpec, ulimits_of
from minidocker.pump import Client, Pump, attend
from minidocker.runtime import Process
from minidocker.security import ALL_CAPABILITIES, Security


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.attach import Seat


# %% What it is given
def exec_security(container: Container, asked: Security) -> Security:
    """Return what one more process may do: what the container may.

    With ``asked`` privileged it has all capabilities, and the container's filter.
    """
    security = container.host.security
    if asked.privileged:
        filtered = security.replace(filter_for=security.capabilities)
        return filtered.replace(capabilities=ALL_CAPABILITIES)
    return security


def exec_spec(
    store: ContainerRecords, container: Container, spec: ProcessSpec
) -> tuple[int, ProcessSpec]:
    """Return a container's first process, and how one more is started there.

    Of ``spec`` its argv, env, cwd, user, tty and security are used; the container's
    own come first for env, and fill in for an empty cwd and user. Raises ConflictError
    where none runs.
    """
    state = store.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    for is_so, word, todo in (
        (state.paused, "paused", "unpause the container before exec"),
        (state.restarting, "restarting", "wait until the container is running"),
    ):
        if is_so:
            raise ConflictError(f"container {container.name} is {word}, {todo}")
    config = container.config
    if spec.cwd and not spec.cwd.startswith("/"):
        raise RuntimeFault("cwd must be an absolute path", where=spec.cwd)
    return state.pid, spec.replace(
        env=(*neighbours_env(store, container), *(config.env or ()), *spec.env),
        cwd=spec.cwd or config.working_dir or "/",
        user=spec.user or config.user,
        hostname=config.hostname,
        group=find_group(container.id) if store.has_group(container) else None,
        security=exec_security(container, spec.security),
        ulimits=ulimits_of(container.host.ulimits),
        oom_score_adj=container.host.oom_score_adj,
        groups=container.host.group_add,
    )


def neighbours_env(store: ContainerRecords, container: Container) -> tuple[str, ...]:
    """Return the variables of the links of a container, as its own program has them.

    When one that is linked has ended there are none: its address may be another's.
    """
    if not container.host.links:
        return ()
    from minidocker.neighbours import link_environment
    from minidocker.sandbox import network_store

    try:
        return link_environment(store, network_store(store), container)
    except (NotFoundError, RuntimeFault):
        return ()


# %% The verbs
def exec_foreground(
    store: ContainerRecords,
    container: Container,
    spec: ProcessSpec,
    client: Client | None = None,
    *,
    stdin: bool = False,
) -> int:
    """Run one more process in a running container; return its exit status."""
    pid, spec = exec_spec(store, container, spec)
    with told_of_exec(store, container, spec.argv) as codes:
        launch = partial(exec_in, pid)
        codes.append(attend(spec, launch, client or Client(), stdin=stdin))
    return codes[0]


def exec_detached(
    store: ContainerRecords,
    container: Container,
    spec: ProcessSpec,
    seat: Seat | None = None,
) -> int:
    """Start one more process in a running container; return when it runs.

    Returns a copy of its terminal's master for who has ``seat``, else -1.
    """
    from minidocker.background import in_background  # one in the foreground is quick

    pid, spec = exec_spec(store, container, spec)
    stdin = bool(seat and seat.stdin >= 0)
    if seat:
        spec = spec.replace(stdout=seat.screen)

    def work(started: Callable[[int], None]) -> None:
        from minidocker.attach import Guest

        guest = Guest(seat, last=True) if seat else None

        def welcome(pump: Pump, process: Process) -> None:
            started(process.terminal)
            if guest:
                guest.sit(pump)

        with told_of_exec(store, container, spec.argv) as codes:
            launch = partial(exec_in, pid)
            code = attend(spec, launch, None, None, welcome, stdin=stdin)
            codes.append(code)
        if guest:
            guest.part(code)

    return in_background(work, seat)


# %% The verbs
@contextmanager
def told_of_exec(
    store: ContainerRecords, container: Container, argv: tuple[str, ...]
) -> Iterator[list[int]]:
    """Write down that one more process begins, and how it has ended.

    The caller appends the exit status to the list.
    """
    line, id = " ".join(argv), os.urandom(32).hex()
    for action in ("exec_create", "exec_start"):
        tell(store, container, f"{action}: {line}", execID=id)
    codes: list[int] = []
    yield codes
    status = str(codes[0]) if codes else "126"
    tell(store, container, "exec_die", execID=id, exitCode=status)
