# From book/406-cgroups.md. Edit there and tangle, or here and tangle --back.

# %% Control groups: how much a process may take
"""Limits: control groups of both versions, and what is written where.

A group is named by a container's id, below ``minidocker`` in each hierarchy.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress

from minidocker.calls import signal
from minidocker.errors import RuntimeFault, WordFault
from minidocker.namespaces import put
from minidocker.records import Record


# %% The noun: limits
class Limits(Record):
    """What a container may take. Nothing is limited by 0 and "".

    Memory is in bytes; ``memory_swap`` is memory and swap together, -1 for no end.
    ``nano_cpus`` is a billionth of a processor, ``cpu_shares`` a weight (1024 is
    everybody's), ``pids`` a number of processes and threads, -1 for no end.
    """

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    blkio_weight: int = 0


NO_LIMITS = Limits()


# %% The noun: limits
LEAST_MEMORY = 6 << 20


def memory_fault(limits: Limits) -> str:
    """Return what is wrong with the limits of memory, or nothing."""
    memory, swap = limits.memory, limits.memory_swap
    reserved = limits.memory_reservation
    if memory and memory < LEAST_MEMORY:
        return "minimum memory limit allowed is 6MB"
    if swap > 0 and not memory:
        return "you should always set the memory limit when using memoryswap limit"
    if memory and 0 < swap < memory:
        return "minimum memoryswap limit should be larger than memory limit"
    if reserved and reserved < LEAST_MEMORY:
        return "minimum memory reservation allowed is 6MB"
    if memory and reserved > memory:
        return "minimum memory limit can not be less than memory reservation limit"
    return ""


def other_fault(limits: Limits) -> str:
    """Return what is wrong with the other limits, or nothing."""
    cpus = os.cpu_count() or 1
    if limits.nano_cpus and not 10**7 <= limits.nano_cpus <= cpus * 10**9:
        only = f"there are only {cpus} CPUs available"
        return f"range of CPUs is from 0.01 to {cpus}.00, as {only}"
    if limits.cpu_shares and not 2 <= limits.cpu_shares <= 262144:
        return "range of cpu shares is from 2 to 262144"
    if limits.blkio_weight and not 10 <= limits.blkio_weight <= 1000:
        return "range of blkio weight is from 10 to 1000"
    return set_fault("cpus", limits.cpuset_cpus) or set_fault(
        "mems", limits.cpuset_mems
    )


def check_limits(limits: Limits) -> Limits:
    """Return ``limits``, or raise WordFault for what cannot be."""
    if fault := memory_fault(limits) or other_fault(limits):
        raise WordFault(fault)
    return limits


# %% The noun: limits
ONLINE = {
    "cpus": "/sys/devices/system/cpu/online",
    "mems": "/sys/devices/system/node/online",
}


def members(text: str) -> set[int]:
    """Return the numbers of a set as the kernel writes it; ValueError for others.

    >>> sorted(members("0-2,5"))
    [0, 1, 2, 5]
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < 8192:
            raise ValueError(text)
        found.update(range(low, high + 1))
    return found


def set_fault(kind: str, text: str) -> str:
    """Return what is wrong with a set of ``cpus`` or ``mems``, or nothing."""
    if not text:
        return ""
    try:
        wanted = members(text)
    except ValueError:
        return f"invalid value {text} for cpuset {kind}"
    there = read(ONLINE[kind]).strip() or "0"
    if wanted <= members(there):
        return ""
    what = {"cpus": "CPUs", "mems": "memory nodes"}[kind]
    return f"requested {what} are not available - requested {text}, available: {there}"


def read(path: str) -> str:
    """Return the text of a file of the kernel, or nothing."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


# %% Two versions
class Setting(Record):
    """A text for a file of a group. ``files`` are names that kernels gave it."""

    controller: str
    files: tuple[str, ...]
    text: str


PERIOD = 100_000  # microseconds


def swap_of(limits: Limits) -> int:
    """Return memory and swap together; as much swap as memory unless it is said."""
    return limits.memory_swap or 2 * limits.memory


def one_per_line(*rows: tuple[str, str, str | int]) -> tuple[Setting, ...]:
    """Return settings for the rows whose value is not 0 or ""."""
    return tuple(
        Setting(controller, tuple(files.split()), str(value))
        for controller, files, value in rows
        if value
    )


# %% Two versions
def settings_v1(limits: Limits) -> tuple[Setting, ...]:
    """Return what is written in version 1, in order: memory before memory and swap."""
    quota = limits.nano_cpus * PERIOD // 10**9
    return one_per_line(
        ("memory", "memory.limit_in_bytes", limits.memory),
        ("memory", "memory.memsw.limit_in_bytes", limits.memory and swap_of(limits)),
        ("memory", "memory.soft_limit_in_bytes", limits.memory_reservation),
        ("cpu", "cpu.cfs_period_us", quota and PERIOD),
        ("cpu", "cpu.cfs_quota_us", quota),
        ("cpu", "cpu.shares", limits.cpu_shares),
        ("cpuset", "cpuset.cpus", limits.cpuset_cpus),
        ("cpuset", "cpuset.mems", limits.cpuset_mems),
        ("pids", "pids.max", "max" if limits.pids < 0 else limits.pids),
        ("blkio", "blkio.weight blkio.bfq.weight", limits.blkio_weight),
    )


# %% Two versions
def cpu_weight(shares: int) -> int:
    """Return a weight of version 2 for shares of version 1; 0 for none.

    >>> cpu_weight(2), cpu_weight(1024), cpu_weight(262144)
    (1, 39, 10000)
    """
    return 1 + (shares - 2) * 9999 // 262142 if shares else 0


def io_weight(weight: int) -> int:
    """Return a weight of io.weight for one of ``--blkio-weight``; 0 for none."""
    return 1 + (weight - 10) * 9999 // 990 if weight else 0


def settings_v2(limits: Limits) -> tuple[Setting, ...]:
    """Return what is written in version 2. The scales of weights are others."""
    quota = limits.nano_cpus * PERIOD // 10**9
    both = swap_of(limits)
    swap = "max" if both < 0 else str(both - limits.memory)
    io = io_weight(limits.blkio_weight)
    return one_per_line(
        ("memory", "memory.max", limits.memory),
        ("memory", "memory.swap.max", swap if limits.memory else ""),
        ("memory", "memory.low", limits.memory_reservation),
        ("cpu", "cpu.max", f"{quota} {PERIOD}" if quota else ""),
        ("cpu", "cpu.weight", cpu_weight(limits.cpu_shares)),
        ("cpuset", "cpuset.cpus", limits.cpuset_cpus),
        ("cpuset", "cpuset.mems", limits.cpuset_mems),
        ("pids", "pids.max", "max" if limits.pids < 0 else limits.pids),
        ("io", "io.weight io.bfq.weight", f"default {io}" if io else ""),
    )


# %% Where the groups are
PARENT = "minidocker"
V2 = "/sys/fs/cgroup"
CONTROLLERS = (
    "memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "freezer", "devices",
)  # fmt: skip


class Hierarchies(Record):
    """Where groups are made: ``roots`` has a directory for each controller."""

    version: int
    roots: tuple[tuple[str, str], ...]

    def root(self, controller: str) -> str:
        """Return the directory of a controller's tree, or nothing."""
        return dict(self.roots).get(controller, "")


def is_version_2() -> bool:
    """Say whether this machine has control groups of version 2, all controllers."""
    return os.path.exists(f"{V2}/cgroup.controllers")


def find_hierarchies() -> Hierarchies:
    """Look what this machine has. Version 0 is none."""
    if controllers := read(f"{V2}/cgroup.controllers").split():
        place = delegated()
        return Hierarchies(2, tuple((name, place) for name in controllers))
    found: dict[str, str] = {}
    for line in read("/proc/self/mounts").splitlines():
        _, place, fstype, options, *_ = line.split(" ")
        if fstype == "cgroup":
            found |= {n: place for n in options.split(",") if n in CONTROLLERS}
    return Hierarchies(1 if found else 0, tuple(found.items()))


# %% Where the groups are
def delegated() -> str:
    """Return the highest group of version 2, on our own way up, that we may change."""
    if os.access(f"{V2}/cgroup.procs", os.W_OK):
        return V2
    own = read("/proc/self/cgroup").rpartition("0::")[2].strip()
    best, place = "", V2
    for name in own.strip("/").split("/"):
        place = f"{place}/{name}"
        if os.access(f"{place}/cgroup.procs", os.W_OK) and os.access(place, os.W_OK):
            best = best or place
    return best


# %% A group
def fill_cpuset(place: str) -> None:
    """Give a new cpuset of version 1 what the one above has, from the top down."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        above = os.path.dirname(place)
        if not read(f"{place}/{name}").strip():
            put(f"{place}/{name}", read(f"{above}/{name}").strip())


def switch_on(place: str, controllers: Iterable[str]) -> None:
    """Switch controllers of version 2 on for the children of ``place``."""
    path = f"{place}/cgroup.subtree_control"
    there = read(path).split()
    new = [name for name in controllers if name not in there]
    if new and place == V2 and os.path.exists(f"{place}/cgroup.type"):
        make_room(place)  # the true root has no type
    for name in new:
        put(path, f"+{name}")


def make_room(place: str) -> None:
    """Move who is in the group ``place`` into a child, ``init``; idempotent."""
    os.makedirs(f"{place}/init", exist_ok=True)
    for pid in read(f"{place}/cgroup.procs").split():
        with suppress(ProcessLookupError):
            put(f"{place}/init/cgroup.procs", pid)


# %% A group
def make_directory(hierarchies: Hierarchies, controller: str, id: str) -> str:
    """Make a container's directory in a controller's tree; return its path.

    The directory above is removed by whoever removes the last group: then again.
    """
    root = hierarchies.root(controller)
    place, above = f"{root}/{PARENT}/{id}", f"{root}/{PARENT}"
    for _ in range(100):
        try:
            os.makedirs(above, exist_ok=True)
            if hierarchies.version == 2:
                every = [n for n, _ in hierarchies.roots if n in (*CONTROLLERS, "io")]
                switch_on(root, every)
                switch_on(above, every)
            elif controller == "cpuset":
                fill_cpuset(above)
            with suppress(FileExistsError):
                os.mkdir(place)
            if hierarchies.version == 1 and controller == "cpuset":
                fill_cpuset(place)
        except FileNotFoundError:
            continue
        return place
    raise RuntimeFault("the group above is removed again and again", where=above)


# %% A group
class Group(Record):
    """The groups of a container: in version 2 one, in version 1 one a controller."""

    id: str
    version: int
    places: tuple[tuple[str, str], ...] = ()

    def place(self, controller: str) -> str:
        """Return the directory for a controller, or nothing where there is none."""
        if self.version == 2 and self.places:
            return self.places[0][1]
        return dict(self.places).get(controller, "")

    @property
    def unified(self) -> str:
        """The directory that a process may be born in: of version 2, or nothing."""
        return self.place("") if self.version == 2 else ""

    @property
    def joined(self) -> tuple[str, ...]:
        """The directories that a process must be moved into: of version 1."""
        return tuple(path for _, path in self.places) if self.version == 1 else ()


def find_group(id: str, hierarchies: Hierarchies | None = None) -> Group:
    """Return the groups that a container has."""
    found = hierarchies or find_hierarchies()
    places = [(name, f"{root}/{PARENT}/{id}") for name, root in found.roots if root]
    if found.version == 2:
        places = places[:1]
    there = tuple((name, path) for name, path in places if os.path.isdir(path))
    return Group(id, found.version, there)


# %% A group
def missing(controller: str, why: str = "") -> RuntimeFault:
    """Phrase that a limit cannot be kept here."""
    hint = "without root, systemd must delegate: Delegate=cpu cpuset io memory pids"
    what = f"no control group for {controller} can be made here"
    return RuntimeFault(f"{what}: {why}" if why else what, hint=hint)


def write_setting(place: str, one: Setting) -> None:
    """Write a setting to the first of its files that there is.

    A kernel that does not count swap has no file for it, and that is no fault.
    """
    for name in one.files:
        if os.path.exists(f"{place}/{name}"):
            try:
                put(f"{place}/{name}", one.text)
            except OSError as why:
                what = f"cannot set {name} to {one.text}: {why.strerror}"
                raise RuntimeFault(what) from why
            return
    if "sw" not in one.files[0]:
        raise missing(one.controller, f"the kernel has no {one.files[0]}")


# %% A group
def make_group(id: str, limits: Limits = NO_LIMITS, *also: str) -> Group:
    """Make a container's groups and set its limits; idempotent.

    ``also`` names controllers that are wanted without a limit. Without limits, and
    where no group can be made, there is none, and that is fine. Raises
    RuntimeFault for a limit that nobody can keep; then nothing is left.
    """
    nothing = limits == NO_LIMITS and not also
    if nothing and not is_version_2():
        return Group(id, 1)
    found = find_hierarchies()
    plan = (settings_v2 if found.version == 2 else settings_v1)(limits)
    wanted = wanted_controllers(found, [*(one.controller for one in plan), *also])
    before = find_group(id, found).places
    try:
        for name in wanted:
            make_directory(found, name, id)
        group = find_group(id, found)
        for one in ordered(plan, group):
            write_setting(group.place(one.controller), one)
    except (OSError, RuntimeFault) as why:
        if not before:
            remove_group(id)
        if nothing:
            return Group(id, found.version)
        if isinstance(why, OSError):
            said = f"{why.filename}: {why.strerror}"
            raise missing(wanted[0] if wanted else "any", said) from why
        raise
    return group


# %% A group
def wanted_controllers(found: Hierarchies, names: Iterable[str]) -> list[str]:
    """Return the controllers to make directories for: in version 2 any one.

    Raises RuntimeFault for one that is not there. Every group of version 2 can
    be frozen, and be bound to rules for devices.
    """
    every = ("freezer", "devices") if found.version == 2 else ()
    for name in (wanted := [*dict.fromkeys(names)]):
        if not found.root(name) and name not in every:
            raise missing(name)
    if found.version == 2:
        return [name for name, root in found.roots[:1] if root]
    return wanted


def ordered(plan: tuple[Setting, ...], group: Group) -> tuple[Setting, ...]:
    """Put "memory and swap" first where the new limit of memory is above the old one.

    The kernel keeps the one at most the other at every moment.
    """
    by_file = {one.files[0]: one for one in plan}
    memory = by_file.get("memory.limit_in_bytes")
    old = read(f"{group.place('memory')}/memory.memsw.limit_in_bytes").strip()
    if memory and old and int(memory.text) > int(old):
        return (by_file["memory.memsw.limit_in_bytes"], *plan)
    return plan


# %% A group
def remove_group(id: str) -> None:
    """Kill who is left in a container's groups, and remove these; idempotent.

    Only a container with the pid namespace of others leaves anybody. Silent where one
    does not end within a second: the next sweep comes by.
    """
    for _, place in find_group(id).places:
        for _ in range(200):
            for pid in read(f"{place}/cgroup.procs").split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                os.rmdir(place)
                break
            except OSError as why:
                if why.errno != errno.EBUSY:
                    break
                time.sleep(0.005)
        with suppress(OSError):  # others' groups are in it
            os.rmdir(os.path.dirname(place))


# %% Who is in it
def move_into(group: Group, pids: Iterable[int]) -> None:
    """Move processes into a container's groups; one that has ended is left out."""
    for _, place in group.places:
        for pid in pids:
            with suppress(ProcessLookupError):
                put(f"{place}/cgroup.procs", str(pid))


def join(places: Iterable[str]) -> None:
    """Move the calling process into directories of version 1."""
    for place in places:
        put(f"{place}/cgroup.procs", "0")


# %% Who was killed
def fields(text: str) -> dict[str, int]:
    """Return lines of a name and a number as a mapping.

    >>> fields("oom 0\\noom_kill 2\\n")
    {'oom': 0, 'oom_kill': 2}
    """
    pairs = (line.split() for line in text.splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit()}


def was_killed_for_memory(group: Group) -> bool:
    """Say whether the kernel killed a process of a group because memory ran out."""
    name = "memory.events" if group.version == 2 else "memory.oom_control"
    return fields(read(f"{group.place('memory')}/{name}")).get("oom_kill", 0) > 0
