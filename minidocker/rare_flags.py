# From book/653-rare-flags.md. Edit there and tangle, or here and tangle --back.

# %% Rare flags: known, read, and some refused
"""The flags of ``run``, ``create`` and ``update`` that few people give."""

from __future__ import annotations

import os
from collections.abc import Callable

from minidocker.container_verbs import notice
from minidocker.errors import RuntimeFault, UsageError, WordFault
from minidocker.finer_limits import RATES, check_finer
from minidocker.flags import LIST, NUMBER, TEXT, Flag, Given, refused, size, wrong
from minidocker.neighbours import parse_link
from minidocker.program import HostConfig, Network
from minidocker.volumes import check_driver


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The table
LIMIT_FLAGS = (
    Flag("cpu-period", "Period of the quota (microseconds)", takes=NUMBER),
    Flag("cpu-quota", "Processor time in a period (microseconds)", takes=NUMBER),
    Flag("cpu-rt-period", "Period of the realtime scheduler", takes=NUMBER),
    Flag("cpu-rt-runtime", "Realtime processor time in a period", takes=NUMBER),
    Flag("kernel-memory", "Kernel memory limit; no kernel keeps it now", takes=TEXT),
)
FLAGS = (
    *LIMIT_FLAGS,
    Flag("blkio-weight-device", "Block IO weight of a device: PATH:WEIGHT", takes=LIST),
    refused("cgroup-parent", "the groups of all containers lie below minidocker/"),
    refused("device-cgroup-rule", "devices open where --device has put them, only"),
    Flag("device-read-bps", "Bytes a second read from a device: PATH:RATE", takes=LIST),
    Flag("device-read-iops", "Reads a second from a device: PATH:RATE", takes=LIST),
    Flag("device-write-bps", "Bytes a second written: PATH:RATE", takes=LIST),
    Flag("device-write-iops", "Writes a second to a device: PATH:RATE", takes=LIST),
    Flag("disable-content-trust", "Skip image verification; it is always skipped"),
    refused("gpus", "there is no driver for them; give their nodes with --device"),
    Flag("isolation", "Isolation technology: default", takes=TEXT),
    Flag("link", "Name another container in this one: NAME[:ALIAS]", takes=LIST),
    refused("link-local-ip", "an interface has the addresses of its network, only"),
    Flag("memory-swappiness", "How gladly memory is swapped, 0 to 100", takes=NUMBER),
    Flag("oom-kill-disable", "Wait, rather than be killed, when memory is out"),
    Flag("platform", "The platform of the image: linux/arm64", takes=TEXT),
    Flag("runtime", "What runs the container: minidocker", takes=TEXT),
    Flag("storage-opt", "Storage driver options for the container", takes=LIST),
    Flag("volume-driver", "Driver of volumes: local", takes=TEXT),
)


# %% Devices and their rates
def device_and(text: str, names: str) -> tuple[str, str]:
    """Split ``PATH:VALUE``. Raises UsageError for what is no path below /dev."""
    path, colon, value = text.partition(":")
    if not colon:
        raise wrong(names, text, f"bad format: {text}")
    if not path.startswith("/dev/") or not os.path.exists(path):
        raise wrong(names, text, f"bad format for device path: {text}")
    return path, value


def weight_of(text: str) -> dict[str, Any]:
    """Return Docker's fields of ``PATH:WEIGHT``."""
    names = "--blkio-weight-device"
    path, value = device_and(text, names)
    if not value.isdecimal() or (int(value) and not 10 <= int(value) <= 1000):
        raise wrong(names, text, f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(value)}


def rate_of(text: str, flag: str) -> dict[str, Any]:
    """Return Docker's fields of ``PATH:RATE``; of bytes a rate may have a unit."""
    path, value = device_and(text, f"--{flag}")
    why = f"invalid rate for device: {text}"
    hint = "PATH:NUMBER, more than 0"
    try:
        rate = size(Given({flag: value}), flag) if flag.endswith("bps") else int(value)
    except (UsageError, ValueError) as bad:
        raise wrong(f"--{flag}", text, why, hint) from bad
    if rate <= 0:
        raise wrong(f"--{flag}", text, why, hint)
    return {"Path": path, "Rate": rate}


