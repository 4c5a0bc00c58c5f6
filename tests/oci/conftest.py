"""Bundles of a busybox, and two runtimes that are asked the same: runc and ours."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.store import Store


BUSYBOX = "/bin/busybox"
APPLETS = """
sh true false sleep ls cat id ps echo mount env pwd stat hostname touch mkdir head kill
tty test wc grep readlink sort dd dmesg
"""
OURS = f"#!{sys.executable}\nfrom minidocker.runtime_verbs import script\nscript()\n"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that dockerd and podman are told to call."""
    path = tmp_path_factory.mktemp("bin") / "minidocker-runtime"
    path.write_text(OURS)
    path.chmod(0o755)
    return path


def make_tree(where: Path) -> None:
    """Lay out a root file system with one static program."""
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "root"):
        (where / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, where / "bin/busybox")
    for name in APPLETS.split():
        (where / "bin" / name).symlink_to("busybox")
    (where / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:7:8::/srv:/\n")
    (where / "tmp").chmod(0o1777)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with that tree as the image `small`."""
    root = tmp_path_factory.mktemp("store")
    make_tree(root / "tree")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(root / "tree", ".")
    store = Store(root / "store")
    store.says("import", "-", "small", stdin=out.getvalue())
    return store


class Bundle:
    """A bundle that runc's own template began; ``change`` it, and write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_tree(path / "rootfs")
        subprocess.run(["runc", "spec"], cwd=path, check=True)
        self.config = json.loads((path / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["root"]["readonly"] = False
        # other workers have containers of the same name: each its own groups
        self.config["linux"]["cgroupsPath"] = f"/oci-{uuid.uuid4().hex}"

    def write(self, *argv: str, **changes: Any) -> "Bundle":
        config = {**self.config, **changes}
        if argv:
            config["process"] = {**config["process"], "args": list(argv)}
        (self.path / "config.json").write_text(json.dumps(config))
        return self


class Runtime:
    """A runtime with a root of its own; containers are named by the test."""

    def __init__(self, argv: list[str], name: str, root: Path) -> None:
        self.argv, self.name, self.root = argv, name, root

    def __call__(
        self, *words: str, stdin: bytes | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        argv = [*self.argv, "--root", str(self.root), *words]
        # a created container keeps its standard streams: files, which nobody waits for
        out, err = self.root.parent / "out", self.root.parent / "err"
        with out.open("wb") as one, err.open("wb") as two:
            given = (
                {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
            )
            done = subprocess.run(
                argv, stdout=one, stderr=two, check=False, timeout=60, **given, **more
            )
        return subprocess.CompletedProcess(
            argv, done.returncode, out.read_text(), err.read_text()
        )

    def says(self, *words: str, **more: Any) -> str:
        done = self(*words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def state(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.says("state", id))
        return found

    def run(self, bundle: Bundle, *argv: str, **changes: Any) -> str:
        """What a program prints that is run to its end."""
        bundle.write(*argv, **changes)
        return self.says("run", "--bundle", str(bundle.path), "run")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    path = tmp_path / "bundle"
    path.mkdir()
    return Bundle(path)


@pytest.fixture
def runtimes(tmp_path: Path, program: Path) -> Iterator[Callable[[str], Runtime]]:
    """Make runtimes by name; whatever they still have is removed."""
    made: list[Runtime] = []

    def make(name: str) -> Runtime:
        argv = ["runc"] if name == "runc" else [str(program)]
        root = tmp_path / name / "state"
        root.parent.mkdir()
        made.append(Runtime(argv, name, root))
        return made[-1]

    yield make
    for one in made:
        for id in os.listdir(one.root) if one.root.exists() else ():
            one("delete", "--force", id)


@pytest.fixture
def ours(runtimes: Callable[[str], Runtime]) -> Runtime:
    return runtimes("minidocker")


@pytest.fixture
def runc(runtimes: Callable[[str], Runtime]) -> Runtime:
    return runtimes("runc")
