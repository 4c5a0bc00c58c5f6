# From book/676-tidy-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Tidy verbs: names, removal, and the bill
"""The commands that name and remove images, prune, and say what everything costs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from minidocker.buildcache import KIND_WORDS, Kept, kept_in, prune_kept
from minidocker.container_verbs import Needs, notice, open_engine
from minidocker.containers import Status
from minidocker.durable import event_fields, happened
from minidocker.engine import Engine
from minidocker.errors import MinidockerError, NotFoundError
from minidocker.filters import Filters, parse_filters, truth_of
from minidocker.flags import FORMAT, LIST, Command, Flag, Given, refused
from minidocker.look_verbs import HEADS, PLAIN, image_rows
from minidocker.oci import parse_reference
from minidocker.removal import (
    PRUNE_FILTERS,
    Costs,
    Gone,
    Remover,
    costs_of,
    prune_containers,
    prune_images,
    prune_volumes,
)
from minidocker.storing import used_volumes, volume_store
from minidocker.tables import View, ago, formatted, human_size, view_of
from minidocker.views import PS_HEADS, container_row


# %% Names and removal
def tag(given: Given) -> int:
    """``tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]``"""
    engine = open_engine(given)
    source, target = given.args
    engine.images.tag(parse_reference(target), engine.images.resolve(source))
    return 0


def rmi(given: Given) -> int:
    """``rmi [OPTIONS] IMAGE [IMAGE...]``"""
    engine, status, force = open_engine(given, Needs.TREES), 0, given.on("force")
    remover, prune = Remover(engine), not given.on("no-prune")
    with engine.changing():
        for text in given.args:
            try:
                for one in remover.remove(text, force=force, prune=prune):
                    print(one)
            except MinidockerError as why:
                notice(f"minidocker: {why}")
                gone = isinstance(why, NotFoundError) and force
                status = status if gone else why.status
    engine.tidy()
    return status


# %% Pruning
WARNINGS = {
    "container": "all stopped containers",
    "network": "all networks not used by at least one container",
    "volume": "all local volumes not used by at least one container",
    "image": "all dangling images",
    "image --all": "all images without at least one container associated to them",
    "builder": "all dangling build cache",
    "builder --all": "all build cache",
}


def confirmed(given: Given, warning: str, end: str = "\n") -> bool:
    """Whether the person agrees, or has agreed before by ``--force``."""
    if given.on("force"):
        return True
    print(
        f"{warning}{end}Are you sure you want to continue? [y/N] ", end="", flush=True
    )
    return sys.stdin.readline().strip().lower() == "y"


def told(title: str, gone: Sequence[Gone], *, small: bool) -> None:
    """Print what has gone; ``small``: in the lower case words of a prune."""
    if gone:
        print(title)
        for one in gone:
            print(str(one)[0].lower() + str(one)[1:] if small else one.name)
        print()


def tell_of_prune(engine: Engine, kind: str, gone: Iterable[Gone]) -> int:
    """Write down that a kind of things was pruned; return the bytes that freed."""
    freed = sum(one.size for one in gone)
    fields = event_fields(kind, "prune", "", {"reclaimed": str(freed)})
    happened(engine.root, fields)
    return freed


def prune(given: Given, *kinds: str) -> int:
    """Remove what nothing needs of some kinds; say how much that freed."""
    filters = parse_filters(given.list("filter"), PRUNE_FILTERS)
    engine, freed = open_engine(given, Needs.MOUNTS), 0
    if "container" in kinds:
        gone = prune_containers(engine, filters)
        told("Deleted Containers:", gone, small=False)
        freed += tell_of_prune(engine, "container", gone)
    if "network" in kinds:
        from minidocker.network_verbs import prune_networks

        prune_networks(engine, filters)
    if "volume" in kinds:
        gone = prune_volumes(engine, filters)
        told("Deleted Volumes:", gone, small=False)
        freed += tell_of_prune(engine, "volume", gone)
    if "image" in kinds:
        gone = prune_images(engine, filters, everything=wants_all(given, filters))
        told("Deleted Images:", gone, small=True)
        freed += tell_of_prune(engine, "image", gone)
    if "builder" in kinds:
        kept = prune_kept(engine, filters, everything=given.on("all"))
        if kept:
            print(
                "Deleted build cache objects:", *(one.id for one in kept), "", sep="\n"
            )
        freed += sum(one.size for one in kept)
    print(f"Total reclaimed space: {human_size(freed, 4)}")
    return 0


def wants_all(given: Given, filters: Filters) -> bool:
    """Whether a prune takes images that have a name: ``-a`` or ``dangling=false``."""
    return given.on("all") or truth_of(filters, "dangling") is False


def nothing_freed() -> int:
    """Say that a prune was called off."""
    print("Total reclaimed space: 0B")
    return 0


# %% Pruning
def image_prune(given: Given) -> int:
    """``image prune [OPTIONS]``"""
    kind = "image --all" if given.on("all") else "image"
    agreed = confirmed(given, f"WARNING! This will remove {WARNINGS[kind]}.")
    return prune(given, "image") if agreed else nothing_freed()


def container_prune(given: Given) -> int:
    """``container prune [OPTIONS]``"""
    agreed = confirmed(given, f"WARNING! This will remove {WARNINGS['container']}.")
    return prune(given, "container") if agreed else nothing_freed()


def builder_prune(given: Given) -> int:
    """``builder prune [OPTIONS]``"""
    kind = "builder --all" if given.on("all") else "builder"
    warning = f"WARNING! This will remove {WARNINGS[kind]}."
    agreed = confirmed(given, warning, end=" ")  # one line, as Docker has it
    return prune(given, "builder") if agreed else nothing_freed()


def system_prune(given: Given) -> int:
    """``system prune [OPTIONS]``"""
    how = " --all" if given.on("all") else ""
    kinds = ["container", "network", f"image{how}", f"builder{how}"]
    if given.on("volumes"):
        kinds.insert(2, "volume")
    lines = ["WARNING! This will remove:", *(f"  - {WARNINGS[kind]}" for kind in kinds)]
    if given.list("filter"):
        lines += ["", "  Items to be pruned will be filtered with:"]
        lines += [f"  - {text}" for text in given.list("filter")]
    agreed = confirmed(given, "\n".join([*lines, ""]))
    names = [kind.partition(" ")[0] for kind in kinds]
    return prune(given, *names) if agreed else nothing_freed()


# %% What it costs
DF_HEADS = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")


def share(part: int, whole: int) -> str:
    """Return bytes, and how many percent of the whole they are.

    >>> share(500, 2000), share(0, 0)
    ('500B (25%)', '0B')
    """
    percent = f" ({part * 100 // whole}%)" if whole else ""
    return human_size(part, 4) + percent


def cost_rows(costs: Costs) -> list[dict[str, str]]:
    """Return Docker's fields for the lines of `system df`."""
    idle = [
        size for _, state, size in costs.boxes if state.status is not Status.RUNNING
    ]
    sizes = sum(size for _, _, size in costs.boxes)
    used = sum(1 for cost in costs.images if cost.containers)
    rows = (
        ("Images", len(costs.images), used, costs.layers, costs.layers - costs.needed),
        (
            "Containers",
            len(costs.boxes),
            len(costs.boxes) - len(idle),
            sizes,
            sum(idle),
        ),
    )
    return [
        {
            "Active": str(active),
            "Reclaimable": share(free, size),
            "Size": human_size(size, 4),
            "TotalCount": str(total),
            "Type": kind,
        }
        for kind, total, active, size, free in rows
    ]


