"""Programs that judge us: a registry and a Docker daemon of the tests' own."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{root}/registry"}}, delete: {{enabled: true}}}}
http: {{addr: "{host}"}}
"""
# moby:whale, by bcrypt
HTPASSWD = "moby:$2y$05$abcdefghijklmnopqrstuuf/NlQ7CkknKqUoYZVO1qUVHV0pGwMU.\n"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(ready: object, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; its log is shown when it does not."""
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        if ready():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError(f"{process.args} did not start:\n{log.read_text()}")


@contextmanager
def running(argv: list[str], log: Path, ready: object, **env: str) -> Iterator[None]:
    """Run a server for a ``with`` block."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv, stdout=sink, stderr=sink, env={**os.environ, **env}
        )
        try:
            wait_for(ready, process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def docker_registry(root: Path, *, login: bool = False) -> Iterator[str]:
    """Run Debian's docker-registry; yield its host and port. ``moby:whale`` may in."""
    host = f"127.0.0.1:{free_port()}"
    text = REGISTRY.format(root=root, host=host)
    if login:
        (root / "htpasswd").write_text(HTPASSWD)
        text += f'auth: {{htpasswd: {{realm: tests, path: "{root}/htpasswd"}}}}\n'
    (root / "registry.yml").write_text(text)

    def ready() -> bool:
        name, _, port = host.partition(":")
        with socket.socket() as one:
            return one.connect_ex((name, int(port))) == 0

    argv = ["docker-registry", "serve", str(root / "registry.yml")]
    with running(argv, root / "registry.log", ready):
        yield host


class Docker:
    """Docker's client, and a daemon of its own below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root, self.socket = root, f"unix://{root}/docker.sock"

    def __call__(
        self, *words: str, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = ["/usr/bin/docker", "--host", self.socket, *words]
        env = {**os.environ, "DOCKER_CONFIG": str(self.root / "client")}
        done = subprocess.run(
            argv, input=stdin, capture_output=True, check=False, env=env, timeout=120
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(argv, done.returncode, out, err)

    def says(self, *words: str, stdin: bytes | None = None) -> str:
        """What a command that must succeed prints."""
        done = self(*words, stdin=stdin)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


@contextmanager
def docker_daemon(
    root: Path, *more: str, bridge: Literal["none", "own", "here"] = "none"
) -> Iterator[Docker]:
    """Run dockerd (driver vfs) in its own mount namespace; ``more`` are flags.

    It may have a bridge, in a network namespace of its ``own``, or ``here``, where it
    makes its rules as well.
    """
    docker = Docker(root)
    argv = ["unshare", "-m", "--propagation", "private"]
    up = 'ip link set lo up && exec dockerd "$@"'
    argv += ["-n", "sh", "-c", up, "dockerd"] if bridge == "own" else ["dockerd"]
    argv += ["--host", docker.socket, "--pidfile", f"{root}/docker.pid"]
    argv += ["--data-root", f"{root}/data", "--exec-root", f"{root}/exec"]
    argv += ["--bridge=none"] if bridge == "none" else []
    argv += ["--iptables=false", "--ip6tables=false"] if bridge != "here" else []
    argv += ["--storage-driver=vfs", "--log-level=error", *more]
    with running(argv, root / "docker.log", lambda: docker("version").returncode == 0):
        yield docker
