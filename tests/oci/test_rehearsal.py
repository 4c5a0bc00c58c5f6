"""What `run` would start, written down: a valid bundle, and the same container for everybody."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.store import Store
from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from minidocker import runtime
from minidocker.bundle import bundle_of, read_config
from minidocker.bundling import resources_part, tree_of
from minidocker.cgroups import Group, Limits, settings_v1, settings_v2
from minidocker.documents import Part
from minidocker.engine import Engine
from minidocker.finer_limits import add_finer, finer_settings
from minidocker.hooks import annotations_of
from minidocker.identity import User, docker_identity
from minidocker.mounts import MountFlags
from minidocker.namespaces import Bind, Device, Filesystem, Link, MountStep
from minidocker.oci_groups import plan_v1, plan_v2
from minidocker.oci_mounts import DevLink, GroupView
from minidocker.program import Network, ProcessSpec, variables
from minidocker.runtime import Plan, plan_for, whole_user
from minidocker.security import Security, prepared
from minidocker.sharing import SharedMemory
from minidocker.supervisor import Supervisor
from oci.conftest import Runtime
from oci.test_beside_runc import LOOK


pytestmark = pytest.mark.root

SCHEMAS = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema")
BASE = "https://opencontainers.org/schema/runtime/"
FLAGS = {
    "plain": "",
    "much": "-m 64m --cpus 0.5 --pids-limit 50 -h box --tmpfs /scratch:size=1m --ulimit nofile=64:128 "
    "--sysctl kernel.msgmax=9000 --device /dev/kmsg --oom-score-adj 300 --read-only -w /srv/deep "
    "--cap-drop ALL --cap-add CHOWN --shm-size 1m -e A=1",
    "a user": "-u web --security-opt no-new-privileges --cap-add NET_ADMIN",
    "free": "--security-opt seccomp=unconfined --security-opt systempaths=unconfined",
    "shared": "--pid host --ipc host --uts host --network host",
}


def schema(name: str) -> Draft4Validator:
    """A schema of the specification's; a reference is a file beside it."""
    assert SCHEMAS.is_dir(), "apt install golang-github-opencontainers-specs-dev"
    found = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    for one in found.values():
        one.pop("id", None)
    resources = [
        (BASE + key, DRAFT4.create_resource(one)) for key, one in found.items()
    ]
    registry: Registry = Registry().with_resources(resources)
    return Draft4Validator({"$ref": BASE + name}, registry=registry)


@pytest.mark.parametrize("name", FLAGS)
def test_the_bundle_is_valid(store: Store, name: str) -> None:
    words = ["run", *alone(FLAGS[name]).split(), "--dry-run", "small", "true"]
    found = json.loads(store.says(*words))
    schema("config-schema.json").validate(found)
    assert found["process"]["args"] == ["true"]
    assert store.says("ps", "-aq") == ""


def without_devices_of_the_root(text: str) -> str:
    """Our own roots are mounted with nodev; in a bundle a group says it."""
    names = ("/sys/fs/cgroup", "/proc/kcore")  # runc links it only where it is
    lines = (n for n in text.splitlines() if not any(name in n for name in names))
    return "\n".join(line for line in lines if not re.match(r"\S+ / ", line))


@pytest.mark.parametrize("name", ["plain", "much", "a user", "free"])
def test_the_same_container_for_runc_for_our_runtime_and_for_run(
    store: Store, name: str, tmp_path: Path, ours: Runtime, runc: Runtime
) -> None:
    words = ["run", *alone(FLAGS[name]).split(), "-h", "box"]
    bundle = tmp_path / "bundle"
    store.says(*words, "--bundle", str(bundle), "small", "sh", "-c", LOOK)
    own = store.says(*words, "--rm", "small", "sh", "-c", LOOK)
    seen = [one.says("run", "--bundle", str(bundle), "box") for one in (ours, runc)]
    hidden = [without_devices_of_the_root(bare(text)) for text in (own, *seen)]
    assert hidden[1] == hidden[2]
    assert hidden[0] == hidden[1]


