# From book/658-rehearsal.md. Edit there and tangle, or here and tangle --back.

# %% Rehearsal: what run would do
"""``run --dry-run`` and ``--explain``: print the plan of a container, start none."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import chain

from minidocker.blueprint import process_spec
from minidocker.bundling import config_file, tree_of
from minidocker.containers import Container, ContainerStore, discard
from minidocker.durable import write_whole
from minidocker.engine import Engine
from minidocker.errors import ConflictError
from minidocker.etc_files import INSIDE
from minidocker.flags import Given
from minidocker.linux import capget
from minidocker.mounts import is_first_user_namespace
from minidocker.namespaces import Filesystem, MountStep
from minidocker.networks import DEFAULT
from minidocker.program import Network
from minidocker.runtime import labelled, plan_for, whole_user
from minidocker.sandbox import UNSAID, bindings_of
from minidocker.security import prepared
from minidocker.supervisor import container_group, leave_group, whole_spec
from minidocker.trees import copy_tree
from minidocker.walkthrough import calls_of, network_calls


# %% The plan
def dry_run(store: ContainerStore, container: Container, *, whole: bool = False) -> str:
    """Return the config.json of a container; ``whole`` for one with its own tree."""
    spec = process_spec(store, container)
    with tree_of(store, container) as root:
        user = whole_user(root, spec)
    plan = plan_for(spec.replace(view=None) if whole else spec)
    return config_file(container, store.path(container.id), plan, user)


def write_bundle(store: ContainerStore, container: Container, where: str) -> None:
    """Write a bundle: config.json, the three files, and a copy of the root.

    Raises ConflictError where something is there already.
    """
    try:
        os.makedirs(f"{where}/rootfs")
    except FileExistsError as why:
        raise ConflictError("there is a bundle already", where=where) from why
    with store.layers.rw_mounted(container.id, writable=False) as tree:
        copy_tree(tree, f"{where}/rootfs")
    for name in INSIDE:
        shutil.copy(f"{store.path(container.id)}/{name}", f"{where}/{name}")
    write_whole(f"{where}/config.json", dry_run(store, container, whole=True))


# %% The two flags
def explained(store: ContainerStore, container: Container) -> str:
    """Return every system call of a container's start, as text."""
    group, bridged = container_group(container), is_bridged(container)
    try:
        spec = whole_spec(process_spec(store, container), container, group)
        spec = spec.replace(netns=0 if bridged else -1)
        spec = labelled(spec.replace(security=prepared(spec.security)))
        with tree_of(store, container) as root:
            user = whole_user(root, spec)
            mounts = tuple(settled(step, root) for step in spec.mounts)
        calls = calls_of(spec.replace(mounts=mounts), user, capget()[1])
        if bridged and is_first_user_namespace():
            named = container.host.network_of not in ("", UNSAID, DEFAULT)
            before = network_calls(named, bool(bindings_of(container)))
            calls = chain(before, calls)
        return "\n".join(map(str, calls))
    finally:
        leave_group(store, container, group)


def settled(step: MountStep, root: int) -> MountStep:
    """Return a step as it will be: what it covers in the tree ``root`` counts."""
    if isinstance(step, Filesystem):
        return step.replace(data=step.whole_data(root))
    return step


def is_bridged(container: Container) -> bool:
    """Say whether a network is made for a container before it starts."""
    return container.host.network is Network.BRIDGE


def rehearse(engine: Engine, container: Container, given: Given) -> int:
    """Print what was asked for instead of a run, and remove the container."""
    store = engine.containers
    try:
        if given.on("explain"):
            print(explained(store, container))
        elif where := given.text("bundle"):
            write_bundle(store, container, where)
        else:
            text = dry_run(store, container)
            sys.stdout.flush()
            os.write(1, text.encode("utf-8", "surrogateescape"))
    finally:
        discard(store, container.id, container.name)
    return 0
