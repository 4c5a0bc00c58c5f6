"""A look-up below a root does not fail because somebody renames something elsewhere."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from minidocker import linux
from minidocker.calls import SysError
from minidocker.linux import openat2


TRIES = 3000
UP_AND_DOWN = "a/../" * 10 + "a"


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[None]:
    """A child that renames a file of its own, without end."""
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    Path(one).touch()
    child = os.fork()
    if child == 0:
        while True:
            os.rename(one, other)
            os.rename(other, one)
    yield
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def refusals(root: int) -> int:
    refused = 0
    for _ in range(TRIES):
        try:
            os.close(openat2(root, UP_AND_DOWN, os.O_PATH))
        except SysError as why:
            if why.errno != errno.EAGAIN:
                raise
            refused += 1
    return refused


def test_a_rename_elsewhere_is_waited_for(
    tmp_path: Path, busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    root = os.open(tmp_path / "root", os.O_PATH)
    try:
        assert refusals(root) == 0
        monkeypatch.setattr(linux, "ATTEMPTS", 1)
        disturbed = any(refusals(root) for _ in range(100))
        assert disturbed, "the kernel was never disturbed: this shows nothing"
    finally:
        os.close(root)
