# From book/670-limit-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Limit verbs: look at the meter, turn the tap
"""``stats``, ``update``, ``pause``, ``unpause``: what a running container may take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from minidocker.cgroups import (
    Group,
    fields,
    find_group,
    make_group,
    move_into,
    read,
)
from minidocker.container_verbs import (
    Needs,
    each_container,
    open_engine,
    print_text,
)
from minidocker.containers import Container, ContainerStore, State, Status, tell
from minidocker.engine import Engine
from minidocker.errors import ConflictError, WordFault
from minidocker.finer_limits import check_finer, finer_settings, limit_finely
from minidocker.flag_words import restart_text
from minidocker.flags import FORMAT, NO_TRUNC, TEXT, Command, Flag, Given
from minidocker.lifecycle import rewrite_host
from minidocker.pausing import members_of
from minidocker.program import HostConfig
from minidocker.rare_flags import LIMIT_FLAGS as RARE_LIMITS
from minidocker.rare_flags import finer_limits
from minidocker.records import Record
from minidocker.run_flags import LIMIT_FLAGS
from minidocker.run_verb import limits_of
from minidocker.tables import View, formatted, human_size
from minidocker.views import shown_id


# %% What was used
class Usage(Record):
    """What a container uses: bytes, nanoseconds of processor time, processes."""

    memory: int = 0
    memory_limit: int = 0
    cpu: int = 0
    pids: int = 0
    read: int = 0
    written: int = 0


def physical_memory() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_used(group: Group) -> tuple[int, int]:
    """Return a group's memory and its limit, 0 and 0 without a group."""
    place, two = group.place("memory"), group.version == 2
    now = read(f"{place}/memory.current" if two else f"{place}/memory.usage_in_bytes")
    if not now:
        return 0, 0
    top = read(
        f"{place}/memory.max" if two else f"{place}/memory.limit_in_bytes"
    ).strip()
    cache = "inactive_file" if two else "total_inactive_file"
    idle = fields(read(f"{place}/memory.stat")).get(cache, 0)
    limit = int(top) if top.isdigit() else physical_memory()
    return max(int(now) - idle, 0), min(limit, physical_memory())


# %% What was used
def bytes_moved(group: Group) -> tuple[int, int]:
    """Return the bytes that a group read from and wrote to disks."""
    if group.version == 2:
        words = read(f"{group.place('io')}/io.stat").split()
        pairs = [w.split("=") for w in words if "=" in w]
    else:
        name = "blkio.throttle.io_service_bytes_recursive"
        lines = read(f"{group.place('blkio')}/{name}").splitlines()
        pairs = [line.split()[1:] for line in lines]
    sums = {"rbytes": 0, "wbytes": 0, "Read": 0, "Write": 0}
    for pair in pairs:
        if len(pair) == 2 and pair[0] in sums:
            sums[pair[0]] += int(pair[1])
    return sums["rbytes"] + sums["Read"], sums["wbytes"] + sums["Write"]


