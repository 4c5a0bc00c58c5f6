"""What a bundle may ask for beyond a plain container, each seen to happen."""

import array
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from oci.conftest import Bundle, Runtime


pytestmark = pytest.mark.root
MOMENTS = [
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
]  # fmt: skip


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    assert what()


def hooks_that_note(log: Path, moments: list[str]) -> dict[str, Any]:
    """A hook for each moment; the one in the container writes to its own /log."""
    found = {}
    for name in moments:
        where = "/log" if name == "startContainer" else str(log)
        script = f'read state; echo "{name} $(hostname) $state" >> {where}'
        found[name] = [
            {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}
        ]
    return found


def test_hooks_run_in_order_and_in_their_namespaces(
    bundle: Bundle, ours: Runtime, tmp_path: Path
) -> None:
    runtime, log = ours, tmp_path / "log"
    bundle.config["hostname"] = "box"
    bundle.write(
        "true", hooks=hooks_that_note(log, MOMENTS), annotations={"team": "whales"}
    )
    runtime.says("create", "--bundle", str(bundle.path), "box")
    assert [line.split()[0] for line in log.read_text().splitlines()] == MOMENTS[:3]
    runtime.says("start", "box")
    until(lambda: runtime.state("box")["status"] == "stopped")
    runtime.says("delete", "box")
    lines = (
        log.read_text().splitlines()
        + (bundle.path / "rootfs/log").read_text().splitlines()
    )
    assert sorted(line.split()[0] for line in lines) == sorted(MOMENTS)
    host = os.uname().nodename
    for line in lines:
        name, where, text = line.split(" ", 2)
        state = json.loads(text)
        assert (state["id"], state["bundle"]) == ("box", str(bundle.path))
        assert state["annotations"] == {"team": "whales"}
        inside = name in ("createContainer", "startContainer")
        assert where == ("box" if inside else host) or (inside and where == host), name
        assert ("pid" in state and state["pid"] > 0) or name == "poststop"


def test_a_failing_hook_ends_create_and_leaves_nothing(
    bundle: Bundle, ours: Runtime
) -> None:
    for moment in ("prestart", "createRuntime", "createContainer"):
        fails = {
            moment: [
                {"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}
            ]
        }
        bundle.write("true", hooks=fails)
        done = ours("create", "--bundle", str(bundle.path), "box")
        assert done.returncode == 1
        assert "no luck" in done.stderr
        assert os.listdir(ours.root) == []
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(bundle.path) not in mounts


def test_the_console_socket_gets_the_master(
    bundle: Bundle, ours: Runtime, tmp_path: Path
) -> None:
    bundle.config["process"] |= {
        "terminal": True,
        "consoleSize": {"height": 33, "width": 99},
    }
    bundle.write("sh", "-c", "tty; stty size; sleep 60")
    (bundle.path / "rootfs/bin/stty").symlink_to("busybox")
    place = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen(1)
        ours.says(
            "create",
            "--bundle",
            str(bundle.path),
            "--console-socket",
            str(place),
            "box",
        )
        line, _ = listener.accept()
        with line:
            _, rights, _, _ = line.recvmsg(100, socket.CMSG_SPACE(4))
        numbers = array.array("i")
        numbers.frombytes(rights[0][2][:4])
    ours.says("start", "box")
    with open(numbers[0], "rb", buffering=0) as master:
        text = b""
        while text.count(b"\n") < 2:
            text += master.read(100)
    assert text.split() == [b"/dev/pts/0", b"33", b"99"]
    refused = ours("create", "--bundle", str(bundle.path), "other")
    assert "console socket" in refused.stderr


def test_descriptors_are_kept_when_asked_for(
    bundle: Bundle, ours: Runtime, tmp_path: Path
) -> None:
    bundle.write("sh", "-c", "echo kept >&3; ls /proc/self/fd | wc -l")
    words = ["run", "--preserve-fds", "1", "--bundle", str(bundle.path), "box"]
    call = [*ours.argv, "--root", str(ours.root), *words]
    argv = ["sh", "-c", f'exec "$@" 3>{tmp_path}/kept', "sh", *call]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert (tmp_path / "kept").read_text() == "kept\n"
    assert done.stdout == "5\n"  # 0, 1, 2, the kept one, and ls's own


def test_files_are_shown_with_other_owners(
    bundle: Bundle, ours: Runtime, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("")
    maps = [{"containerID": 0, "hostID": 1000, "size": 10}]
    one = {
        "destination": "/data", "source": str(source), "options": ["bind", "idmap"],
        "uidMappings": maps, "gidMappings": maps,
    }  # fmt: skip
    mounts = [*bundle.config["mounts"], one]
    script = "stat -c %u:%g /data/file"
    assert ours.run(bundle, "sh", "-c", script, mounts=mounts) == "1000:1000\n"


@pytest.fixture
def other() -> Iterator[int]:
    """A process with namespaces of its own, a user namespace among them."""
    argv = ["unshare", "-U", "-r", "-n", "-i", "-u", "sh", "-c"]
    process = subprocess.Popen([*argv, "hostname other; exec sleep 60"])
    until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "kinds", [["network", "uts"], ["user", "network", "uts", "ipc"]]
)
def test_namespaces_that_are_there_are_entered(
    kinds: list[str], bundle: Bundle, ours: Runtime, other: int
) -> None:
    names = {"network": "net"}
    paths = {k: f"/proc/{other}/ns/{names.get(k, k)}" for k in kinds}
    new = [k for k in ("mount", "pid", "ipc", "uts", "network") if k not in kinds]
    linux = {**bundle.config["linux"]}
    linux["namespaces"] = [{"type": k} for k in new] + [
        {"type": k, "path": p} for k, p in paths.items()
    ]
    del bundle.config["hostname"]
    for one in bundle.config["mounts"]:  # group 5 has no number over there
        one["options"] = [o for o in one.get("options", ()) if o != "gid=5"]
    os.chmod(bundle.path.parent, 0o755)
    script = (
        "hostname; for k in net uts user; do readlink /proc/self/ns/$k; done; id -u"
    )
    if "user" in kinds:
        for path in [bundle.path, *bundle.path.parents][:5]:
            os.chmod(path, os.stat(path).st_mode | 0o055)
    found = ours.run(bundle, "sh", "-c", script, linux=linux).split()
    assert found[0] == "other"
    theirs = [os.readlink(f"/proc/{other}/ns/{k}") for k in ("net", "uts", "user")]
    assert found[1:3] == theirs[:2]
    assert (found[3] == theirs[2]) == ("user" in kinds)
    assert found[4] == "0"


def test_limits_and_their_change(bundle: Bundle, ours: Runtime) -> None:
    limits = {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 20},
        "cpu": {"shares": 512},
    }
    linux = {
        **bundle.config["linux"],
        "cgroupsPath": "/minidocker-oci/box",
        "resources": limits,
    }
    bundle.write("sleep", "60", linux=linux)
    ours.says("create", "--bundle", str(bundle.path), "box")
    ours.says("start", "box")
    top = Path("/sys/fs/cgroup")
    assert (
        top / "memory/minidocker-oci/box/memory.limit_in_bytes"
    ).read_text() == f"{64 << 20}\n"
    assert (top / "pids/minidocker-oci/box/pids.max").read_text() == "20\n"
    ours.says("update", "--pids-limit", "30", "--memory", str(48 << 20), "box")
    ours.says("update", "--resources", "-", "box", stdin=b'{"cpu": {"shares": 256}}')
    assert (top / "pids/minidocker-oci/box/pids.max").read_text() == "30\n"
    assert (top / "cpu/minidocker-oci/box/cpu.shares").read_text() == "256\n"
    assert (
        json.loads(ours.says("events", "--stats", "box"))["data"]["pids"]["current"]
        == 1
    )
    assert json.loads(ours.says("ps", "-f", "json", "box")) == [
        ours.state("box")["pid"]
    ]
    ours.says("kill", "--all", "box", "KILL")
    until(lambda: ours.state("box")["status"] == "stopped")
    ours.says("delete", "box")
    for place in top.glob("*/minidocker-oci"):
        assert not (place / "box").exists()
        place.rmdir()


