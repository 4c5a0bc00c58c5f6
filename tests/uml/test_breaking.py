"""Commands on devicemapper, broken at every call that changes a device, leave a whole store.

`make faults` does all of them, in an hour; otherwise it is four of one command each day.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ALL = os.environ.get("MINIDOCKER_FAULTS") == "all"
TODAY = int(time.time() // 86_400)
NAMES = (
    "import",
    "commit",
    "create",
    "run",
    "rm",
    "rmi",
    "build",
    "load",
    "pull",
    "prune",
)


@pytest.mark.root
@pytest.mark.parametrize("name", NAMES if ALL else (NAMES[TODAY % len(NAMES)],))
def test_a_command_that_is_broken_between_devices_leaves_a_whole_store(
    name: str,
) -> None:
    step = "1" if ALL else "31"
    words = [sys.executable, str(HERE / "machine.py"), "--mem", "1G"]
    words += ["--timeout", "3600" if ALL else "280", "--see", str(ROOT), "--"]
    words += [sys.executable, str(HERE / "breaking.py"), name, step, str(TODAY)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout.splitlines()[-1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " done" in done.stdout