def process_usage(pids: Iterable[int]) -> Usage:
    """Add up processes: their own memory, time, and threads."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), 10**9 // os.sysconf("SC_CLK_TCK")
    total = Usage(memory_limit=physical_memory())
    for pid in pids:
        sizes = read(f"/proc/{pid}/statm").split()
        rest = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if sizes and rest:
            mine = (int(sizes[1]) - int(sizes[2])) * page
            time_used = (int(rest[11]) + int(rest[12])) * tick
            total = total.replace(
                memory=total.memory + mine,
                cpu=total.cpu + time_used,
                pids=total.pids + int(rest[17]),
            )
    return total


# %% What was used
def usage(id: str, pid: int) -> Usage:
    """Return what a container uses; ``pid`` is its first process."""
    group = find_group(id)
    total = process_usage(members_of(id, pid))
    memory, limit = memory_used(group)
    if limit:
        total = total.replace(memory=memory, memory_limit=limit)
    if group.version == 2 and group.places:
        spent = fields(read(f"{group.place('cpu')}/cpu.stat")).get("usage_usec", 0)
        total = total.replace(cpu=spent * 1000)
    count = read(f"{group.place('pids')}/pids.current").strip()
    if count.isdigit():
        total = total.replace(pids=int(count))
    moved = bytes_moved(group)
    return total.replace(read=moved[0], written=moved[1])


# %% What was used
def network_bytes(pid: int) -> tuple[int, int]:
    """Return the bytes received and sent in the namespace of a process, lo aside."""
    received = sent = 0
    for line in read(f"/proc/{pid}/net/dev").splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            words = numbers.split()
            received, sent = received + int(words[0]), sent + int(words[8])
    return received, sent


# %% stats
LOOKS_APART = 0.5  # seconds


def binary_size(size: int) -> str:
    """Return bytes with a binary unit and four digits.

    >>> binary_size(0), binary_size(1300), binary_size(256 << 20)
    ('0B', '1.27KiB', '256MiB')
    """
    value, unit = float(size), 0
    names = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    while value >= 1024 and unit < len(names) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g}{names[unit]}"


def stats_row(
    container: Container, text: str, pid: int, now: Usage, share: float, *, whole: bool
) -> dict[str, str]:
    """Return Docker's fields for a container; ``share`` is of one processor."""
    received, sent = network_bytes(pid) if pid else (0, 0)
    part = now.memory / now.memory_limit if now.memory_limit else 0.0
    return {
        "BlockIO": f"{human_size(now.read)} / {human_size(now.written)}",
        "CPUPerc": f"{share:.2%}",
        "Container": text,
        "ID": shown_id(container.id, whole=whole),
        "MemPerc": f"{part:.2%}",
        "MemUsage": f"{binary_size(now.memory)} / {binary_size(now.memory_limit)}",
        "Name": container.name,
        "NetIO": f"{human_size(received)} / {human_size(sent)}",
        "PIDs": str(now.pids),
    }


STATS_VIEW = View(
    ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O",
     "BLOCK I/O", "PIDS"),
    ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
)  # fmt: skip


# %% stats
def look(pairs: Iterable[tuple[Container, State]]) -> dict[str, tuple[float, Usage]]:
    """Return when each running container was looked at, and what it used."""
    found = {}
    for container, state in pairs:
        if state.status is Status.RUNNING and os.path.exists(f"/proc/{state.pid}"):
            found[container.id] = (time.monotonic(), usage(container.id, state.pid))
    return found


def stats_rows(
    chosen: list[tuple[str, Container]], store: ContainerStore, *, whole: bool
) -> list[dict[str, str]]:
    """Look twice at the containers; return a row for each."""
    pairs = [(container, store.state(container.id)) for _, container in chosen]
    first = look(pairs)
    time.sleep(LOOKS_APART if first else 0)
    second, rows = look(pairs), []
    for (text, container), (_, state) in zip(chosen, pairs, strict=True):
        when, now = second.get(container.id, (0.0, Usage()))
        before, used = first.get(container.id, (when, now))
        took = (when - before) * 1e9
        share = max(now.cpu - used.cpu, 0) / took if took > 0 else 0.0
        pid = state.pid if container.id in second else 0
        rows.append(stats_row(container, text, pid, now, share, whole=whole))
    return rows


# %% stats
def chosen_containers(engine: Engine, given: Given) -> list[tuple[str, Container]]:
    """Return the containers that are named, or the running ones, or with -a all."""
    if given.args:
        return [(text, engine.containers.resolve(text)) for text in given.args]
    return [
        (container.id[:12], container)
        for container, state in engine.containers.list()
        if given.on("all") or state.status is Status.RUNNING
    ]


def stats(given: Given) -> int:
    """``stats [OPTIONS] [CONTAINER...]``"""
    engine, whole = open_engine(given), given.on("no-trunc")
    while True:
        rows = stats_rows(
            chosen_containers(engine, given), engine.containers, whole=whole
        )
        if not given.on("no-stream") and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print_text(formatted(STATS_VIEW, rows, given.text("format")))
        sys.stdout.flush()
        if given.on("no-stream"):
            return 0
        time.sleep(1 - LOOKS_APART)


