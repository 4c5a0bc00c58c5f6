"""``union`` for a user without root: fusermount3 mounts, and only the user looks in."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.somebody import NUMBER, User, somebody
from cli.stage import wait_until


pytestmark = pytest.mark.root


@pytest.fixture
def user() -> Iterator[User]:
    with somebody(None) as found:
        yield found


def said(user: User, script: str, *words: str) -> str:
    """What a script of the user's says."""
    argv = user.as_user("/bin/sh", "-c", script, "sh", *words)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_user_mounts_a_union_of_directories_of_one_s_own(user: User) -> None:
    home = user.root.parent
    said(user, 'cd "$1" && mkdir below mine shown && echo old > below/file', str(home))
    target = str(home / "shown")
    user.says("union", "-d", target, f"rw={home}/mine", f"ro={home}/below")
    try:
        script = 'cd "$1"; cat file; echo new > file; echo more > other; cat file; ls'
        assert said(user, script, target) == "old\nnew\nfile\nother\n"
        assert (home / "below/file").read_text() == "old\n"
        assert (home / "mine/file").read_text() == "new\n"
        assert (home / "mine/file").stat().st_uid == NUMBER
        assert said(user, 'rm "$1/file"; ls "$1"', target) == "other\n"
        assert (home / "mine/.wh.file").exists()
        with pytest.raises(PermissionError):  # not even root, unless the user says so
            Path(target, "other").read_text()
    finally:
        assert said(user, 'fusermount3 -u "$1"', target) == ""
    wait_until(lambda: said(user, 'ls "$1"', target) == "")


def test_a_directory_of_somebody_else_s_is_refused(user: User) -> None:
    other = user.root.parent / "other"
    other.mkdir()
    done = user("union", str(other), f"rw={user.root.parent}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not Path("/proc/self/mountinfo").read_text().count(str(other))