WRONG: list[Any] = [None, True, -1, "text", [], {}, [1], {"a": 1}, "\0"]


def places_in(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, the lists' first elements only."""
    if way:
        yield way
    pairs = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else ()
    )
    for key, one in pairs:
        yield from places_in(one, (*way, key))


def test_no_document_brings_a_traceback(bundle: Bundle) -> None:
    """Every place of a whole document, with every kind of wrong value there."""
    from minidocker.bundle import bundle_of
    from minidocker.cgroups import Group
    from minidocker.documents import Part
    from minidocker.errors import MinidockerError

    whole = bundle.config
    whole["hooks"] = {"prestart": [{"path": "/bin/true", "timeout": 1}]}
    whole["linux"] |= {
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
        },
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}],
        "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
    }
    whole["linux"]["namespaces"].append({"type": "user"})
    refused = 0
    for way in places_in(whole):
        for wrong in WRONG:
            document = json.loads(json.dumps(whole))
            place = document
            for step in way[:-1]:
                place = place[step]
            place[way[-1]] = wrong
            with suppress(MinidockerError):
                bundle_of(Part(document), str(bundle.path), Group("/box", 0))
                continue
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "cwd", ["/proc/self/fd/7", "/proc/self/fd/7/../../..", "/link"]
)
def test_no_working_directory_outside(cwd: str, bundle: Bundle, ours: Runtime) -> None:
    """CVE-2024-21626: a descriptor that is open here leads out."""
    (bundle.path / "rootfs/link").symlink_to("/proc/self/fd/7")
    bundle.config["process"]["cwd"] = cwd
    bundle.write("sh", "-c", "ls")
    done = ours("run", "--bundle", str(bundle.path), "box")
    assert done.returncode == 1
    assert "working directory" in done.stderr or "read" in done.stderr
    bundle.config["process"]["cwd"] = "/"
    bundle.write("sleep", "60")
    ours.says("create", "--bundle", str(bundle.path), "box")
    done = ours("exec", "--cwd", cwd, "box", "ls")
    assert done.returncode == 255
    assert not done.stdout


def test_a_mount_follows_no_link_out(
    bundle: Bundle, ours: Runtime, tmp_path: Path
) -> None:
    outside, source = tmp_path / "outside", tmp_path / "source"
    for path in (outside, source):
        path.mkdir()
    (bundle.path / "rootfs/out").symlink_to(outside)
    (bundle.path / "rootfs/up").symlink_to("../../../../../../../../tmp")

    def mounts(name: str) -> list[object]:
        one = {"source": str(source), "options": ["bind"]}
        return [*bundle.config["mounts"], {**one, "destination": f"/{name}/deep"}]

    script = ("grep", "-c", "deep", "/proc/self/mountinfo")
    assert ours.run(bundle, *script, mounts=mounts("up")) == "1\n"
    assert (bundle.path / "rootfs/tmp/deep").is_dir()
    bundle.write("true", mounts=mounts("out"))
    assert ours("run", "--bundle", str(bundle.path), "box").returncode == 1
    assert os.listdir(outside) == []
