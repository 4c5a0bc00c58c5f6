# From book/658-rehearsal.md. Edit there and tangle, or here and tangle --back.

# %% Rehearsal: what run would do
"""``run --dry-run`` and ``--explain``: print the plan of a container, start none."""

from __future__ import annotations

import os
import shutil

from minidocker.bundling import config_json
from minidocker.containers import Container, ContainerStore, discard
from minidocker.engine import Engine
from minidocker.errors import ConflictError
from minidocker.etc_files import INSIDE
from minidocker.flags import Given
from minidocker.lifecycle import process_spec
from minidocker.linux import capget
from minidocker.namespaces import PLACE
from minidocker.program import ProcessSpec, User, find_user
from minidocker.security import prepared
from minidocker.supervisor import container_group, leave_group
from minidocker.trees import copy_tree
from minidocker.walkthrough import calls_of


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The plan
def user_in(store: ContainerStore, container: Container, spec: ProcessSpec) -> User:
    """Look the user of a container up in its tree."""
    with store.layers.rw_mounted(container.id, writable=False) as tree:
        root = os.open(tree, PLACE | os.O_DIRECTORY)
        try:
            return find_user(root, spec.user)
        finally:
            os.close(root)


def bundle_json(store: ContainerStore, container: Container) -> dict[str, Any]:
    """Return the config.json of a container, relative to a bundle's directory."""
    spec = process_spec(store, container)
    if container.host.init:
        spec = spec.replace(init=0)
    user, place = user_in(store, container, spec), f"{store.path(container.id)}/"
    limits, group = container.host.limits, f"/minidocker/{container.id}"
    modes = (text.split(":")[1:] for text in container.host.devices)
    found = config_json(
        spec,
        user,
        limits,
        group,
        container.config.domainname,
        modes=tuple((inside, access) for inside, access in modes),
    )
    for entry in found["mounts"]:
        entry["source"] = entry["source"].removeprefix(place)
    return found


# %% The plan
def write_bundle(store: ContainerStore, container: Container, where: str) -> None:
    """Write a bundle: config.json, the three files, and a copy of the root.

    Raises ConflictError where something is there already.
    """
    from json import dumps

    try:
        os.makedirs(f"{where}/rootfs")
    except FileExistsError as why:
        raise ConflictError("there is a bundle already", where=where) from why
    with store.layers.rw_mounted(container.id, writable=False) as tree:
        copy_tree(tree, f"{where}/rootfs")
    for name in INSIDE:
        shutil.copy(f"{store.path(container.id)}/{name}", f"{where}/{name}")
    with open(f"{where}/config.json", "w", encoding="utf-8") as file:
        file.write(dumps(bundle_json(store, container), indent=2) + "\n")


# %% The two flags
def explained(store: ContainerStore, container: Container) -> str:
    """Return every system call of a container's start, as text."""
    group = container_group(container)
    try:
        spec = process_spec(store, container).replace(group=group)
        spec = spec.replace(security=prepared(spec.security))
        user = user_in(store, container, spec)
        return "\n".join(str(call) for call in calls_of(spec, user, capget()[1]))
    finally:
        leave_group(store, container, group)


def rehearse(engine: Engine, container: Container, given: Given) -> int:
    """Print what was asked for instead of a run, and remove the container."""
    store = engine.containers
    try:
        if given.on("explain"):
            print(explained(store, container))
        elif where := given.text("bundle"):
            write_bundle(store, container, where)
        else:
            from json import dumps

            print(dumps(bundle_json(store, container), indent=2))
    finally:
        discard(store, container.id, container.name)
    return 0