def bare(text: str) -> str:
    """A text without what is the store's or the bundle's: sources, ids, sizes."""
    lines = []
    for line in text.splitlines():
        mount = re.match(r"(\S+) (/\S*) (.*) - (\S+) \S+.*", line)
        if mount and "/dev/null" not in line:
            _, target, how, kind = mount.groups()
            how = re.sub(r",?size=\w+|(master|shared):\d+", "", how)
            lines.append(f"{target} {kind} {how}" if target != "/" else "x / ")
        else:
            lines.append(line)
    return "\n".join(lines)


def alone(flags: str) -> str:
    """Flags with a network, which is none where they do not name another."""
    return flags if "--network" in flags else f"--network none {flags}"


def bare_ids(text: str) -> str:
    """A text whose random names all look the same: of containers and of layers."""
    return re.sub(r"[0-9a-f]{64}|(?<=HOSTNAME=)[0-9a-f]{12}", "ID", text)


@pytest.mark.parametrize("name", FLAGS)
def test_a_program_finds_what_a_dry_run_prints(store: Store, name: str) -> None:
    look = f"{store.root}/containers:/look:ro"
    words = ["run", "--rm", "-v", look, *FLAGS[name].split()]
    words += [] if name == "shared" else ["-h", "box"]
    argv = ["small", "sh", "-c", "exec cat /look/*/config.json"]
    printed, found = store.says(*words, "--dry-run", *argv), store.says(*words, *argv)
    assert bare_ids(found) == bare_ids(printed)
    assert json.loads(found)["process"]["args"] == argv[1:]


@pytest.fixture
def created(store: Store) -> Iterator[Path]:
    """The directory of a container that was created."""
    words = ["create", "--network", "none", "-h", "box", "small", "sh", "-c", LOOK]
    id = store.says(*words).strip()
    yield store.root / "containers" / id
    store.says("rm", id)


@contextmanager
def root_mounted(place: Path) -> Iterator[None]:
    """Mount a container's root as its config.json says, for a block."""
    notes = json.loads((place / "config.json").read_text())["annotations"]
    keys = ("lowerdir", "upperdir", "workdir")
    options = ",".join(f"{key}={notes[f'minidocker.root.{key}']}" for key in keys)
    root = str(place / "rootfs")
    subprocess.run(["mount", "-t", "overlay", "-o", options, "x", root], check=True)
    yield
    subprocess.run(["umount", root], check=True)


def test_a_created_container_is_a_bundle(
    store: Store, created: Path, ours: Runtime, runc: Runtime
) -> None:
    found = json.loads((created / "config.json").read_text())
    schema("config-schema.json").validate(found)
    with root_mounted(created):
        seen = [one.says("run", "-b", str(created), "box") for one in (ours, runc)]
    seen.append(store.says("start", "-a", created.name))
    first, *others = (without_devices_of_the_root(bare(text)) for text in seen)
    assert others == [first, first]
    again = json.loads((created / "config.json").read_text())
    assert again == found


MORE_FLAGS = {
    "volumes": "-v /usr:/data:ro -v named:/more --tmpfs /run:mode=700 --init",
    "groups": "-u 33:7 --group-add 9 --cap-add ALL --security-opt no-new-privileges",
    "a terminal": "-t -e HOME=/home -e A=1 -e A=2",
    "privileged": "--privileged -m 64m --domainname example.org -h box",
    "another's": "--network container:other --pid container:other --ipc container:other",
    "a bridge": "--network bridge -p 127.0.0.1::80",
}


