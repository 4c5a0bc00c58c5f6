# From book/443-bundling.md. Edit there and tangle, or here and tangle --back.

# %% Bundling: our own containers, written down
"""Write the plan of a container as the config.json of an OCI bundle."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from minidocker.blueprint import process_spec
from minidocker.cgroups import Limits, is_version_2, swap_of
from minidocker.destinations import PLACE
from minidocker.drivers import Directory, RootView
from minidocker.durable import write_whole
from minidocker.errors import RuntimeFault, UsageError
from minidocker.identity import Rights, User, docker_identity
from minidocker.linux import Capability
from minidocker.mounts import MOUNT_WORDS, MountFlags
from minidocker.namespaces import (
    NAMESPACES,
    QUIET,
    Bind,
    Device,
    Filesystem,
    Link,
    Mask,
    MountStep,
    ReadOnly,
    Sysctl,
)
from minidocker.overlayfs import Overlay
from minidocker.program import ULIMITS, ProcessSpec, variables
from minidocker.records import json_text
from minidocker.runtime import Plan, plan_for, whole_user
from minidocker.seccomp import ACTIONS, ERRNO, Machine, Profile, this_machine
from minidocker.security import (
    UNCONFINED,
    Security,
    docker_profile,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.containers import Container, ContainerStore


# %% Each step has its words
WORDS = {
    word: int(flags)
    for word, flags in MOUNT_WORDS.items()
    if flags and word not in ("rbind", "remount")
}


def options_of(flags: MountFlags, data: str = "") -> list[str]:
    """Return flags and data as the words of a bundle.

    >>> options_of(MountFlags.RDONLY | MountFlags.NOSUID, "mode=755,size=1k")
    ['nosuid', 'ro', 'mode=755', 'size=1k']
    """
    given = int(flags)
    words = [word for word, bits in WORDS.items() if given & bits]
    return words + [word for word in data.split(",") if word]


# %% Each step has its words
def mount_entry(step: MountStep) -> dict[str, Any] | None:
    """Return a step as an entry of ``mounts``; None for one that is something else.

    Our binds are copies, private unless they travel, and what they set holds for all
    that is below.
    """
    if isinstance(step, Filesystem):
        return {
            "destination": step.target,
            "type": step.fstype,
            "source": step.label,
            "options": options_of(step.flags, step.data),
        }
    if isinstance(step, Device):
        path, words = f"/dev/{step.name}", ["bind", "rprivate"]
        return {"destination": path, "type": "bind", "source": path, "options": words}
    if isinstance(step, Bind):
        travels = f"r{step.propagation or 'private'}"
        words = ["rbind" if step.recursive else "bind", travels]
        words += ["rro"] * step.readonly + ["rnodev"] * (not step.devices)
        return {
            "destination": step.target,
            "type": "bind",
            "source": step.source,
            "options": words,
        }
    return None


# %% Each step has its words
def device_rule(path: str, access: str = "rwm") -> dict[str, Any] | None:
    """Return what a group is to allow for a device of the host; None for no device."""
    found = os.stat(path)
    if not (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        return None
    return {
        "allow": True,
        "type": "b" if stat.S_ISBLK(found.st_mode) else "c",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "access": access,
    }


# %% Each step has its words
def parts_of(steps: Iterable[MountStep]) -> tuple[list[Any], dict[str, Any]]:
    """Return steps as ``mounts``, and as what they are of ``linux``.

    Raises UsageError for one that no bundle can say.
    """
    mounts: list[Any] = []
    linux: dict[str, Any] = {
        "maskedPaths": [], "readonlyPaths": [], "sysctl": {},
    }  # fmt: skip
    for step in steps:
        if entry := mount_entry(step):
            mounts.append(entry)
        elif isinstance(step, Mask):
            linux["maskedPaths"].append(step.path)
        elif isinstance(step, ReadOnly):
            linux["readonlyPaths"].append(step.path)
        elif isinstance(step, Sysctl):
            linux["sysctl"][step.name] = step.value
        elif not isinstance(step, Link) and step.describe()[1] != "shared":
            raise UsageError(f"a bundle cannot say: {step.describe()}")
    return mounts, {key: value for key, value in linux.items() if value}


# %% The process
def names_of(mask: int) -> list[str]:
    """Return a mask as names of capabilities.

    >>> names_of(0x21)
    ['CAP_CHOWN', 'CAP_KILL']
    """
    return [f"CAP_{one.name}" for one in Capability if mask >> one & 1]


def capability_sets(rights: Rights) -> dict[str, list[str]]:
    """Return the sets that Docker fills, of which two are the same."""
    own = names_of(rights.permitted)
    return {"bounding": names_of(rights.bounding), "effective": own, "permitted": own}


# %% The process
def process_part(spec: ProcessSpec, user: User) -> dict[str, Any]:
    """Return a plan's spec as ``process``; ``user`` is who was found in the image."""
    names, identity = ULIMITS.split(), docker_identity(user, spec.security)
    found: dict[str, Any] = {
        "terminal": spec.tty,
        "user": {"uid": user.uid, "gid": user.gid, "umask": identity.umask},
        "args": list(spec.argv),
        "env": [f"{k}={v}" for k, v in variables(spec.env, user.home).items()],
        "cwd": spec.cwd,
        "capabilities": capability_sets(identity.rights),
        "noNewPrivileges": spec.security.no_new_privileges,
    }
    if profile := spec.security.profile:
        found["apparmorProfile"] = profile
    found["user"]["additionalGids"] = list(identity.groups)
    if spec.oom_score_adj:
        found["oomScoreAdj"] = spec.oom_score_adj
    if spec.ulimits:
        found["rlimits"] = [
            {"type": f"RLIMIT_{names[n].upper()}", "soft": soft, "hard": hard}
            for n, soft, hard in spec.ulimits
        ]
    return found


