# From book/472-oci-groups.md. Edit there and tangle, or here and tangle --back.

# %% Groups in a bundle: somebody else chose the place
"""The control groups of an OCI bundle: where, how much, and who is inside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress

from minidocker.cgroups import (
    CONTROLLERS,
    V2,
    Group,
    Setting,
    cpu_weight,
    fill_cpuset,
    is_version_2,
    one_per_line,
    ordered,
    read,
    switch_on,
    write_setting,
)
from minidocker.documents import Part
from minidocker.errors import RuntimeFault


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.device_rules import DeviceRule


# %% Where
def trees() -> dict[str, str]:
    """Return where the trees of version 1 are mounted, by controller or name."""
    found: dict[str, str] = {}
    for line in read("/proc/self/mounts").splitlines():
        _, place, fstype, options, *_ = line.split(" ")
        if fstype == "cgroup":
            for name in options.split(","):
                known = name in (*CONTROLLERS, "hugetlb", "net_cls")
                if known or name.startswith("name="):
                    found.setdefault(name.removeprefix("name="), place)
    return found


# %% Where
def group_at(path: str) -> Group:
    """Return the groups at ``path`` (absolute, from the top of each tree).

    They need not exist. Where this machine has none there are no places.
    """
    if is_version_2():
        return Group(path, 2, (("", f"{V2}{path}"),))
    places: dict[str, tuple[str, str]] = {}
    for name, place in trees().items():
        places.setdefault(place, (name, f"{place}{path}"))
    return Group(path, 1, tuple(places.values()))


def clean_path(text: str, id: str) -> str:
    """Return a bundle's cgroupsPath as an absolute one; the id where it has none.

    Raises RuntimeFault for a path of systemd's own form.

    >>> clean_path("docker/../7", "x"), clean_path("", "box")
    ('/7', '/box')
    """
    if text.count(":") == 2 and not text.startswith("/"):
        hint = "use the cgroupfs manager; nobody here talks to systemd"
        raise RuntimeFault(f'cgroupsPath "{text}" is one for systemd', hint=hint)
    return os.path.normpath(f"/{text or id}").replace("//", "/")


# %% Where
def make_at(group: Group) -> None:
    """Make the directories of groups, those above too; idempotent.

    In version 2 every controller is switched on, down to the group's parent.
    """
    for name, place in group.places:
        root = place.removesuffix(group.id)
        steps = [p for p in group.id.split("/") if p]
        for count in range(1, len(steps) + 1):
            if group.version == 2:
                above = "/".join([root, *steps[: count - 1]])
                switch_on(above, read(f"{above}/cgroup.controllers").split())
            below = "/".join([root, *steps[:count]])
            with suppress(FileExistsError):
                os.mkdir(below, 0o755)
            if name == "cpuset":
                fill_cpuset(below)


# %% How much
def plan_v1(found: Part) -> tuple[Setting, ...]:
    """Return what is written in version 1 for ``linux.resources``, in order."""
    cpu, weight = found.get("cpu"), found.get("blockIO").get("weight")
    return one_per_line(
        ("memory", "memory.limit_in_bytes", limit(found, "limit")),
        ("memory", "memory.memsw.limit_in_bytes", limit(found, "swap")),
        ("memory", "memory.soft_limit_in_bytes", limit(found, "reservation")),
        ("memory", "memory.swappiness", swappiness(found)),
        ("memory", "memory.oom_control", oom_off(found)),
        ("cpu", "cpu.cfs_period_us", cpu.get("period").number()),
        ("cpu", "cpu.cfs_quota_us", cpu.get("quota").number()),
        ("cpu", "cpu.shares", cpu.get("shares").number()),
        ("cpu", "cpu.rt_period_us", cpu.get("realtimePeriod").number()),
        ("cpu", "cpu.rt_runtime_us", cpu.get("realtimeRuntime").number()),
        ("cpuset", "cpuset.cpus", cpu.get("cpus").text()),
        ("cpuset", "cpuset.mems", cpu.get("mems").text()),
        ("pids", "pids.max", most_pids(found)),
        ("blkio", "blkio.weight blkio.bfq.weight", weight.number()),
        *throttles(found, "blkio", "blkio.throttle.{}_device"),
    )


def swappiness(found: Part) -> str:
    """Return how gladly memory is swapped; 0 is a value of its own."""
    given = found.get("memory").get("swappiness")
    return "" if given.value is None else str(given.number())


def limit(found: Part, key: str) -> int:
    """Return a limit of memory; 0 is none, as for runc."""
    return found.get("memory").get(key).number()


def oom_off(found: Part) -> int:
    """Return 1 when the kernel is not to kill for want of memory."""
    return int(found.get("memory").get("disableOOMKiller").on())


def most_pids(found: Part) -> str | int:
    """Return the most processes; "max" for less than 0, and 0 is none, as for runc."""
    most = found.get("pids").get("limit").number()
    return "max" if most < 0 else most


# %% How much
THROTTLES = {
    "throttleReadBpsDevice": "read_bps", "throttleWriteBpsDevice": "write_bps",
    "throttleReadIOPSDevice": "read_iops", "throttleWriteIOPSDevice": "write_iops",
}  # fmt: skip
IO_MAX = {
    "throttleReadBpsDevice": "rbps", "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops", "throttleWriteIOPSDevice": "wiops",
}  # fmt: skip


def throttles(
    found: Part, controller: str, file: str
) -> Iterable[tuple[str, str, str]]:
    """Yield the limits on single devices; ``file`` has a hole for v1's name."""
    names = THROTTLES if "{}" in file else IO_MAX
    for key, name in names.items():
        for one in found.get("blockIO").get(key).each():
            major, minor, rate = (
                one.get(k).number() for k in ("major", "minor", "rate")
            )
            key_of_2 = "" if "{}" in file else f"{name}="
            yield controller, file.format(name), f"{major}:{minor} {key_of_2}{rate}"


