"""The guest's kernel is what the other tests here need."""

from pathlib import Path


def test_the_guest_has_device_mapper_and_cgroup_v2() -> None:
    assert Path("/dev/mapper/control").exists()
    found = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    assert {"cpu", "memory", "pids", "io"} <= set(found)
