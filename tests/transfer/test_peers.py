"""What we write is accepted by engines we did not write, and the other way round."""

import base64
import bz2
import gzip
import hashlib
import json
import lzma
import subprocess
from pathlib import Path

import pytest
import zstandard
from cli.store import Store

from transfer.conftest import Daemon, Peer, members


pytestmark = pytest.mark.root
ARCHIVES = [
    ("docker-archive", ""),
    ("docker-archive", "gzip"),
    ("oci-archive", ""),
    ("oci-archive", "none"),
    ("oci-archive", "zstd"),
]
Built = tuple[Store, str]


def saved(store: Store, path: Path, form: str, codec: str, *names: str) -> Path:
    options = ["--format", form, *(["--compression", codec] if codec else [])]
    store.says("save", *options, "-o", str(path), *names)
    return path


def id_in(found: str) -> set[str]:
    return set(found.split())


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_docker_loads_it_with_the_same_id(
    built: Built, dockerd: Daemon, tmp_path: Path, codec: str
):
    store, id = built
    path = saved(store, tmp_path / "a.tar", "docker-archive", codec, "site:v1")
    assert "Loaded image: site:v1" in dockerd("load", "-i", path)
    assert id_in(dockerd("images", "-q", "--no-trunc", "site:v1")) == {id}
    (found,) = json.loads(dockerd("inspect", "site:v1"))
    (mine,) = json.loads(store.says("inspect", "site:v1"))
    for key in ("Id", "RootFS", "Config", "Created", "Architecture", "Os"):
        assert found[key] == mine[key]
    dockerd("rmi", "site:v1")


def test_docker_loads_several_images_from_a_pipe(built: Built, dockerd: Daemon):
    store, id = built
    store.says("tag", "site:v1", "localhost:5000/team/site:v2")
    argv = store.argv("save", "site:v1", "localhost:5000/team/site:v2")
    archive = subprocess.run(argv, capture_output=True, check=True).stdout
    told = dockerd("load", stdin=archive)
    assert "Loaded image: site:v1" in told
    assert "Loaded image: localhost:5000/team/site:v2" in told
    assert id_in(dockerd("images", "-q", "--no-trunc")) == {id}
    dockerd("rmi", "site:v1", "localhost:5000/team/site:v2")
    store.says("rmi", "localhost:5000/team/site:v2")


@pytest.mark.parametrize(("form", "codec"), ARCHIVES)
def test_podman_loads_it_with_the_same_id(
    built: Built, podman: Peer, tmp_path: Path, form: str, codec: str
):
    store, id = built
    path = saved(store, tmp_path / "a.tar", form, codec, "site:v1")
    assert "site:v1" in podman("load", "-i", path)
    assert id_in(podman("images", "-q", "--no-trunc")) == {id}


@pytest.mark.parametrize(
    "source", ["docker-archive:{a}", "oci-archive:{b}:v1", "oci:{c}:v1"]
)
@pytest.mark.parametrize("form", ["oci", "docker-archive"])
def test_skopeo_copies_it(
    built: Built, skopeo: Peer, tmp_path: Path, source: str, form: str
):
    store, id = built
    saved(store, tmp_path / "a.tar", "docker-archive", "", "site:v1")
    saved(store, tmp_path / "b.tar", "oci-archive", "", "site:v1")
    saved(store, tmp_path / "c", "oci-dir", "", "site:v1")
    at = source.format(a=tmp_path / "a.tar", b=tmp_path / "b.tar", c=tmp_path / "c")
    raw = skopeo("inspect", "--raw", "--config", at)
    assert "sha256:" + hashlib.sha256(raw.encode()).hexdigest() == id
    to = f"{form}:{tmp_path}/out:site:v1"
    skopeo("copy", at, to)
    other = Store(tmp_path / "other")
    other.says("load", "-i", str(tmp_path / "out"))
    found = other.says("images", "-aq", "--no-trunc").strip()
    if (source.startswith("docker"), form) == (True, "oci"):
        again = json.loads(other.says("inspect", found))[0]["RootFS"]
        assert again == json.loads(store.says("inspect", id))[0]["RootFS"]
    else:  # skopeo writes the image JSON anew where it changes its type
        assert found == id


