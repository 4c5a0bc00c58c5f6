# From book/408-freezer.md. Edit there and tangle, or here and tangle --back.

# %% Freezer: stop every process of a group at once
"""Freeze the processes of a group, and let them go on; both versions."""

from __future__ import annotations

import os
import time

from minidocker.cgroups import Group, read
from minidocker.errors import RuntimeFault
from minidocker.namespaces import put


# %% Ask, then wait
def is_frozen(group: Group) -> bool:
    """Say whether every process of a container's group has stopped."""
    if group.version == 2:
        return "frozen 1" in read(f"{group.place('')}/cgroup.events").splitlines()
    return read(f"{group.place('freezer')}/freezer.state").strip() == "FROZEN"


def set_frozen(group: Group, *, frozen: bool) -> None:
    """Stop the processes of a group, or let them go on; return when it is so.

    Raises RuntimeFault without a freezer, and when they do not stop in a second.
    """
    place, name, word = group.place("freezer"), "freezer.state", "THAWED"
    if group.version == 2:
        place, name, word = group.place(""), "cgroup.freeze", str(int(frozen))
    elif frozen:
        word = "FROZEN"
    if not place or not os.path.isdir(place):
        raise RuntimeFault("the container has no group that can be frozen")
    put(f"{place}/{name}", word)
    for _ in range(500):
        if is_frozen(group) == frozen:
            return
        time.sleep(0.002)
    raise RuntimeFault("the processes do not stop", where=place)
