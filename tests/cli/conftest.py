"""A store of each driver, with one small image."""

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.stage import Stage, stage
from cli.store import Store


BUSYBOX = "/bin/busybox"
APPLETS = "sh echo ls cat true false id sleep ps env hostname mount pwd kill mkdir rm"
PASSWD = b"root:x:0:0::/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n"


def add(tar: tarfile.TarFile, name: str, body: bytes = b"", **more: object) -> None:
    import io

    member = tarfile.TarInfo(name)
    member.size = len(body)
    member.mode = 0o755
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(body))


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar with a static busybox, a passwd, a /tmp and a broken program."""
    assert os.path.exists(BUSYBOX), "apt install busybox-static"
    path = tmp_path_factory.mktemp("tree") / "small.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "root"):
            add(tar, name, type=tarfile.DIRTYPE)
        add(tar, "tmp", type=tarfile.DIRTYPE, mode=0o1777)
        add(tar, "bin/busybox", Path(BUSYBOX).read_bytes())
        for applet in APPLETS.split():
            add(tar, f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox")
        add(tar, "etc/passwd", PASSWD, mode=0o644)
        add(tar, "bin/plain", b"not a program", mode=0o644)
        add(tar, "bin/orphan", b"#!/no/such/interpreter\n")
    return path


@pytest.fixture(scope="session")
def imported(
    tmp_path_factory: pytest.TempPathFactory, small_tree: Path
) -> Callable[[str], Path]:
    """Make a store that has the image `small`, once for each driver."""
    made: dict[str, Path] = {}

    def make(driver: str) -> Path:
        if driver not in made:
            root = tmp_path_factory.mktemp(driver)
            Store(root, driver).says("import", str(small_tree), "small:v1")
            made[driver] = root
        return made[driver]

    return make


@pytest.fixture(params=["overlay2", "vfs"])
def store(
    request: pytest.FixtureRequest, imported: Callable[[str], Path]
) -> Iterator[Store]:
    """The store of a driver; containers that a test leaves are an error."""
    found = Store(imported(request.param), request.param)
    yield found
    left = found.says("ps", "-aq").split()
    if left:
        found("rm", "-f", *left)
    assert not left, "a test must remove its containers"


@pytest.fixture
def host() -> Iterator[Stage]:
    """A host of our own, with a network beside it."""
    with stage() as found:
        yield found


@pytest.fixture
def shop(host: Stage, imported: Callable[[str], Path]) -> Iterator[Store]:
    """A store in the stage's host; its containers and networks are removed."""
    store = Store(imported("overlay2"))
    shutil.rmtree(store.root / "networks", ignore_errors=True)
    yield store
    clean(store)


def clean(store: Store) -> None:
    """Remove all containers, and the networks that nobody uses."""
    if ids := store.says("ps", "-aq").split():
        store("rm", "-f", *ids)
    store("network", "prune", "-f")
