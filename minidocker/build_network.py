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
    from minidocker.program import Network


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
        self._lonely: tuple[int, tuple[Bind, ...]] | None = None

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

    def alone(self) -> tuple[int, tuple[Bind, ...]]:
        """Return a namespace with the loopback only, and its files."""
        if self._lonely is None:
            from minidocker.etc_files import network_files, write_network_files
            from minidocker.program import Network

            one, place = self._place(Network.NONE)
            write_network_files(place, network_files(one.config, one.host))
            self._lonely = self._new_netns(), binds_of(place)
        return self._lonely

    def _new_netns(self) -> int:
        from minidocker.namespaces import raise_loopback
        from minidocker.rtnetlink import inside, new_netns

        try:
            netns = new_netns()
        except OSError:  # a container of its own fails too, and says more
            return -1
        self._stack.callback(os.close, netns)
        with inside(netns):
            raise_loopback()
        return netns

    def _place(self, network: Network) -> tuple[Container, str]:
        """Make a directory for a container that is none, until the build ends."""
        from minidocker.containers import lock_exclusive
        from minidocker.trees import remove_path

        store, one = self._store(), nobody(network, self.hosts)
        place = store.path(one.id)
        os.makedirs(place, 0o700)
        self._stack.callback(remove_path, place)
        self._stack.callback(os.close, lock_exclusive(f"{place}/lock", "a build"))
        return one, place

    def _make(self) -> tuple[int, tuple[Bind, ...]]:
        """Make a namespace and join the default network with it."""
        from minidocker.program import Network
        from minidocker.sandbox import sandbox

        one, place = self._place(Network.BRIDGE)
        netns = self._stack.enter_context(sandbox(self._store(), one))
        return netns, binds_of(place)


def binds_of(place: str) -> tuple[Bind, ...]:
    """Return the files of a directory as steps; each step has a hostname of its own."""
    from minidocker.etc_files import network_binds

    return tuple(b for b in network_binds(place) if not b.target.endswith("hostname"))


def nobody(network: Network, hosts: tuple[str, ...]) -> Container:
    """Return the container that a build's network is for, which is none."""
    from minidocker.containers import Container, timestamp
    from minidocker.oci import ContainerConfig
    from minidocker.program import HostConfig

    id = os.urandom(32).hex()
    host = HostConfig(network=network, network_of="default", extra_hosts=hosts)
    config = ContainerConfig(hostname="build")
    return Container(id, f"build-{id[:12]}", "", timestamp(), config, host)