def tree(root: Path) -> dict[str, object]:
    """Names, modes and contents below a directory."""
    return {
        str(p.relative_to(root)): (
            p.lstat().st_mode,
            p.readlink() if p.is_symlink() else p.is_file() and p.read_bytes(),
        )
        for p in sorted(root.rglob("*"))
    }


def test_umoci_unpacks_it(built: Built, umoci: Peer, tmp_path: Path):
    store, _ = built
    saved(store, tmp_path / "layout", "oci-dir", "", "site:v1")
    umoci("unpack", "--image", f"{tmp_path}/layout:v1", tmp_path / "bundle")
    found = tree(tmp_path / "bundle/rootfs")
    assert "site/link" in found
    assert "site/old" not in found
    assert found["site/index"][1] == b"hello\n" * 100
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["process"]["args"] == ["/bin/busybox"]


# the other way


def resaved(store: Store, tmp_path: Path, name: str) -> dict[str, bytes]:
    path = tmp_path / "again.tar"
    store.says("save", "-o", str(path), name)
    return members(path)


def test_what_docker_saves_is_loaded_and_saved_with_the_same_digests(
    built: Built, dockerd: Daemon, tmp_path: Path
):
    """Docker's own import, and layers whose tars are Docker's own."""
    subprocess.run(["mkdir", "-p", tmp_path / "root/etc"], check=True)
    (tmp_path / "root/etc/motd").write_text("hello\n")
    (tmp_path / "root/zzz").write_bytes(b"z" * 5000)
    command = ["tar", "--format=gnu", "-C", tmp_path / "root", "-c", "."]
    tar = subprocess.run(command, capture_output=True, check=True).stdout
    dockerd("import", "-", "odd:v1", stdin=tar)
    context = tmp_path / "context"
    context.mkdir()
    (context / "new").write_text("new")
    (context / "Dockerfile").write_text("FROM odd:v1\nCOPY new /etc/\nENV A=b\n")
    dockerd("build", "-t", "odd:v2", context)
    dockerd("save", "-o", tmp_path / "docker.tar", "odd:v1", "odd:v2")
    ours = Store(tmp_path / "store")
    told = ours.says("load", "-i", str(tmp_path / "docker.tar"))
    assert sorted(told.splitlines()) == ["Loaded image: odd:v1", "Loaded image: odd:v2"]
    for name in ("odd:v1", "odd:v2"):
        (theirs,) = json.loads(dockerd("inspect", name))
        (mine,) = json.loads(ours.says("inspect", name))
        assert mine["Id"] == theirs["Id"]
        assert mine["RootFS"] == theirs["RootFS"]
        assert mine["Parent"] == ""
        found = resaved(ours, tmp_path, name)
        for diff_id in theirs["RootFS"]["Layers"]:
            body = found[f"blobs/sha256/{diff_id[7:]}"]
            assert f"sha256:{hashlib.sha256(body).hexdigest()}" == diff_id
    assert f"sha256:{hashlib.sha256(tar).hexdigest()}" == theirs["RootFS"]["Layers"][0]
    (mine,) = json.loads(ours.says("inspect", "odd:v1"))
    ours_split = ours.root / "image/overlay2/layerdb/sha256"
    chain = mine["RootFS"]["Layers"][0]
    same_lines(ours_split / chain[7:] / "tar-split.json.gz", dockerd.split_of(chain))
    dockerd("rmi", "odd:v1", "odd:v2")


def same_lines(mine: Path, theirs: Path) -> None:
    """The two splits are the same records."""
    assert records(mine) == records(theirs)


def records(split: Path) -> list[object]:
    """What a split says; frame that stands together is one."""
    found: list[object] = []
    for line in gzip.decompress(split.read_bytes()).splitlines():
        record = json.loads(line)
        if record["type"] == 1:
            found.append({key: record[key] for key in record.keys() - {"position"}})
        elif found and isinstance(found[-1], bytes):
            found[-1] += base64.b64decode(record["payload"])
        else:
            found.append(base64.b64decode(record["payload"]))
    return found