# %% The process
def action_name(action: int) -> str:
    """Return an action by its name in a document."""
    for name, number in ACTIONS.items():
        if number == action & 0xFFFF0000 and name != "KILL":
            return f"SCMP_ACT_{name}"
    return "SCMP_ACT_KILL_THREAD"


# %% The process
def profile_part(profile: Profile, machines: Iterable[Machine]) -> dict[str, Any]:
    """Return a profile as ``linux.seccomp``, for machines."""
    rules = []
    for rule in profile.rules:
        entry: dict[str, Any] = {"names": list(rule.names)}
        entry["action"] = action_name(rule.action)
        if rule.action & 0xFFFF0000 == ERRNO:
            entry["errnoRet"] = rule.action & 0xFFFF
        if rule.args:
            entry["args"] = [
                {
                    "index": arg.index,
                    "value": arg.value,
                    "valueTwo": arg.wanted,
                    "op": f"SCMP_CMP_{arg.op.value}",
                }
                for arg in rule.args
            ]
        rules.append(entry)
    return {
        "defaultAction": action_name(profile.default),
        "defaultErrnoRet": profile.default & 0xFFFF,
        "architectures": [machine.word for machine in machines],
        "syscalls": rules,
    }


# %% The process
def seccomp_part(security: Security) -> dict[str, Any] | None:
    """Return a container's filter as ``linux.seccomp``; None where it has none."""
    if security.seccomp == UNCONFINED:
        return None
    machine, mask = this_machine(), security.capabilities
    if security.seccomp:
        from minidocker.profiles import machines_of, read_profile

        profile = read_profile(security.seccomp, mask, machine)
        return profile_part(profile, machines_of(security.seccomp, machine))
    machines = (machine, *machine.others)
    return profile_part(profile_of_all(mask, machines), machines)


def profile_of_all(mask: int, machines: Iterable[Machine]) -> Profile:
    """Return Docker's profile, with what is allowed on any machine in its first rule.

    A name that one of them does not have says nothing there.
    """
    found = [docker_profile(mask, machine) for machine in machines]
    names = dict.fromkeys(name for one in found for name in one.rules[0].names)
    first, *others = found[0].rules
    return found[0].replace(rules=(first.replace(names=tuple(names)), *others))


