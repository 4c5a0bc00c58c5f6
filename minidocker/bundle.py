# From book/476-bundle.md. Edit there and tangle, or here and tangle --back.

# %% The bundle: a container written down
"""Read an OCI bundle: its config.json as the plan of a container, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable

from minidocker.cgroups import Group
from minidocker.documents import Part
from minidocker.drivers import Mountable
from minidocker.errors import RuntimeFault
from minidocker.hooks import HOOKS, annotations_of, hooks_of
from minidocker.identity import Identity, Rights
from minidocker.idmaps import IdRange
from minidocker.linux import Capability
from minidocker.mounts import MountAttr, MountFlags, mount
from minidocker.namespaces import Bind, Device, Mask, MountStep, ReadOnly, Sysctl
from minidocker.oci_mounts import (
    PROPAGATION,
    Attach,
    DevLink,
    GroupView,
    NewFilesystem,
    Node,
    Words,
    read_words,
)
from minidocker.program import ULIMITS, ProcessSpec
from minidocker.records import Record, json_text, parse_json
from minidocker.runtime import PRIVATE, Plan
from minidocker.security import LINKS, UNCONFINED, Security, mask_of


# %% The nouns
class Bundle(Record):
    """A container as its config.json says: a ``plan`` for its first process, and more.

    ``maps`` are the ids of a new user namespace: uids, gids. ``config`` is the document
    itself.
    """

    path: str
    plan: Plan
    config: Part
    maps: tuple[tuple[IdRange, ...], tuple[IdRange, ...]] = ((), ())
    offsets: tuple[tuple[str, int, int], ...] = ()

    @property
    def spec(self) -> ProcessSpec:
        """The process, and where its root is."""
        return self.plan.spec

    @property
    def identity(self) -> Identity:
        """Who the process is to be."""
        return self.plan.identity or Identity()

    @property
    def resources(self) -> Part:
        """The limits."""
        return self.config.get("linux").get("resources")


# %% The process
def capability_set(found: Part) -> int:
    """Return a list of capabilities as a mask; unknown names are left out.

    The specification wants those to be no error: a newer bundle on an older kernel.
    """
    names = (name.upper().removeprefix("CAP_") for name in found.texts())
    known = Capability.__members__
    return mask_of(known[name] for name in names if name in known)


def rights_of(found: Part) -> Rights:
    """Return the five sets of ``process.capabilities``."""
    return Rights(*(capability_set(found.get(name)) for name in Rights.__match_args__))


def limits_of(found: Part) -> tuple[tuple[int, int, int], ...]:
    """Return ``process.rlimits`` as (number, soft, hard)."""
    limits: dict[int, tuple[int, int, int]] = {}
    for one in found.each():
        name = one.get("type").text().removeprefix("RLIMIT_").lower()
        if name not in ULIMITS.split():
            raise one.get("type").wrong(f'is no limit: "{one.get("type").text()}"')
        index = ULIMITS.split().index(name)
        if index in limits:
            raise one.get("type").wrong("is there twice")
        limits[index] = (index, one.get("soft").number(), one.get("hard").number())
    return tuple(limits.values())


# %% The process
SCHEDULERS = ("OTHER", "FIFO", "RR", "BATCH", "ISO", "IDLE", "DEADLINE")
IO_CLASSES = ("NONE", "RT", "BE", "IDLE")


def word_number(found: Part, prefix: str, known: tuple[str, ...]) -> int:
    """Return the number of a constant that is given by its name in C."""
    name = found.text().removeprefix(prefix)
    if name not in known or name in ("ISO", "DEADLINE"):
        raise found.wrong(f'is not known here: "{found.text()}"')
    return known.index(name)


def identity_of(process: Part) -> Identity:
    """Return what a process is to be beyond its ProcessSpec."""
    user, scheduler, io = (process.get(n) for n in ("user", "scheduler", "ioPriority"))
    return Identity(
        groups=tuple(one.number() for one in user.get("additionalGids").each()),
        rights=rights_of(process.get("capabilities")),
        umask=user.get("umask").number(0o022),
        label=process.get("selinuxLabel").text(),
        io=(
            word_number(io.get("class"), "IOPRIO_CLASS_", IO_CLASSES),
            io.get("priority").number(),
        )
        if io.value
        else (),
        scheduler=(
            word_number(scheduler.get("policy"), "SCHED_", SCHEDULERS),
            scheduler.get("priority").number(),
            scheduler.get("nice").number(),
        )
        if scheduler.value
        else (),
        exact=True,
    )


# %% The process
def process_of(process: Part, seccomp: Part) -> ProcessSpec:
    """Return ``process`` as a spec without a root; descriptors are 0, 1, 2.

    Raises RuntimeFault for what no runtime can start.
    """
    argv, cwd = process.get("args").texts(), process.get("cwd")
    user = process.get("user")
    if not argv:
        raise RuntimeFault("process.args must not be empty")
    if not cwd.text().startswith("/"):
        raise RuntimeFault("Cwd must be an absolute path")
    rights = rights_of(process.get("capabilities"))
    security = Security(
        rights.bounding,
        seccomp=UNCONFINED if seccomp.value is None else seccomp_text(seccomp),
        no_new_privileges=process.get("noNewPrivileges").on(),
        profile=process.get("apparmorProfile").text(),
    )
    size = process.get("consoleSize")
    return ProcessSpec(
        argv,
        env=process.get("env").texts(),
        cwd=cwd.text(),
        user=f"{user.get('uid').number()}:{user.get('gid').number()}",
        tty=process.get("terminal").on(),
        security=security,
        ulimits=limits_of(process.get("rlimits")),
        oom_score_adj=process.get("oomScoreAdj").number(),
        console=(size.get("height").number(), size.get("width").number())
        if size.value
        else (),
    )


def seccomp_text(found: Part) -> str:
    """Return ``linux.seccomp`` as the JSON that chapter ``security`` reads."""
    if found.get("listenerPath").value:
        raise found.get("listenerPath").wrong("is not supported: no notifications")
    return json_text(found.value)


# %% The root and what is mounted
class WholeTree(Mountable):
    """A directory as a root, with all that is mounted below it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def mount(self, target: str) -> None:
        """Bind the directory on ``target``, which may be the directory itself."""
        mount(self.path, target, None, MountFlags.BIND | MountFlags.REC)

    def description(self) -> dict[str, str]:
        """Return where it is."""
        return {"RootDir": self.path}


