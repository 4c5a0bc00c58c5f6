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

from minidocker.blueprint import process_spec
from minidocker.bundle import bundle_of, read_config
from minidocker.cgroups import Group
from minidocker.engine import Engine
from minidocker.namespaces import Filesystem, Link, MountStep, container_flags, flags_of
from minidocker.oci_mounts import DevLink, GroupView
from minidocker.program import program_env
from minidocker.runtime import default_mounts
from minidocker.security import prepared
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


def bare_steps(steps: tuple[MountStep, ...]) -> list[MountStep]:
    """Steps without what depends on the runtime: links, groups, who may be a link."""
    kept = [s for s in steps if not isinstance(s, Link | DevLink | GroupView)]
    plain = [s.replace(links=False) if isinstance(s, Filesystem) else s for s in kept]
    return sorted(plain, key=repr)


@pytest.mark.parametrize("name", [*FLAGS, "volumes"])
def test_what_is_read_back_is_the_plan(
    store: Store, name: str, request: pytest.FixtureRequest
) -> None:
    volumes = "-v /usr:/data:ro -v named:/more --tmpfs /run:mode=700 --init"
    words = ["create", *alone(FLAGS.get(name, volumes)).split()]
    id = store.says(*words, "small", "sh", "-c", "true").strip()
    request.addfinalizer(lambda: store.says("rm", "-v", id))
    containers = Engine(str(store.root), store.driver).containers
    plan, place = process_spec(containers, containers.get(id)), containers.path(id)
    read = bundle_of(read_config(place), place, id, Group(f"/minidocker/{id}", 0))
    steps = (*default_mounts(plan), *plan.mounts)
    assert bare_steps(read.spec.mounts) == bare_steps(steps)
    assert prepared(read.spec.security).program == prepared(plan.security).program
    assert flags_of(read.kinds) == container_flags(shared=plan.shared)
    env = dict(line.split("=", 1) for line in read.spec.env)
    assert env == program_env(plan, env["HOME"])
    for field in ("argv", "cwd", "tty", "readonly", "ulimits", "oom_score_adj"):
        assert getattr(read.spec, field) == getattr(plan, field)
    rights = ("capabilities", "no_new_privileges")
    for field in rights:
        assert getattr(read.spec.security, field) == getattr(plan.security, field)


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
