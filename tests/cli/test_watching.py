"""Health checks, events, and files in and out."""

import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from cli.store import Store
from cli.test_lifecycle import state
from cli.test_run import eventually


@pytest.fixture
def store(imported) -> Store:  # type: ignore[no-untyped-def]
    """One driver is enough."""
    found = Store(imported("overlay2"), "overlay2")
    yield found
    if ids := found.says("ps", "-aq").split():
        found.says("rm", "-f", "-v", *ids)


def run(store: Store, name: str, *words: str) -> None:
    store.says("run", "-d", "--network", "none", "--name", name, *words)


def test_a_container_is_asked_how_it_is(store: Store) -> None:
    flags = ("--health-cmd", "echo asked; test -e /ready", "--health-interval", "300ms")
    run(store, "box", *flags, "--health-retries", "2", "small:v1", "sleep", "600")
    assert "(health: starting)" in store.says("ps")
    assert eventually(
        lambda: state(store, "box", "{{.State.Health.Status}}") == "unhealthy"
    )
    store.says("exec", "box", "sh", "-c", "echo >/ready")
    assert eventually(lambda: "(healthy)" in store.says("ps"))
    found = json.loads(state(store, "box", "{{json .State.Health}}"))
    assert (found["Status"], found["FailingStreak"]) == ("healthy", 0)
    assert eventually(
        lambda: len(json.loads(state(store, "box", "{{json .State.Health.Log}}"))) == 5
    )
    last = json.loads(state(store, "box", "{{json .State.Health.Log}}"))[-1]
    assert (last["ExitCode"], last["Output"]) == (0, "asked\n")
    assert store.says("ps", "-q", "--filter", "health=healthy") != ""
    told = store.says(
        "events", "--since", "1h", "--until", "0s", "--filter", "container=box"
    )
    assert "health_status: unhealthy" in told
    store.says("stop", "-t", "0", "box")
    assert state(store, "box", "{{.State.Health.Status}}") == "unhealthy"


def test_of_a_long_answer_the_beginning_is_kept(store: Store) -> None:
    talk = "busybox head -c 9999 /dev/zero | busybox tr '\\0' x"
    flags = ("--health-cmd", talk, "--health-interval", "300ms")
    run(store, "box", *flags, "small:v1", "sleep", "600")
    form = "{{range .State.Health.Log}}{{.Output}} {{end}}"
    assert eventually(lambda: state(store, "box", form))
    assert state(store, "box", form).split()[0] == "x" * 4096 + "..."


def test_a_probe_that_takes_too_long_is_killed(store: Store) -> None:
    flags = ("--health-cmd", "sleep 77", "--health-interval", "200ms")
    more = (
        "--health-timeout",
        "200ms",
        "--health-retries",
        "1",
        "small:v1",
        "sleep",
        "600",
    )
    run(store, "box", *flags, *more)
    assert eventually(lambda: "(unhealthy)" in store.says("ps"))
    log = json.loads(state(store, "box", "{{json .State.Health.Log}}"))
    assert log[0]["ExitCode"] == -1
    assert log[0]["Output"] == "Health check exceeded timeout (200ms)"
    store.says("stop", "-t", "0", "box")


def test_no_healthcheck_is_none_and_nonsense_is_refused(store: Store) -> None:
    run(store, "box", "--no-healthcheck", "small:v1", "sleep", "600")
    assert state(store, "box", "{{json .Config.Healthcheck}}") == '{"Test":["NONE"]}'
    for words in (
        ("--no-healthcheck", "--health-cmd", "x"), ("--health-interval", "soon"),
        ("--health-retries", "-1"), ("--health-timeout", "-1s"), ("--health-interval", "1us"),
    ):  # fmt: skip
        done = store("run", *words, "small:v1", "true")
        assert done.returncode == 125, words


@pytest.mark.root
def test_events_tell_a_life(store: Store) -> None:
    begun = time.time()
    run(store, "box", "-l", "a=b", "small:v1", "sleep", "600")
    store.says("pause", "box")
    store.says("unpause", "box")
    store.says("rename", "box", "new")
    store.says("restart", "-t", "0", "new")
    store.says("rm", "-f", "new")
    words = ("events", "--since", str(begun), "--until", "0s")
    lines = store.says(*words, "--format", "{{.Action}}").split()
    wanted = "create start pause unpause rename kill kill die stop start restart kill die destroy"
    assert lines == wanted.split()
    assert store.says(*words, "--filter", "event=die").count("exitCode=137") == 2
    assert (
        store.says(*words, "--filter", "label=a=b", "--filter", "event=start").count(
            "\n"
        )
        == 2
    )
    assert (
        store.says(*words, "--filter", "container=box", "--filter", "event=start") != ""
    )
    assert store.says(*words, "--filter", "type=volume") == ""
    first = json.loads(store.says(*words, "--format", "{{json .}}").splitlines()[0])
    assert first["Actor"]["Attributes"] == {
        "a": "b",
        "image": "small:v1",
        "name": "box",
    }
    assert store("events", "--filter", "colour=red").returncode == 1
    assert store("events", "--since", "nonsense").returncode == 1


