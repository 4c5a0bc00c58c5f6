"""The third driver, through the command line: builds, runs, grows, and survives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minidocker.devices import DeviceMapper, devices
from minidocker.loops import attach_loop, detach_loop


SMALL = ("dm.basesize=200M", "dm.loopdatasize=64M", "dm.loopmetadatasize=4M")
DOCKERFILE = """\
FROM minidocker/base
RUN echo one > /one && mkdir /d && echo x > /d/x
COPY file /file
RUN rm /d/x && echo two >> /one
CMD ["cat", "/one"]
"""


class Store:
    """A store of one driver, used by its command line."""

    def __init__(self, root: Path, driver: str) -> None:
        self.root = root
        self.words = [sys.executable, "-m", "minidocker", "--root", str(root)]
        self.words += ["--storage-driver", driver]
        if driver == "devicemapper":
            for option in SMALL:
                self.words += ["--storage-opt", option]

    def start(self, *words: str, **more: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.words, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,  # type: ignore[call-overload]
        )

    def do(self, *words: str, status: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate()
        assert process.returncode == status, out + err
        return out.strip()

    def build(self, tag: str, text: str, **files: str) -> str:
        """Build a Dockerfile with these files beside it; return the image's id."""
        context = self.root.with_name("context")
        context.mkdir(exist_ok=True)
        for name, body in {"Dockerfile": text, **files}.items():
            (context / name).write_text(body)
        return self.do("build", "-q", "-t", tag, str(context))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "dm", "devicemapper")


def until(true: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def no_devices() -> bool:
    with DeviceMapper() as dm:
        return devices(dm) == []


def test_the_same_dockerfile_gives_the_same_image_on_every_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "file").write_text("hello\n")
    os.utime(context / "file", (1, 1))
    ids, diffs = {}, {}
    for driver in ("vfs", "overlay2", "devicemapper"):
        store = Store(tmp_path / driver, driver)
        ids[driver] = store.do("build", "-q", "-t", "same", str(context))
        assert store.do("run", "--rm", "same") == "one\ntwo"
        store.do("run", "--name", "box", "same", "sh", "-c", "rm /file; echo 3 > /d/y")
        diffs[driver] = store.do("diff", "box")
    assert len(set(ids.values())) == 1, ids
    assert set(diffs.values()) == {"C /d\nA /d/y\nD /file"}
    until(no_devices)


def test_a_detached_container_keeps_the_pool_and_takes_it_along(store: Store) -> None:
    id = store.do("run", "-d", "minidocker/base", "sleep", "1000")
    assert not no_devices()
    assert store.do("exec", id, "sh", "-c", "echo in > /f; cat /f") == "in"
    found = json.loads(store.do("inspect", id))[0]
    assert found["State"]["Running"]
    store.do("kill", id)
    store.do("wait", id)
    until(no_devices)
    assert store.do("diff", id) == "A /f"
    store.do("rm", id)


def test_the_pool_grows_while_a_container_writes(store: Store) -> None:
    store.do("run", "--rm", "minidocker/base", "true")
    data = store.root / "devicemapper" / "devicemapper" / "data"
    before = data.stat().st_size
    script = "dd if=/dev/zero of=/big bs=1M count=64 conv=fsync && wc -c < /big"
    out = store.do("run", "--rm", "minidocker/base", "sh", "-c", script)
    assert int(out.split()[-1]) == 64 << 20
    assert data.stat().st_size > before


def test_inspect_and_info_tell_of_the_device(store: Store) -> None:
    store.do("run", "--name", "box", "minidocker/base", "true")
    found = json.loads(store.do("inspect", "box"))[0]["GraphDriver"]
    assert found["Name"] == "devicemapper"
    assert re.fullmatch(
        r"minidocker-\d+:\d+-\d+-[0-9a-f]{64}", found["Data"]["DeviceName"]
    )
    info = store.do("info")
    assert "Pool Blocksize: 65.5kB" in info
    assert "Backing Filesystem: ext4" in info


def test_a_killed_build_leaves_a_pool_that_the_next_command_uses(
    store: Store, tmp_path: Path
) -> None:
    store.do("run", "--rm", "minidocker/base", "true")
    context = tmp_path / "context"
    context.mkdir()
    text = "FROM minidocker/base\n" + "RUN echo x >> /x\n" * 4
    (context / "Dockerfile").write_text(text)
    for number in range(4):
        build = store.start("build", "--no-cache", str(context), start_new_session=True)
        time.sleep(0.15 * (number + 1))
        os.killpg(build.pid, signal.SIGKILL)
        build.communicate()
        assert store.do("run", "--rm", "minidocker/base", "echo", "ok") == "ok"
    store.do("build", "-t", "whole", str(context))
    assert store.do("run", "--rm", "whole", "wc", "-l", "/x").split()[0] == "4"
    until(no_devices)
    metadata = store.root / "devicemapper" / "devicemapper" / "metadata"
    loop = attach_loop(str(metadata))
    done = subprocess.run(["thin_check", loop], capture_output=True, check=False)
    detach_loop(loop)
    assert done.returncode == 0, done


def test_nonsense_is_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "minidocker", "--root", str(tmp_path / "x")]
    words += ["--storage-driver", "devicemapper"]
    for option, said in (
        ("dm.basesise=1G", "dm.basesize"),
        ("dm.basesize=much", 'invalid size "much"'),
        ("dm.fs=ntfs", 'unknown file system "ntfs"'),
    ):
        done = subprocess.run(
            [*words, "--storage-opt", option, "images"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 125
        assert said in done.stderr


def test_copies_and_commits_are_the_same_layers_on_every_driver(tmp_path: Path) -> None:
    """No epoch: the tar is made while the files arrive; `save` checks its digest."""
    context = tmp_path / "context"
    (context / "tree/below").mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM minidocker/base\nCOPY tree /d/e\n")
    for number in range(50):
        (context / f"tree/below/{number}").write_text(f"{number}\n" * number)
    layers = {}
    for driver in ("overlay2", "devicemapper"):
        store = Store(tmp_path / driver, driver)
        store.do("build", "-q", "-t", "copied", str(context))
        make = "mkdir /n; echo 3 > /n/new; touch -d @9 /n/new /n; echo 4 > /d/f"
        box = ("run", "--network", "none", "--name", "box", "copied", "sh", "-c")
        store.do(*box, f"{make}; touch -d @9 /d/f /d")
        store.do("commit", "box", "committed")
        store.do("rm", "box")
        store.do("save", "-o", str(tmp_path / "saved.tar"), "committed")
        [image] = json.loads(store.do("inspect", "committed"))
        layers[driver] = image["RootFS"]["Layers"]
    assert layers["overlay2"] == layers["devicemapper"]
    assert len(layers["overlay2"]) == 3
    until(no_devices)
