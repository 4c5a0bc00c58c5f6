"""What a pool's metadata says is read as thin_dump reads it, and damage is told and mended."""

import re
import subprocess
from contextlib import closing

import pytest
from test_devicemapper import SMALL, Store, no_devices, until

from minidocker.devicemapper import Devicemapper
from minidocker.devices import create_snap, delete
from minidocker.loops import attach_loop, detach_loop
from minidocker.poolmetadata import (
    MetadataDisk,
    metadata_faults,
    read_contents,
    read_counts,
)
from minidocker.poolrecords import parse_options
from minidocker.thinpool import open_session


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a build, some of its blocks shared, and a container."""
    place = tmp_path_factory.mktemp("pool")
    store = Store(place / "dm", "devicemapper")
    store.build("built", "FROM minidocker/base\n" + "RUN echo x >> /x\n" * 2)
    store.do("run", "--name", "box", "built", "sh", "-c", "echo more > /more")
    until(no_devices)
    return store


def driver_of(store: Store) -> Devicemapper:
    return Devicemapper(str(store.root), options=parse_options(SMALL))


def test_what_we_read_of_a_pool_is_what_thin_dump_says(store: Store) -> None:
    path = driver_of(store).disks.pool.metadata
    with closing(MetadataDisk(path)) as disk:
        found = read_contents(disk)
        counts = read_counts(disk, found.superblock.space)
    loop = attach_loop(path)
    done = subprocess.run(
        ["thin_dump", loop], capture_output=True, text=True, check=False
    )
    detach_loop(loop)
    assert done.returncode == 0, done.stderr
    devices = re.findall(r'<device dev_id="(\d+)" mapped_blocks="(\d+)"', done.stdout)
    assert [(one.id, one.mapped) for one in found.devices] == [
        (int(id), int(mapped)) for id, mapped in devices
    ]
    assert len(devices) > 4
    assert list(metadata_faults(found, counts)) == []
    assert max(counts.values()) > 1  # something is shared below the roots


def test_a_store_whose_pool_is_in_use_is_clean(store: Store) -> None:
    id = store.do("run", "-d", "built", "sleep", "100")
    assert store.do("system", "check") == ""
    store.do("rm", "-f", id)
    until(no_devices)
    assert store.do("system", "check") == ""


def test_a_device_that_is_no_layers_is_told_with_its_size_and_given_back(
    store: Store,
) -> None:
    driver = driver_of(store)
    layer = driver.ids()[-1]
    with open_session(driver.disks) as session:
        create_snap(
            session.dm, session.pool, 777, driver.records.layer(layer).device_id
        )
    [stray] = driver.strays()
    assert stray.size == 0  # all is shared yet
    said = store.do("system", "check", status=1)
    assert "thin device 777: it is no layer's, and has 0B" in said
    store.do("system", "check", "--repair")
    assert store.do("system", "check") == ""
    assert not driver.strays()


def test_a_layer_whose_device_has_gone_is_a_fault(store: Store) -> None:
    driver = driver_of(store)
    box = store.do("ps", "-aq", "--no-trunc")
    home = store.root / "image/devicemapper/layerdb/mounts" / box / "mount-id"
    id = driver.records.layer(home.read_text()).device_id
    with open_session(driver.disks) as session:
        delete(session.dm, session.pool, id)
    said = store.do("system", "check", status=1)
    assert f"its device {id} is not in the pool" in said
    assert f"`minidocker rm {box[:12]}`" in said
    store.do("rm", box)
    assert store.do("system", "check") == ""


def test_what_only_one_layer_has_comes_back_when_it_goes(store: Store) -> None:
    driver = driver_of(store)
    store.do(
        "run",
        "--name",
        "big",
        "built",
        "sh",
        "-c",
        "dd if=/dev/zero of=/b bs=1M count=4 conv=fsync",
    )
    until(no_devices)
    box = store.do("ps", "-aq", "--no-trunc", "-f", "name=big")
    home = store.root / "image/devicemapper/layerdb/mounts" / box / "mount-id"
    [size] = driver.space([home.read_text()])
    assert size >= 4 << 20
    before = int(driver.report()["Data Space Used"])
    store.do("rm", "big")
    until(no_devices)
    assert before - int(driver.report()["Data Space Used"]) == size


def test_a_root_that_a_killed_checker_held_is_let_go(store: Store) -> None:
    driver = driver_of(store)
    with driver.held(), open_session(driver.disks) as session:
        from minidocker.devices import tell

        tell(session.dm, session.pool, "reserve_metadata_snap")
    assert store.do("system", "check") == ""


def test_no_device_is_given_back_while_a_record_cannot_be_read(store: Store) -> None:
    driver = driver_of(store)
    layer = driver.ids()[0]
    path = store.root / "devicemapper/metadata" / layer
    text = path.read_text()
    path.write_text("")
    assert not driver.strays()
    said = store.do("system", "check", status=1)
    assert "which device it is cannot be read" in said
    store.do("system", "check", "--repair", status=1)
    path.write_text(text)
    assert store.do("system", "check") == ""