def test_docker_reads_our_split_as_its_own(
    built: Built, dockerd: Daemon, tmp_path: Path
):
    """Docker puts a layer together from a split that we wrote, and its sums hold."""
    store, _ = built
    ours = Store(tmp_path / "store")
    path = saved(store, tmp_path / "a.tar", "docker-archive", "", "site:v1")
    dockerd("load", "-i", path)
    ours.says("load", "-i", str(path))
    (mine,) = json.loads(ours.says("inspect", "site:v1"))
    bottom = mine["RootFS"]["Layers"][0]
    own = ours.root / "image/overlay2/layerdb/sha256" / bottom[7:] / "tar-split.json.gz"
    same_lines(own, dockerd.split_of(bottom))
    dockerd.split_of(bottom).write_bytes(own.read_bytes())
    dockerd("save", "-o", tmp_path / "docker.tar", "site:v1")
    layers = {
        f"sha256:{hashlib.sha256(body).hexdigest()}"
        for name, body in members(tmp_path / "docker.tar").items()
        if name.endswith("layer.tar")
    }
    assert bottom in layers
    dockerd("rmi", "site:v1")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_what_podman_saves_is_loaded(
    built: Built, podman: Peer, tmp_path: Path, form: str
):
    store, id = built
    path = saved(store, tmp_path / "a.tar", "docker-archive", "", "site:v1")
    podman("load", "-i", path)
    podman("save", "--format", form, "-o", tmp_path / "out", "site:v1")
    ours = Store(tmp_path / "store")
    told = ours.says("load", "-i", str(tmp_path / "out"))
    assert told == "Loaded image: site:v1\n"
    (mine,) = json.loads(store.says("inspect", "site:v1"))
    (again,) = json.loads(ours.says("inspect", "site:v1"))
    assert again["RootFS"] == mine["RootFS"]
    if form == "docker-archive":
        assert again["Id"] == id


def test_what_umoci_changes_is_loaded_and_saved_again(
    built: Built, umoci: Peer, tmp_path: Path
):
    store, _ = built
    layout = saved(store, tmp_path / "layout", "oci-dir", "", "site:v1")
    umoci("unpack", "--image", f"{layout}:v1", tmp_path / "bundle")
    (tmp_path / "bundle/rootfs/site/by-umoci").write_text("umoci\n")
    (tmp_path / "bundle/rootfs/site/index").unlink()
    umoci("repack", "--image", f"{layout}:v2", tmp_path / "bundle")
    umoci("rm", "--image", f"{layout}:v1")
    ours = Store(tmp_path / "store")
    told = ours.says("load", "-i", str(layout))
    assert told == "Loaded image: site:v1\n"
    name = ours.says("run", "-d", "site:v1", "/bin/busybox", "ls", "/site").strip()
    ours.says("wait", name)
    assert ours.says("logs", name).split() == ["by-umoci", "link"]
    ours.says("rm", name)
    ours.says("tag", "site:v1", "umoci:v1")
    saved(ours, tmp_path / "again", "oci-dir", "none", "umoci:v1")
    umoci("unpack", "--image", f"{tmp_path}/again:v1", tmp_path / "second")
    assert tree(tmp_path / "second/rootfs") == tree(tmp_path / "bundle/rootfs")


def test_a_compressed_archive_is_loaded_from_a_pipe(built: Built, tmp_path: Path):
    store, id = built
    path = saved(store, tmp_path / "a.tar", "docker-archive", "", "site:v1")
    presses = (gzip.compress, bz2.compress, lzma.compress, zstandard.compress)
    for number, press in enumerate(presses):
        ours = Store(tmp_path / str(number))
        told = ours.says("load", stdin=press(path.read_bytes()))
        assert told == "Loaded image: site:v1\n"
        assert ours.says("images", "-q", "--no-trunc").strip() == id