def id_ranges(found: Part) -> tuple[IdRange, ...]:
    """Return mappings of ids: inside, outside, how many."""
    keys = ("containerID", "hostID", "size")
    rows = (tuple(one.get(key).number() for key in keys) for one in found.each())
    return tuple((a, b, c) for a, b, c in rows)


def mount_of(found: Part, bundle: str, group: Group, own_group: bool) -> MountStep:
    """Return the step for one of ``mounts``; a relative source is the bundle's."""
    target = os.path.normpath("/" + found.get("destination").text().lstrip("/"))
    if not found.get("destination").text():
        raise found.get("destination").wrong("is missing")
    words, fstype = read_words(found.get("options").texts()), found.get("type").text()
    source = found.get("source").text()
    if words.flags & MountFlags.BIND or fstype == "bind":
        words = words.replace(flags=words.flags | MountFlags.BIND)
        uids, gids = (id_ranges(found.get(f"{k}Mappings")) for k in ("uid", "gid"))
        return Attach(os.path.join(bundle, source), target, words, uids, gids)
    if fstype == "cgroup":
        return GroupView(target, group, own_group, words)
    if target == "/" or not fstype:
        raise found.wrong("has no type, and is no bind")
    return NewFilesystem(target, fstype, source, words)


# %% The root and what is mounted
COPY = Words(MountFlags.BIND | MountFlags.REC, propagation=(PRIVATE,))
NODE = Words(MountFlags.BIND, propagation=(PRIVATE,))


