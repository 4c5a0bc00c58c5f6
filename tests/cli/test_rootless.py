"""All of a container's life for a user without root: with many ids, and with one."""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.conftest import add
from cli.somebody import FIRST, NUMBER, SET_ASIDE, User, somebody


pytestmark = pytest.mark.root
ONE = "one"


@pytest.fixture(scope="module", params=["many", ONE])
def somebody_s(request: pytest.FixtureRequest, small_tree: Path) -> Iterator[User]:
    with somebody(small_tree, "" if request.param == ONE else SET_ASIDE) as found:
        yield found


@pytest.fixture
def user(somebody_s: User) -> Iterator[User]:
    yield somebody_s
    if left := somebody_s.says("ps", "-aq").split():
        somebody_s.says("rm", "-f", *left)


@pytest.fixture(scope="module")
def many(small_tree: Path) -> Iterator[User]:
    with somebody(small_tree, SET_ASIDE) as found:
        found.says("import", "-", "owned:v1", stdin=owned(small_tree, 33))
        yield found


def owned(tree: Path, uid: int) -> bytes:
    """The small tree, and a secret that only one of its users may read."""
    data = io.BytesIO(tree.read_bytes())
    with tarfile.open(fileobj=data, mode="a") as tar:
        add(tar, "home", type=tarfile.DIRTYPE, mode=0o700, uid=uid, gid=uid)
        add(tar, "home/secret", b"of 33\n", mode=0o600, uid=uid, gid=uid)
    return data.getvalue()


def run(user: User, *words: str) -> str:
    return user.says("run", "--rm", "--network", "none", *words)


def running(user: User, name: str, *words: str) -> None:
    flags = ("-d", "--name", name, "--network", "none")
    user.says("run", *flags, *words)


def test_a_container_has_a_root_and_others(many: User) -> None:
    assert run(many, "small:v1", "id").split()[:2] == ["uid=0(root)", "gid=0"]
    assert (
        run(many, "--user", "1000:7", "small:v1", "id") == "uid=1000 gid=7 groups=7\n"
    )
    maps = run(many, "small:v1", "cat", "/proc/self/uid_map").split()
    assert maps == ["0", str(NUMBER), "1", "1", str(FIRST), "65536"]
    assert run(many, "small:v1", "cat", "/proc/self/setgroups") == "allow\n"
    terminal = "busybox stat -c %g /dev/pts/0"
    assert (
        many.says(
            "run", "--rm", "-t", "--network", "none", "small:v1", "sh", "-c", terminal
        ).strip()
        == "5"
    )


def test_an_image_s_files_have_their_owners(many: User) -> None:
    look = "busybox stat -c %u:%g /home /home/secret /bin/sh"
    assert run(many, "owned:v1", "sh", "-c", look).split() == ["33:33", "33:33", "0:0"]
    assert run(many, "--user", "33", "owned:v1", "cat", "/home/secret") == "of 33\n"
    refused = many(
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "34",
        "owned:v1",
        "cat",
        "/home/secret",
    )
    assert refused.returncode == 1
    assert "Permission denied" in refused.stderr
    (place,) = many.root.glob("overlay2/*/diff/home")
    assert place.stat().st_uid == FIRST + 32


def test_copied_layers_have_owners_too(many: User, small_tree: Path) -> None:
    copies = User(many.root.parent / "copies", "vfs")
    copies.says("import", "-", "owned", stdin=owned(small_tree, 33))
    running(
        copies, "box", "--user", "33", "owned", "sh", "-c", "cat /home/secret; sleep 60"
    )
    wait(lambda: copies.says("logs", "box") == "of 33\n")
    copies.says("rm", "-f", "box")
    copies.says("rmi", "owned")
    assert not list(copies.root.glob("vfs/dir/*"))


def test_a_layer_keeps_what_chown_did(many: User) -> None:
    context = many.root.parent / "context"
    context.mkdir()
    (context / "note").write_text("n")
    (context / "Dockerfile").write_text(
        "FROM small:v1\nCOPY --chown=5:6 note /note\n"
        "RUN echo r > /run && busybox chown 1000:1001 /run && busybox chmod 4711 /run\n"
    )
    many.says("build", "-q", "-t", "chowned", str(context))
    look = ("busybox", "stat", "-c", "%u:%g %a", "/note", "/run")
    assert run(many, "chowned", *look) == "5:6 644\n1000:1001 4711\n"
    with tarfile.open(fileobj=io.BytesIO(saved(many, "chowned"))) as tar:
        (image,) = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        inside = {}
        for layer in image["Layers"]:
            with tarfile.open(fileobj=tar.extractfile(layer)) as one:
                inside |= {m.name: (m.uid, m.gid) for m in one}
    assert inside["run"] == (1000, 1001)
    assert inside["note"] == (5, 6)


