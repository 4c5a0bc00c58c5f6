"""What flags do that few people give: links, logs, propagation, volumes elsewhere."""

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stage import wait_until
from cli.store import Store


pytestmark = [
    pytest.mark.root,
    pytest.mark.parametrize("store", ["overlay2"], indirect=True),
]
QUIET = ("--network", "none")
SMALL = "small:v1"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A mount of its own, from which mounts travel."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    (place / "sub").mkdir()
    yield place
    subprocess.run(["umount", "-R", place], check=True)


@pytest.mark.parametrize(
    ("word", "arrives"), [("rshared", True), ("rslave", True), ("rprivate", False)]
)
def test_mounts_of_the_host_arrive_where_they_may(
    store: Store, mounted: Path, word: str, arrives: bool
) -> None:
    bind = f"{mounted}:/x:{word}"
    store.says("run", "-d", *QUIET, "--name", "box", "-v", bind, SMALL, "sleep", "60")
    subprocess.run(["mount", "-t", "tmpfs", "late", mounted / "sub"], check=True)
    (mounted / "sub/file").write_text("late\n")
    seen = store("exec", "box", "cat", "/x/sub/file")
    form = "{{range .Mounts}}{{.Mode}} {{.Propagation}}{{end}}"
    told = store.says("inspect", "-f", form, "box")
    store.says("rm", "-f", "box")
    assert (seen.stdout == "late\n") is arrives
    assert told == f"{word} {word}\n"


def test_mounts_of_a_container_come_out_only_if_shared(
    store: Store, mounted: Path
) -> None:
    script = "mount -t tmpfs inner /x/sub && echo in >/x/sub/file; exec sleep 60"
    for word, comes in (("shared", True), ("slave", False)):
        words = ("--privileged", "-v", f"{mounted}:/x:{word}")
        store.says(
            "run", "-d", *QUIET, "--name", "box", *words, SMALL, "sh", "-c", script
        )
        wait_until(lambda: store("exec", "box", "cat", "/x/sub/file").stdout == "in\n")
        assert (mounted / "sub/file").exists() is comes
        store.says("rm", "-f", "box")
        subprocess.run(["umount", mounted / "sub"], check=comes)  # it stays here


def test_a_mount_that_does_not_travel_is_refused(store: Store, tmp_path: Path) -> None:
    for words in (
        ("-v", f"{tmp_path}:/x:shared"),
        ("--mount", f"type=bind,src={tmp_path},dst=/x,bind-propagation=rslave"),
    ):
        subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
        subprocess.run(["mount", "--make-private", tmp_path], check=True)
        done = store("run", "--rm", *QUIET, *words, SMALL, "true")
        subprocess.run(["umount", tmp_path], check=True)
        assert done.returncode == 125
        assert f"is mounted on {tmp_path} but it is not a" in done.stderr


@pytest.mark.parametrize(
    "text",
    ["/etc:/", "/etc:/x:ro,rw", "/etc:/x:z,Z", "/etc:/x:nocopy", "~/x:/x", "/etc:x",
     "data:/x:rslave", "/etc:/x:shared,slave", "/etc:/x:loud"],
)  # fmt: skip
def test_a_bind_that_cannot_be_is_refused(store: Store, text: str) -> None:
    done = store("run", "--rm", *QUIET, "-v", text, SMALL, "true")
    assert done.returncode == 125
    assert store.says("volume", "ls", "-q") == ""


def test_one_place_is_mounted_once(store: Store, tmp_path: Path) -> None:
    binds = ("-v", f"{tmp_path}:/x", "-v", f"{tmp_path}:/x/")
    done = store("run", "--rm", *QUIET, *binds, SMALL, "true")
    assert done.returncode == 125
    assert "duplicate mount point: /x" in done.stderr


