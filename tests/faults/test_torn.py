"""Whatever file of a store is torn, every command works or says so in a clear line."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.scenes import Stage, import_all
from faults.torn import COMMANDS, EVERYTHING, records, unclear, wrongs


pytestmark = pytest.mark.root
ALL = os.environ.get("MINIDOCKER_FAULTS") == "all"
STEP = 1 if ALL else 6
TODAY = int(time.time() // 86_400)


class FullStage(Stage):
    """A store that has a thing of every kind."""

    def prepare(self) -> None:
        """Make also what is seldom there."""
        super().prepare()
        for words in EVERYTHING:
            [(status, said)] = self.do(words)
            assert status == 0, (words, said)


@pytest.fixture(scope="module", params=["overlay2"] + ["vfs"] * ALL)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A store in memory with everything in it."""
    import_all()
    place = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    made = FullStage(Path(place), request.param)
    yield made
    made.end()


def test_of_the_store_that_is_whole_every_command_is_done(stage: Stage) -> None:
    stage.begin()
    for words, (status, said) in zip(COMMANDS, stage.do(*COMMANDS), strict=True):
        assert status == 0, (words, said)


@pytest.mark.parametrize("half", [False, True], ids=["empty", "half"])
def test_a_torn_file_is_told_in_a_clear_line_or_does_not_matter(
    stage: Stage, *, half: bool
) -> None:
    kinds = records(stage.first)
    assert len(kinds) > 20, kinds
    chosen = list(kinds.values())[(TODAY + half * 3) % STEP :: STEP]
    wrong = [one for path in chosen for one in wrongs(stage, path, half=half)]
    assert not wrong, "\n".join(wrong)


def test_what_nobody_would_understand_is_found_out() -> None:
    assert unclear(1, "Traceback (most recent call last)") == "a traceback"
    assert unclear(99, "no") == "the status 99"
    assert unclear(1, "") == "no word"
    assert not unclear(1, "minidocker: the record is damaged")