def test_events_are_told_while_they_happen(store: Store) -> None:
    watcher = subprocess.Popen(
        store.argv("events", "--filter", "event=die", "--format", "{{.Actor.ID}}"),
        stdout=subprocess.PIPE,
    )
    time.sleep(1)
    store.says("run", "--network", "none", "--name", "box", "small:v1", "true")
    assert watcher.stdout
    assert watcher.stdout.readline().decode().strip() == state(store, "box", "{{.Id}}")
    watcher.kill()
    watcher.communicate()


@pytest.mark.parametrize("running", [True, False])
def test_files_go_in_and_out_as_with_docker(
    store: Store, tmp_path: Path, running: bool
) -> None:
    (tmp_path / "src/sub").mkdir(parents=True)
    (tmp_path / "src/f").write_text("f\n")
    (tmp_path / "src/sub/g").write_text("g\n")
    (tmp_path / "src/link").symlink_to("f")
    out = tmp_path / "out"
    out.mkdir()
    run(store, "box", "-v", "kept:/kept", "small:v1", "sleep", "600")
    if not running:
        store.says("kill", "box")
        assert store.says("wait", "box") == "137\n"

    def copy(*words: str) -> int:
        return store("cp", *(w.replace("T/", f"{tmp_path}/") for w in words)).returncode

    assert copy("T/src/f", "box:/one") == 0
    assert copy("T/src", "box:/new") == 0
    assert copy("T/src", "box:/new") == 0
    assert copy("T/src/.", "box:/flat/") == 0
    assert copy("T/src/f", "box:/kept/") == 0
    for source, target in (
        ("one", "one"), ("new", "new"), ("flat", "flat"), ("kept/f", "vol"), ("new/link", "link"),
    ):  # fmt: skip
        assert copy(f"box:/{source}", f"T/out/{target}") == 0
    assert (out / "one").read_text() == (out / "vol").read_text() == "f\n"
    assert os.readlink(out / "link") == "f"
    assert sorted(os.listdir(out / "flat")) == ["f", "link", "sub"]
    assert (out / "new/src/sub/g").read_text() == "g\n"
    assert copy("-L", "box:/new/link", "T/out/followed") == 0
    assert (out / "followed").read_text() == "f\n"
    assert copy("box:/new/.", "T/out/contents") == 0
    assert sorted(os.listdir(out / "contents")) == ["f", "link", "src", "sub"]
    for words in (
        ("T/src", "box:/one"), ("T/src/f/", "box:/new"), ("T/nosuch", "box:/new"),
        ("T/src/f", "box:/nowhere/"), ("T/src/f", "box:/nowhere/x"), ("box:/nosuch", "T/out"),
        ("box:/one/", "T/out"), ("box:/new", "T/out/one"), ("box:/one", "T/nowhere/x"),
        ("box:/one", "box:/two"), ("T/src", "T/out"), ("nobody:/x", "T/out"), ("T/src", "nobody:/"),
    ):  # fmt: skip
        assert copy(*words) == 1, words
    store.says("rm", "-f", "box")
    store.says("volume", "rm", "kept")


def test_links_without_end_and_places_that_are_not_there_are_named(
    store: Store,
) -> None:
    store.says("create", "--name", "box", "small:v1", "true")
    script = "ln -s round /round; ln -s /nowhere/x /hanging; exec sleep 600"
    run(store, "links", "small:v1", "sh", "-c", script)
    assert eventually(lambda: store("exec", "links", "ls", "-d", "/hanging/").stderr)
    for words, said in (
        (("/etc/hostname", "links:/round"), "/round: too many levels of symbolic links"),
        (("-L", "links:/round", "/tmp"), "/round: too many levels of symbolic links"),
        (("/etc/hostname", "box:/no/x"), "no such container:path: box:/no/x"),
        (("box:/etc/passwd", "/no/such/x"), "/no/such: no such file or directory"),
        (("/etc/hostname", "links:/proc/x"), "x: no such file or directory"),
    ):  # fmt: skip
        done = store("cp", *words)
        assert (done.returncode, done.stderr) == (1, f"minidocker: {said}\n"), words


