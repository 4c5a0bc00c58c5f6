"""The tests of building once more, by the root of a user namespace with one id."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_building_works_in_a_user_namespace(tmp_path: Path):
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no user namespaces here: {probe.stderr.decode().strip()}")
    argv = [*UNSHARE, sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    env = {k: v for k, v in os.environ.items() if k != "MINIDOCKER_NO_SKIP"}
    done = subprocess.run(
        [*argv, f"--basetemp={tmp_path}/inner", str(HERE / "test_building.py")],
        capture_output=True,
        check=False,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
