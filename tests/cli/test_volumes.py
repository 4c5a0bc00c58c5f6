"""Volumes: made, filled, shared, refused, removed."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from cli.store import Store


@pytest.fixture
def store(imported) -> Store:  # type: ignore[no-untyped-def]
    """A store whose volumes and containers go after the test."""
    found = Store(imported("overlay2"), "overlay2")
    found.says("volume", "prune", "-f")  # what another file's test has left
    yield found
    if ids := found.says("ps", "-aq").split():
        found.says("rm", "-f", "-v", *ids)
    found.says("volume", "prune", "-f")
    assert found.says("volume", "ls", "-q") == ""


def run(store: Store, *words: str) -> str:
    return store.says("run", "--rm", "--network", "none", *words)


def test_what_is_written_to_a_volume_outlives_its_container(store: Store) -> None:
    run(store, "-v", "data:/d/deep", "small:v1", "sh", "-c", "echo kept >/d/deep/f")
    assert run(store, "-v", "data:/x:ro", "small:v1", "cat", "/x/f") == "kept\n"
    done = store(
        "run", "--rm", "-v", "data:/x:ro", "small:v1", "sh", "-c", "echo >/x/g"
    )
    assert "Read-only file system" in done.stderr
    assert store.says("volume", "ls", "-q") == "data\n"
    [found] = json.loads(store.says("volume", "inspect", "data"))
    assert Path(found["Mountpoint"], "f").read_text() == "kept\n"


@pytest.mark.root
def test_an_empty_volume_gets_the_image_s_files_with_owners_and_modes(
    store: Store,
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, mode, owner in (
            ("bin", tarfile.DIRTYPE, 0o755, 0), ("srv", tarfile.DIRTYPE, 0o750, 33),
            ("srv/f", tarfile.REGTYPE, 0o640, 7), ("link", tarfile.SYMTYPE, 0o777, 0),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid = kind, mode, owner
            member.linkname = "/srv" if kind == tarfile.SYMTYPE else ""
            tar.addfile(member)
        box = Path("/bin/busybox").read_bytes()
        member = tarfile.TarInfo("bin/busybox")
        member.size, member.mode = len(box), 0o755
        tar.addfile(member, io.BytesIO(box))
    store.says("import", "-c", "VOLUME /srv", "-", "filled", stdin=data.getvalue())
    form = ("busybox", "stat", "-c", "%a %u", "/srv", "/srv/f")
    for flag in (("-v", "one:/srv"), ("--mount", "src=two,dst=/srv"), ()):
        assert run(store, *flag, "filled", *form) == "750 33\n640 7\n", flag
    assert run(store, "-v", "three:/link", "filled", "busybox", "ls", "/srv") == "f\n"
    look = ("busybox", "ls", "/srv")
    assert run(store, "-v", "four:/srv:nocopy", "filled", *look) == ""
    assert (
        run(store, "--mount", "src=five,dst=/srv,volume-nocopy", "filled", *look) == ""
    )
    assert (
        len(store.says("volume", "ls", "-q").split()) == 5
    )  # the anonymous one has gone
    store.says("rmi", "filled")


def test_anonymous_volumes_go_with_rm_v_and_others_stay(store: Store) -> None:
    words = (
        "create",
        "--name",
        "box",
        "-v",
        "/anon",
        "-v",
        "named:/n",
        "small:v1",
        "true",
    )
    store.says(*words)
    assert store.says("ps", "-a", "--format", "{{.LocalVolumes}}") == "2\n"
    store.says("rm", "box")
    assert len(store.says("volume", "ls", "-q").split()) == 2
    store.says(*words)
    store.says("rm", "-v", "box")
    assert len(store.says("volume", "ls", "-q").split()) == 2
    run(store, "-v", "/anon", "small:v1", "true")
    assert len(store.says("volume", "ls", "-q").split()) == 2


def test_volumes_of_others_are_shared(store: Store) -> None:
    words = ("-v", "/anon", "-v", "data:/d")
    store.says(
        "run", "--name", "box", *words, "small:v1", "sh", "-c", "echo a >/anon/f"
    )
    assert run(store, "--volumes-from", "box", "small:v1", "cat", "/anon/f") == "a\n"
    done = store(
        "run", "--volumes-from", "box:ro", "small:v1", "sh", "-c", "echo >/d/g"
    )
    assert "Read-only" in done.stderr
    assert (
        store("run", "--volumes-from", "nobody", "small:v1", "true").returncode == 125
    )
    done = store("run", "--volumes-from", "box:xx", "small:v1", "true")
    assert done.returncode == 125


def test_a_volume_in_use_stays(store: Store) -> None:
    store.says("create", "--name", "box", "-v", "data:/d", "small:v1", "true")
    done = store("volume", "rm", "data")
    assert (done.returncode, "volume is in use" in done.stderr) == (1, True)
    assert store.says("volume", "prune", "-f") == "Total reclaimed space: 0B\n"
    assert store.says("ps", "-aq", "--filter", "volume=data") != ""
    assert store.says("volume", "ls", "-q", "--filter", "dangling=true") == ""
    assert "Local Volumes   1         1" in store.says("system", "df")
    store.says("rm", "box")
    pruned = store.says("system", "prune", "-f", "--volumes")
    assert "Deleted Volumes:\ndata\n" in pruned
    assert store("volume", "rm", "data").returncode == 1
    assert store.says("volume", "rm", "-f", "data") == "data\n"


def test_mounts_are_shown_as_docker_shows_them(store: Store, tmp_path: Path) -> None:
    words = (
        "-v", f"{tmp_path}:/b", "-v", "data:/v", "--mount",
        "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770", "-v", "/v/below",
    )  # fmt: skip
    script = (
        "grep -c ' /t tmpfs' /proc/mounts; busybox stat -c %a /t; busybox stat /v/below"
    )
    store.says("create", "--name", "box", *words, "small:v1", "sh", "-c", script)
    [found] = json.loads(store.says("inspect", "box"))
    kinds = [(one["Type"], one["Destination"], one["RW"]) for one in found["Mounts"]]
    assert kinds[0] == ("bind", "/b", True)
    assert ("volume", "/v", True) in kinds
    assert kinds[-1] == ("volume", "/v/below", True)
    assert found["HostConfig"]["Binds"] == [f"{tmp_path}:/b", "data:/v"]
    assert found["HostConfig"]["Mounts"][0]["TmpfsOptions"]["SizeBytes"] == 1 << 20
    assert "1770" in store("start", "-a", "box").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("-v", "rel"), ("-v", "data:rel"), ("-v", "data:/"), ("-v", "data:/x:what"),
        ("-v", "data:/x:ro,rw"), ("-v", "a b:/x"), ("-v", "data:/x:/y:z"), ("-v", ":/x"),
        ("-v", "/tmp:/x:nocopy"), ("-v", "da:/x", "-v", "db:/x"), ("-v", "/tmp:/x:rshared"),
        ("--mount", "type=moon,dst=/x"), ("--mount", "src=data"), ("--mount", "dst=x"),
        ("--mount", "type=bind,dst=/x"), ("--mount", "type=bind,src=/no/such,dst=/x"),
        ("--mount", "type=bind,src=etc,dst=/x"), ("--mount", "type=bind,src=/etc,dst=/x,a=b"),
        ("--mount", "type=bind,src=/etc,dst=/x,a"), ("--mount", "type=bind,src=/etc,dst=/x,ro=2"),
        ("--mount", "type=bind,src=/etc,dst=/x,volume-nocopy"), ("--mount", "dst=/x,tmpfs-size=1"),
        ("--mount", "type=tmpfs,src=a,dst=/x"), ("--mount", "type=tmpfs,dst=/x,tmpfs-size=x"),
        ("--mount", "type=tmpfs,dst=/x,tmpfs-mode=9"), ("--mount", "src=../up,dst=/x"),
        ("--mount", "type=bind,src=/etc,dst=/x,bind-propagation=odd"), ("--mount", "dst=/x,volume-driver=nfs"),
    ],
)  # fmt: skip
def test_nonsense_makes_neither_volume_nor_container(
    store: Store, words: tuple[str, ...]
) -> None:
    before = store.says("volume", "ls", "-q"), store.says("ps", "-aq")
    done = store("run", *words, "small:v1", "true")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) <= 2
    assert (store.says("volume", "ls", "-q"), store.says("ps", "-aq")) == before


def test_a_container_that_cannot_be_made_leaves_no_volume(store: Store) -> None:
    store.says("create", "--name", "taken", "small:v1", "true")
    done = store("run", "--name", "taken", "-v", "new:/x", "small:v1", "true")
    assert done.returncode == 125
    assert store.says("volume", "ls", "-q") == ""


def test_volumes_have_names_labels_and_filters(store: Store) -> None:
    assert store.says("volume", "create", "--label", "a=b", "data") == "data\n"
    assert store.says("volume", "create", "data") == "data\n"
    name = store.says("volume", "create").strip()
    assert len(name) == 64
    assert store("volume", "create", "a/b").returncode == 1
    assert store("volume", "create", "-d", "nfs", "x").returncode == 1
    assert store.says("volume", "ls", "-q", "--filter", "label=a=b") == "data\n"
    assert store.says("volume", "ls", "-q", "--filter", "name=dat") == "data\n"
    assert store("volume", "ls", "--filter", "colour=red").returncode == 1
    form = "{{.Name}} {{.Driver}} {{.Labels}}"
    assert (
        store.says("volume", "inspect", "-f", form, "data") == "data local map[a:b]\n"
    )
    assert store("volume", "inspect", "nobody").returncode == 1
    assert os.listdir(store.root / "volumes" / "data") != []
