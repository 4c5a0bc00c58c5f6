# From book/649-integrity.md. Edit there and tangle, or here and tangle --back.

# %% Integrity: does the store keep what it promises?
"""Check a store: digests, links, counts, orphans, mounts; and the command that does.

A check is a function from a ``Survey`` to the faults that it finds. ``STRUCTURE`` and
``CONTENTS`` are the tables of them; a new kind of record brings a line.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from minidocker.container_verbs import Needs, notice, open_engine
from minidocker.containers import Container
from minidocker.durable import MARKS, looking, store_lock
from minidocker.engine import Engine
from minidocker.errors import IntegrityError, MinidockerError, NotFoundError
from minidocker.flags import Command, Flag, Given, default_root
from minidocker.layers import read_text
from minidocker.mounts import UmountFlags, mountinfo, umount2
from minidocker.networks import NetworkStore
from minidocker.oci import is_digest
from minidocker.sandbox import wishes_of
from minidocker.storing import used_volumes
from minidocker.survey import (
    Check,
    Fault,
    Survey,
    check_contents,
    check_images,
    check_layers,
    check_names,
    check_trees,
    lies_wrong,
    mended,
    orphan,
)
from minidocker.volumes import VolumeStore


# %% Containers, and what was being made
def check_mounts(survey: Survey) -> Iterator[Fault]:
    """Each read-write layer belongs to a container, and lies on a layer."""
    layers = survey.engine.layers
    for name in survey.mounts:
        where = f"read-write layer {name[:12]}"
        tree = read_text(f"{layers.mounts}/{name}/mount-id")
        if name in survey.torn:
            continue
        if name not in survey.boxes:
            yield orphan(where, "there is no such container")
        elif not tree or tree not in survey.trees:
            yield Fault(where, "its tree is not here", f"`minidocker rm {name[:12]}`")
        else:
            for what in lies_wrong(survey, tree, layers.rw_parent(name)):
                yield Fault(where, what, f"`minidocker rm {name[:12]}`")


def check_containers(survey: Survey) -> Iterator[Fault]:
    """Each container can be read, has a layer and a name; each name has a container."""
    store = survey.engine.containers
    names = os.listdir(store.names) if os.path.isdir(store.names) else []
    owners = {name: os.readlink(f"{store.names}/{name}") for name in names}
    for id in os.listdir(store.root) if os.path.isdir(store.root) else ():
        where, rm = f"container {id[:12]}", f"`minidocker rm {id[:12]}`"
        if id not in survey.boxes:
            with looking(store.path(id, "lock")) as taken:
                if not taken:
                    yield orphan(where, "it was only half made, or half removed")
            continue
        if id in survey.torn:
            yield orphan(where, "a power cut has torn it, which had --rm")
            continue
        with survey.told(id):
            for what in container_faults(survey, store.get(id), owners):
                yield Fault(where, what, rm)
        if id in survey.bad:
            remove = f"remove {store.path(id)}, then `minidocker system prune`"
            yield Fault(where, survey.bad[id], remove)
    for name, id in owners.items():
        if not os.path.exists(store.path(id)):
            yield orphan(f"container name {name}", "there is no such container")


def container_faults(
    survey: Survey, box: Container, owners: Mapping[str, str]
) -> Iterator[str]:
    """Say what is wrong with a container that can be read."""
    if owners.get(box.name) != box.id:
        yield "its name is not its own"
    if box.id not in survey.mounts:
        yield "it has no read-write layer"
    try:
        wishes_of(survey.engine.containers, box)
    except IntegrityError as why:
        yield why.what


SCRATCH = ("tmp", MARKS)


def check_scratch(survey: Survey) -> Iterator[Fault]:
    """Nothing is left of what was being made."""
    for place in SCRATCH:
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(f"{survey.root}/{place}")):
                yield orphan(f"{place}/{name}", "whoever made it was killed")
    for name in sorted(os.listdir(survey.root)):
        if name.startswith("overlay-check-"):
            yield orphan(name, "whoever made it was killed")


def check_distribution(survey: Survey) -> Iterator[Fault]:
    """Each record of where a layer came from can be read."""
    home = survey.engine.layers.origins
    for name in sorted(os.listdir(home)) if os.path.isdir(home) else ():
        path = f"{home}/{name}"
        if not is_digest(f"sha256:{name}"):
            yield orphan(path, "whoever made it was killed")
            continue
        try:
            with open(path, encoding="utf-8") as file:
                fine = all(is_digest(one["Digest"]) for one in json.load(file))
        except (ValueError, KeyError, TypeError):
            fine = False
        if not fine:

            def drop(path: str = path) -> None:
                os.unlink(path)

            what = "not a record of a layer's blobs"
            yield mended(path, what, "removes it; the layer is sent whole then", drop)


# %% Networks and volumes
def check_networks(survey: Survey) -> Iterator[Fault]:
    """Each network has a record that can be read."""
    store = NetworkStore(survey.root, str)
    home, halves = f"{store.place}/each", store.leftovers()
    for name in sorted(os.listdir(home)) if os.path.isdir(home) else ():
        if name in halves:
            yield orphan(f"network {name}", "it was only half made, or half removed")
            continue
        try:
            store.get(name)
        except MinidockerError:

            def drop(name: str = name) -> None:
                with store.turn():
                    store.remove(name)

            what = "its record cannot be read"
            yield mended(f"network {name}", what, "removes it", drop)


def check_volumes(survey: Survey) -> Iterator[Fault]:
    """Each volume has a record, and each that a container mounts is here."""
    store, used = VolumeStore(survey.root), used_volumes(survey.engine.containers)
    for name in store.names():
        if name not in used and name in store.leftovers():
            yield orphan(f"volume {name}", "it was only half made, or half removed")
            continue
        try:
            store.recorded(name)
        except (ValueError, FileNotFoundError):

            def again(name: str = name) -> None:
                store.create(name)

            what = "its record cannot be read; its files are there"
            yield mended(f"volume {name}", what, "writes it anew", again)
    for id in survey.boxes - survey.torn - survey.bad.keys():
        for point in survey.engine.containers.get(id).mounts:
            if point.kind == "volume" and not os.path.isdir(point.source):
                what = f"its volume {point.source} is not here"
                yield Fault(f"container {id[:12]}", what, f"`minidocker rm {id[:12]}`")


STRUCTURE: tuple[Check, ...] = (
    check_images,
    check_names,
    check_layers,
    check_trees,
    check_mounts,
    check_containers,
    check_scratch,
    check_distribution,
    check_networks,
    check_volumes,
)
CONTENTS: tuple[Check, ...] = (check_contents,)


# %% Mounts
def left_mounted(root: str) -> list[str]:
    """Return what is mounted below a store's root, the last mounted first."""
    root = os.path.realpath(root)
    found = [m.target for m in mountinfo() if m.target.startswith(f"{root}/")]
    return found[::-1]