def bare_steps(steps: tuple[MountStep, ...]) -> tuple[MountStep, ...]:
    """Steps as a bundle can say them: mounts in their order, then all others.

    Every runtime makes the links and shows the groups; who of the mounts may follow a
    link, and another's shared memory, is nowhere written.
    """
    unsaid = (Link, DevLink, SharedMemory)
    kept = [
        s.replace(links=False) if isinstance(s, Filesystem) else s
        for s in steps
        if not (isinstance(s, unsaid) or s.describe()[0].startswith("/sys/fs/cgroup"))
    ]
    mounts = [s for s in kept if isinstance(s, Filesystem | Bind | Device)]
    return (*mounts, *sorted((s for s in kept if s not in mounts), key=repr))


def how_groups_are_shown(plan: Plan) -> MountFlags | None:
    """The flags with which a container is shown its control groups, if it is."""
    for step in reversed(plan.steps):
        if isinstance(step, GroupView):
            return step.words.flags
        if isinstance(step, Filesystem) and step.fstype.startswith("cgroup"):
            return step.flags
    return None


def as_a_bundle_says_it(plan: Plan, user: User) -> Plan:
    """A plan without what no bundle can say; all other fields are as they are.

    What of the spec is in the plan's other fields, too, is left out. ``user`` is who it
    runs as.
    """
    security = plan.spec.security
    network = {p for p in plan.paths if p[1].startswith("/proc/self/fd/")}  # ready-made
    identity = plan.identity or docker_identity(user, security)
    kinds = (*plan.kinds, *(kind for kind, _ in network))
    env = variables(plan.spec.env, user.home)
    program = prepared(security).program
    return plan.replace(
        spec=plan.spec.replace(
            view=None, mounts=(), sysctls=(), shares=(), shm_size=0,
            network=Network.NONE, netns=-1, group=None, init=-1,
            user=f"{user.uid}:{user.gid}", groups=(), stdin=0, stdout=1, stderr=2,
            env=tuple(f"{name}={value}" for name, value in env.items()),
            security=Security(
                security.capabilities, "", security.no_new_privileges,
                profile=security.profile, program=program,
            ),
        ),
        steps=bare_steps(plan.steps),
        kinds=tuple(sorted(kinds)),
        paths=tuple(p for p in plan.paths if p not in network),
        devices=True,
        identity=identity.replace(exact=True),
    )  # fmt: skip


@pytest.fixture
def other(store: Store) -> Iterator[None]:
    """Another container, whose namespaces can be shared."""
    store.says("run", "-d", "--name", "other", "small", "sleep", "600")
    yield
    store.says("rm", "-f", "other")