def volume_cost(engine: Engine) -> dict[str, str]:
    """Return Docker's fields for the line of `system df` about volumes."""
    used = used_volumes(engine.containers)
    pairs = [(v.size(), v.name in used) for v in volume_store(engine.containers).list()]
    size, free = sum(n for n, _ in pairs), sum(n for n, busy in pairs if not busy)
    return {
        "Active": str(sum(busy for _, busy in pairs)),
        "Reclaimable": share(free, size),
        "Size": human_size(size, 4),
        "TotalCount": str(len(pairs)),
        "Type": "Local Volumes",
    }


def kept_row(kept: list[Kept]) -> dict[str, str]:
    """Return Docker's fields for the line of `system df` about the build cache."""
    return {
        "Active": str(sum(1 for one in kept if one.busy)),
        "Reclaimable": human_size(sum(one.size for one in kept if not one.busy), 4),
        "Size": human_size(sum(one.size for one in kept), 4),
        "TotalCount": str(len(kept)),
        "Type": "Build Cache",
    }


DF = View(DF_HEADS, ("Type", "TotalCount", "Active", "Size", "Reclaimable"))


def system_df(given: Given) -> int:
    """``system df [OPTIONS]``"""
    engine = open_engine(given, Needs.MOUNTS)
    costs, kept = costs_of(engine), list(kept_in(engine))
    if given.on("verbose"):
        print(verbose_costs(engine, costs), verbose_kept(kept), sep="\n\n")
    else:
        rows = [*cost_rows(costs), volume_cost(engine), kept_row(kept)]
        print(formatted(DF, rows, given.text("format")))
    return 0


