# From book/608-build-network.md. Edit there and tangle, or here and tangle --back.

# %% Build network: one for all the steps
"""The network that the commands of a build share, made when the first one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from minidocker.errors import MinidockerError


TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from minidocker.containers import Container, ContainerStore
    from minidocker.namespaces import Bind


# %% A namespace that is made when it is wanted
NOT_JOINED: tuple[int, tuple[Bind, ...]] = (-1, ())


class BuildNetwork:
    """A network namespace for the length of a build; use it with ``with``.

    ``store`` gives the containers, whose networks it joins. ``hosts`` are further lines
    of /etc/hosts, as ``NAME:ADDRESS``.
    """

    def __init__(
        self, store: Callable[[], ContainerStore], hosts: tuple[str, ...] = ()
    ) -> None:
        self._store, self._stack, self.hosts = store, ExitStack(), hosts
        self._made: tuple[int, tuple[Bind, ...]] | None = None
        self._lonely: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        why: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, why, trace)

    def joined(self) -> tuple[int, tuple[Bind, ...]]:
        """Return the namespace, and the files below /etc that go with it.

        The descriptor is -1 where this kernel, or this user, can have no network.
        """
        if self._made is None:
            try:
                self._made = self._make()
            except MinidockerError as why:
                os.write(2, f"minidocker: RUN has no network: {why.what}\n".encode())
                self._made = NOT_JOINED
        return self._made

    def alone(self) -> int:
        """Return a namespace with no network but the loopback, the same for all steps.

        -1 where this kernel, or this user, can have none.
        """
        if self._lonely is None:
            from minidocker.namespaces import raise_loopback
            from minidocker.rtnetlink import inside, new_netns

            try:
                self._lonely = new_netns()
            except OSError:  # a container of its own fails too, and says more
                self._lonely = -1
                return self._lonely
            self._stack.callback(os.close, self._lonely)
            with inside(self._lonely):
                raise_loopback()
        return self._lonely

    def _make(self) -> tuple[int, tuple[Bind, ...]]:
        """Make a namespace and join the default network with it."""
        from minidocker.containers import lock_exclusive
        from minidocker.etc_files import network_binds
        from minidocker.sandbox import sandbox
        from minidocker.trees import remove_path

        store = self._store()
        one = nobody(self.hosts)
        place = store.path(one.id)
        os.makedirs(place, 0o700)
        self._stack.callback(remove_path, place)
        lock = lock_exclusive(f"{place}/lock", "a build")
        self._stack.callback(os.close, lock)
        netns = self._stack.enter_context(sandbox(store, one))
        binds = network_binds(place)
        return netns, tuple(b for b in binds if not b.target.endswith("hostname"))


def nobody(hosts: tuple[str, ...]) -> Container:
    """Return the container that a build's network is for, which is none."""
    from minidocker.containers import Container, timestamp
    from minidocker.oci import ContainerConfig
    from minidocker.program import HostConfig, Network

    id = os.urandom(32).hex()
    bridge = HostConfig(network=Network.BRIDGE, network_of="default")
    config = ContainerConfig(hostname="build")
    return Container(
        id,
        f"build-{id[:12]}",
        "",
        timestamp(),
        config,
        bridge.replace(extra_hosts=hosts),
    )