def check_mounted(root: str) -> Iterator[Fault]:
    """Nothing is left mounted below the store's root."""
    for place in left_mounted(root):

        def drop(place: str = place) -> None:
            umount2(place, UmountFlags.DETACH | UmountFlags.NOFOLLOW)

        yield mended(place, "it was left mounted", "unmounts it", drop)


# %% All of it
def found_by(
    engine: Engine, checks: Iterable[Check], *, orphans: bool = True
) -> list[Fault]:
    """Return the faults of a store that is in use, those that stay."""
    found = faults_now(engine, checks, orphans)
    for _ in range(3):
        if not found:
            break
        time.sleep(0.05)
        now = {str(one): one for one in faults_now(engine, checks, orphans)}
        found = [now[str(one)] for one in found if str(one) in now]
    return found


def faults_now(engine: Engine, checks: Iterable[Check], orphans: bool) -> list[Fault]:
    """Return the faults as they are seen just now."""
    survey = Survey(engine)
    found = [fault for check in checks for fault in check(survey)]
    return [fault for fault in found if orphans or not fault.orphan]


def check_store(engine: Engine, *, quick: bool = False) -> list[Fault]:
    """Return every fault of a store; an empty list is a clean store."""
    with engine.driver.held():
        with store_lock(engine.root, exclusive=True) as alone:
            found = found_by(engine, STRUCTURE, orphans=alone)
        if not quick:
            with store_lock(engine.root):
                found += found_by(engine, CONTENTS)
    return found


def repair(engine: Engine, faults: Iterable[Fault]) -> list[Fault]:
    """Mend what can be mended and sweep; return what is left."""
    left = []
    for fault in faults:
        if fault.mend:
            with suppress(FileNotFoundError, NotFoundError):
                fault.mend()
        elif not fault.orphan:
            left.append(fault)
    engine.tidy()
    return left


# %% The command
def system_check(given: Given) -> int:
    """``system check [OPTIONS]``"""
    root = os.path.abspath(given.text("root") or default_root())
    mounts = list(check_mounted(root))
    if given.on("repair"):
        for fault in mounts:
            fault.mend and fault.mend()
        mounts = []
    engine = open_engine(given, Needs.MOUNTS, sweep=False)
    found = mounts + check_store(engine, quick=given.on("quick"))
    if given.on("repair"):
        found = repair(engine, found)
    for fault in found:
        print(fault)
    if found:
        notice(f"minidocker: {len(found)} fault{'s' if len(found) > 1 else ''} found")
    return 1 if found else 0


COMMANDS = (
    Command(
        "system check", "[OPTIONS]",
        "Check every digest, link and record of the store", system_check,
        (
            Flag("quick", "Do not read the contents of the layers", "q"),
            Flag("repair", "Mend what can be mended, remove what nobody names"),
        ),
        most=0,
        example="minidocker system check --quick || minidocker system check --repair",
    ),
)  # fmt: skip