# %% What it costs
COST_COLUMNS = (*PLAIN, "SharedSize", "UniqueSize", "Containers")
BOX_COLUMNS = (
    "ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names",
)  # fmt: skip


def verbose_costs(engine: Engine, costs: Costs) -> str:
    """Return what ``system df -v`` prints."""
    rows = []
    for cost in costs.images:
        own = {
            "SharedSize": human_size(cost.shared, 4),
            "UniqueSize": human_size(cost.unique, 4),
            "Containers": str(cost.containers),
        }
        found = image_rows([cost.entry], PLAIN, whole=False, digests=False)
        rows += [row | own for row in found]
    boxes = [
        container_row(engine, box, state, whole=False, size=False)
        | {"Size": human_size(size)}
        for box, state, size in costs.boxes
    ]
    parts = (
        ("Images", formatted(view_of(HEADS, COST_COLUMNS), rows, "")),
        ("Containers", formatted(view_of(PS_HEADS, BOX_COLUMNS), boxes, "")),
    )
    return "\n\n".join(f"{kind} space usage:\n\n{text}" for kind, text in parts)


CACHE_HEADS = ("CACHE ID", "CACHE TYPE", "SIZE", "LAST USED", "SHARED")
CACHE = View(CACHE_HEADS, ("ID", "CacheType", "Size", "LastUsedSince", "Shared"))


def verbose_kept(kept: list[Kept]) -> str:
    """Return what ``system df -v`` prints of the build cache."""
    from minidocker.stage import go_time

    rows = [
        {
            "ID": one.id[:12],
            "CacheType": KIND_WORDS[one.kind],
            "Size": human_size(one.size, 4),
            "LastUsedSince": ago(go_time(one.used)),
            "Shared": "false",
        }
        for one in kept
    ]
    whole = human_size(sum(one.size for one in kept), 4)
    return f"Build cache usage: {whole}\n\n{formatted(CACHE, rows, '')}"


# %% The table
FORCE = Flag("force", "Do not prompt for confirmation", "f")
ONLY = Flag("filter", "Provide filter values (e.g. 'until=24h')", takes=LIST)
EVERY = Flag("all", "Remove all unused images, not just dangling ones", "a")
COMMANDS = (
    Command(
        "tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        "Create a tag that refers to an image", tag, least=2, most=2,
    ),
    Command(
        "rmi", "[OPTIONS] IMAGE [IMAGE...]", "Remove images", rmi,
        (
            Flag("force", "Force removal of the image", "f"),
            Flag("no-prune", "Do not delete untagged parents"),
        ),
        least=1,
    ),
    Command(
        "image prune", "[OPTIONS]", "Remove unused images", image_prune,
        (EVERY, ONLY, FORCE), most=0,
    ),
    Command(
        "container prune", "[OPTIONS]", "Remove all stopped containers",
        container_prune, (ONLY, FORCE), most=0,
    ),
    Command(
        "system prune", "[OPTIONS]", "Remove unused data", system_prune,
        (EVERY, ONLY, FORCE, Flag("volumes", "Prune volumes")), most=0,
    ),
    Command(
        "builder prune", "[OPTIONS]", "Remove build cache", builder_prune,
        (
            Flag("all", "Remove all unused build cache, not just dangling ones", "a"),
            refused("keep-storage", "what no build needs goes; choose with --filter"),
            ONLY, FORCE,
        ),
        most=0,
    ),
    Command(
        "system df", "[OPTIONS]", "Show disk usage", system_df,
        (FORMAT, Flag("verbose", "Show detailed information on space usage", "v")),
        most=0,
    ),
)  # fmt: skip
