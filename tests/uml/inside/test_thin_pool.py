"""The model of a thin pool and the kernel's use the same number of blocks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidocker import devices, thin
from minidocker import loops as loops_
from minidocker.calls import SysError
from minidocker.devices import DeviceMapper, ThinPool


BYTES = devices.BLOCK * loops_.SECTOR
SECTORS = thin.DEVICE_BLOCKS * devices.BLOCK
SIZE = 40  # blocks of the pool
IDS, BLOCKS = st.integers(0, 4), st.integers(0, thin.DEVICE_BLOCKS - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create_thin"), IDS),
        st.tuples(st.just("create_snap"), IDS, IDS),
        st.tuples(st.just("write"), IDS, BLOCKS),
        st.tuples(st.just("write"), IDS, BLOCKS),
        st.tuples(st.just("discard"), IDS, BLOCKS),
        st.tuples(st.just("delete"), IDS),
    ),
    min_size=5,
    max_size=30,
)
Step = tuple[str, ...]


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[str]]:
    """Two loop devices: metadata, data."""
    found = []
    for name, size in (("metadata", 2 << 20), ("data", SIZE * BYTES)):
        path = tmp_path / name
        path.touch()
        os.truncate(path, size)
        found.append(loops_.attach_loop(str(path)))
    yield found
    for loop in found:
        loops_.detach_loop(loop)


class Real:
    """The kernel's pool, driven by the model's words."""

    def __init__(self, dm: DeviceMapper, loops: list[str]) -> None:
        with open(loops[0], "r+b") as metadata:
            metadata.write(bytes(4096))
        self.dm, self.pool = dm, ThinPool("test-pool", *loops)
        devices.create(dm, "test-pool", self.pool.table())

    def used(self) -> int:
        return devices.pool_status(self.dm, self.pool).data[0]

    def close(self) -> None:
        devices.deactivate(self.dm, "test-pool")

    def with_disk(self, id: int) -> str:
        return devices.activate(self.dm, self.pool, "test-thin", id, SECTORS)

    def step(self, name: str, *args: int | str) -> None:
        if name in ("write", "discard"):
            id, block, *word = args
            disk = self.with_disk(int(id))
            if name == "write":
                with open(disk, "r+b", buffering=0) as file:
                    file.seek(int(block) * BYTES)
                    file.write(str(word[0]).encode().ljust(BYTES, b"\0"))
                    os.fsync(file.fileno())
            else:
                loops_.discard_range(disk, int(block) * devices.BLOCK, devices.BLOCK)
            devices.deactivate(self.dm, "test-thin")
        else:
            getattr(devices, name)(self.dm, self.pool, *args)

    def words(self, id: int) -> list[str]:
        disk = self.with_disk(id)
        with open(disk, "rb") as file:
            data = file.read()
        devices.deactivate(self.dm, "test-thin")
        blocks = [data[n : n + 20] for n in range(0, len(data), BYTES)]
        return [block.rstrip(b"\0").decode() for block in blocks]


def outcome(action: object, *args: object) -> int:
    """0, or the errno."""
    try:
        action(*args)  # type: ignore[operator]
    except OSError as why:
        return why.errno or 0
    return 0


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_model_and_kernel_use_the_same_blocks(
    loops: list[str], steps: list[Step]
) -> None:
    model = thin.Pool(SIZE)
    with DeviceMapper() as dm:
        real = Real(dm, loops)
        try:
            for number, (name, *args) in enumerate(steps):
                if name in ("write", "discard") and args[0] not in model.roots:
                    continue
                words = [f"w{number}"] * (name == "write")
                ours = outcome(getattr(thin, name), model, *args, *words)
                theirs = outcome(real.step, name, *args, *words)
                assert (ours, model.usage().used) == (theirs, real.used()), (name, args)
            for id in model.roots:
                found = [thin.read(model, id, n) for n in range(thin.DEVICE_BLOCKS)]
                assert real.words(id) == found
        finally:
            devices.deactivate(dm, "test-thin")
            real.close()


def test_what_the_kernel_refuses_reads_like_strace() -> None:
    with DeviceMapper() as dm, pytest.raises(SysError, match="DM_TABLE_LOAD"):
        devices.create(dm, "bad", [devices.Target(0, 8, "linear", "nothing 0")])
    with DeviceMapper() as dm:
        assert "bad" not in devices.devices(dm)


def test_loops_of_a_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    loop = loops_.attach_loop(str(path))
    assert loops_.loops_of(str(path)) == [loop]
    assert loops_.sectors_of(loop) == 2048
    os.truncate(path, 2 << 20)
    loops_.reread_size(loop)
    assert loops_.sectors_of(loop) == 4096
    loops_.detach_loop(loop)
    assert loops_.loops_of(str(path)) == []