# %% update
def give_group(container: Container, state: State, store: ContainerStore) -> None:
    """Set a running container's limits to those of its record."""
    before = find_group(container.id)
    with open(store.path(container.id, "grouped"), "wb"):
        pass
    plan = finer_settings(dict(container.host.further))
    also = (one.controller for one in plan)
    after = make_group(container.id, container.host.limits, *also)
    limit_finely(after, plan)
    new = tuple(pair for pair in after.places if pair not in before.places)
    if new:
        everybody = members_of(container.id, state.pid)
        move_into(Group(container.id, after.version, new), everybody)


def update_one(store: ContainerStore, container: Container, given: Given) -> None:
    """Change the limits of a container, running or not."""
    before = container.host.limits
    if (
        given.text("memory")
        and not given.text("memory-swap")
        and before.memory_swap > 0
    ):
        asked = limits_of(Given({"memory": given.text("memory")}))
        if asked.memory > before.memory_swap:
            what = "memory limit should be smaller than already set memoryswap limit"
            raise WordFault(what, hint="give --memory-swap at the same time")
    finer = dict(container.host.further) | finer_limits(given)
    host = container.host.replace(
        limits=limits_of(given, before), further=tuple(finer.items())
    )
    check_finer(finer, host.limits.nano_cpus)
    changed = container.replace(host=with_policy(given, host))
    state = store.state(container.id)
    if state.status is Status.RUNNING and host != container.host:
        give_group(changed, state, store)
    rewrite_host(store, container, changed.host)
    tell(store, container, "update")


def with_policy(given: Given, host: HostConfig) -> HostConfig:
    """Return a HostConfig with the policy of ``--restart``. Raises ConflictError."""
    if not given.text("restart"):
        return host
    if host.auto_remove:
        what = "restart policy cannot be updated because AutoRemove is enabled"
        raise ConflictError(f"{what} for the container")
    return host.replace(restart=restart_text(given))


def update(given: Given) -> int:
    """``update [OPTIONS] CONTAINER [CONTAINER...]``"""
    flags = (*LIMIT_FLAGS, *RARE_LIMITS, RESTART)
    if not any(given.text(flag.name) for flag in flags):
        raise WordFault("you must provide one or more flags when using this command")

    def action(engine: Engine, container: Container) -> None:
        update_one(engine.containers, container, given)

    return each_container(given, action, Needs.NOTHING)


# %% pause
def pause(given: Given) -> int:
    """``pause CONTAINER [CONTAINER...]``"""
    from minidocker import pausing

    def action(engine: Engine, container: Container) -> None:
        pausing.pause(engine.containers, container)

    return each_container(given, action, Needs.NOTHING)


def unpause(given: Given) -> int:
    """``unpause CONTAINER [CONTAINER...]``"""
    from minidocker import pausing

    def action(engine: Engine, container: Container) -> None:
        pausing.unpause(engine.containers, container)

    return each_container(given, action, Needs.NOTHING)


# %% pause
RESTART = Flag(
    "restart",
    "Restart policy: no, always, unless-stopped, on-failure[:N]",
    takes=TEXT,
)
COMMANDS = (
    Command(
        "stats", "[OPTIONS] [CONTAINER...]",
        "Display a live stream of container(s) resource usage statistics", stats,
        (
            Flag("all", "Show all containers (default shows just running)", "a"),
            FORMAT,
            Flag("no-stream", "Disable streaming stats and only pull the first result"),
            NO_TRUNC,
        ),
    ),
    Command(
        "update", "[OPTIONS] CONTAINER [CONTAINER...]",
        "Update configuration of one or more containers", update,
        (*LIMIT_FLAGS, *RARE_LIMITS, RESTART), least=1,
    ),
    Command(
        "pause", "CONTAINER [CONTAINER...]",
        "Pause all processes within one or more containers", pause, least=1,
    ),
    Command(
        "unpause", "CONTAINER [CONTAINER...]",
        "Unpause all processes within one or more containers", unpause, least=1,
    ),
)  # fmt: skip