# %% Limits and namespaces
def resources_part(limits: Limits) -> dict[str, Any]:
    """Return limits as ``linux.resources``."""
    period = 100_000
    cpu: dict[str, int | str] = {
        "shares": limits.cpu_shares,
        "quota": limits.nano_cpus * period // 10**9,
        "period": period if limits.nano_cpus else 0,
        "cpus": limits.cpuset_cpus,
        "mems": limits.cpuset_mems,
    }
    memory: dict[str, int | str] = {
        "limit": limits.memory,
        "swap": swap_of(limits) if limits.memory else 0,
        "reservation": limits.memory_reservation,
    }
    parts: dict[str, dict[str, int | str]] = {
        "cpu": cpu,
        "memory": memory,
        "pids": {"limit": limits.pids},
        "blockIO": {"weight": limits.blkio_weight},
    }
    found = {k: {n: v for n, v in part.items() if v} for k, part in parts.items()}
    return {key: part for key, part in found.items() if part}


# %% Limits and namespaces
def device_rules(
    spec: ProcessSpec, modes: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return which devices a group is to allow beside those that every runtime does.

    ``modes`` pairs a device's path inside with its rights.
    """
    if spec.security.privileged:
        return [{"allow": True, "access": "rwm"}]
    given = (one for one in spec.mounts if isinstance(one, Bind) and one.devices)
    rules = [
        rule
        for one in given
        if (rule := device_rule(one.source, dict(modes).get(one.target, "rwm")))
    ]
    return [{"allow": False, "access": "rwm"}, *rules]


# %% Limits and namespaces
TYPES = {"net": "network", "mnt": "mount"}


def namespaces_part(plan: Plan) -> list[dict[str, str]]:
    """Return the namespaces: new ones, and those of others by their path.

    One that was made for the container and is held by a descriptor is a new one, too.
    """
    held = {kind for kind, path in plan.paths if path.startswith("/proc/self/")}
    new = (one.name for one in NAMESPACES if one.name in {*plan.kinds, *held})
    others = ((kind, path) for kind, path in plan.paths if kind not in held)
    return [{"type": TYPES.get(kind, kind)} for kind in new] + [
        {"type": TYPES.get(kind, kind), "path": path} for kind, path in others
    ]


# %% Limits and namespaces
GROUPS = "/sys/fs/cgroup"


def shows_groups(step: MountStep) -> bool:
    """Say whether a step is one of those that show the container its groups."""
    if isinstance(step, Filesystem):
        return step.target.startswith(GROUPS)
    return isinstance(step, ReadOnly) and step.path == GROUPS


# %% Limits and namespaces
def propagation_word(steps: Iterable[MountStep]) -> str:
    """Return ``rootfsPropagation``, by how far the binds among some steps travel."""
    words = {step.propagation for step in steps if isinstance(step, Bind)}
    return next((word for word in ("shared", "slave") if word in words), "private")


# %% The whole
def config_json(
    plan: Plan,
    user: User,
    limits: Limits,
    group: str,
    modes: tuple[tuple[str, str], ...] = (),
    *,
    grouped: bool = True,
) -> dict[str, Any]:
    """Return the plan of a container of ours as a config.json; its root is ``rootfs``.

    ``group`` is the path of its control groups, which it is shown if it is ``grouped``,
    ``modes`` the rights to devices. Raises UsageError for a step that cannot be said in
    a bundle.
    """
    spec = plan.spec
    mounts, linux = parts_of(step for step in plan.steps if not shows_groups(step))
    if grouped:
        readonly = MountFlags(0) if spec.security.privileged else MountFlags.RDONLY
        top = {"destination": GROUPS, "type": "cgroup", "source": "cgroup"}
        mounts.append({**top, "options": options_of(QUIET | readonly)})
    rules = device_rules(spec, modes)
    linux["resources"] = {**resources_part(limits), "devices": rules}
    if seccomp := seccomp_part(spec.security):
        linux["seccomp"] = seccomp
    found = {
        "ociVersion": "1.0.2",
        "process": process_part(spec, user),
        "root": {"path": "rootfs", "readonly": spec.readonly},
        "hostname": spec.hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces_part(plan),
            "cgroupsPath": group,
            "rootfsPropagation": propagation_word(plan.steps),
            **linux,
        },
    }
    return {key: value for key, value in found.items() if value}


# %% Beside the container
def root_notes(view: RootView | None) -> dict[str, str]:
    """Return what is to be mounted at ``rootfs``, as annotations."""
    if isinstance(view, Overlay):
        found = {"lowerdir": ":".join(view.lowers)}
        found |= {"upperdir": view.upper or "", "workdir": view.work or ""}
    elif isinstance(view, Directory):
        found = {"directory": view.path}
    else:
        found = view.description() if view else {}
    return {f"minidocker.root.{key}": value for key, value in found.items()}


def container_config(
    container: Container, place: str, plan: Plan, user: User
) -> dict[str, Any]:
    """Return the config.json of a container of ours, whose directory is ``place``.

    ``plan`` is how it is started, ``user`` who was found in its tree.
    """
    host, group = container.host, f"/minidocker/{container.id}"
    devices = (text.split(":") for text in host.devices)
    modes = tuple((inside, access) for _, inside, access in devices)
    grouped = host.limited or is_version_2()
    found = config_json(plan, user, host.limits, group, modes, grouped=grouped)
    for entry in found["mounts"]:
        entry["source"] = entry["source"].removeprefix(f"{place}/")
    if host.further:
        from minidocker.finer_limits import add_finer

        add_finer(found["linux"]["resources"], dict(host.further))
    notes = root_notes(plan.spec.view)
    if host.init:
        notes["minidocker.init"] = "true"
    return {**found, "annotations": notes} if notes else found


# %% Beside the container
def config_text(value: Any, depth: int = 2, indent: str = "") -> str:
    """Return a document as JSON, with a line for each member down to ``depth``.

    >>> print(config_text({"root": {"path": "/"}, "mounts": [{"type": "proc"}]}))
    {
      "root": {
        "path": "/"
      },
      "mounts": [
        {"type":"proc"}
      ]
    }
    """
    if not depth or not value or not isinstance(value, dict | list):
        return json_text(value)
    deeper = f"{indent}  "
    if isinstance(value, dict):
        named = ((f'"{key}": ', one) for key, one in value.items())
    else:
        named = (("", one) for one in value)
    lines = (f"{deeper}{n}{config_text(one, depth - 1, deeper)}" for n, one in named)
    first, last = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([first, ",\n".join(lines), f"{indent}{last}"])


def config_file(container: Container, place: str, plan: Plan, user: User) -> str:
    """Return the content of the config.json of a container of ours."""
    return f"{config_text(container_config(container, place, plan, user))}\n"


def write_config(
    store: ContainerStore, container: Container, plan: Plan, user: User
) -> None:
    """Write the config.json of a container that is about to start."""
    place = store.path(container.id)
    write_whole(f"{place}/config.json", config_file(container, place, plan, user))


# %% Beside the container
@contextmanager
def tree_of(store: ContainerStore, container: Container) -> Iterator[int]:
    """Show a container's tree for a ``with`` block; yield a descriptor of its top."""
    with store.layers.rw_mounted(container.id, writable=False) as tree:
        root = os.open(tree, PLACE | os.O_DIRECTORY)
        try:
            yield root
        finally:
            os.close(root)


def write_down(store: ContainerStore, container: Container) -> None:
    """Write the config.json of a container that does not start yet, if one can."""
    with suppress(RuntimeFault):
        spec = process_spec(store, container)
        with tree_of(store, container) as root:
            user = whole_user(root, spec)
        write_config(store, container, plan_for(spec), user)
