"""podman and conmon with our runtime, which get a path and nothing more."""

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci.conftest import make_tree


pytestmark = pytest.mark.root


# more than the usual ones, which not every machine may give
ULIMITS = ("--ulimit", "nofile=256:256", "--ulimit", "nproc=1000:1000")


class Podman:
    """podman with a storage of its own; a network namespace keeps it apart."""

    def __init__(self, root: Path, runtime: str) -> None:
        self.root, self.runtime = root, runtime

    def __call__(
        self, *words: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        argv = [
            "podman",
            "--root",
            f"{self.root}/root",
            "--runroot",
            f"{self.root}/run",
        ]
        argv += ["--tmpdir", f"{self.root}/tmp", "--storage-driver", "vfs"]
        argv += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        argv += ["--runtime", self.runtime, *words]
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.root)}
        done = subprocess.run(
            argv, input=stdin, capture_output=True, check=False, env=env, timeout=120
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def says(self, *words: str, stdin: bytes = b"") -> str:
        done = self(*words, stdin=stdin)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def short_path() -> Iterator[Path]:
    """podman's run root may have fifty characters."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pod") as place:
        yield Path(place)


@pytest.fixture
def podman(short_path: Path, program: Path) -> Iterator[Podman]:
    tree = short_path / "tree"
    make_tree(tree)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(tree, ".")
    podman = Podman(short_path, str(program))
    podman.says("import", "-", "small", stdin=out.getvalue())
    yield podman
    podman("rm", "-af", "-t", "0")
    for kind in ("root", "run"):
        subprocess.run(
            ["umount", "-lR", str(short_path / kind)], check=False, capture_output=True
        )


def test_containers_exec_and_limits(podman: Podman) -> None:
    run = ("run", "--network", "none", *ULIMITS)
    assert podman(*run, "--rm", "small", "sh", "-c", "exit 42").returncode == 42
    assert podman(*run, "--rm", "small", "nothere").returncode == 127
    limits = ("--memory", "32m", "--pids-limit", "20", "--user", "7:8")
    script = "id -u; cat /sys/fs/cgroup/pids/pids.max; readlink /proc/self/cwd"
    found = podman.says(*run, "--rm", *limits, "small", "sh", "-c", script)
    assert found == "7\n20\n/\n"
    assert podman.says(*run, "--rm", "-t", "small", "tty").strip() == "/dev/pts/0"
    podman.says(*run, "-d", "--name", "box", "small", "sleep", "60")
    assert podman("exec", "box", "sh", "-c", "exit 7").returncode == 7
    assert podman("exec", "box", "nothere").returncode == 127
    assert podman.says("exec", "-i", "box", "cat", stdin=b"in") == "in"
    podman.says("pause", "box")
    assert podman.says("inspect", "-f", "{{.State.Status}}", "box") == "paused\n"
    podman.says("unpause", "box")
    podman.says("kill", "box")
    assert podman.says("wait", "box") == "137\n"
    podman.says("rm", "box")


def test_owners_by_another_map(podman: Podman) -> None:
    """A user namespace for the container alone, and the files of the image shifted into it."""
    run = ("run", "--rm", "--network", "none", *ULIMITS)
    found = podman.says(
        *run,
        "--uidmap",
        "0:100000:5000",
        "small",
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; stat -c %u /bin",
    )
    assert found.split() == ["0", "0", "100000", "5000", "0"]
