# From book/440-storing.md. Edit there and tangle, or here and tangle --back.

# %% Storing: containers that have volumes
"""Make a container with its volumes; fill them; remove what nobody uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from minidocker.containers import (
    Container,
    ContainerStore,
)
from minidocker.durable import event_fields, happened, store_lock
from minidocker.errors import ConflictError, NotFoundError, UsageError
from minidocker.linux import CloneFlags, unshare
from minidocker.namespaces import keep_mounts_private
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig
from minidocker.volumes import (
    MountPoint,
    VolumeStore,
    bind_point,
    fill_volume,
    inherited,
    make_points,
    volumes_turn,
    wants_filling,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Who uses a volume
def volume_store(store: ContainerStore) -> VolumeStore:
    """Return the volumes of the store that has these containers."""
    return VolumeStore(os.path.dirname(store.root))


def points_of(container: Container) -> tuple[MountPoint, ...]:
    """Return what a container mounts; plain binds are kept as words only."""
    return container.mounts or tuple(map(bind_point, container.host.binds))


def users_of(store: ContainerStore, name: str) -> list[str]:
    """Return the ids of the containers that mount a volume."""
    return [
        container.id
        for container, _ in store.list()
        if any(point.name == name for point in container.mounts)
    ]


def volume_events(container: Container, action: str) -> list[dict[str, Any]]:
    """Return what happens to a container's volumes as it mounts them, or no more."""
    found = []
    for point in container.mounts:
        if point.kind != "volume":
            continue
        about = {"container": container.id, "driver": "local"}
        if action == "mount":
            about |= {"destination": point.target, "propagation": ""}
            about["read/write"] = str(point.writable).lower()
        found.append(event_fields("volume", action, point.name, about))
    return found


def tell_of_volume(store: VolumeStore, action: str, name: str) -> None:
    """Write down that something has happened to a volume."""
    fields = event_fields("volume", action, name, {"driver": "local"})
    happened(os.path.dirname(store.root), fields)


# %% Make
def mounts_of_others(store: ContainerStore, host: HostConfig) -> Iterator[MountPoint]:
    """Yield what ``--volumes-from`` takes from other containers."""
    for text in host.volumes_from:
        name, _, mode = text.partition(":")
        if mode not in ("", "ro", "rw", "z", "Z"):
            raise UsageError(f'invalid mode for volumes-from: "{mode}"')
        yield from inherited(points_of(store.resolve(name)), mode)


# %% Make
def create_with_volumes(
    store: ContainerStore,
    image: str,
    config: ContainerConfig,
    host: HostConfig,
    name: str,
) -> Container:
    """Make a container and the volumes that it names; fill those that are empty.

    When that fails, the volumes that were made for it are removed again.
    """
    volumes = volume_store(store)
    others = list(mounts_of_others(store, host))
    with volumes_turn(volumes):
        before = {volume.name for volume in volumes.list()}
        places = sorted(config.volumes or ())
        try:
            points = make_points(volumes, others, host.binds, host.mounts, places)
            new = {point.name for point in points} - before - {""}
            container = store.create(image, config, host, name, points)
        except BaseException:
            for volume in volumes.list():
                if volume.name not in before:
                    volumes.remove(volume.name)
            raise
        fill_volumes(store, container)
    for one in sorted(new):
        tell_of_volume(volumes, "create", one)
    return container


def fill_volumes(store: ContainerStore, container: Container) -> None:
    """Give a container's empty volumes what its image has at their places."""
    points = wants_filling(container.mounts)
    if not points:
        return
    if os.geteuid() == 0:
        with suppress(OSError):
            unshare(CloneFlags.NEWNS)
            keep_mounts_private()
    with ExitStack() as stack:
        mounted = store.layers.rw_mounted(container.id, writable=False)
        tree = stack.enter_context(mounted)
        for point in points:
            fill_volume(tree, point)


# %% Remove
def remove_anonymous(store: ContainerStore, container: Container) -> None:
    """Remove the volumes that were made for a container that has gone."""
    volumes = volume_store(store)
    names = [point.name for point in container.mounts if point.anonymous]
    with store_lock(volumes.store), volumes_turn(volumes):
        for name in names:
            with suppress(ConflictError, NotFoundError):
                volumes.remove(name, users_of(store, name))
                tell_of_volume(volumes, "destroy", name)


def remove_volume(store: ContainerStore, name: str) -> None:
    """Remove a volume that no container mounts. Raises ConflictError, NotFoundError."""
    volumes = volume_store(store)
    with store_lock(volumes.store), volumes_turn(volumes):
        volumes.remove(name, users_of(store, name))
    tell_of_volume(volumes, "destroy", name)


def sweep_volumes(store: ContainerStore) -> None:
    """Remove what crashes left of volumes, and has no files that could be missed.

    The caller holds the store's lock alone.
    """
    volumes = volume_store(store)
    with volumes_turn(volumes):
        for name in sorted(set(volumes.leftovers()) - used_volumes(store)):
            volumes.drop(name)


def used_volumes(store: ContainerStore) -> set[str]:
    """Return the names of the volumes that containers mount."""
    return {
        point.name
        for container, _ in store.list()
        for point in container.mounts
        if point.name
    }
