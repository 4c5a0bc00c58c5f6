# From book/678-volume-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Volume verbs: names for data
"""``volume create ls inspect rm prune``."""

from __future__ import annotations

from collections.abc import Callable

from minidocker.container_verbs import (
    Needs,
    inspect_each,
    label_map,
    notice,
    open_engine,
    print_lines,
    print_text,
)
from minidocker.durable import store_lock
from minidocker.engine import Engine
from minidocker.errors import MinidockerError, NotFoundError
from minidocker.filters import Filters, all_labels_match, parse_filters, truth_of
from minidocker.flags import FILTER, FORMAT, LIST, QUIET, TEXT, Command, Flag, Given
from minidocker.removal import prune_volumes
from minidocker.storing import (
    remove_volume,
    tell_of_volume,
    used_volumes,
    volume_store,
)
from minidocker.tables import formatted, human_size, label_in, view_of
from minidocker.tidy_verbs import FORCE, confirmed, tell_of_prune, told
from minidocker.volumes import Volume, check_driver, volumes_turn


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Make and look
def create(given: Given) -> int:
    """``volume create [OPTIONS] [VOLUME]``"""
    flag, args = given.text("name"), given.args
    if flag and args:
        what = "conflicting options: either specify --name or provide positional arg"
        raise MinidockerError(what)
    check_driver(given.text("driver"))
    volumes = volume_store(open_engine(given).containers)
    name = flag or (args[0] if args else "")
    with store_lock(volumes.store), volumes_turn(volumes):
        new = not name or all(volume.name != name for volume in volumes.list())
        labels, options = (label_map(given.list(n)) for n in ("label", "opt"))
        volume = volumes.create(name, labels, options)
    if new:
        tell_of_volume(volumes, "create", volume.name)
    print(volume.name)
    return 0


# %% Make and look
LS_FILTERS = ("dangling", "driver", "label", "name")
LS_HEADS = {
    "Driver": "DRIVER", "Name": "VOLUME NAME", "Labels": "LABELS", "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT", "Links": "LINKS", "Size": "SIZE",
}  # fmt: skip


def listed(engine: Engine, filters: Filters) -> list[Volume]:
    """Return the volumes that the filters leave."""
    dangling, used = truth_of(filters, "dangling"), used_volumes(engine.containers)
    tests: list[Callable[[Volume], bool]] = [
        lambda one: all_labels_match(one.labels or {}, filters),
        lambda one: dangling is None or dangling is (one.name not in used),
    ]
    if names := filters.get("name"):
        tests.append(lambda one: any(name in one.name for name in names))
    if drivers := filters.get("driver"):
        tests.append(lambda one: "local" in drivers)
    volumes = volume_store(engine.containers).list()
    return [one for one in volumes if all(test(one) for test in tests)]


def volume_row(volume: Volume) -> dict[str, Any]:
    """Return Docker's fields for a volume."""
    labels = sorted((volume.labels or {}).items())
    return {
        "Driver": "local",
        "Label": label_in(volume.labels or {}),
        "Labels": ",".join(f"{key}={value}" for key, value in labels),
        "Links": "N/A",
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
    }


def ls(given: Given) -> int:
    """``volume ls [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), LS_FILTERS)
    found = listed(open_engine(given), filters)
    if given.on("quiet") and not given.text("format"):
        print_lines(volume.name for volume in found)
    else:
        view = view_of(LS_HEADS, ("Driver", "Name"))
        print_text(formatted(view, list(map(volume_row, found)), given.text("format")))
    return 0


def inspect(given: Given) -> int:
    """``volume inspect [OPTIONS] VOLUME [VOLUME...]``"""
    volumes = volume_store(open_engine(given).containers)
    return inspect_each(given, lambda name: volumes.get(name).to_dict())


# %% Remove
def rm(given: Given) -> int:
    """``volume rm [OPTIONS] VOLUME [VOLUME...]``"""
    engine, status = open_engine(given, Needs.TREES), 0
    for name in given.args:
        try:
            remove_volume(engine.containers, name)
            print(name)
        except MinidockerError as why:
            gone = isinstance(why, NotFoundError) and given.on("force")
            if gone:
                print(name)
            else:
                notice(f"minidocker: {why}")
                status = why.status
    return status


def prune(given: Given) -> int:
    """``volume prune [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), ("label", "label!"))
    what = "all local volumes not used by at least one container"
    if not confirmed(given, f"WARNING! This will remove {what}."):
        print("Total reclaimed space: 0B")
        return 0
    engine = open_engine(given, Needs.TREES)
    gone = prune_volumes(engine, filters)
    told("Deleted Volumes:", gone, small=False)
    freed = tell_of_prune(engine, "volume", gone)
    print(f"Total reclaimed space: {human_size(freed, 4)}")
    return 0


# %% The table
COMMANDS = (
    Command(
        "volume create", "[OPTIONS] [VOLUME]", "Create a volume", create,
        (
            Flag("driver", "Specify volume driver name", "d", TEXT),
            Flag("label", "Set metadata for a volume", takes=LIST),
            Flag("name", "Specify volume name", takes=TEXT),
            Flag("opt", "Set driver specific options", "o", LIST),
        ),
        most=1,
    ),
    Command(
        "volume ls", "[OPTIONS]", "List volumes", ls, (FILTER, FORMAT, QUIET), most=0
    ),
    Command(
        "volume inspect", "[OPTIONS] VOLUME [VOLUME...]",
        "Display detailed information on one or more volumes", inspect,
        (Flag("format", "Format the output: json, or a template", "f", TEXT),), least=1,
    ),
    Command(
        "volume rm", "[OPTIONS] VOLUME [VOLUME...]", "Remove one or more volumes", rm,
        (Flag("force", "Force the removal of one or more volumes", "f"),), least=1,
    ),
    Command(
        "volume prune", "[OPTIONS]", "Remove all unused local volumes", prune,
        (Flag("filter", "Provide filter values ('label=...')", takes=LIST), FORCE),
        most=0,
    ),
)  # fmt: skip
