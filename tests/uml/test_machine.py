"""What this machine's kernel may lack runs in a guest: device-mapper, cgroup v2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MACHINE = [sys.executable, str(HERE / "machine.py")]


def in_guest(
    *command: str, timeout: int = 120, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = [*MACHINE, "--timeout", str(timeout), "--see", str(ROOT), *options]
    return subprocess.run(
        [*words, "--", *command], capture_output=True, text=True, check=False
    )


def test_a_guest_gives_back_what_its_command_says_and_its_status() -> None:
    script = "echo out; echo err >&2; exit 3"
    done = in_guest("sh", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_a_guest_that_takes_too_long_is_ended() -> None:
    done = in_guest("sleep", "100", timeout=3)
    assert done.returncode == 124
    assert "the time is up" in done.stderr


def test_what_a_guest_writes_is_thrown_away(tmp_path: Path) -> None:
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    kept.mkdir()
    lost.mkdir()
    script = f"echo 1 > {kept}/a; echo 1 > {lost}/a; cat {lost}/a"
    done = in_guest(
        "sh", "-c", script, options=("--writable", str(kept), "--see", str(lost))
    )
    assert (done.stdout, os.listdir(kept), os.listdir(lost)) == ("1\n", ["a"], [])


CONFORMANCE = [
    str(ROOT / "tests" / "conformance" / name)
    for name in ("test_drivers.py", "test_diffs.py")
]


# AppArmor is in the guest's kernel, and off unless asked for
OPTIONS = {
    "test_labels": ("--kernel", "apparmor=1", "--kernel", "lsm=capability,apparmor")
}
INSIDE = sorted((HERE / "inside").glob("test_*.py"))


@pytest.mark.root
@pytest.mark.parametrize(
    "chosen",
    [*([str(one)] for one in INSIDE), [*CONFORMANCE, "-k", "devicemapper"]],
    ids=[*(one.stem for one in INSIDE), "every driver's suite on devicemapper"],
)
def test_what_needs_another_kernel_passes_there(chosen: list[str]) -> None:
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q"]
    words += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    more = OPTIONS.get(Path(chosen[0]).stem, ())
    done = in_guest(sys.executable, *words, *chosen, timeout=280, options=more)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