def saved(user: User, image: str) -> bytes:
    path = user.root.parent / "saved.tar"
    user.says("save", "-o", str(path), image)
    return path.read_bytes()


def test_files_of_others_are_copied_committed_exported_and_removed(many: User) -> None:
    make = "busybox mkdir -m 700 /mine && echo x > /mine/file && busybox chmod 600 /mine/file; sleep 60"
    running(
        many,
        "maker",
        "--user",
        "33",
        "small:v1",
        "sh",
        "-c",
        f"cd /tmp; {make.replace('/mine', '/tmp/mine')}",
    )
    wait(lambda: many("exec", "maker", "cat", "/tmp/mine/file").stdout == "x\n")
    out = many.root.parent / "out"
    many.says("cp", "maker:/tmp/mine", str(out))
    assert (out / "file").read_text() == "x\n"
    assert (out / "file").stat().st_uid == NUMBER
    many.says("cp", str(out / "file"), "maker:/tmp/mine/again")
    assert many.says("exec", "-u", "0", "maker", "cat", "/tmp/mine/again") == "x\n"
    assert "A /tmp/mine/file" in many.says("diff", "maker")
    assert many.says(
        "ps", "-s", "--filter", "name=maker", "--format", "{{.Size}}"
    ).startswith("4B")
    many.says("commit", "maker", "made")
    assert run(many, "--user", "33", "made", "cat", "/tmp/mine/file") == "x\n"
    began = time.monotonic()
    many.says("stop", "-t", "0", "maker")
    many.says("start", "maker")
    many.says("rm", "-f", "maker")
    assert time.monotonic() - began < 20
    many.says("rmi", "made")
    assert not many.says("ps", "-aq")