def plainest(step: MountStep, before: Iterable[MountStep], private: bool) -> MountStep:
    """Return the step of a plan of ours that does the same, or ``step``.

    ``before`` are those that come first, ``private`` tells of the root's propagation.
    """
    if isinstance(step, NewFilesystem):
        flags, data = step.words.flags, step.words.data
        same = step.words == Words(flags, data=data)
        return step.plain(flags) if same else step
    if not isinstance(step, Attach) or not private or step.uids or step.gids:
        return step
    there, name = os.path.split(step.target)
    if step.words == NODE and step.source == step.target and there == "/dev":
        kinds = {one.describe()[0]: one.describe()[1] for one in before}
        own = kinds.get("/dev") == "tmpfs" and step.target not in kinds
        return Device(name) if own else step
    below = step.words.below
    same = step.words.replace(below=MountAttr(0)) == COPY
    if same and not below & ~(MountAttr.RDONLY | MountAttr.NODEV):
        readonly, devices = below & MountAttr.RDONLY, not below & MountAttr.NODEV
        return Bind(step.source, step.target, bool(readonly), devices)
    return step


# %% The root and what is mounted
USUAL_NODES = (
    Node("/dev/null", "c", 1, 3), Node("/dev/zero", "c", 1, 5),
    Node("/dev/full", "c", 1, 7), Node("/dev/random", "c", 1, 8),
    Node("/dev/urandom", "c", 1, 9), Node("/dev/tty", "c", 5, 0),
)  # fmt: skip


def node_of(found: Part) -> Node:
    """Return one of ``linux.devices``."""
    kind = found.get("type").text()
    if kind not in ("c", "u", "b", "p"):
        raise found.get("type").wrong(f'is no type of device: "{kind}"')
    path = found.get("path").text()
    if not path.startswith("/"):
        raise found.get("path").wrong("is no absolute path")
    major, minor, uid, gid = (
        found.get(name).number() for name in ("major", "minor", "uid", "gid")
    )
    mode = found.get("fileMode").number(0o666)
    return Node(path, kind, major, minor, mode, (uid, gid))


def device_steps(linux: Part, mounts: Iterable[MountStep]) -> tuple[MountStep, ...]:
    """Return the steps that fill /dev: none where it is somebody else's."""
    kinds = {target: kind for target, kind, _ in (one.describe() for one in mounts)}
    if kinds.get("/dev") == "bind":
        return ()
    nodes = {one.target: one for one in USUAL_NODES if one.target not in kinds}
    nodes |= {one.target: one for one in map(node_of, linux.get("devices").each())}
    links = (
        DevLink(one.name, one.target, replace_it=one.name == "ptmx")
        for one in LINKS
        if one.name != "core" or os.path.exists(one.target)
    )
    return (*nodes.values(), *links)


def mount_steps(
    config: Part, path: str, group: Group, own: bool
) -> tuple[MountStep, ...]:
    """Return every step of the container's root, in the order of the specification."""
    linux, mounts = config.get("linux"), list[MountStep]()
    private = propagation_of(linux.get("rootfsPropagation").text()) == PRIVATE
    for one in config.get("mounts").each():
        step = mount_of(one, path, group, own)
        mounts.append(plainest(step, mounts, private))
    return (
        *mounts,
        *device_steps(linux, mounts),
        *(Sysctl(name, value) for name, value in linux.get("sysctl").pairs()),
        *map(ReadOnly, linux.get("readonlyPaths").texts()),
        *map(Mask, linux.get("maskedPaths").texts()),
    )


# %% The whole
KINDS = {
    "pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts",
    "user": "user", "cgroup": "cgroup", "time": "time",
}  # fmt: skip


