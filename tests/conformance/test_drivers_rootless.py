"""What an archive may do, once more for the root of a user namespace with one id."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_layers_good_and_hostile_are_the_same_without_root(tmp_path: Path) -> None:
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no user namespaces here: {probe.stderr.decode().strip()}")
    argv = [*UNSHARE, sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    argv += ["-k", "same_tree or same_bytes or hostile or leaves_nothing"]
    done = subprocess.run(
        [*argv, f"--basetemp={tmp_path}/inner", str(HERE / "test_drivers.py")],
        capture_output=True,
        check=False,
        text=True,
        env=dict(os.environ),  # also MINIDOCKER_NO_SKIP: nothing is skipped
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