# %% How much
def plan_v2(found: Part) -> tuple[Setting, ...]:
    """Return what is written in version 2 for ``linux.resources``, in order.

    The scales are translated as runc does; ``unified`` is written as it is.
    """
    memory, both = limit(found, "limit"), limit(found, "swap")
    swap = "max" if both == -1 else ""
    if both > 0 and memory > 0:
        swap = str(both - memory)
    processor = found.get("cpu")
    shares, quota, period = (
        processor.get(key).number() for key in ("shares", "quota", "period")
    )
    cpu = f"{quota if quota > 0 else 'max'} {period or 100_000}"
    weight = found.get("blockIO").get("weight").number()
    return one_per_line(
        ("memory", "memory.max", "max" if memory == -1 else memory),
        ("memory", "memory.swap.max", swap),
        ("memory", "memory.low", limit(found, "reservation")),
        ("cpu", "cpu.max", cpu if quota or period else ""),
        ("cpu", "cpu.weight", cpu_weight(shares)),
        ("cpuset", "cpuset.cpus", processor.get("cpus").text()),
        ("cpuset", "cpuset.mems", processor.get("mems").text()),
        ("pids", "pids.max", most_pids(found)),
        ("io", "io.bfq.weight io.weight", weight),
        *throttles(found, "io", "io.max"),
        *((k.partition(".")[0], k, v) for k, v in found.get("unified").pairs()),
    )


# %% How much
def device_rule(found: Part) -> DeviceRule:
    """Return an entry of ``resources.devices`` as a rule."""
    from minidocker.device_rules import DeviceRule

    kind, access = found.get("type").text("a"), found.get("access").text() or "rwm"
    if kind not in ("", "a", "b", "c") or not set(access) <= set("rwm"):
        raise found.wrong("is no rule for devices")
    major, minor = found.get("major").number(-1), found.get("minor").number(-1)
    return DeviceRule(found.get("allow").on(), kind or "a", major, minor, access)


def limit_group(group: Group, found: Part, *, new: bool = True) -> None:
    """Write limits to groups; the devices too where they are ``new``.

    Raises RuntimeFault with the kernel's answer; for a limit whose controller is
    not here too.
    """
    plan = plan_v2(found) if group.version == 2 else plan_v1(found)
    for one in ordered(plan, group):
        place = group.place(one.controller) or tree_with(group, one.controller)
        if not place:
            raise RuntimeFault(f"no control group for {one.controller}: {one.files[0]}")
        write_setting(place, one)
    given = list(found.get("devices").each())
    if new and given and group.places:
        limit_devices(group, given)


def limit_devices(group: Group, found: Iterable[Part]) -> None:
    """Bind groups to the rules of ``resources.devices``, and to what all may do."""
    from minidocker.device_rules import docker_rules, restrict_devices

    restrict_devices(group, (*map(device_rule, found), *docker_rules()[1:]))


def tree_with(group: Group, controller: str) -> str:
    """Return the group's place for a controller that shares another one's tree."""
    root = trees().get(controller, "")
    return f"{root}{group.id}" if root else ""


# %% Who is inside
def pids_in(group: Group) -> list[int]:
    """Return the processes in a container's groups, below them too, sorted."""
    found: set[int] = set()
    for place in group_place(group):
        for above, _, _ in os.walk(place):
            found.update(int(pid) for pid in read(f"{above}/cgroup.procs").split())
    return sorted(found)


def group_place(group: Group) -> list[str]:
    """Return the directory that tells who is in a container's groups, if any."""
    wanted = group.place("devices") or group.place("pids")
    places = [wanted] if wanted else [place for _, place in group.places]
    return [place for place in places[:1] if os.path.isdir(place)]


# %% Who is inside
def remove_at(group: Group) -> None:
    """Remove groups, and those below them; idempotent.

    Waits up to a second for processes that are about to end; what is then still in
    use stays. The directories above are the caller's.
    """
    for _, place in group.places:
        for _ in range(200):
            if remove_below(place):
                break
            time.sleep(0.005)


def remove_below(place: str) -> bool:
    """Remove a group and those below it; say whether nothing is left."""
    for above, _, _ in os.walk(place, topdown=False):
        try:
            os.rmdir(above)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
