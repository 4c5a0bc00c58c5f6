"""A commit of a container that stays: its layer is what its tar says, made once."""

import os
from pathlib import Path

import pytest
from test_arrivals import bench  # noqa: F401
from workbench import Workbench

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
