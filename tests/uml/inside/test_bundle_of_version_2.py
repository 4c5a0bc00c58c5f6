"""A bundle on control groups of version 2: its limits, what it may open, its end."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


CODE = "from minidocker.runtime_verbs import script; script()"
GROUP = Path("/sys/fs/cgroup/minidocker-oci/box")
RESOURCES = {
    "memory": {"limit": 64 << 20, "swap": 96 << 20},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
    "pids": {"limit": 20},
    "devices": [{"allow": False, "access": "rwm"}],
    "unified": {"memory.high": "50331648"},
}
OPEN = "cat /proc/self/cgroup; (: </dev/null) && echo null; (: </dev/mine) && echo mine; sleep 60"


def runtime(root: Path, *words: str) -> str:
    """What a call says; a file of its own, since a container keeps it."""
    argv = [sys.executable, "-c", CODE, "--root", str(root), *words]
    null = subprocess.DEVNULL
    with open(root.parent / f"out-{words[0]}", "w+") as out:
        subprocess.run(
            argv, stdin=null, stdout=out, stderr=out, check=False, timeout=30
        )
        out.seek(0)
        return out.read()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tree = tmp_path / "rootfs"
    (tree / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in ("sh", "cat", "sleep"):
        (tree / "bin" / name).symlink_to("busybox")
    kinds = ("mount", "pid", "cgroup", "ipc", "uts")
    group = {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]}
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {"args": ["sh", "-c", OPEN], "cwd": "/", "env": ["PATH=/bin"]},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            group,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "cgroupsPath": "/minidocker-oci/box",
            "resources": RESOURCES,
            "devices": [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 11}],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_limits_devices_and_the_freezer(bundle: Path) -> None:
    root = bundle / "state"
    said = runtime(root, "create", "--bundle", str(bundle), "box")
    assert said == "", said
    found = {
        name: (GROUP / name).read_text().strip()
        for name in ("memory.max", "pids.max", "cpu.max", "cpu.weight", "memory.high")
    }
    assert found == {
        "memory.max": f"{64 << 20}", "pids.max": "20", "cpu.max": "50000 100000",
        "cpu.weight": "20", "memory.high": "50331648",
    }  # fmt: skip
    assert runtime(root, "start", "box") == ""
    for verb, status in (("pause", "paused"), ("resume", "running")):
        assert runtime(root, verb, "box") == ""
        assert json.loads(runtime(root, "state", "box"))["status"] == status
    runtime(root, "kill", "--all", "box", "KILL")
    end = time.monotonic() + 10
    while '"stopped"' not in runtime(root, "state", "box") and time.monotonic() < end:
        time.sleep(0.05)
    assert runtime(root, "delete", "box") == ""
    assert not GROUP.exists()
    os.rmdir(GROUP.parent)


def test_a_program_decides_what_is_opened(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["cgroupsPath"] = "/minidocker-oci/other"
    config["process"]["args"][2] = OPEN.replace("sleep 60", "true")
    (bundle / "config.json").write_text(json.dumps(config))
    said = runtime(bundle / "state", "run", "--bundle", str(bundle), "box")
    assert "0::/\n" in said
    assert "null\n" in said
    assert "mine\n" not in said
    assert "Operation not permitted" in said
    os.rmdir(GROUP.parent)
