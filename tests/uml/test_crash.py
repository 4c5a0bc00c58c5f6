"""The kernel dies at any moment of a build, and what was built before is whole.

`make crashes` kills it twenty times, in some four minutes; otherwise it is two, to save time.
"""

import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CRASHES = int(os.environ.get("MINIDOCKER_CRASHES", "2"))
SEED = int(time.time() // 86_400)


def boot(disk: Path, turn: int) -> subprocess.Popen[bytes]:
    """Start a guest that verifies the store, and builds until it is killed."""
    words = [
        sys.executable,
        str(HERE / "machine.py"),
        "--timeout",
        "300",
        "--disk",
        str(disk),
    ]
    words += ["--see", str(ROOT), "--"]
    words += [
        sys.executable,
        str(HERE / "crashing.py"),
        "/dev/ubda",
        "/run/disk",
        str(turn),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def said_until(guest: subprocess.Popen[bytes], word: str, seconds: float) -> str:
    """Read what a guest says until a word comes, or the time is up, or it ends."""
    assert guest.stdout
    said, until = b"", time.monotonic() + seconds
    while word.encode() not in said and time.monotonic() < until:
        if select.select([guest.stdout], [], [], 0.1)[0]:
            data = os.read(guest.stdout.fileno(), 65536)
            if not data:
                break
            said += data
    return said.decode(errors="replace")


@pytest.mark.root
def test_a_kernel_that_dies_leaves_a_whole_store(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 1 << 30)
    dice, built = random.Random(SEED), 0
    for turn in range(CRASHES + 1):
        guest = boot(disk, turn)
        said = said_until(guest, "verified", 240)
        assert "verified" in said, f"after crash {turn} (seed {SEED}): {said}"
        if turn < CRASHES:
            built += said_until(guest, "broken", dice.uniform(0.1, 5)).count("built\n")
        guest.kill()  # its watcher kills the guest's kernel with it
        left = guest.communicate()[0].decode(errors="replace")
        assert "broken" not in left, left
    print(f"{CRASHES} crashes, {built} builds ended before one")