@pytest.mark.parametrize("name", [*FLAGS, *MORE_FLAGS])
def test_what_is_written_is_what_is_run(
    store: Store,
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "another's":
        request.getfixturevalue("other")
    words = ["create", *alone((FLAGS | MORE_FLAGS)[name]).split()]
    id = store.says(*words, "small", "sh", "-c", "exit 7").strip()
    request.addfinalizer(lambda: store.says("rm", "-v", id))
    containers = Engine(str(store.root), store.driver).containers
    seen: list[Plan] = []

    def watched(spec: ProcessSpec) -> Plan:
        seen.append(plan_for(spec))
        return seen[-1]

    monkeypatch.setattr(runtime, "plan_for", watched)
    container, place = containers.get(id), containers.path(id)
    assert Supervisor(containers, container).run() == 7
    [ran] = seen
    with tree_of(containers, container) as root:
        user = whole_user(root, ran.spec)
    bundle = bundle_of(read_config(place), place, Group(f"/minidocker/{id}", 0))
    assert as_a_bundle_says_it(bundle.plan, user) == as_a_bundle_says_it(ran, user)
    assert how_groups_are_shown(bundle.plan) == how_groups_are_shown(ran)
    wants_init = annotations_of(bundle.config).get("minidocker.init") == "true"
    assert wants_init == (ran.spec.init >= 0)


LIMITS = Limits(
    memory=64 << 20,
    memory_swap=96 << 20,
    memory_reservation=32 << 20,
    cpu_shares=512,
    cpuset_cpus="0",
    pids=50,
)
RATE = [{"Path": "/dev/zero", "Rate": 1000}]
FINER = {"CpuPeriod": 50_000, "CpuQuota": 20_000, "BlkioDeviceWriteIOps": RATE}
FINER_1 = {"MemorySwappiness": 0, "OomKillDisable": True, "BlkioDeviceReadBps": RATE}


@pytest.mark.parametrize("version", [1, 2])
def test_limits_are_written_as_they_are_set(version: int) -> None:
    asked = FINER if version == 2 else FINER | FINER_1
    resources = resources_part(LIMITS)
    add_finer(resources, asked)
    schema("config-linux.json").validate({"linux": {"resources": resources}})
    wanted = settings_v2(LIMITS) if version == 2 else settings_v1(LIMITS)
    read = plan_v2 if version == 2 else plan_v1
    found = {(one.files, one.text) for one in read(Part(resources))}
    both = (*wanted, *finer_settings(asked, version))
    assert found == {(one.files, one.text) for one in both}


@pytest.mark.parametrize(
    ("word", "arrives"), [("rshared", True), ("rslave", True), ("rprivate", False)]
)
def test_a_bind_of_a_bundle_travels_as_it_does_for_run(
    store: Store, tmp_path: Path, ours: Runtime, runc: Runtime, word: str, arrives: bool
) -> None:
    there, bundle, box = tmp_path / "there", tmp_path / "bundle", tmp_path.name
    there.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", there], check=True)
    subprocess.run(["mount", "--make-shared", there], check=True)
    (there / "late").mkdir()
    shown = ["--network", "none", "-v", f"{there}:/x:{word}"]
    store.says("run", *shown, "--bundle", str(bundle), "small", "sleep", "60")
    config = json.loads((bundle / "config.json").read_text())
    schema("config-schema.json").validate(config)
    store.says("run", "-d", *shown, "--name", box, "small", "sleep", "60")
    for one in (ours, runc):
        one.says("create", "--bundle", str(bundle), box)
        one.says("start", box)
    subprocess.run(["mount", "-t", "tmpfs", "x", there / "late"], check=True)
    look = ["cat", "/proc/self/mountinfo"]
    seen = [one.says("exec", box, *look) for one in (store, ours, runc)]
    for one in (ours, runc):
        one.says("delete", "--force", box)
    store.says("rm", "-f", box)
    subprocess.run(["umount", "-R", there], check=True)
    assert [" /x/late " in text for text in seen] == [arrives] * 3


def test_the_init_of_a_bundle_of_ours(
    store: Store, tmp_path: Path, ours: Runtime
) -> None:
    bundle = tmp_path / "bundle"
    words = ["run", "--init", "--network", "none", "--bundle", str(bundle), "small"]
    store.says(*words, "readlink", "/proc/1/exe")
    assert "init" in ours.says("run", "--bundle", str(bundle), "box")


def test_what_no_bundle_can_say_is_refused(store: Store, tmp_path: Path) -> None:
    done = store(
        "run", "--bundle", str(tmp_path), "--network", "none", "nothere", "true"
    )
    assert done.returncode == 125
    assert store.says("ps", "-aq") == ""


def test_the_state_and_the_features_are_valid(
    store: Store, tmp_path: Path, ours: Runtime
) -> None:
    bundle = tmp_path / "bundle"
    store.says(
        "run", "--network", "none", "--bundle", str(bundle), "small", "sleep", "60"
    )
    ours.says("create", "--bundle", str(bundle), "box")
    schema("state-schema.json").validate(ours.state("box"))
    found = json.loads(ours.says("features"))
    theirs = json.loads(
        subprocess.run(["runc", "features"], check=True, capture_output=True).stdout
    )
    assert set(theirs["mountOptions"]) <= set(found["mountOptions"])
    assert set(theirs["hooks"]) == set(found["hooks"])
    assert set(theirs["linux"]["namespaces"]) <= set(found["linux"]["namespaces"])