def test_volumes_may_be_elsewhere(store: Store, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept\n")
    bind = ("--opt", "type=none", "--opt", "o=bind", "--opt", f"device={tmp_path}")
    store.says("volume", "create", *bind, "place")
    tmpfs = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m")
    store.says("volume", "create", *tmpfs, "swift")
    shown = "cat /a/note; mount | busybox grep ' /b '"
    words = ("-v", "place:/a", "-v", "swift:/b")
    said = store.says("run", "--rm", *QUIET, *words, SMALL, "sh", "-c", shown)
    assert said.startswith("kept\n")
    assert "tmpfs on /b" in said
    assert "size=1024k" in said
    options = store.says("volume", "inspect", "-f", "{{json .Options}}", "place")
    assert f'"device":"{tmp_path}"' in options
    store.says("volume", "rm", "place", "swift")
    assert (tmp_path / "note").read_text() == "kept\n"


def test_options_of_volumes_that_say_nothing_are_refused(store: Store) -> None:
    for options, why in (
        (("colour=red",), 'invalid option: "colour"'),
        (("type=none",), 'missing required option: "device"'),
        (("device=/etc",), 'missing required option: "type"'),
        (("type=nfs", "device=:/x", "o=addr=10.0.0.1"), "cannot be mounted here"),
    ):
        given = [word for option in options for word in ("--opt", option)]
        done = store("volume", "create", *given, "odd")
        assert done.returncode == 1
        assert why in done.stderr
    quoted = 'type=volume,dst=/x,volume-opt=type=tmpfs,volume-opt=device=tmpfs,"volume-opt=o=size=1m,mode=700"'
    words = ("--rm", *QUIET, "--mount", quoted, SMALL)
    said = store.says("run", *words, "sh", "-c", "mount | busybox grep ' /x '")
    assert "size=1024k,mode=700" in said


def test_a_log_is_packed_and_tells_more(store: Store) -> None:
    options = "max-size=1k max-file=3 compress=true labels=a env=B tag={{.Name}}"
    words = [word for option in options.split() for word in ("--log-opt", option)]
    script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i + 1)); done"
    own = ("-l", "a=1", "-l", "c=3", "-e", "B=2", "--name", "box")
    store.says("run", *QUIET, *own, *words, SMALL, "sh", "-c", script)
    path = Path(store.says("inspect", "-f", "{{.LogPath}}", "box").strip())
    names = sorted(one.name[len(path.name) :] for one in path.parent.glob("*json.log*"))
    assert names == ["", ".1.gz", ".2.gz"]
    packed = gzip.decompress(Path(f"{path}.1.gz").read_bytes())
    assert b'"attrs":{"B":"2","a":"1","tag":"box"}' in packed
    lines = store.says("logs", "box").splitlines()
    assert lines[-1] == "line 39"
    assert lines == [f"line {n}" for n in range(40 - len(lines), 40)]
    assert len(lines) > 15
    told = store.says("logs", "--details", "--tail", "1", "box")
    assert told == "B=2,a=1,tag=box line 39\n"
    store.says("rm", "box")


def test_the_local_driver_keeps_logs_too(store: Store) -> None:
    words = (*QUIET, "--name", "box", "--log-driver", "local")
    store.says("run", *words, SMALL, "echo", "kept")
    assert store.says("logs", "box") == "kept\n"
    form = "{{.HostConfig.LogConfig.Type}}"
    assert store.says("inspect", "-f", form, "box") == "local\n"
    store.says("rm", "box")


def test_a_link_names_another_container(store: Store) -> None:
    own = ("--expose", "5432", "-e", "PGUSER=kb", "--name", "db", "-d")
    store.says("run", *own, SMALL, "sleep", "60")
    script = "env; cat /etc/hosts"
    said = store.says("run", "--rm", "--name", "web", "--link", "db:data", SMALL, "sh", "-c", script)  # fmt: skip
    ip = store.says("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db").strip()
    id = store.says("ps", "-q").strip()
    lines = said.splitlines()
    assert f"{ip}\tdata {id} db" in lines
    for line in (
        f"DATA_PORT=tcp://{ip}:5432",
        f"DATA_PORT_5432_TCP_ADDR={ip}",
        "DATA_NAME=/web/data",
        "DATA_ENV_PGUSER=kb",
    ):
        assert line in lines
    sleep = (SMALL, "sleep", "60")
    store.says("run", "-d", "--name", "guest", "--link", "db:data", *sleep)
    assert "DATA_ENV_PGUSER=kb" in store.says("exec", "guest", "env").splitlines()
    store.says("create", "--name", "web", "--link", "db:data", SMALL, "true")
    form = "{{json .HostConfig.Links}}"
    assert store.says("inspect", "-f", form, "web") == '["/db:/web/data"]\n'
    store.says("stop", "-t", "0", "db")
    assert "DATA_" not in store.says("exec", "guest", "env")
    store.says("rm", "-f", "guest")
    refused = store("start", "web")
    assert "cannot link to a non running container: /db AS /web/data" in refused.stderr
    assert store("rm", "--link", "web/nope").returncode == 1
    assert store("rm", "--link", "web").returncode == 1
    assert store.says("rm", "--link", "web/data") == "web/data\n"
    store.says("start", "web")
    assert store("run", "--link", "nobody", SMALL, "true").returncode == 125
    store.says("rm", "-f", "web", "db")