def test_a_tar_goes_in_and_out(store: Store, tmp_path: Path) -> None:
    run(store, "box", "small:v1", "sh", "-c", "mkdir /d; echo x >/d/f; exec sleep 600")
    assert eventually(lambda: store("exec", "box", "cat", "/d/f").returncode == 0)
    words = store.argv("cp", "box:/d", "-")
    data = subprocess.run(words, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["d", "d/f"]
    store.says("cp", "-", "box:/tmp", stdin=data)
    assert store.says("exec", "box", "cat", "/tmp/d/f") == "x\n"
    assert store("cp", "-", "box:/d/f", stdin=data).returncode == 1
    assert store("cp", "-", "box:/nowhere", stdin=data).returncode == 1
    assert store("cp", "-", "box:/tmp", stdin=b"garbage" * 99).returncode == 1


@pytest.mark.parametrize("running", [True, False])
def test_a_link_inside_leads_nowhere_outside(
    store: Store, tmp_path: Path, running: bool
) -> None:
    trap, mine = tmp_path / "trap", tmp_path / "mine"
    trap.mkdir()
    mine.write_text("mine")
    script = (
        f"busybox ln -s {trap} /out; busybox ln -s /etc/passwd /secret; exec sleep 600"
    )
    run(store, "box", "small:v1", "sh", "-c", script)
    assert eventually(lambda: "/secret" in store.says("diff", "box"))
    if not running:
        store.says("kill", "box")
        store.says("wait", "box")
    assert (
        store("cp", str(mine), "box:/out/").returncode == 1
    )  # inside there is no such place
    assert os.listdir(trap) == []
    store.says("cp", "-L", "box:/secret", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text().startswith("root:x:0:0::/root:/bin/sh\nwww")


def told(store: Store, *words: str) -> list[str]:
    """What `events` tells by a template."""
    return store.says("events", "--until", "0s", *words).splitlines()


@pytest.mark.root
def test_events_tell_of_images_networks_and_volumes(store: Store) -> None:
    start = str(time.time())
    form = ("--since", start, "--format", "{{.Type}} {{.Action}}")
    store.says("tag", "small:v1", "small:v2")
    store.says("rmi", "small:v2")
    store.says("network", "create", "wires")
    store.says("volume", "create", "data")
    words = ("-v", "data:/d", "-v", "/anon", "-l", "k=v", "--network", "wires")
    store.says("run", "--rm", *words, "--name", "box", "small:v1", "true")
    store.says("network", "rm", "wires")
    store.says("volume", "rm", "data")
    assert told(store, *form) == [
        "image tag", "image untag", "network create", "volume create",
        "container create", "volume create", "network connect",
        *["volume mount"] * 2, "container start", "container die",
        "network disconnect", *["volume unmount"] * 2, "volume destroy",
        "container destroy", "network destroy", "volume destroy",
    ]  # fmt: skip
    for filters, wanted in (
        (("type=image",), ["image tag", "image untag"]),
        (("type=network", "event=connect"), ["network connect"]),
        (("network=wires", "event=destroy"), ["network destroy"]),
        (("volume=data", "event=mount"), ["volume mount"]),
        (("image=small:v2",), ["image tag"]),
        (("label=k=v", "event=die"), ["container die"]),
        (("container=box", "event=start"), ["container start"]),
        (("image=small", "event=start"), ["container start"]),
        (("scope=swarm",), []),
    ):
        given = [word for one in filters for word in ("--filter", one)]
        assert told(store, *form, *given) == wanted, filters


@pytest.mark.root
def test_events_tell_what_is_done_to_a_container(store: Store) -> None:
    store.says("run", "-d", "--network", "none", "--name", "box", "small:v1", "sleep", "60")  # fmt: skip
    start = str(time.time())
    store("exec", "box", "sh", "-c", "exit 3")
    store.says("cp", "box:/etc/passwd", "-")
    store.says("cp", "/etc/hosts", "box:/tmp")
    store.says("top", "box")
    store.says("commit", "--pause=false", "-m", "msg", "box", "image:v1")
    store.says("export", "-o", "/dev/null", "box")
    store.says("update", "-m", "64m", "--memory-swap", "64m", "box")
    store.says("save", "-o", "/dev/null", "image:v1")
    store.says("rm", "-f", "box")
    store.says("rmi", "image:v1")
    found = told(store, "--since", start, "--format", "{{.Action}}")
    assert [one.partition(":")[0] for one in found] == [
        "exec_create", "exec_start", "exec_die", "archive-path", "extract-to-dir",
        "top", "tag", "commit", "export", "update", "save", "kill", "die", "destroy",
        "untag", "delete",
    ]  # fmt: skip
    about = "{{.Actor.Attributes.exitCode}}"
    only = ("--since", start, "--filter", "event=exec_die", "--format", about)
    assert told(store, *only) == ["3"]
    about = "{{.Actor.Attributes.comment}} {{.Actor.Attributes.imageRef}}"
    only = ("--since", start, "--filter", "event=commit", "--format", about)
    assert told(store, *only) == ["msg image:v1"]


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.root
@pytest.mark.parametrize("verb", [("logs", "-f", "box"), ("events",)])
def test_who_waits_costs_nothing_and_hears_at_once(
    store: Store, verb: tuple[str, ...]
) -> None:
    store.says("run", "-di", "--network", "none", "--name", "box", "small:v1", "cat")
    waiter = subprocess.Popen(store.argv(*verb), stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(5)  # it has gone to sleep for long
        before = processor_ticks(waiter.pid)
        time.sleep(2)
        assert processor_ticks(waiter.pid) - before <= 1
        calls = Path(f"/proc/{waiter.pid}/syscall").read_text().split()[0]
        assert calls in ("7", "73", "271")  # poll or ppoll
        store.says("exec", "box", "sh", "-c", "echo heard >/proc/1/fd/1")
        assert waiter.stdout
        said = waiter.stdout.readline()
        assert "heard" in said
    finally:
        waiter.terminate()
        waiter.wait(10)
