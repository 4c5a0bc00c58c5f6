# From book/411-finer-limits.md. Edit there and tangle, or here and tangle --back.

# %% Finer limits: periods, devices, swap
"""Limits that few containers have: periods, rates of devices, swappiness."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from minidocker.cgroups import (
    Group,
    Setting,
    io_weight,
    is_version_2,
    one_per_line,
    write_setting,
)
from minidocker.errors import RuntimeFault, WordFault


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Finer = Mapping[str, Any]


# %% The noun
RATES = {  # by Docker's name: the file of version 1, the word of version 2
    "BlkioDeviceReadBps": ("blkio.throttle.read_bps_device", "rbps"),
    "BlkioDeviceWriteBps": ("blkio.throttle.write_bps_device", "wbps"),
    "BlkioDeviceReadIOps": ("blkio.throttle.read_iops_device", "riops"),
    "BlkioDeviceWriteIOps": ("blkio.throttle.write_iops_device", "wiops"),
}


def numbers_of(path: str) -> str:
    """Return ``MAJOR:MINOR`` of a device. Raises RuntimeFault where there is none."""
    try:
        device = os.stat(path).st_rdev
    except OSError as why:
        raise RuntimeFault(f"no such device: {why.strerror}", where=path) from why
    return f"{os.major(device)}:{os.minor(device)}"


# %% What is wrong
def check_finer(asked: Finer, nano_cpus: int) -> Finer:
    """Return finer limits, or raise WordFault for what cannot be."""
    period, quota = asked.get("CpuPeriod", 0), asked.get("CpuQuota", 0)
    for name, value in (("Period", period), ("Quota", quota)):
        if nano_cpus and value:
            what = f"conflicting options: nano CPUs and CPU {name} cannot both be set"
            raise WordFault(what)
    if period and not 1000 <= period <= 1_000_000:
        what = "CPU cfs period can not be less than 1ms (i.e. 1000)"
        raise WordFault(f"{what} or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise WordFault("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    swappiness = asked.get("MemorySwappiness", -1)
    if not -1 <= swappiness <= 100:
        what = f"invalid value: {swappiness}. Valid memory swappiness range is 0-100"
        raise WordFault(what)
    return asked


# %% Two versions
def settings_v1(asked: Finer) -> Iterator[Setting]:
    """Yield what is written in version 1."""
    swappiness = asked.get("MemorySwappiness", -1)
    yield from one_per_line(
        ("cpu", "cpu.cfs_period_us", asked.get("CpuPeriod", 0)),
        ("cpu", "cpu.cfs_quota_us", asked.get("CpuQuota", 0)),
        ("cpu", "cpu.rt_period_us", asked.get("CpuRealtimePeriod", 0)),
        ("cpu", "cpu.rt_runtime_us", asked.get("CpuRealtimeRuntime", 0)),
        ("memory", "memory.oom_control", int(asked.get("OomKillDisable", False))),
        ("memory", "memory.swappiness", str(swappiness) if swappiness >= 0 else ""),
    )
    for name, (file, _) in RATES.items():
        for one in asked.get(name) or ():
            text = f"{numbers_of(one['Path'])} {one['Rate']}"
            yield Setting("blkio", (file,), text)
    for one in asked.get("BlkioWeightDevice") or ():
        files = ("blkio.weight_device", "blkio.bfq.weight_device")
        text = f"{numbers_of(one['Path'])} {one['Weight']}"
        yield Setting("blkio", files, text)


# %% Two versions
V1_ONLY = {
    "MemorySwappiness": "a swappiness", "OomKillDisable": "a group without a killer",
    "CpuRealtimePeriod": "time of the realtime scheduler",
    "CpuRealtimeRuntime": "time of the realtime scheduler",
}  # fmt: skip


def settings_v2(asked: Finer) -> Iterator[Setting]:
    """Yield what is written in version 2. Raises RuntimeFault for what it lacks."""
    for name, what in V1_ONLY.items():
        if asked.get(name, -1) not in (-1, False):
            raise RuntimeFault(f"control groups of version 2 do not have {what}")
    period, quota = asked.get("CpuPeriod") or 100_000, asked.get("CpuQuota") or 0
    if asked.get("CpuPeriod") or quota:
        text = f"{quota if quota > 0 else 'max'} {period}"
        yield Setting("cpu", ("cpu.max",), text)
    for name, (_, word) in RATES.items():
        for one in asked.get(name) or ():
            text = f"{numbers_of(one['Path'])} {word}={one['Rate']}"
            yield Setting("io", ("io.max",), text)
    for one in asked.get("BlkioWeightDevice") or ():
        text = f"{numbers_of(one['Path'])} {io_weight(one['Weight'])}"
        yield Setting("io", ("io.weight", "io.bfq.weight"), text)


def finer_settings(asked: Finer, version: int = 0) -> tuple[Setting, ...]:
    """Return what finer limits write into the files of a group.

    ``version`` is that of this machine where none is given.
    """
    two = version == 2 if version else is_version_2()
    return tuple((settings_v2 if two else settings_v1)(asked))


def limit_finely(group: Group, plan: tuple[Setting, ...]) -> None:
    """Write settings into a group that is there, with their controllers."""
    for one in plan:
        write_setting(group.place(one.controller), one)


# %% For a bundle
BUNDLE_NAMES = {
    "CpuPeriod": ("cpu", "period"), "CpuQuota": ("cpu", "quota"),
    "CpuRealtimePeriod": ("cpu", "realtimePeriod"),
    "CpuRealtimeRuntime": ("cpu", "realtimeRuntime"),
    "MemorySwappiness": ("memory", "swappiness"),
    "OomKillDisable": ("memory", "disableOOMKiller"),
}  # fmt: skip
BUNDLE_RATES = {
    "BlkioDeviceReadBps": "throttleReadBpsDevice",
    "BlkioDeviceWriteBps": "throttleWriteBpsDevice",
    "BlkioDeviceReadIOps": "throttleReadIOPSDevice",
    "BlkioDeviceWriteIOps": "throttleWriteIOPSDevice",
    "BlkioWeightDevice": "weightDevice",
}


def add_finer(resources: dict[str, Any], asked: Finer) -> None:
    """Add finer limits to ``linux.resources`` of a bundle.

    Raises RuntimeFault where a device is not there.
    """
    for name, (part, key) in BUNDLE_NAMES.items():
        value = asked.get(name, 0)
        wanted = value >= 0 if name == "MemorySwappiness" else value
        if name in asked and wanted:
            resources.setdefault(part, {})[key] = value
    for name, key in BUNDLE_RATES.items():
        rows = []
        for one in asked.get(name) or ():
            major, _, minor = numbers_of(one["Path"]).partition(":")
            word = "weight" if name == "BlkioWeightDevice" else "rate"
            rate = {word: one[word.title()]}
            rows.append({"major": int(major), "minor": int(minor), **rate})
        if rows:
            resources.setdefault("blockIO", {})[key] = rows