def test_a_policy_can_be_changed_while_it_runs(store: Store) -> None:
    script = "until [ -e /go ]; do sleep 0.1; done; rm /go"
    store.says("run", "-d", *QUIET, "--name", "box", SMALL, "sh", "-c", script)
    store.says("update", "--restart", "on-failure:4", "box")
    form = "{{.HostConfig.RestartPolicy.Name}} {{.RestartCount}}"
    assert store.says("inspect", "-f", form, "box") == "on-failure 0\n"
    store.says("update", "--restart", "always", "box")
    store.says("exec", "box", "busybox", "touch", "/go")
    wait_until(lambda: store.says("inspect", "-f", form, "box") == "always 1\n")
    store.says("rm", "-f", "box")
    store.says("run", "-d", "--rm", *QUIET, "--name", "box", SMALL, "sleep", "60")
    assert store("update", "--restart", "always", "box").returncode == 1
    assert store("update", "box").returncode == 1
    store.says("rm", "-f", "box")


def test_commit_lets_a_container_stand_still_meanwhile(store: Store) -> None:
    store.says("run", "-d", *QUIET, "--name", "box", SMALL, "sleep", "60")
    for words, wanted in ((("--pause=false",), []), ((), ["pause", "unpause"])):
        since = store.says(
            "run", "--rm", *QUIET, SMALL, "busybox", "date", "+%s"
        ).strip()
        store.says("commit", *words, "box", "image:v1")
        told = store.says("events", "--since", since, "--until", "0s", "--format", "{{.Action}}")  # fmt: skip
        assert [one for one in told.split() if "pause" in one] == wanted
        assert store.says("inspect", "-f", "{{.State.Status}}", "box") == "running\n"
    store.says("rm", "-f", "box")
    store.says("rmi", "image:v1")


def test_a_working_directory_of_exec_must_be_there(store: Store) -> None:
    store.says("run", "-d", *QUIET, "--name", "box", SMALL, "sleep", "60")
    for place, why in (("/nowhere", "chdir to cwd failed"), ("rel", "absolute path")):
        done = store("exec", "-w", place, "box", "pwd")
        assert done.returncode == 126
        assert why in done.stderr
    assert store.says("diff", "box") == ""
    store.says("rm", "-f", "box")


def test_inspect_finds_every_kind(store: Store) -> None:
    store.says("network", "create", "wires")
    store.says("volume", "create", "data")
    store.says("run", *QUIET, "--name", "box", SMALL, "sh", "-c", "echo 12345 >/five")
    form = ("-f", "{{.Name}}")
    for kind, name in (("network", "wires"), ("volume", "data"), ("container", "box")):
        told = store.says("inspect", "--type", kind, *form, name)
        assert told.strip().lstrip("/") == name
        assert store.says("inspect", *form, name) == told
    sizes = store.says("inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "box")
    own, whole = map(int, sizes.split())
    assert own == 6
    assert whole > 1_000_000
    assert store.says("inspect", "-f", "{{.SizeRw}}", "box") == "<nil>\n"
    assert "ignored for network" in store("inspect", "-s", "wires").stderr
    assert store("inspect", "--type", "wheel", "box").returncode == 1
    assert store("inspect", "--type", "volume", "box").returncode == 1
    store.says("rm", "box")
    store.says("network", "rm", "wires")
    store.says("volume", "rm", "data")
