"""`explain`, `ids`, `IMAGE@N` and the lists, as a user types them."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.store import Store


DOCKERFILE = "FROM small:v1\nENV A=1\nRUN echo made > /made; rm /bin/plain\nUSER 33\n"
IMPORT = re.compile(r"^import time:\s+\d+ \|\s+\d+ \| +(\S+)$", re.MULTILINE)


@pytest.fixture(params=["overlay2", "vfs"])
def store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    small_tree: Path,
) -> Iterator[Store]:
    """A store with the image `small` and nothing that another test has left."""
    found = Store(tmp_path_factory.mktemp("store"), request.param)
    found.says("import", str(small_tree), "small:v1")
    yield found
    assert not found.says("ps", "-aq"), "a test must remove its containers"


@pytest.fixture
def built(store: Store, tmp_path: Path) -> Store:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    store.says("build", "-q", "-t", "web:v1", str(context))
    return store


def test_a_container_starts_from_any_step(built: Store) -> None:
    words = ("sh", "-c", "cat /made; echo $A; id -u")
    assert built.says("run", "--rm", "web:v1", *words) == "made\n1\n33\n"
    assert built.says("run", "--rm", "web:v1@3", *words) == "made\n1\n0\n"
    done = built("run", "--rm", "web:v1@2", *words)
    assert (done.stdout, "can't open '/made'" in done.stderr) == ("1\n0\n", True)
    assert built.says("run", "--rm", "web:v1@1", "sh", "-c", "echo [$A]") == "[]\n"


def test_a_step_is_an_image_wherever_one_is_named(built: Store, tmp_path: Path) -> None:
    id = built.says("inspect", "-f", "{{.Parent}}", "web:v1").strip()
    assert built.says("inspect", "-f", "{{.Id}}", "web:v1@3").strip() == id
    assert built.says("inspect", "-f", "{{.Id}}", f"{id[7:20]}@3").strip() == id
    assert len(built.says("history", "-q", "web:v1@2").splitlines()) == 2
    built.says("tag", "web:v1@2", "env:only")
    assert built.says("rmi", "env:only") == "Untagged: env:only\n"
    done = built("rmi", "web:v1@2")
    assert (done.returncode, "has dependent child images" in done.stderr) == (1, True)
    (tmp_path / "Dockerfile").write_text("FROM web:v1@3\nRUN test -e /made\n")
    built.says("rmi", built.says("build", "-q", str(tmp_path)).strip())


@pytest.mark.parametrize(
    ("image", "said"),
    [("web:v1@9", '"web:v1" has 4 steps'), ("web:v1@0", '"web:v1" has 4 steps'), ("nope@2", 'no such image: "nope"')],
)  # fmt: skip
def test_a_step_that_is_not_there(built: Store, image: str, said: str) -> None:
    done = built("run", "--rm", image, "true")
    assert (done.returncode, said in done.stderr) == (125, True)
    assert built("history", image).returncode == 1


def test_explain_tells_both_halves(built: Store) -> None:
    text = built.says("explain", "web:v1")
    assert 'config.User: "33"' in text
    assert "D /bin/plain  (whiteout)" in text
    assert "0 B: USER is written in the JSON only" in text
    steps = json.loads(built.says("explain", "--format", "json", "web:v1@3"))
    assert [step["Step"] for step in steps] == [1, 2, 3]
    assert steps[2]["Layer"]["Size"] == 5
    assert built.says("explain", "--format", "html", "web:v1").startswith("<table")
    assert built("explain", "--format", "pdf", "web:v1").returncode == 125


def test_ids_are_checked_by_the_commands_that_they_name(built: Store) -> None:
    checked = 0
    for line in built.says("ids", "--blobs", "--format", "json", "web:v1").splitlines():
        claim = json.loads(line)
        ours = f"{sys.executable} -m minidocker --root {built.root} "
        command = re.sub(r"^minidocker( --root \S+)? ", ours, claim["Check"])
        said = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, check=True
        )
        assert said.stdout.split()[0] == claim["Digest"].removeprefix("sha256:")
        checked += 1
    assert checked == 7


def test_ids_verify_says_what_is_wrong(built: Store) -> None:
    assert built.says("ids", "--verify", "web:v1").count("verified") == 5
    found = (path for path in built.root.rglob("made") if path.is_file())
    made = next(path for path in found if {"diff", "dir"} & set(path.parts))
    text = made.read_text()
    made.write_text("lies\n")
    done = built("ids", "--verify", "web:v1")
    made.write_text(text)
    assert done.returncode == 1
    assert done.stdout.count("WRONG") == 1


def test_the_tree_shows_who_stands_on_whom(built: Store) -> None:
    lines = built.says("images", "--tree").splitlines()
    assert lines[0].split() == ["IMAGE", "IMAGE", "ID", "SIZE", "OWN", "SIZE", "LAYERS"]
    assert lines[1].startswith("small:v1")
    assert lines[2].startswith("└─ web:v1")
    assert lines[2].endswith("5B         2 (1 own)")
    steps = built.says("images", "--tree", "-a").splitlines()
    assert [line.index("<none>") for line in steps[2:4]] == [3, 6]


def test_images_imports_next_to_nothing(built: Store) -> None:
    while not list(
        built.root.glob("image/*/catalog")
    ):  # until what was built is old enough to be trusted
        built.says("images")
    words = [sys.executable, "-X", "importtime", *built.argv("images")[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = set(IMPORT.findall(done.stderr))
    ours = {name.partition(".")[2] for name in found if name.startswith("minidocker.")}
    # and `look_verbs`, which comes by import_module: -X importtime does not tell that
    assert ours == {"cli", "errors", "flags", "records", "catalog", "filters", "tables"}
    assert not {"json", "re", "ctypes", "datetime", "calendar", "typing"} & found


def test_what_is_asked_before_a_prune(built: Store) -> None:
    asked = built("image", "prune", stdin=b"n\n")
    assert asked.stdout == (
        "WARNING! This will remove all dangling images.\n"
        "Are you sure you want to continue? [y/N] Total reclaimed space: 0B\n"
    )
    everything = built("system", "prune", "-a", "--filter", "until=1h", stdin=b"y\n")
    assert everything.stdout == (
        "WARNING! This will remove:\n"
        "  - all stopped containers\n"
        "  - all networks not used by at least one container\n"
        "  - all images without at least one container associated to them\n"
        "  - all build cache\n\n"
        "  Items to be pruned will be filtered with:\n  - until=1h\n\n"
        "Are you sure you want to continue? [y/N] Total reclaimed space: 0B\n"
    )
    assert "web" in built.says("images")


def test_prune_frees_what_it_says(store: Store, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM small:v1\nLABEL p=q\nRUN echo 0123456789 > /x\n"
    )
    store.says("build", "-q", str(tmp_path))
    store.says(
        "run", "--name", "old", "-l", "p=q", "small:v1", "sh", "-c", "echo 12345 > /y"
    )
    said = store.says("system", "df", "-v")
    assert "11B" in said
    lines = store.says("system", "prune", "-af", "--filter", "label=p=q").splitlines()
    assert lines[0] == "Deleted Containers:"
    assert lines[3] == "Deleted Images:"
    assert lines[-1] == "Total reclaimed space: 17B"
    assert [line.split()[0] for line in store.says("images", "-a").splitlines()] == [
        "REPOSITORY",
        "small",
    ]


WHY = ("info", "--format", "{{.Driver}}: {{.DriverReason}}")


def test_info_says_why_the_store_has_its_driver(store: Store) -> None:
    chosen = {"overlay2": "the kernel mounts overlays", "vfs": "it was asked for"}
    name = store.says("info", "--format", "{{.Driver}}").strip()
    assert store.says(*WHY).startswith(f"{name}: {chosen[name]}")


@pytest.mark.root
def test_info_says_why_a_driver_was_not_taken(tmp_path: Path) -> None:
    layers = [tmp_path / part for part in ("lower", "upper", "work", "root")]
    for place in layers:
        place.mkdir()
    lower, upper, work, root = layers
    words = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount = f"mount -t overlay -o {words} overlay {root}"
    ours = shlex.join([sys.executable, "-m", "minidocker", "--root", str(root), *WHY])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && {ours}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("vfs: overlay2 does not work here: ")
