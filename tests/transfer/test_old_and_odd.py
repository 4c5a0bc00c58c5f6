"""Archives of Docker before 1.10, bare tags, and bounds: as Docker and podman do it."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from cli.store import Store

from transfer.conftest import Daemon, Peer, members


pytestmark = pytest.mark.root
Built = tuple[Store, str]


def packed(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


@pytest.fixture
def ours(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def layer_tar(name: str) -> bytes:
    return packed({name: name.encode()})


def old_archive(version: str | None, **more: object) -> bytes:
    """Two layers with all that a JSON of then had, and things nobody knows."""
    ids = ["b" * 64, "a" * 64]
    files = {
        "repositories": json.dumps(
            {"old/web": {"v1": ids[1], "v2": ids[1]}, "base": {"latest": ids[0]}}
        ).encode()
    }
    for number, id in enumerate(ids):
        config = {
            "Hostname": "h", "User": "", "Memory": 0, "CpuShares": 0, "Env": ["A=<&>", "P=/bin"],
            "Cmd": ["/bin/sh", "-c", f"echo {number} && true"], "Image": "x", "WorkingDir": "", "OnBuild": [],
            "Labels": {"z": "1", "a": "2"},
        }  # fmt: skip
        found: dict[str, object] = {
            "id": id, "created": f"2015-06-0{number + 1}T12:00:00.5Z", "container": "c" * 64,
            "container_config": config, "config": config, "architecture": "amd64", "os": "linux",
            "Size": 4, "author": "me", "comment": f"layer {number}", "parent_id": "x", **more,
        }  # fmt: skip
        if number:
            found["parent"] = ids[0]
        if version:
            found["docker_version"] = version
        files[f"{id}/VERSION"] = b"1.0"
        files[f"{id}/json"] = json.dumps(found).encode()
        files[f"{id}/layer.tar"] = layer_tar(f"f{number}")
    return packed(files)


@pytest.mark.parametrize("version", ["1.9.1", "1.8.3", "1.6.0", None])
def test_an_archive_of_old_becomes_the_image_that_docker_makes(
    ours: Store, dockerd: Daemon, tmp_path: Path, version: str | None
) -> None:
    path = tmp_path / "old.tar"
    path.write_bytes(old_archive(version, throwaway=True, strange={"b": 1, "a": "<"}))
    dockerd("load", "-i", path)
    said = ours.says("load", "-i", str(path))
    assert "Loaded image: old/web:v1" in said
    for name in ("old/web:v1", "old/web:v2", "base:latest"):
        theirs = dockerd("images", "-q", "--no-trunc", name)
        assert ours.says("images", "-q", "--no-trunc", name) == theirs
    history = ["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}"]
    assert ours.says(*history, "old/web:v1") == dockerd(*history, "old/web:v1")
    dockerd("rmi", "old/web:v1", "old/web:v2", "base")


def test_what_docker_saves_today_is_read_by_its_old_files_too(
    built: Built, ours: Store, dockerd: Daemon, tmp_path: Path
) -> None:
    store, _ = built
    store.says("save", "-o", str(tmp_path / "new.tar"), "site:v1")
    dockerd("load", "-i", tmp_path / "new.tar")
    dockerd("save", "-o", tmp_path / "both.tar", "site:v1")
    files = members(tmp_path / "both.tar")
    old = {
        name: data
        for name, data in files.items()
        if "/" in name or name == "repositories"
    }
    (tmp_path / "old.tar").write_bytes(packed(old))
    dockerd("rmi", "site:v1")
    dockerd("load", "-i", tmp_path / "old.tar")
    ours.says("load", "-i", str(tmp_path / "old.tar"))
    theirs = dockerd("images", "-q", "--no-trunc", "site:v1")
    assert ours.says("images", "-q", "--no-trunc", "site:v1") == theirs
    dockerd("rmi", "site:v1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parent": "a" * 64}, "the parents have no end"),
        ({"parent": "../../etc"}, "no id of a layer"),
        ({"parent": "d" * 64}, "no such file"),
        ({"container_config": {"Cmd": 5}}, ""),
        ({"config": []}, ""),
        ({"os": "windows"}, "only Linux"),
    ],
)
def test_a_hostile_archive_of_old_is_refused_whole(
    ours: Store, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(old_archive("1.9.1"))) as tar:
        for member in tar:
            files[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    below = f"{'b' * 64}/json"
    for name in (below, below.replace("b", "a")):
        files[name] = json.dumps(json.loads(files[name]) | change).encode()
    (tmp_path / "bad.tar").write_bytes(packed(files))
    done = ours("load", "-i", str(tmp_path / "bad.tar"))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert ours.says("images", "-aq") == ""


@pytest.mark.parametrize("tag", ["v1", "Latest"])
def test_a_bare_tag_names_an_image_as_podman_does(
    built: Built, ours: Store, podman: Peer, tmp_path: Path, tag: str
) -> None:
    store, _ = built
    layout = tmp_path / "layout"
    store.says("save", "--format", "oci-dir", "-o", str(layout), "site:v1")
    index = json.loads((layout / "index.json").read_text())
    notes = {"org.opencontainers.image.ref.name": tag.lower()}
    index["manifests"][0]["annotations"] = notes
    (layout / "index.json").write_text(json.dumps(index))
    tar = tmp_path / "layout.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(tar), "."], check=True)
    [name] = podman("load", "-q", "-i", tar).split()[-1:]
    assert f"Loaded image: {name}\n" == ours.says("load", "-i", str(tar))
    notes["org.opencontainers.image.ref.name"] = tag
    (layout / "index.json").write_text(json.dumps(index))
    assert f"Loaded image: {name}\n" == ours.says("load", "-i", str(layout))
