"""Engines that we did not write: one dockerd for all tests, podman with its own store."""

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.store import Store
from peers import Docker, docker_daemon


class Peer:
    """A program with its options; call it with the words of a command line."""

    def __init__(self, command: list[str], **env: str) -> None:
        self.command, self.env = command, env

    def __call__(self, *words: object, stdin: bytes = b"") -> str:
        done = subprocess.run(
            [*self.command, *map(str, words)],
            input=stdin,
            capture_output=True,
            check=False,
            env={**os.environ, **self.env},
            timeout=120,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.decode(errors="replace")


class Daemon:
    """Docker, and where it keeps things."""

    def __init__(self, docker: Docker) -> None:
        self.docker = docker

    def __call__(self, *words: object, stdin: bytes | None = None) -> str:
        return self.docker.says(*map(str, words), stdin=stdin)

    def split_of(self, chain: str) -> Path:
        layers = self.docker.root / "data/image/vfs/layerdb/sha256"
        return layers / chain.removeprefix("sha256:") / "tar-split.json.gz"


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with docker_daemon(tmp_path_factory.mktemp("d")) as docker:
        yield Daemon(docker)


@pytest.fixture
def podman(tmp_path: Path) -> Peer:
    """podman with a store of its own, which lies with the test's files."""
    config = tmp_path / "storage.conf"
    (tmp_path / "podman").mkdir()
    config.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/podman/store"\n'
        f'runroot = "{tmp_path}/podman/run"\n'
    )
    return Peer(
        ["podman"], CONTAINERS_STORAGE_CONF=str(config), TMPDIR=str(tmp_path / "podman")
    )


@pytest.fixture(scope="session")
def skopeo() -> Peer:
    return Peer(["skopeo", "--insecure-policy"])


@pytest.fixture(scope="session")
def umoci() -> Peer:
    return Peer(["umoci"])


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[[str], Store]:
    """Make an empty store of overlay2."""

    def make(name: str) -> Store:
        return Store(tmp_path / name)

    return make


CONTEXT = {
    "Dockerfile": b"FROM scratch\nENV PATH=/bin\nCOPY bin /bin/\nCOPY site /site/\n"
    b'RUN ["/bin/busybox", "rm", "/site/old"]\n'
    b'RUN ["/bin/busybox", "ln", "-s", "index", "/site/link"]\nCMD ["/bin/busybox"]\n',
    "bin/busybox": Path("/bin/busybox").read_bytes(),
    "site/index": b"hello\n" * 100,
    "site/old": b"old\n",
}


def write_context(where: Path) -> Path:
    for name, body in CONTEXT.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        path.chmod(0o755)
    return where


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store with an image of four layers, `site:v1`, and its id."""
    where = tmp_path_factory.mktemp("built")
    store = Store(where / "store")
    store.says("build", "-t", "site:v1", str(write_context(where / "context")))
    return store, store.says("images", "-q", "--no-trunc", "site:v1").strip()


def members(path: Path) -> dict[str, bytes]:
    """The files of a tar by name."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
