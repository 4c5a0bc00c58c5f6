"""A pool that runs low grows, in data and in metadata; what is removed is given back."""

import os
from pathlib import Path

import pytest

from minidocker import thinpool
from minidocker.devicemapper import Devicemapper
from minidocker.errors import MinidockerError
from minidocker.poolrecords import PoolOptions
from minidocker.thinpool import open_session


MIB = 1 << 20
SIZES = {"base_size": 64 * MIB, "data_size": 64 * MIB}


def driver_of(place: Path, **options: object) -> Devicemapper:
    wanted = SIZES | {"metadata_size": 4 * MIB} | options
    return Devicemapper(str(place), options=PoolOptions(**wanted))  # type: ignore[arg-type]


def fill(driver: Devicemapper, layer: str, parent: str | None, size: int) -> None:
    driver.create(layer, parent)
    with driver.mounted(layer, writable=True) as tree:
        for number in range(size):
            Path(tree, f"{layer}{number}").write_bytes(os.urandom(MIB))


def taken(driver: Devicemapper) -> int:
    return os.stat(driver.disks.pool.data).st_blocks * 512


@pytest.mark.parametrize("discard", [True, False])
def test_a_removed_layer_gives_its_room_back_to_the_host(
    tmp_path: Path, discard: bool
) -> None:
    driver = driver_of(tmp_path, discard=discard)
    with driver.held():
        fill(driver, "kept", None, 4)
        before = taken(driver)
        fill(driver, "gone", "kept", 16)
        full = taken(driver)
        driver.remove("gone")
        after = taken(driver)
        assert full - before > 15 * MIB
        assert (after - before < 4 * MIB) is discard
        with driver.mounted("kept", writable=False) as tree:
            assert len(Path(tree, "kept0").read_bytes()) == MIB
            assert sorted(os.listdir(tree)) == [f"kept{n}" for n in range(4)]


def test_metadata_grows_before_it_is_full(tmp_path: Path) -> None:
    driver = driver_of(tmp_path, metadata_size=MIB)
    with driver.held():
        fill(driver, "first", None, 1)
        before = int(driver.report()["Metadata Space Total"])
        for number in range(200):
            driver.create(f"layer{number}", "first")
            with driver.mounted(f"layer{number}", writable=True) as tree:
                Path(tree, "small").write_bytes(b"x")
            if int(driver.report()["Metadata Space Total"]) > before:
                break
        report = driver.report()
        assert report["Metadata Space Total"] == 2 * before
        with driver.mounted("layer0", writable=False) as tree:
            assert len(Path(tree, "first0").read_bytes()) == MIB
    assert list(driver.faults()) == []


def test_no_layer_is_made_where_little_is_free_and_nothing_can_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of(tmp_path, min_free=87)
    with driver.held():
        fill(driver, "first", None, 8)
        monkeypatch.setattr(thinpool, "lengthen", lambda path, device, by: False)
        with pytest.raises(MinidockerError, match="free data blocks, fewer than 890"):
            driver.create("second", "first")
        monkeypatch.undo()
        driver.create("second", "first")
        assert driver.report()["Data Space Total"] == 128 * MIB


def test_figures_add_up(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    fill(driver, "first", None, 2)
    report = driver.report()
    for kind in ("Data", "Metadata"):
        used, free, total = (
            int(report[f"{kind} Space {one}"]) for one in ("Used", "Available", "Total")
        )
        assert used + free == total
    assert report["Thin Pool Minimum Free Space"] == 102 * 65536
    assert str(report["Data file"]).startswith("/dev/loop")


def test_files_that_do_not_fit_the_pool_are_faults(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    fill(driver, "first", None, 1)
    fill(driver, "second", "first", 1)
    assert list(driver.faults()) == []
    first, second = driver.records.layer("first"), driver.records.layer("second")
    later = second.replace(device_id=first.device_id, transaction_id=99)
    driver.records.write("second", later)
    assert [what for _, what in driver.faults()] == [
        "the pool does not know the transaction that made it",
        "layer first has the same device",
    ]
    driver.records.write("second", second)
    with open_session(driver.disks) as session:
        assert session.status().mode == "rw"