# %% Limits
RATE_FLAGS = (
    "device-read-bps", "device-write-bps", "device-read-iops", "device-write-iops",
)  # fmt: skip


def finer_limits(given: Given) -> dict[str, Any]:
    """Return the finer limits of a command line, under Docker's names."""
    numbers = {
        "CpuPeriod": given.number("cpu-period") or 0,
        "CpuQuota": given.number("cpu-quota") or 0,
        "CpuRealtimePeriod": given.number("cpu-rt-period") or 0,
        "CpuRealtimeRuntime": given.number("cpu-rt-runtime") or 0,
    }
    found: dict[str, Any] = {name: value for name, value in numbers.items() if value}
    if (swappiness := given.number("memory-swappiness")) not in (None, -1):
        found["MemorySwappiness"] = swappiness
    for name, flag in zip(RATES, RATE_FLAGS, strict=True):
        if texts := given.list(flag):
            found[name] = [rate_of(text, flag) for text in texts]
    if texts := given.list("blkio-weight-device"):
        found["BlkioWeightDevice"] = list(map(weight_of, texts))
    return found | warned(given)


def warned(given: Given) -> dict[str, Any]:
    """Return what is kept of two flags of which Docker warns."""
    found: dict[str, Any] = {}
    if given.text("kernel-memory"):
        if size(given, "kernel-memory") < 6 << 20:
            raise WordFault("minimum kernel memory limit allowed is 6MB")
        notice("WARNING: no kernel limits its own memory since 5.16. Limit discarded.")
    if given.on("oom-kill-disable"):
        found["OomKillDisable"] = True
        if not given.text("memory"):
            what = "the OOM killer is disabled and no memory limit is set"
            notice(f"WARNING: {what}: the system may run out of memory.")
    return found


# %% Words that have one meaning here
def only_default(text: str) -> None:
    """Refuse another ``--isolation``."""
    if text != "default":
        what = f"invalid isolation: {text} - linux only supports 'default'"
        raise WordFault(what)


def only_ours(text: str) -> None:
    """Refuse another ``--runtime``."""
    if text != "minidocker":
        what = f"unknown runtime specified {text}"
        raise WordFault(what, hint="minidocker itself runs its containers")


ONLY: dict[str, tuple[str, Callable[[str], None]]] = {
    "isolation": ("Isolation", only_default),
    "runtime": ("Runtime", only_ours),
    "volume-driver": ("VolumeDriver", check_driver),
}


# %% Words that have one meaning here
def check_storage(text: str) -> None:
    """Raise RuntimeFault: no driver here can bound a container's layer.

    Overlay could over xfs with project quotas, which the mount must be given.
    """
    name, equals, _ = text.partition("=")
    if not equals:
        raise UsageError(f"invalid storage option: {text}", hint="size=10G")
    if name != "size":
        raise RuntimeFault(f"unknown option {name}")
    what = "--storage-opt size is not supported: a layer is a directory here"
    raise RuntimeFault(what, hint="devicemapper has dm.basesize, for all containers")


def linked(given: Given, host: HostConfig) -> tuple[str, ...]:
    """Return the links of ``--link`` as NAME:ALIAS. Raises UsageError."""
    texts = given.list("link")
    if texts and host.network is not Network.BRIDGE:
        raise UsageError("conflicting options: links need a bridge network")
    return tuple(":".join(parse_link(text)) for text in texts)


# %% All of them
def with_rare(given: Given, host: HostConfig) -> HostConfig:
    """Return a HostConfig with what rare flags ask for. Raises UsageError."""
    found = finer_limits(given)
    check_finer(found, host.limits.nano_cpus)
    for flag, (name, check) in ONLY.items():
        if text := given.text(flag):
            check(text)
            found[name] = text
    for text in given.list("storage-opt"):
        check_storage(text)
    if given.flags.get("disable-content-trust") is False:
        what = "images cannot be verified here: there is no notary"
        raise WordFault(what, hint="an image named by its digest is what it says")
    return host.replace(further=tuple(found.items()), links=linked(given, host))