def namespaces_of(linux: Part) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the kinds to make, and (kind, path) of those to enter."""
    kinds: list[str] = []
    paths: list[tuple[str, str]] = []
    for one in linux.get("namespaces").each():
        kind = KINDS.get(one.get("type").text())
        if kind is None:
            raise one.get("type").wrong("is no kind of namespace")
        if kind in kinds or kind in dict(paths):
            raise one.wrong("is there twice")
        if path := one.get("path").text():
            paths.append((kind, path))
        else:
            kinds.append(kind)
    return tuple(kinds), tuple(paths)


def propagation_of(text: str) -> MountFlags:
    """Return ``linux.rootfsPropagation``; slave for none, as for runc."""
    name = text or "rslave"
    if name not in PROPAGATION:
        raise RuntimeFault(f'linux.rootfsPropagation is not known: "{text}"')
    return PROPAGATION[name] | MountFlags.REC


def offsets_of(linux: Part) -> tuple[tuple[str, int, int], ...]:
    """Return ``linux.timeOffsets``: the clock, seconds, nanoseconds."""
    found = linux.get("timeOffsets")
    clocks = ((name, found.get(name)) for name in (found.value or {}))
    return tuple(
        (name, one.get("secs").number(), one.get("nanosecs").number())
        for name, one in clocks
    )


# %% The whole
PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


def check_config(config: Part) -> None:
    """Refuse what we could not keep. Raises RuntimeFault."""
    version = config.get("ociVersion").text()
    if not version.startswith("1."):
        raise RuntimeFault(f'ociVersion "{version}" is not supported')
    linux = config.get("linux")
    kinds, paths = namespaces_of(linux)
    if "mnt" not in kinds:
        raise RuntimeFault("a container without a mount namespace of its own")
    if linux.get("intelRdt").value or linux.get("netDevices").value:
        raise RuntimeFault("linux.intelRdt and linux.netDevices are not supported")
    every = {*kinds, *dict(paths)}
    if config.get("hostname").text() and "uts" not in every:
        raise RuntimeFault("unable to set hostname without a private UTS namespace")
    if linux.get("uidMappings").value and "user" not in every:
        raise RuntimeFault("uid mappings without a user namespace")


def root_of(config: Part, path: str) -> str:
    """Return the root file system's directory; RuntimeFault where there is none."""
    text = config.get("root").get("path").text()
    root = os.path.realpath(os.path.join(path, text))
    if not text or not os.path.isdir(root):
        raise RuntimeFault(f'invalid rootfs: "{text}" is no directory', where=path)
    return root


# %% The whole
def bundle_of(config: Part, path: str, group: Group) -> Bundle:
    """Return a document as a bundle; ``group`` is where its groups will be.

    Raises RuntimeFault for whatever cannot be, before anything is made.
    """
    check_config(config)
    linux, process = config.get("linux"), config.get("process")
    kinds, paths = namespaces_of(linux)
    root = root_of(config, path)
    spec = process_of(process, linux.get("seccomp")).replace(
        view=WholeTree(root),
        rootfs=root,
        hostname=config.get("hostname").text(),
        readonly=config.get("root").get("readonly").on(),
    )
    person = linux.get("personality").get("domain").text()
    if person and person not in PERSONALITIES:
        raise RuntimeFault(f'linux.personality is not known: "{person}"')
    plan = Plan(
        spec,
        mount_steps(config, path, group, "cgroup" in kinds),
        kinds,
        paths,
        propagation_of(linux.get("rootfsPropagation").text()),
        identity=identity_of(process),
        domainname=config.get("domainname").text(),
        personality=PERSONALITIES.get(person, -1),
    )
    bundle = Bundle(
        path,
        plan,
        config,
        (id_ranges(linux.get("uidMappings")), id_ranges(linux.get("gidMappings"))),
        offsets_of(linux),
    )
    annotations_of(config)
    for moment in HOOKS:
        hooks_of(config, moment)
    return bundle


# %% The whole
def read_config(path: str) -> Part:
    """Return the config.json of the bundle ``path``. Raises RuntimeFault."""
    file = os.path.join(path, "config.json")
    try:
        with open(file, encoding="utf-8") as handle:
            found = parse_json(handle.read())
    except FileNotFoundError as why:
        raise RuntimeFault(f"JSON specification file {file} not found") from why
    except (OSError, ValueError) as why:
        raise RuntimeFault(f"cannot read it: {why}", where=file) from why
    if not isinstance(found, dict):
        raise RuntimeFault("is no JSON object", where=file)
    return Part(found)
