# From book/662-runtime-views.md. Edit there and tangle, or here and tangle --back.

# %% Runtime views: what another program reads
"""What ``runtime`` prints: errors as runc has them, states, lists, figures."""

from __future__ import annotations

import os
import sys

from minidocker.errors import (
    CommandNotFoundError,
    ConflictError,
    MinidockerError,
    NotExecutableError,
    UsageError,
)
from minidocker.flags import Given
from minidocker.hooks import HOOKS, OCI_VERSION
from minidocker.oci_state import OciContainer, Phase, every, load, phase_of, state_of
from minidocker.records import Record, json_text


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Where it complains
class Log(Record):
    """Where errors are written, and how: ``text`` or ``json``."""

    path: str = ""
    format: str = "text"

    def error(self, text: str) -> None:
        """Write an error."""
        from minidocker.containers import timestamp

        when = timestamp().partition(".")[0].rstrip("Z") + "Z"
        line = f"time={quoted(when)} level=error msg={quoted(text)}"
        if self.format == "json":
            line = json_text({"level": "error", "msg": text, "time": when})
        if not self.path:
            print(line, file=sys.stderr)
            return
        with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{line}\n")
        print(text, file=sys.stderr)


def quoted(text: str) -> str:
    """Return a text in quotes, as logrus writes it."""
    return json_text(text)


def said(why: BaseException) -> str:
    """Return an error as one line."""
    if not isinstance(why, MinidockerError):
        return str(why)
    line = f"{why.where}: {why.what}" if why.where else why.what
    return f"{line} (hint: {why.hint})" if why.hint else line


def told(verb: str, why: BaseException) -> str:
    """Return an error as runc words it; dockerd looks for some of these words."""
    start = ""
    if isinstance(why, CommandNotFoundError | NotExecutableError):
        start = "unable to start container process: "
    if verb in ("create", "run"):
        return f"minidocker {verb} failed: {start}{said(why)}"
    return f"exec failed: {start}{said(why)}" if verb == "exec" else said(why)


# %% What is given
def default_runtime_root() -> str:
    """Return where containers are kept when nothing is said."""
    above = os.environ.get("XDG_RUNTIME_DIR", "") if os.geteuid() else "/run"
    return f"{above or '/tmp'}/minidocker-runtime"  # noqa: S108


def root_given(given: Given) -> str:
    """Return the runtime's root."""
    return os.path.abspath(given.text("root") or default_runtime_root())


def container_given(given: Given) -> OciContainer:
    """Return the container that the first argument names."""
    return load(root_given(given), given.args[0])


# %% state, list, ps, events
def state_verb(given: Given) -> int:
    """``state ID``"""
    from json import dumps

    print(dumps(state_of(container_given(given)), indent=2))
    return 0


def list_verb(given: Given) -> int:
    """``list [OPTIONS]``"""
    containers = every(root_given(given))
    found = [{**state_of(one), "owner": owner_of(one)} for one in containers]
    if given.on("quiet"):
        print("".join(f"{one['id']}\n" for one in found), end="")
    elif given.text("format") == "json":
        print(json_text(found or None))
    else:
        rows = [[str(one[key]) for key in LISTED] for one in found]
        rows.insert(0, [key.upper() for key in LISTED])
        widths = [max(9, *map(len, column)) + 3 for column in zip(*rows, strict=True)]
        for row in rows:
            *cells, last = zip(row, widths, strict=True)
            print("".join(cell.ljust(width) for cell, width in cells) + last[0])
    return 0


LISTED = ("id", "pid", "status", "bundle", "created", "owner")


def owner_of(container: OciContainer) -> str:
    """Return the name of the user who created a container, or the number."""
    from minidocker.idmaps import name_of

    uid = os.stat(container.home).st_uid
    return name_of(uid) or str(uid)


# %% state, list, ps, events
def ps_verb(given: Given) -> int:
    """``ps [OPTIONS] ID [PS OPTIONS]``"""
    from minidocker.oci_groups import pids_in

    pids = pids_in(container_given(given).group)
    if given.text("format") == "json":
        print(json_text(pids))
        return 0
    import subprocess

    table = ["ps", *(given.args[1:] or ("-ef",))]
    done = subprocess.run(table, capture_output=True, text=True, check=True)
    head, *lines = done.stdout.splitlines()
    column = head.split().index("PID")
    ours = {str(pid) for pid in pids}
    print("\n".join([head, *(n for n in lines if n.split()[column] in ours)]))
    return 0


def events_verb(given: Given) -> int:
    """``events [OPTIONS] ID``"""
    import time

    container = container_given(given)
    while phase_of(container) is not Phase.STOPPED:
        found = {"type": "stats", "id": container.id, "data": figures(container)}
        print(json_text(found), flush=True)
        if given.on("stats"):
            return 0
        time.sleep(seconds(given.text("interval")))
    if given.on("stats"):
        raise ConflictError(f"container {container.id} is not running")
    return 0


def seconds(text: str) -> float:
    """Return a time such as ``5s`` or ``500ms`` in seconds."""
    for unit, scale in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            return float(number) * scale
    raise UsageError(f'invalid duration "{text}"', hint="5s, 500ms, 1m")


def figures(container: OciContainer) -> dict[str, Any]:
    """Return a container's figures, as runc names them."""
    from minidocker.cgroups import fields, read

    group = container.group
    memory, pids, cpu = (group.place(name) for name in ("memory", "pids", "cpuacct"))
    if group.version == 2:
        used = fields(read(f"{cpu}/cpu.stat")).get("usage_usec", 0) * 1000
        bytes_used = read(f"{memory}/memory.current")
    else:
        used = int(read(f"{cpu}/cpuacct.usage") or 0)
        bytes_used = read(f"{memory}/memory.usage_in_bytes")
    return {
        "cpu": {"usage": {"total": used}},
        "memory": {"usage": {"usage": int(bytes_used or 0)}},
        "pids": {"current": int(read(f"{pids}/pids.current") or 0)},
    }


# %% features
def linux_features() -> dict[str, object]:
    """Return what of Linux a bundle may ask for, as the specification names it."""
    from minidocker.bundle import KINDS
    from minidocker.cgroups import find_hierarchies
    from minidocker.labels import is_enabled
    from minidocker.linux import Capability
    from minidocker.seccomp import ACTIONS, Op, this_machine
    from minidocker.security import SELINUX

    version, machine = find_hierarchies().version, this_machine()
    return {
        "namespaces": sorted({*KINDS, "mount"}),
        "capabilities": [f"CAP_{one.name}" for one in Capability],
        "cgroup": {"v1": version == 1, "v2": version == 2, "systemd": False},
        "seccomp": {
            "enabled": True,
            "actions": sorted(f"SCMP_ACT_{name}" for name in ACTIONS),
            "operators": [f"SCMP_CMP_{op.value}" for op in Op],
            "archs": [one.word for one in (machine, *machine.others)],
        },
        "apparmor": {"enabled": is_enabled()},
        "selinux": {"enabled": os.path.exists(SELINUX)},
        "intelRdt": {"enabled": False},
        "mountExtensions": {"idmap": {"enabled": True}},
    }


def features_verb(_: Given) -> int:
    """``features``"""
    from json import dumps

    from minidocker.oci_mounts import KNOWN_WORDS

    found = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(KNOWN_WORDS),
        "linux": linux_features(),
        "annotations": {"minidocker.version": version_text()},
    }
    print(dumps(found, indent=4))
    return 0


def version_text() -> str:
    """Return our version."""
    from minidocker import __version__

    return str(__version__)
