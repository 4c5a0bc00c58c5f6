"""Metadata that thin_restore has written reads as thin_dump says, and damage is found."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from minidocker.errors import IntegrityError
from minidocker.poolmetadata import (
    BLOCK_SIZE,
    MetadataDisk,
    metadata_faults,
    read_contents,
    read_counts,
)


DEVICES = 40


def described() -> str:
    """Return a pool as thin_restore reads it: snapshots with shared and own blocks."""
    lines = [
        '<superblock uuid="" time="3" transaction="9" flags="0" version="2"'
        ' data_block_size="128" nr_data_blocks="40000">'
    ]
    for id in range(DEVICES):
        lines.append(
            f'<device dev_id="{id * 7}" mapped_blocks="{700 + id}" transaction="{id}" creation_time="0" snap_time="1">'
        )
        lines.append(
            '<range_mapping origin_begin="0" data_begin="17000" length="700" time="1"/>'
        )
        if id:
            lines.append(
                f'<range_mapping origin_begin="5000" data_begin="{id * 100}" length="{id}" time="2"/>'
            )
        lines.append("</device>")
    return "\n".join([*lines, "</superblock>"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    if not shutil.which("thin_restore"):
        pytest.skip("needs thin_restore, of thin-provisioning-tools")
    (tmp_path / "pool.xml").write_text(described())
    disk = tmp_path / "disk"
    disk.touch()
    with open(disk, "r+b") as file:
        file.truncate(8 << 20)
    words = ["thin_restore", "-i", str(tmp_path / "pool.xml"), "-o", str(disk)]
    subprocess.run(words, check=True, capture_output=True)
    return disk


def test_devices_blocks_and_counts_are_those_that_were_written(path: Path) -> None:
    disk = MetadataDisk(str(path))
    found = read_contents(disk)
    counts = read_counts(disk, found.superblock.space)
    disk.close()
    assert found.superblock.transaction == 9
    assert [one.id for one in found.devices] == [id * 7 for id in range(DEVICES)]
    assert [one.mapped for one in found.devices] == [700 + id for id in range(DEVICES)]
    wanted = Counter(dict.fromkeys(range(17000, 17700), DEVICES))
    wanted.update(id * 100 + n for id in range(DEVICES) for n in range(id))
    assert counts == wanted
    assert found.uses == wanted
    assert found.own({7 * 7}) == 7 * 65536
    assert found.own({id * 7 for id in range(DEVICES)}) == len(wanted) * 65536
    assert list(metadata_faults(found, counts)) == []


def test_a_changed_byte_of_any_block_that_is_used_is_found(path: Path) -> None:
    whole = path.read_bytes()
    found = 0
    for block in range(30):
        with open(path, "r+b") as file:
            file.seek(block * BLOCK_SIZE + 100)
            file.write(bytes([whole[block * BLOCK_SIZE + 100] ^ 1]))
        if said := damage(path):
            assert f"block {block}:" in said
            found += 1
        path.write_bytes(whole)
    assert found > 5


def damage(path: Path) -> str:
    """Read everything; return what is said of a damaged block."""
    disk = MetadataDisk(str(path))
    try:
        read_counts(disk, read_contents(disk).superblock.space)
    except IntegrityError as why:
        return str(why)
    finally:
        disk.close()
    return ""


def test_a_file_that_is_no_pool_is_told(tmp_path: Path) -> None:
    for data in (b"", bytes(BLOCK_SIZE)):
        (tmp_path / "disk").write_bytes(data)
        disk = MetadataDisk(str(tmp_path / "disk"))
        with pytest.raises(IntegrityError):
            read_contents(disk)
        disk.close()
