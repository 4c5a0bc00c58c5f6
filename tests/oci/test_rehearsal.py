"""What `run` would start, written down: a valid bundle, and the same container for everybody."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.store import Store
from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from oci.conftest import Runtime, make_tree
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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("store")
    make_tree(root / "tree")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(root / "tree", ".")
    store = Store(root / "store")
    store.says("import", "-", "small", stdin=out.getvalue())
    return store


@pytest.mark.parametrize("name", FLAGS)
def test_the_bundle_is_valid(store: Store, name: str) -> None:
    words = [
        "run",
        "--network",
        "none",
        *FLAGS[name].split(),
        "--dry-run",
        "small",
        "true",
    ]
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
    words = ["run", "--network", "none", *FLAGS[name].split(), "-h", "box"]
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


TOLD = [
    "clone3",
    "unshare",
    "setns",
    "mount",
    "umount2",
    "fsopen",
    "fsconfig",
    "fsmount",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "pivot_root",
    "sethostname",
    "symlinkat",
    "fchdir",
    "chdir",
    "setsid",
    "prlimit64",
    "setgroups",
    "setresgid",
    "setresuid",
    "prctl",
    "capset",
    "execve",
]


@pytest.mark.parametrize("name", ["plain", "much", "a user", "free"])
def test_what_is_explained_is_what_happens(
    store: Store, name: str, tmp_path: Path
) -> None:
    words = ["run", "--rm", "--network", "none", *FLAGS[name].split()]
    text = store.says(*words, "--explain", "small", "true")
    explained = [line.partition("(")[0] for line in text.splitlines() if line[0] != " "]
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-o", str(trace), "-e", f"trace={','.join(TOLD)}"]
    subprocess.run([*strace, *store.argv(*words, "small", "true")], check=True)
    lines = trace.read_text()
    child = re.search(r"clone3.*\) = (\d+)$", lines, re.MULTILINE)  # or resumed
    assert child is not None
    mine = re.findall(rf"^{child[1]} +(\w+)\(", lines, re.MULTILINE)
    real = ["clone3", *mine[: mine.index("execve") + 1]]
    assert [one for one in explained if one in TOLD] == real
    assert text.count("    chapter ") == len(explained)
    chapters = set(re.findall(r"    chapter (\w+)", text))
    book = {path.stem[4:] for path in Path(__file__).parents[2].glob("book/*.md")}
    assert {name.replace("_", "-") for name in chapters} <= book


def test_what_no_bundle_can_say_is_refused(store: Store, tmp_path: Path) -> None:
    done = store("run", "--network", "none", "--init", "--dry-run", "small", "true")
    assert (done.returncode, "--init" in done.stderr) == (125, True)
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
