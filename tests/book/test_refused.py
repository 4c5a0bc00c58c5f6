"""Where a user may mount nothing and make no namespace, as in Binder, a demo says so in a line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cells import RUN_DEMOS

from minidocker.linux import CloneFlags, unshare
from minidocker.tangle import Pair, cells, chapters


ROOT = Path(__file__).parents[2]
SOMEBODY = 4242


def become_nobody_in_particular(mapped: int, ready: int) -> None:
    """Enter a user namespace in which no other can be made, as an ordinary user."""
    unshare(CloneFlags.NEWUSER)
    os.write(ready, b"x")
    os.read(mapped, 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
    os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)


def run_refused(code: str) -> subprocess.CompletedProcess[str]:
    ready, mapped = os.pipe(), os.pipe()
    mapper = os.fork()
    if mapper == 0:
        # Every id is mapped to itself by somebody outside, who is told when.
        os.read(ready[0], 1)
        parent = f"/proc/{os.getppid()}/task/{os.getppid()}/children"
        pid = int(Path(parent).read_text().split()[-1])
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text("0 0 65536")
        os.write(mapped[1], b"x")
        os._exit(0)
    try:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HOME": "/nonexistent", "XDG_DATA_HOME": "/nonexistent"},
            preexec_fn=lambda: become_nobody_in_particular(mapped[0], ready[1]),
            capture_output=True,
            check=False,
            text=True,
        )
    finally:
        os.waitpid(mapper, 0)
        for end in (*ready, *mapped):
            os.close(end)


@pytest.mark.root
@pytest.mark.parametrize("pair", chapters(ROOT), ids=lambda pair: pair.name)
def test_a_demo_says_in_a_line_what_is_refused(pair: Pair):
    code = RUN_DEMOS.format(
        path=[str(ROOT)],
        name=pair.name,
        book=str(ROOT / "book"),
        chapter=str(pair.chapter),
        demos=[(c.start, c.source) for c in cells(pair.chapter.read_text()) if c.demo],
    )
    done = run_refused(code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.parametrize("flag", ["NEWUSER", "NEWNS", "NEWUTS"])
def test_nothing_is_allowed_there(flag: str):
    code = (
        f"from minidocker.linux import CloneFlags, unshare; unshare(CloneFlags.{flag})"
    )
    assert "SysError: unshare(CLONE_" in run_refused(code).stderr
