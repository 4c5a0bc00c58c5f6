"""Images of the third driver leave and arrive: save, load, push, pull, and bounds."""

import io
import tarfile
from pathlib import Path

import pytest
from inside.test_devicemapper import DOCKERFILE, Store
from peers import docker_registry


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of devicemapper with the image `web`; making a pool takes its time."""
    where = tmp_path_factory.mktemp("one")
    store = Store(where / "store", "devicemapper")
    store.build("web", DOCKERFILE, file="file")
    store.do("save", "-o", str(where / "web.tar"), "web")
    return store


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("other") / "store", "devicemapper")


def same_image(store: Store, other: Store, name: str) -> None:
    """The image is the same one, and runs, in another store; it is gone afterwards."""
    id = store.do("images", "-q", "--no-trunc", "web")
    assert other.do("images", "-q", "--no-trunc", name) == id
    assert other.do("run", "--rm", "--network", "none", name) == "one\ntwo"
    other.do("rmi", name)
    assert other.do("images", "-aq") == ""


def test_what_is_saved_is_loaded_within_a_bound(
    one: Store, other: Store, tmp_path: Path
) -> None:
    web = str(one.root.parent / "web.tar")
    other.do("load", "--max-size", "10k", "-i", web, status=1)
    assert other.do("images", "-aq") == ""
    assert other.do("load", "-i", web) == "Loaded image: web:latest"
    other.do("save", "-o", str(tmp_path / "again.tar"), "web")
    assert (tmp_path / "again.tar").read_bytes() == Path(web).read_bytes()
    same_image(one, other, "web")


def test_what_is_pushed_is_pulled(one: Store, other: Store, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as host:
        name = f"{host}/team/web:v1"
        one.do("tag", "web", name)
        one.do("push", "-q", name)
        assert other.do("pull", "-q", name) == name
        same_image(one, other, name)


def test_a_layer_with_a_name_twice_is_given_back(other: Store, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for body in (b"first", b"the second"):
            member = tarfile.TarInfo("f")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    (tmp_path / "twice.tar").write_bytes(sink.getvalue())
    other.do("import", str(tmp_path / "twice.tar"), "twice")
    other.do("save", "-o", str(tmp_path / "saved.tar"), "twice")
    with tarfile.open(tmp_path / "saved.tar") as saved:
        found = [saved.extractfile(m) for m in saved if m.isfile()]
        assert sink.getvalue() in [file.read() for file in found if file]
