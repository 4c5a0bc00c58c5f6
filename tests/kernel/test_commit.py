"""A commit of a container that stays: its layer is what its tar says, made once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_arrivals import bench  # noqa: F401
from workbench import Workbench

from minidocker import arrivals
from minidocker.arrivals import copy_layer
from minidocker.layers import Layer, LayerStore
from minidocker.oci import chain_id


pytestmark = pytest.mark.root


def change(root: Path) -> None:
    """What a container may do to its tree."""
    (root / "srv/old").unlink()
    (root / "etc/passwd").write_text("changed\n")
    (root / "new").mkdir(mode=0o2750)
    (root / "new/file").write_bytes(b"x" * 3_000_000)
    os.link(root / "new/file", root / "new/same")
    os.mkfifo(root / "new/pipe")
    os.setxattr(
        root / "new/file",
        "security.capability",
        bytes.fromhex("0100000200040000000000000000000000000000"),
    )
    (root / "new/link").symlink_to("/nowhere")
    os.chown(root / "new/pipe", 7, 8)
    os.utime(root / "new/file", ns=(1, 1_234_567_890_987_654_321))
    os.utime(root / "new", ns=(1, -1_500_000_001))
    (root / "way").unlink()
    (root / "way").mkdir()
    (root / "way/in").write_text("now a directory")
    (root / "etc/hosts").touch()
    (root / "dev").mkdir()


def begun(bench: Workbench) -> None:  # noqa: F811
    diff_ids = bench.images.get(bench.images.resolve("base")).diff_ids
    bench.layers.create_rw("box", chain_id(diff_ids))


def test_a_commit_is_the_tar_that_it_says_and_the_container_stays(
    bench: Workbench,  # noqa: F811
):
    begun(bench)
    with bench.layers.rw_mounted("box") as root:
        change(Path(root))
    before = [str(one) for one in bench.layers.changes("box")]
    layer = bench.layers.copy_rw("box")
    assert layer
    bench.layers.tar_of(layer.chain_id, lambda data: None)  # checks the digest
    assert bench.driver.size(layer.cache_id) == layer.size
    assert [str(one) for one in bench.driver.changes(layer.cache_id)] == before
    assert [str(one) for one in bench.layers.changes("box")] == before
    assert "A /new/same" in before
    assert "D /srv/old" in before
    assert not {"A /etc/hosts", "A /dev"} & set(before)
    ids = bench.driver.ids()
    assert bench.layers.copy_rw("box") == layer
    assert bench.driver.ids() == ids


def test_a_container_that_changed_nothing_gives_no_layer(
    bench: Workbench,  # noqa: F811
):
    begun(bench)
    with bench.layers.rw_mounted("box") as root:
        Path(root, "etc/hosts").touch()
    ids = bench.driver.ids()
    assert bench.layers.copy_rw("box") is None
    assert bench.driver.ids() == ids


def grow(root: Path) -> None:
    """What most containers do: make and change files."""
    (root / "etc/passwd").write_text("changed\n")
    (root / "srv/deep/more").mkdir(parents=True, mode=0o2750)
    for number in range(900):
        path = root / f"srv/deep/{number % 7}/{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number * (number % 700))
        os.chown(path, number % 3, number % 2)
        path.chmod(0o600 + number % 64)
    (root / "srv/deep/large").write_bytes(b"large" * 30_000)
    (root / "srv/deep/link").symlink_to("large")
    (root / "etc/hosts").touch()
    (root / "srv").chmod(0o1777)
    os.utime(root / "srv/deep", ns=(1, 1_234_567_890_987_654_321))


def test_a_copy_in_one_pass_is_the_copy_in_two(
    bench: Workbench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    begun(bench)
    with bench.layers.rw_mounted("box") as root:
        grow(Path(root))
    before = [str(one) for one in bench.layers.changes("box")]
    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "copy_rw", lambda *_: pytest.fail("the long way"))
        layer = copy_layer(bench.layers, "box")
    assert layer
    bench.layers.tar_of(layer.chain_id, lambda data: None)  # checks the digest
    assert bench.driver.size(layer.cache_id) == layer.size
    assert [str(one) for one in bench.driver.changes(layer.cache_id)] == before
    assert bench.layers.copy_rw("box") == layer


def annotate(root: Path) -> None:
    """Give an attribute to a file that is no program."""
    (root / "srv/new").write_text("new")
    os.setxattr(root / "srv/new", "user.note", b"kept")


@pytest.mark.parametrize(
    "do", [change, annotate, lambda root: (root / "srv/old").unlink()]
)
def test_what_is_more_than_files_is_copied_the_long_way(
    bench: Workbench,  # noqa: F811
    do: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
):
    begun(bench)
    with bench.layers.rw_mounted("box") as root:
        do(Path(root))
    long, asked = LayerStore.copy_rw, list[str]()

    def watched(self: LayerStore, name: str) -> Layer | None:
        asked.append(name)
        return long(self, name)

    monkeypatch.setattr(LayerStore, "copy_rw", watched)
    layer = copy_layer(bench.layers, "box")
    assert layer
    assert asked == ["box"]
    bench.layers.tar_of(layer.chain_id, lambda data: None)
    if do is annotate:
        with bench.driver.opened(layer.cache_id) as tree:
            assert os.getxattr(f"{tree}/srv/new", "user.note") == b"kept"


def test_a_file_that_a_container_changes_meanwhile_is_committed_as_it_is_then(
    bench: Workbench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    begun(bench)
    with bench.layers.rw_mounted("box") as root:
        grow(Path(root))
    make = arrivals.make_directories

    def changing(arrival: arrivals.Arrival, target: object) -> object:
        with open(f"{arrival.tree.root}/srv/deep/3/3", "ab") as file:
            file.write(b"more")
        return make(arrival, target)  # type: ignore[arg-type]

    monkeypatch.setattr(arrivals, "make_directories", changing)
    ids = bench.driver.ids()
    layer = copy_layer(bench.layers, "box")
    assert layer
    bench.layers.tar_of(layer.chain_id, lambda data: None)
    with bench.driver.opened(layer.cache_id) as tree:
        assert Path(tree, "srv/deep/3/3").read_bytes().endswith(b"more")
    assert len(bench.driver.ids()) == len(ids) + 1
