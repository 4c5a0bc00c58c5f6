"""The model of a thin pool gives each device its own words, and counts every use."""

import errno
import os
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minidocker.thin import (
    DEVICE_BLOCKS,
    Origin,
    Pool,
    arrows,
    create_snap,
    create_thin,
    delete,
    discard,
    drawn,
    read,
    write,
)


DEVICES = st.integers(0, 5)
BLOCKS = st.integers(0, DEVICE_BLOCKS - 1)
SIZE = 24


class ThinPool(RuleBasedStateMachine):
    """A pool beside the plainest thing it could be: a dictionary for each device."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(SIZE, low_water=4)
        self.plain: dict[int, dict[int, str]] = {}
        self.words = 0

    def refused(self, number: int, action: object, *args: object) -> None:
        with pytest.raises(OSError, match=os.strerror(number)):
            action(self.pool, *args)  # type: ignore[operator]

    @rule(device=DEVICES)
    def create(self, device: int) -> None:
        if device in self.plain:
            self.refused(errno.EEXIST, create_thin, device)
        else:
            create_thin(self.pool, device)
            self.plain[device] = {}

    @rule(device=DEVICES, origin=DEVICES)
    def snap(self, device: int, origin: int) -> None:
        if device in self.plain:
            self.refused(errno.EEXIST, create_snap, device, origin)
        elif origin not in self.plain:
            self.refused(errno.ENODATA, create_snap, device, origin)
        else:
            before = self.pool.usage()
            create_snap(self.pool, device, origin)
            assert self.pool.usage() == before
            self.plain[device] = dict(self.plain[origin])

    @rule(device=DEVICES, block=BLOCKS)
    def write(self, device: int, block: int) -> None:
        if device not in self.plain:
            self.refused(errno.ENODATA, write, device, block, "")
            return
        self.words += 1
        word, before = f"w{self.words}", self.pool.usage()
        if before.free or self.alone(self.plain[device].get(block)):
            write(self.pool, device, block, word)
            self.plain[device][block] = word
        else:
            self.refused(errno.ENOSPC, write, device, block, word)
            assert self.pool.usage() == before

    def alone(self, word: str | None) -> bool:
        """Whether one device only has this word."""
        return [word in words.values() for words in self.plain.values()].count(
            True
        ) == 1

    @rule(device=DEVICES, block=BLOCKS)
    def discard(self, device: int, block: int) -> None:
        if device in self.plain:
            discard(self.pool, device, block)
            self.plain[device].pop(block, None)
        else:
            self.refused(errno.ENODATA, discard, device, block)

    @rule(device=DEVICES)
    def delete(self, device: int) -> None:
        if self.plain.pop(device, None) is None:
            self.refused(errno.ENODATA, delete, device)
        else:
            delete(self.pool, device)

    @invariant()
    def every_device_reads_its_own_words(self) -> None:
        for device, words in self.plain.items():
            found = [read(self.pool, device, n) for n in range(DEVICE_BLOCKS)]
            assert found == [words.get(n, "") for n in range(DEVICE_BLOCKS)]

    @invariant()
    def used_are_the_different_words(self) -> None:
        words = {word for device in self.plain.values() for word in device.values()}
        assert self.pool.usage().used == len(words)

    @invariant()
    def counts_are_the_arrows(self) -> None:
        uses = Counter(head for _, head in arrows(self.pool))
        counted = {f"node {n}": c for n, c in self.pool.metadata.counts.items()}
        counted |= {f"block {n}": c for n, c in self.pool.data.counts.items()}
        assert uses == counted
        assert drawn(self.pool) == uses.keys() | {f"device {d}" for d in self.plain}


TestThinPool = ThinPool.TestCase
TestThinPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_alarm_sounds_once_until_the_pool_grows() -> None:
    pool = Pool(4, low_water=2)
    create_thin(pool, 0)
    alarms = []
    for block in range(4):
        write(pool, 0, block, "x")
        alarms.append(pool.alarms)
    assert alarms == [0, 1, 1, 1]
    pool.grow(3)
    write(pool, 0, 4, "x")
    assert pool.alarms == 2


@pytest.mark.parametrize("id", [-1, 1 << 24])
def test_an_id_has_24_bits(id: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        create_thin(Pool(1), id)


def test_a_classic_snapshot_pays_for_each_write_to_its_origin() -> None:
    origin = Origin(["a", "b"])
    first, second = origin.snapshot(), origin.snapshot()
    second.write(0, "mine")
    origin.write(0, "A")
    origin.write(0, "AA")
    assert (first.read(0), second.read(0), origin.blocks[0]) == ("a", "mine", "AA")
    assert origin.copies == 1