def wait(found: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_everybody_in_a_store_is_in_one_namespace(many: User) -> None:
    for name in ("first", "second"):
        running(many, name, "--user", "33", "small:v1", "sleep", "60")
    form = ("inspect", "--format", "{{.State.Pid}}")
    links = {
        os.readlink(f"/proc/{many.says(*form, name).strip()}/ns/user")
        for name in ("first", "second")
    }
    assert len(links) == 1
    many.says("rm", "-f", "first", "second")
    run(many, "small:v1", "true")
    written = [name.split("-")[0] for name in os.listdir(many.root / "userns")]
    assert len(written) == 1, "the dead are struck off"


def test_an_owner_beyond_the_range_is_refused(many: User, small_tree: Path) -> None:
    done = many("import", "-", "beyond", stdin=owned(small_tree, 70000))
    assert done.returncode == 1
    assert "70000:70000 is beyond the 65537 ids of this user" in done.stderr
    assert "/etc/subuid" in done.stderr
    assert "beyond" not in many.says("images")


def test_prune_leaves_nothing_of_anybody(many: User) -> None:
    many.says(
        "run",
        "--network",
        "none",
        "--user",
        "33",
        "small:v1",
        "sh",
        "-c",
        "echo x > /tmp/of-33",
    )
    many.says(
        "run",
        "--network",
        "none",
        "-v",
        "kept:/tmp",
        "--user",
        "33",
        "small:v1",
        "sh",
        "-c",
        "echo y > /tmp/of-33",
    )
    assert "Total reclaimed space" in many.says("system", "prune", "-f")
    many.says("volume", "rm", "kept")
    assert not list(many.root.glob("volumes/kept*"))
    assert "small" in many.says("system", "df", "-v")
    many.says("system", "check")


@pytest.mark.parametrize(
    ("path", "before", "why"),
    [
        ("/usr/bin", ("/usr/bin/setpriv", "--no-new-privs"), "no_new_privs is set"),
        ("/nowhere", (), "newuidmap is not installed"),
    ],
)
def test_one_id_is_the_way_out(
    many: User, path: str, before: tuple[str, ...], why: str
) -> None:
    other = User(many.root.parent / f"other-{path[1:4]}")
    other.path, other.before = path, before
    assert f"one user in a container: {why}" in other("info").stdout
    with open("/etc/passwd", "rb") as file:
        body = io.BytesIO(file.read())
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        add(tar, "f", body.getvalue(), uid=33)
    other.says("import", "-", "tiny", stdin=data.getvalue())
    (made,) = other.root.glob("overlay2/*/diff/f")
    assert made.stat().st_uid == NUMBER


def test_info_counts_the_users(many: User) -> None:
    said = many("info").stdout
    assert "65537 users in a container" in said
    assert "Namespaces: yes, containers are isolated, without root" in said


# A container's life, whoever is inside


def test_a_life_from_create_to_rm(user: User) -> None:
    script = "echo began; trap 'echo ended; exit 3' TERM; while :; do sleep 0.05; done"
    user.says(
        "create", "--name", "box", "--network", "none", "small:v1", "sh", "-c", script
    )
    user.says("start", "box")
    wait(lambda: "began" in user.says("logs", "box"))
    assert user.says("exec", "box", "id", "-u") == "0\n"
    assert user.says("exec", "-i", "box", "cat", stdin=b"in\n") == "in\n"
    assert user.says("exec", "-d", "box", "sh", "-c", "echo > /detached") == ""
    wait(lambda: user("exec", "box", "ls", "/detached").returncode == 0)
    wait(lambda: "sleep 0.05" in user.says("top", "box"))
    assert user.says("ps", "--format", "{{.Names}} {{.Status}}").startswith("box Up")
    user.says("rename", "box", "crate")
    user.says("stop", "crate")
    assert user.says("wait", "crate") == "3\n"
    assert user.says("logs", "crate") == "began\nended\n"
    user.says("restart", "crate")
    user.says("kill", "crate")
    assert user.says("wait", "crate") == "137\n"
    refused = user("exec", "crate", "true")
    assert refused.returncode == 1
    assert "is not running" in refused.stderr
    user.says("rm", "crate")
    assert not user.says("ps", "-aq")


def test_a_container_is_asked_how_it_is(user: User) -> None:
    check = ("--health-cmd", "echo fine", "--health-interval", "100ms")
    running(user, "box", *check, "small:v1", "sleep", "60")
    form = ("inspect", "--format", "{{.State.Health.Status}}", "box")
    wait(lambda: user.says(*form) == "healthy\n")
    user.says("rm", "-f", "box")


def test_namespaces_are_shared_with_another_container(user: User) -> None:
    running(user, "box", "small:v1", "sleep", "60")
    words = [
        word
        for kind in ("pid", "ipc", "network")
        for word in (f"--{kind}", "container:box")
    ]
    said = user.says("run", "--rm", *words, "small:v1", "sh", "-c", "ps; exit 0")
    assert "sleep 60" in said
    done = user("run", "--rm", *words, "small:v1", "sh", "-c", "exit 7")
    assert done.returncode == 7, done.stderr
    user.says("rm", "-f", "box")


def test_copies_go_in_and_out_of_what_runs_and_what_does_not(user: User) -> None:
    source = user.root.parent / "source"
    source.write_text("from the host")
    running(user, "box", "small:v1", "sleep", "60")
    for runs in (True, False):
        user.says("cp", str(source), "box:/tmp/copy")
        back = user.root.parent / "back"
        user.says("cp", "box:/tmp/copy", str(back))
        assert back.read_text() == "from the host"
        assert (back.stat().st_uid, back.stat().st_gid) == (NUMBER, NUMBER)
        back.unlink()
        if runs:
            user.says("kill", "box")
            user.says("wait", "box")
    user.says("rm", "box")


def test_volumes_are_made_filled_and_removed(user: User) -> None:
    user.says("volume", "create", "data")
    run(user, "-v", "data:/data", "small:v1", "sh", "-c", "echo kept > /data/file")
    assert run(user, "-v", "data:/data:ro", "small:v1", "cat", "/data/file") == "kept\n"
    assert "plain" in run(user, "-v", "filled:/bin", "small:v1", "ls", "/bin")
    assert user.says("volume", "ls", "-q").split() == ["data", "filled"]
    place = user.says(
        "volume", "inspect", "--format", "{{.Mountpoint}}", "data"
    ).strip()
    assert Path(place, "file").read_text() == "kept\n"
    user.says("volume", "rm", "data", "filled")
    assert user.says("volume", "ls", "-q") == ""


def test_a_killed_supervisor_leaves_nothing_to_the_next(user: User) -> None:
    running(user, "box", "--user", "33", "small:v1", "sleep", "60")
    pid = int(user.says("inspect", "--format", "{{.State.Pid}}", "box"))
    above = next(
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("PPid")
    )
    os.kill(int(above), 9)
    wait(lambda: not os.path.exists(f"/proc/{pid}"))
    assert "Exited" in user.says("ps", "-a", "--format", "{{.Status}}")
    user.says("rm", "box")


def test_two_users_of_one_store_begin_at_once(user: User) -> None:
    words = user.argv("run", "--rm", "--network", "none", "small:v1", "id", "-u")
    started = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(6)]
    assert [one.communicate()[0] for one in started] == [b"0\n"] * 6
