"""A user without root: pasta or slirp4netns stands between container and host."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stage import OUTSIDE, Stage, fetch, stage, wait_until
from cli.store import Store


pytestmark = pytest.mark.root

NOBODY = 4242
HERE = Path(__file__).parents[2]
SERVER = """
import socket
s = socket.create_server(("", 80)); print("ready", flush=True)
while True:
    one, _ = s.accept(); one.sendall(b"from outside\\n"); one.close()
"""


@pytest.fixture
def host() -> Iterator[Stage]:
    with stage() as found:
        yield found


class User(Store):
    """A store of a user who may open /dev/net/tun, whose programs are on ``path``."""

    path = "/usr/bin:/bin"

    def argv(self, *words: str) -> list[str]:
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        env = ["env", f"PATH={self.path}", f"HOME={self.root}"]
        python, *rest = super().argv(*words)
        python = python.replace(str(HERE), "/mnt")  # this user cannot reach HERE
        return ["/usr/bin/setpriv", *ids, *env, python, *rest]


@pytest.fixture
def user(host: Stage, small_tree: Path) -> Iterator[User]:
    """Show the checkout at /mnt, and a tun that everybody may open, in our own mounts."""
    root = Path(tempfile.mkdtemp(prefix="minidocker-user-"))
    root.chmod(0o755)
    tun = root / "tun"
    os.mknod(tun, 0o20666, os.makedev(10, 200))
    tun.chmod(0o666)
    os.chown(root, NOBODY, NOBODY)
    for words in (["--bind", HERE, "/mnt"], ["--bind", tun, "/dev/net/tun"]):
        subprocess.run(["mount", *words], check=True)
    before = os.getcwd()
    os.chdir("/mnt")
    found = User(root / "store")
    try:
        found.says("import", "-", "small:v1", stdin=small_tree.read_bytes())
        yield found
    finally:
        if ids := found.says("ps", "-aq").split():
            found("rm", "-f", *ids)
        os.chdir(before)
        for path in ("/mnt", "/dev/net/tun"):
            subprocess.run(["umount", "-l", path], check=True)
        shutil.rmtree(root)


@pytest.fixture(params=["pasta", "slirp4netns"])
def through(request: pytest.FixtureRequest, user: User, tmp_path: Path) -> User:
    """Only one of the two programs is on the path."""
    only = user.root.parent / request.param
    only.mkdir()
    target = shutil.which(request.param)
    assert target, "install pasta and slirp4netns"
    (only / request.param).symlink_to(target)
    user.path = str(only)
    return user


def test_a_user_s_container_reaches_out_and_is_reached(
    through: User, host: Stage
) -> None:
    words = ["nsenter", f"--net=/proc/self/fd/{host.fd}", sys.executable, "-c", SERVER]
    with subprocess.Popen(words, pass_fds=[host.fd], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            server.stdout.readline()
            # an old pasta may keep the end of a connection to itself
            ask = f"busybox timeout 5 busybox nc {OUTSIDE} 80; true"
            done = through("run", "--rm", "small:v1", "sh", "-c", ask)
            assert done.stdout == "from outside\n", done.stderr
        finally:
            server.kill()
    script = "exec busybox nc -ll -p 80 -e echo served"
    flags = ("-p", "127.0.0.1:8080:80", "--name", "web")
    through.says("run", "-d", *flags, "small:v1", "sh", "-c", script)
    wait_until(lambda: fetch("127.0.0.1", 8080) == "served\n")
    assert through.says("port", "web") == "80/tcp -> 127.0.0.1:8080\n"
    through.says("rm", "-f", "web")
    assert fetch("127.0.0.1", 8080) == ""
    assert not uplinks(through)


def uplinks(store: User) -> list[str]:
    """The programs that still run for a store."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = place.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(store.root) in text and "minidocker" not in text:
            found.append(text)
    return found


def test_without_either_the_user_is_told_once(user: User) -> None:
    user.path = str(user.root)
    links = ("run", "--rm", "small:v1", "cat", "/proc/net/dev")
    first, second = user(*links), user(*links)
    assert "neither pasta nor slirp4netns is installed" in first.stderr
    assert second.stderr == ""
    for done in (first, second):
        assert [
            line.split(":")[0].strip() for line in done.stdout.splitlines()[2:]
        ] == ["lo"]


def test_networks_of_bridges_are_refused_with_the_reason(user: User) -> None:
    user.says("network", "create", "shop")
    done = user("run", "--rm", "--network", "shop", "small:v1", "true")
    assert done.returncode == 125
    assert "needs root" in done.stderr
